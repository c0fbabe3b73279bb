"""Rows read again from their shards: bytes by range, digest, size, and each vector encoded
again."""

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
from chiasm.pipeline.verify.embeddings import Finding

MIN_COSINE = 0.999  # precision, device and batch may differ from those of the first time
BATCH = 64


def check_pictures(collection: Collection, wanted: int, checked: Counter[str]) -> Iterator[Finding]:
    """Encode `wanted` rows with a picture again, sampled evenly over all rows."""
    identity = collection.identity
    try:
        encoder = load_encoder(identity.encoder, EncoderSettings(precision=identity.precision))
    except ChiasmError as error:
        yield Finding.of(f"encoder {identity.encoder}", error)
        return
    if encoder.fingerprint != identity.fingerprint:
        yield Finding(
            f"encoder {identity.encoder}",
            f"fingerprint {encoder.fingerprint[:12]}, in the collection "
            f"{identity.fingerprint[:12]}",
            "restore its weights, or embed the shards again",
        )
        return
    settings = embed_settings(collection)
    for file, rows in sample_rows(list(files_with_pictures(collection)), wanted):
        decoding = decode_settings(file, settings)
        try:
            for start in range(0, len(rows), BATCH):
                yield from _check_batch(
                    file, rows[start : start + BATCH], encoder, decoding, checked
                )
        except CollectionError:
            continue  # a damaged file, which check_shards has reported


def files_with_pictures(collection: Collection) -> Iterator[tuple[EmbeddingFile, np.ndarray]]:
    """Every file that can be read, and the numbers of its rows that have a picture."""
    for shard_id in embedded_shard_ids(collection.folder):
        try:
            file = find_embedding(collection.folder, shard_id)
            if file is None:
                continue
            members = file.read(["member"])["member"]
        except CollectionError:
            continue  # damaged, which check_shards has reported
        yield file, np.flatnonzero(np.asarray(members.is_valid()))


def sample_rows(
    files: list[tuple[EmbeddingFile, np.ndarray]], wanted: int
) -> Iterator[tuple[EmbeddingFile, np.ndarray]]:
    """`wanted` of the rows, fewer only where there are fewer; the same ones each time."""
    ends = np.cumsum([len(rows) for _, rows in files], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    sampled = np.random.default_rng(0).choice(total, min(wanted, total), replace=False)
    sampled.sort()
    for (file, rows), end in zip(files, ends.tolist(), strict=True):
        start = end - len(rows)
        in_file = sampled[(sampled >= start) & (sampled < end)] - start
        if len(in_file):
            yield file, rows[in_file]


def embed_settings(collection: Collection) -> list[EmbedSettings]:
    """The settings of the recorded runs, the last one first."""
    recorded = [run.settings for run in runs(collection.folder) if "decode" in run.settings]
    return [
        EmbedSettings(ReadSettings(**settings["read"]), DecodeSettings(**settings["decode"]))
        for settings in reversed(recorded)
    ]


def decode_settings(file: EmbeddingFile, candidates: list[EmbedSettings]) -> DecodeSettings:
    """How a file's pictures were decoded: by the run whose settings give its edition; by the last
    run for a shard that --limit cut short; by the defaults where no run is recorded."""
    source, fingerprint = file.footer.source, file.footer.fingerprint
    matching = (
        settings.decode
        for settings in candidates
        if edition_of(source, fingerprint, settings) == file.edition
    )
    return next(matching, candidates[0].decode if candidates else DecodeSettings())


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
    decoded: list[Decoded] = []
    numbers: list[int] = []  # of the decoded rows in the table
    for number, cells in enumerate(table.select(names).to_pylist()):
        where = f"shard {file.shard_id}, row {rows[number]}"
        checked["pictures"] += 1
        try:
            item = _decode_again(file, cells, encoder, settings)
        except ChiasmError as error:
            yield Finding.of(where, error)
            continue
        if isinstance(item, Dropped):
            yield Finding(where, f"{item.reason} {item.detail}".strip())
            continue
        origin = item.origins[IMAGE]
        if origin.sha256 != cells["sha256"]:
            yield Finding(where, f"the shard holds another picture at {cells['member']}")
        elif origin.size != (cells["width"], cells["height"]):
            width, height = origin.size or (0, 0)
            found = f"{width} x {height} pixels"
            yield Finding(where, f"{found}, embedded as {cells['width']} x {cells['height']}")
        else:
            decoded.append(item)
            numbers.append(number)
    if not decoded:
        return
    embedded = encode(Batch(decoded), encoder, Stopwatch())
    for column in columns:
        stored, has = vectors_of(table[column].take(numbers))
        if column not in embedded.columns:
            continue
        again = embedded.columns[column]
        cosine = np.einsum("nd,nd->n", stored.astype(np.float32), again.vectors)
        for i in np.flatnonzero((has | again.has) & ~(cosine >= MIN_COSINE)):
            where = f"shard {file.shard_id}, row {rows[numbers[i]]}"
            what = f"its {column} vector has cosine {cosine[i]:.4f} to the one encoded again"
            yield Finding(where, f"{what}, less than {MIN_COSINE}")


def _decode_again(
    file: EmbeddingFile, cells: dict, encoder: Encoder, settings: DecodeSettings
) -> Decoded | Dropped:
    """The row as the decode threads of `embed` make it. Raises SourceError."""
    place = Place(cells["member"], cells["offset"], cells["size"])
    source = Source(read_member(file.footer.source.url, place), place)
    captions = tuple(cells["captions"] or ())
    sample = Sample(cells["key"], {IMAGE: source}, captions, None)
    return SampleDecoder(encoder, settings, Stopwatch())(sample)
