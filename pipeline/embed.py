"""The write path on one screen: a shard from open to commit.

    read_samples -> batches (decode threads) -> encode -> ParquetWriter -> ledger entry -> commit

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

from chiasm.pipeline.batches import batches
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
from chiasm.pipeline.encoders import Encoder
from chiasm.pipeline.records import Dropped, Note, Sample, Shard
from chiasm.pipeline.shards import RULES, ChangedError, read_samples
from chiasm.pipeline.storage import Folder, display_name
from chiasm.pipeline.timing import Stopwatch

LOG = logging.getLogger(__name__)


def embed_shard(
    shard: Shard,
    encoder: Encoder,
    folder: Folder,
    settings: EmbedSettings,
    *,
    run_id: str,
    limit: int | None = None,
    watch: Callable[[Tally], None] | None = None,
) -> LedgerEntry:
    """Embed one shard into a collection and return its ledger entry.

    limit: stop after that many samples (the edition then says so). watch: called after each batch.
    A shard that was replaced after it was listed is embedded as it is now: source and edition of
    the entry say so. Raises SourceError when the shard cannot be read, or changes while it is,
    StorageError when the target cannot be written, EncoderError when the model takes no sample; in
    each case nothing has its final name.
    """
    try:
        return _embed(shard, encoder, folder, settings, run_id, limit, watch)
    except ChangedError as error:
        if error.now is None:
            raise
        LOG.info("%s", error, extra={"shard": shard.id})
        return _embed(error.now, encoder, folder, settings, run_id, limit, watch)


def _embed(
    shard: Shard,
    encoder: Encoder,
    folder: Folder,
    settings: EmbedSettings,
    run_id: str,
    limit: int | None,
    watch: Callable[[Tally], None] | None,
) -> LedgerEntry:
    began = time.time()
    where = display_name(shard.url)
    LOG.info("opened %s", where, extra={"shard": shard.id})
    tally, clock, first = Tally(), Stopwatch(), Limit(limit)
    wanted = {modality: given.extensions for modality, given in encoder.modalities.items()}
    samples = first.take(read_samples(shard, settings.read, wanted))
    with ParquetWriter(folder, shard, encoder.dims, run_id) as rows:
        for batch in batches(
            samples, encoder, settings.decode, settings.batch, tally=tally, clock=clock
        ):
            embedded = encode(batch, encoder, clock, where)
            with clock.stage("write"):
                rows.write(embedded)
            tally.keep(len(embedded.batch))
            rows_by_key = {row.key: row for row in batch.rows} if embedded.dropped else {}
            for drop in embedded.dropped:
                tally.refuse(drop, rows_by_key[drop.key].missing.values())
            require_some_taken(tally, encoder, where)
            if watch is not None:
                watch(tally)
        require_some_taken(tally, encoder, where)  # where every sample was refused, none came here
        entry = ledger_entry(shard, encoder, settings, tally, clock, first.limit_reached, began)
        write_entry(folder, replace(entry, replaced=entry_to_replace(folder, shard.id)), run_id)
        rows.commit(footer_of(entry, encoder))
    entry = replace(entry, span=(began, time.time()))
    _log_commit(entry)
    return entry


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
        edition=edition_of(shard, encoder.fingerprint, settings, limit_reached, rules=RULES),
        rows=tally.rows,
        dropped=tuple(tally.dropped),
        notes=tuple(tally.notes),
        drop_counts=dict(tally.drop_counts),
        note_counts=dict(+tally.note_counts),
        rules=RULES,
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
        schema=schema_version(encoder.dims),
        dims=dict(encoder.dims),
    )
