"""The write path on one screen: a shard from open to commit.

    read_samples -> batches (decode threads) -> encode -> ParquetWriter -> ledger entry -> commit

One call embeds one shard in bounded memory, whatever the shard's size. The order at the end is what
makes kills harmless: the ledger entry is put in place first, the Parquet file last, each whole; a
shard is done if and only if both are there and agree.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

import numpy as np

from chiasm.pipeline.batches import batches
from chiasm.pipeline.collection import (
    Footer,
    LedgerEntry,
    ParquetWriter,
    Tally,
    schema_version,
    write_entry,
)
from chiasm.pipeline.editions import EmbedSettings, edition_of
from chiasm.pipeline.encoders import JOINT, Encoded, Encoder
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.records import Batch, Dropped, Embedded, Note, Sample, Shard, VectorColumn
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
    StorageError when the target cannot be written, EncoderError when the model gives no unit
    vectors; in each case nothing has its final name.
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
    LOG.info("opened %s", display_name(shard.url), extra={"shard": shard.id})
    tally, clock, first = Tally(), Stopwatch(), Limit(limit)
    wanted = {modality: given.extensions for modality, given in encoder.modalities.items()}
    samples = first.take(read_samples(shard, settings.read, wanted))
    with ParquetWriter(folder, shard, encoder.dims, run_id) as rows:
        for batch in batches(
            samples, encoder, settings.decode, settings.batch, tally=tally, clock=clock
        ):
            embedded = encode(batch, encoder, clock)
            with clock.stage("write"):
                rows.write(embedded)
            tally.keep(len(batch))
            if watch is not None:
                watch(tally)
        entry = ledger_entry(shard, encoder, settings, tally, clock, first.limit_reached, began)
        write_entry(folder, entry, run_id)
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


def encode(batch: Batch, encoder: Encoder, clock: Stopwatch) -> Embedded:
    """A batch through the model, modality by modality; then the joint vectors of the rows that
    have every modality. A row without a modality has no vector there."""
    columns: dict[str, VectorColumn] = {}
    encoded: dict[str, tuple[np.ndarray, Encoded]] = {}  # modality -> its rows, and what they gave
    for modality in encoder.modalities:
        rows = np.flatnonzero([modality in row.inputs for row in batch.rows])
        with clock.stage(f"encode {modality}"):
            if len(rows):
                items = [batch.rows[row].inputs[modality] for row in rows]
                encoded[modality] = (rows, encoder.encode(modality, items))
                vectors = encoded[modality][1].vectors
                columns[modality] = scatter_rows(vectors, rows, len(batch), encoder, modality)
    if JOINT in encoder.dims and len(encoded) == len(encoder.modalities):
        with clock.stage("fuse"):
            rows = functools.reduce(np.intersect1d, [rows for rows, _ in encoded.values()])
            if len(rows):
                parts = {
                    modality: part.take(np.searchsorted(theirs, rows))
                    for modality, (theirs, part) in encoded.items()
                }
                joint = encoder.encode_joint(parts)
                columns[JOINT] = scatter_rows(joint, rows, len(batch), encoder, JOINT)
    return Embedded(batch, columns)


def scatter_rows(
    vectors: np.ndarray, rows: np.ndarray, size: int, encoder: Encoder, column: str
) -> VectorColumn:
    """The vectors (n, D) of `rows` (n,) at their places among zeros: (size, D) float32."""
    dim = encoder.dims[column]
    lengths = np.linalg.norm(vectors, axis=1)
    if vectors.shape != (len(rows), dim) or not np.allclose(lengths, 1, atol=1e-2):
        raise EncoderError(
            f"encoder {encoder.name}",
            expected=f"{len(rows)} unit vectors of width {dim}",
            found=f"shape {vectors.shape}, lengths {lengths.min():.3g} to {lengths.max():.3g}",
            do="try --set encoder.precision=float32",
        )
    scattered = np.zeros((size, dim), dtype=np.float32)
    scattered[rows] = vectors
    has = np.zeros(size, dtype=bool)
    has[rows] = True
    return VectorColumn(scattered, has)


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
        note_counts=dict(tally.note_counts),
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
