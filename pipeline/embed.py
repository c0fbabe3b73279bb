"""The write path on one screen: a shard from open to commit.

    read_samples -> decode, encode, Arrow table (lanes) -> ParquetWriter -> ledger entry -> commit

On a CPU each core is a lane, which reads, decodes and encodes batches of its own; an accelerator is
fed by threads that decode (batches.py). Rows are written in the order of the tar.

One call embeds one shard in bounded memory, whatever the shard's size. The order at the end is what
makes kills harmless: the ledger entry is put in place first, the Parquet file last, each whole; a
shard is done if and only if both are there and agree. The entry also carries that of whole rows
which are there before: these stay done until their file is replaced.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

import pyarrow as pa

from chiasm.pipeline.collection import (
    Footer,
    LedgerEntry,
    ParquetWriter,
    Tally,
    entry_to_replace,
    schema_version,
    write_entry,
)
from chiasm.pipeline.editions import EmbedSettings, edition_of
from chiasm.pipeline.encode_batch import encode, require_some_taken
from chiasm.pipeline.encoders import Encoder, token_dims
from chiasm.pipeline.images import DECODING
from chiasm.pipeline.lanes import work_on_batches
from chiasm.pipeline.records import Batch, Dropped, Note, Sample, Shard
from chiasm.pipeline.shards import RULES, ChangedError, read_samples
from chiasm.pipeline.storage import Folder, display_name
from chiasm.pipeline.timing import Stopwatch

LOG = logging.getLogger(__name__)

# Of a batch: its rows, the samples that were refused, notes.
Encoded = tuple[pa.Table, tuple[tuple[Dropped, tuple[str, ...]], ...], tuple[Note, ...]]


def embed_shard(
    shard: Shard,
    encoder: Encoder,
    folder: Folder,
    settings: EmbedSettings,
    *,
    run_id: str,
    limit: int | None = None,
    operator_threads: int = 1,
    watch: Callable[[Tally], None] | None = None,
) -> LedgerEntry:
    """Embed one shard into a collection and return its ledger entry.

    limit: stop after that many samples (the edition then says so). operator_threads: of torch's
    operators in each lane, on a CPU. watch: called after each batch.
    A shard that was replaced after it was listed is embedded as it is now: source and edition of
    the entry say so. Raises SourceError when the shard cannot be read, or changes while it is,
    StorageError when the target cannot be written, EncoderError when the model takes no sample; in
    each case nothing has its final name.
    """
    try:
        return _embed(shard, encoder, folder, settings, run_id, limit, operator_threads, watch)
    except ChangedError as error:
        if error.now is None:
            raise
        LOG.info("%s", error, extra={"shard": shard.id})
        return _embed(error.now, encoder, folder, settings, run_id, limit, operator_threads, watch)


def _embed(
    shard: Shard,
    encoder: Encoder,
    folder: Folder,
    settings: EmbedSettings,
    run_id: str,
    limit: int | None,
    operator_threads: int,
    watch: Callable[[Tally], None] | None,
) -> LedgerEntry:
    began = time.time()
    where = display_name(shard.url)
    LOG.info("opened %s", where, extra={"shard": shard.id})
    tally, clock, first = Tally(), Stopwatch(), Limit(limit)
    wanted = {modality: given.extensions for modality, given in encoder.modalities.items()}
    samples = first.take(read_samples(shard, settings.read, wanted))
    with ParquetWriter(folder, shard, encoder.dims, run_id, token_dims(encoder)) as rows:

        def work(batch: Batch) -> Encoded:
            embedded = encode(batch, encoder, clock, where)
            with clock.stage("write"):
                return rows.table(embedded), embedded.refused, embedded.notes

        made = work_on_batches(
            samples, encoder, settings.decode, settings.batch, work,
            device=encoder.device, operator_threads=operator_threads,
            sound=settings.sound, tally=tally, clock=clock,
        )  # fmt: skip
        for table, refused, notes in made:
            with clock.stage("write"):
                rows.append(table)
            tally.keep(len(table))
            for note in notes:
                tally.note(note)
            for drop, missing in refused:
                tally.refuse(drop, missing)
            require_some_taken(tally, encoder, where)
            if watch is not None:
                watch(tally)
        require_some_taken(tally, encoder, where)  # where every sample was refused, none came here
        entry = ledger_entry(shard, encoder, settings, tally, clock, first.limit_reached, began)
        commit_shard(folder, entry, rows, footer_of(entry, encoder), run_id)
    entry = replace(entry, span=(began, time.time()))
    _log_commit(entry)
    return entry


def commit_shard(
    folder: Folder, entry: LedgerEntry, rows: ParquetWriter, footer: Footer, run_id: str
) -> None:
    """The entry first: no Parquet file is ever there without its entry. It carries that of the rows
    which are there now."""
    replaced = entry_to_replace(folder, entry.source.id)
    write_entry(folder, replace(entry, replaced=replaced), run_id)
    rows.commit(footer)


def _log_commit(entry: LedgerEntry) -> None:
    """The line of a shard that is done."""
    spent = entry.span[1] - entry.span[0] if entry.span else 0.0
    LOG.info(
        "committed %s: %d rows, %d dropped, %.2f s",
        display_name(entry.source.url), entry.rows, entry.dropped_count, spent,
        extra={"shard": entry.source.id, "rows": entry.rows, "dropped": entry.dropped_count,
               "seconds": round(spent, 3)},
    )  # fmt: skip


class Limit:
    """Lets the first `limit` samples pass, and knows whether there were more."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.limit_reached: int | None = None

    def take(self, items: Iterator[Sample | Dropped | Note]) -> Iterator[Sample | Dropped | Note]:
        passed = 0
        try:
            for item in items:
                if not isinstance(item, Note):
                    if passed == self.limit:
                        self.limit_reached = self.limit
                        return
                    passed += 1
                yield item
        finally:
            if isinstance(items, Generator):
                items.close()  # which looks whether the shard has changed


def ledger_entry(
    shard: Shard,
    encoder: Encoder,
    settings: EmbedSettings,
    tally: Tally,
    clock: Stopwatch,
    limit_reached: int | None,
    began: float,
) -> LedgerEntry:
    return LedgerEntry(
        source=shard,
        edition=edition_of(
            shard, encoder.fingerprint, settings, limit_reached, rules=RULES, decoding=DECODING
        ),
        rows=tally.rows,
        dropped=tuple(tally.dropped),
        notes=tuple(tally.notes),
        drop_counts=dict(tally.drop_counts),
        note_counts=dict(+tally.note_counts),
        rules=RULES,
        decoding=DECODING,
        seconds={stage: round(seconds, 4) for stage, seconds in clock.seconds.items()},
        span=(began, time.time()),
    )


def footer_of(entry: LedgerEntry, encoder: Encoder) -> Footer:
    return Footer(
        source=entry.source,
        edition=entry.edition,
        rows=entry.rows,
        dropped=entry.dropped_count,
        encoder=encoder.name,
        fingerprint=encoder.fingerprint,
        dim=max(encoder.dims.values()),
        schema=schema_version(encoder.dims, token_dims(encoder)),
        dims=dict(encoder.dims),
        tokens=token_dims(encoder),
    )
