"""Rows made again from their shards: bytes by range, digest, size, and each vector by the
encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from chiasm.pipeline.batches import SampleDecoder
from chiasm.pipeline.collection import (
    Collection,
    EmbeddingFile,
    embedded_shard_ids,
    find_embedding,
    runs,
    vectors_of,
)
from chiasm.pipeline.editions import EmbedSettings, edition_of
from chiasm.pipeline.embed import encode
from chiasm.pipeline.encoders import Encoder, load_encoder
from chiasm.pipeline.errors import ChiasmError, CollectionError
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import COLUMNS, IMAGE, Batch, Decoded, Dropped, Place, Sample, Source
from chiasm.pipeline.shards import ReadSettings, read_member
from chiasm.pipeline.timing import Stopwatch
from chiasm.pipeline.verify.shards import Finding

LEAST_COSINE = 0.999  # precision, device and batch may differ from those of the first time
BATCH = 64


def check_pictures(collection: Collection, wanted: int, checked: Counter[str]) -> Iterator[Finding]:
    """Encode `wanted` rows that have a picture again, drawn from all shards alike."""
    identity = collection.identity
    try:
        encoder = load_encoder(identity.encoder, EncoderSettings(precision=identity.precision))
    except ChiasmError as error:
        yield Finding(f"encoder {identity.encoder}", str(error))
        return
    if encoder.fingerprint != identity.fingerprint:
        told = (
            f"fingerprint {encoder.fingerprint[:12]}, in the collection {identity.fingerprint[:12]}"
        )
        yield Finding(f"encoder {identity.encoder}", told)
        return
    runs_of = embed_settings(collection)
    for file, rows in drawn(list(pictured(collection)), wanted):
        try:
            for start in range(0, len(rows), BATCH):
                some = rows[start : start + BATCH]
                yield from _check_batch(file, some, encoder, made_with(file, runs_of), checked)
        except CollectionError:
            continue  # a damaged file, which check_shards has told of


def pictured(collection: Collection) -> Iterator[tuple[EmbeddingFile, np.ndarray]]:
    """Every file that can be read, and the numbers of its rows that have a picture."""
    for shard_id in embedded_shard_ids(collection.folder):
        try:
            file = find_embedding(collection.folder, shard_id)
            if file is None:
                continue
            members = file.read(["member"])["member"]
        except CollectionError:
            continue  # damaged, which check_shards has told of
        yield file, np.flatnonzero(np.asarray(members.is_valid()))


def drawn(
    files: list[tuple[EmbeddingFile, np.ndarray]], wanted: int
) -> Iterator[tuple[EmbeddingFile, np.ndarray]]:
    """`wanted` of the rows, or all there are."""
    ends = np.cumsum([len(rows) for _, rows in files], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    chosen = np.random.default_rng(0).choice(total, min(wanted, total), replace=False)
    chosen.sort()
    for (file, rows), end in zip(files, ends.tolist(), strict=True):
        here = chosen[(chosen >= end - len(rows)) & (chosen < end)] - (end - len(rows))
        if len(here):
            yield file, rows[here]


def embed_settings(collection: Collection) -> list[EmbedSettings]:
    """How the runs on record read and decoded, the last one first."""
    told = [run.settings for run in runs(collection.folder) if "decode" in run.settings]
    return [
        EmbedSettings(ReadSettings(**one["read"]), DecodeSettings(**one["decode"]))
        for one in reversed(told)
    ]


def made_with(file: EmbeddingFile, candidates: list[EmbedSettings]) -> DecodeSettings:
    """How a file's pictures were decoded: by the run whose settings give its edition; by the last
    one for a shard that a limit cut; by the defaults where no run is on record."""
    source, fingerprint = file.footer.source, file.footer.fingerprint
    alike = (
        one.decode for one in candidates if edition_of(source, fingerprint, one) == file.edition
    )
    return next(alike, candidates[0].decode if candidates else DecodeSettings())


def _check_batch(
    file: EmbeddingFile,
    rows: np.ndarray,
    encoder: Encoder,
    settings: DecodeSettings,
    checked: Counter[str],
) -> Iterator[Finding]:
    names = ["key", "captions", "width", "height", "sha256", "member", "offset", "size"]
    columns = [column for column in COLUMNS if column in encoder.dims]
    table = file.read([*names, *columns]).take(rows)
    again: list[Decoded] = []
    places: list[int] = []
    for place, cell in enumerate(table.select(names).to_pylist()):
        where = f"shard {file.shard_id}, row {rows[place]}"
        checked["pictures"] += 1
        try:
            made = _made_again(file, cell, encoder, settings)
        except ChiasmError as error:
            yield Finding(where, str(error))
            continue
        if isinstance(made, Dropped):
            yield Finding(where, f"{made.reason} {made.detail}".strip())
            continue
        origin = made.origins[IMAGE]
        if origin.sha256 != cell["sha256"]:
            yield Finding(where, f"the shard holds another picture at {cell['member']}")
        elif origin.size != (cell["width"], cell["height"]):
            width, height = origin.size or (0, 0)
            told = f"{width} x {height} pixels"
            yield Finding(where, f"{told}, embedded as {cell['width']} x {cell['height']}")
        else:
            again.append(made)
            places.append(place)
    if not again:
        return
    embedded = encode(Batch(again), encoder, Stopwatch())
    for column in columns:
        stored, has = vectors_of(table[column].take(places))
        if column not in embedded.columns:
            continue
        again_of = embedded.columns[column]
        cosine = np.einsum("nd,nd->n", stored.astype(np.float32), again_of.vectors)
        for place in np.flatnonzero((has | again_of.has) & ~(cosine >= LEAST_COSINE)):
            where = f"shard {file.shard_id}, row {rows[places[place]]}"
            told = f"its {column} vector has cosine {cosine[place]:.4f} to the one made again"
            yield Finding(where, f"{told}, less than {LEAST_COSINE}")


def _made_again(
    file: EmbeddingFile, cell: dict, encoder: Encoder, settings: DecodeSettings
) -> Decoded | Dropped:
    """The row as the decode threads made it. Raises SourceError."""
    place = Place(cell["member"], cell["offset"], cell["size"])
    source = Source(read_member(file.footer.source.url, place), place)
    captions = tuple(cell["captions"] or ())
    sample = Sample(cell["key"], {IMAGE: source}, captions, None)
    return SampleDecoder(encoder, settings, Stopwatch())(sample)
