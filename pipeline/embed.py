"""The write path on one screen: a shard from open to commit.

    read_samples -> batches (decode threads) -> encode -> ParquetWriter -> ledger entry -> commit

One call embeds one shard in bounded memory, whatever the shard's size. The order at the end is what
makes kills harmless: the ledger's account is put in place first, the Parquet file last, each whole;
a shard is done if and only if both are there and agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from chiasm.pipeline.batches import batches
from chiasm.pipeline.collection import Footer, LedgerEntry, ParquetWriter, Tally, write_entry
from chiasm.pipeline.editions import EmbedSettings, edition_of
from chiasm.pipeline.encoders import Encoder
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.records import Batch, Dropped, Embedded, Note, Sample, Shard
from chiasm.pipeline.shards import read_samples
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.timing import Stopwatch


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
    """Embed one shard into a collection and return its account.

    limit: stop after that many samples (the edition then says so). watch: called after each batch.
    Raises SourceError when the shard cannot be read, StorageError when the target cannot be
    written, EncoderError when the model gives no unit vectors; in each case nothing bears a final
    name.
    """
    began = time.time()
    tally, clock, cut = Tally(), Stopwatch(), Limit(limit)
    samples = cut.take(read_samples(shard, settings.read))
    with ParquetWriter(folder, shard, encoder.dim, run_id) as rows:
        for batch in batches(
            samples,
            encoder.preprocess,
            encoder.image_size,
            settings.batch,
            settings.decode,
            tally,
            clock,
        ):
            embedded = encode(batch, encoder, clock)
            with clock.stage("write"):
                rows.write(embedded)
            tally.keep(len(batch))
            if watch is not None:
                watch(tally)
        entry = ledger_entry(shard, encoder, settings, tally, clock, cut.limit_reached, began)
        write_entry(folder, entry, run_id)
        rows.commit(footer_of(entry, encoder))
    return replace(entry, span=(began, time.time()))


def encode(batch: Batch, encoder: Encoder, clock: Stopwatch) -> Embedded:
    """A batch through the model. Rows without a picture or without a caption get no vector there,
    and no joint vector."""
    pictured = np.array([row.pixels is not None for row in batch.rows])
    captioned = np.array([bool(row.sample.captions) for row in batch.rows])
    both = pictured & captioned
    pixels = [row.pixels for row in batch.rows if row.pixels is not None]
    texts = [row.sample.captions[0] for row in batch.rows if row.sample.captions]
    with clock.stage("encode images"):
        image = scatter_rows(encoder.encode_images(pixels) if pixels else None, pictured, encoder)
    with clock.stage("encode texts"):
        text = scatter_rows(encoder.encode_texts(texts) if texts else None, captioned, encoder)
    with clock.stage("fuse"):
        paired = [row for row in batch.rows if row.pixels is not None and row.sample.captions]
        fused = encoder.encode_pairs(
            image[both],
            text[both],
            [row.pixels for row in paired if row.pixels is not None],
            [row.sample.captions[0] for row in paired],
        )
        joint = scatter_rows(fused if paired else None, both, encoder)
    return Embedded(
        batch, image, text, joint, {"image": pictured, "text": captioned, "joint": both}
    )


def scatter_rows(vectors: np.ndarray | None, has: np.ndarray, encoder: Encoder) -> np.ndarray:
    """The vectors of the rows that have one, at their places among zeros: (n, D) -> (B, D)
    float32."""
    spread_out = np.zeros((len(has), encoder.dim), dtype=np.float32)
    if vectors is not None:
        lengths = np.linalg.norm(vectors, axis=1)
        if vectors.shape != (has.sum(), encoder.dim) or not np.allclose(lengths, 1, atol=1e-2):
            raise EncoderError(
                f"encoder {encoder.name}",
                expected=f"{has.sum()} unit vectors of width {encoder.dim}",
                found=f"shape {vectors.shape}, lengths {lengths.min():.3g} to {lengths.max():.3g}",
                do="try --set encoder.precision=float32",
            )
        spread_out[has] = vectors
    return spread_out


class Limit:
    """Lets the first `limit` samples pass, and knows whether there were more."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.limit_reached: int | None = None

    def take(self, items: Iterator[Sample | Dropped | Note]) -> Iterator[Sample | Dropped | Note]:
        passed = 0
        for item in items:
            if not isinstance(item, Note):
                if passed == self.limit:
                    self.limit_reached = self.limit
                    return
                passed += 1
            yield item


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
        edition=edition_of(shard, encoder.fingerprint, settings, limit_reached),
        rows=tally.rows,
        dropped=tuple(tally.dropped),
        notes=tuple(tally.notes),
        seconds={stage: round(seconds, 4) for stage, seconds in clock.seconds.items()},
        span=(began, time.time()),
    )


def footer_of(entry: LedgerEntry, encoder: Encoder) -> Footer:
    return Footer(
        source=entry.source,
        edition=entry.edition,
        rows=entry.rows,
        dropped=len(entry.dropped),
        encoder=encoder.name,
        fingerprint=encoder.fingerprint,
        dim=encoder.dim,
    )
