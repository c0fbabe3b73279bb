"""Rows read again from their shards: bytes by range, digest, size, and each vector encoded
again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from chiasm.pipeline.batches import SampleDecoder
from chiasm.pipeline.collection import (
    MEMBER_FIELDS,
    Collection,
    EmbeddingFile,
    LedgerEntry,
    current_entry,
    embedded_shard_ids,
    find_embedding,
    member_prefixes,
    runs,
    token_column,
    tokens_of,
    vectors_of,
)
from chiasm.pipeline.editions import EmbedSettings, Way, ways_of
from chiasm.pipeline.encode_batch import encode
from chiasm.pipeline.encoders import Encoder, token_dims
from chiasm.pipeline.errors import ChiasmError, CollectionError
from chiasm.pipeline.images import DECODING, DecodeSettings
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import IMAGE, Batch, Decoded, Dropped, Place, Sample, Source
from chiasm.pipeline.shards import ReadSettings, read_member
from chiasm.pipeline.sounds import SoundSettings
from chiasm.pipeline.timing import Stopwatch
from chiasm.pipeline.verify.findings import Finding
from chiasm.pipeline.verify.tokens import token_cosines

# Between two vectors that were computed of one row: precision, device and batch may differ.
MIN_COSINE = 0.999
BATCH = 64


def check_members(
    collection: Collection, wanted: int, checked: Counter[str], encoding: EncoderSettings
) -> Iterator[Finding]:
    """Read and encode `wanted` rows with a member again, sampled evenly over all of them.

    encoding: how the encoder runs, such as its device; its precision is the collection's. Raises as
    `Collection.load_encoder` does where the encoder was named."""
    identity = collection.identity
    try:
        encoder = collection.load_encoder(replace(encoding, precision=identity.precision))
    except ChiasmError as error:
        if collection.encoder is not None:
            raise  # it was named by hand
        yield Finding.of(f"encoder {identity.encoder}", error)
        return
    settings = embed_settings(collection)
    for file, rows in sample_rows(list(files_with_members(collection)), wanted):
        try:
            way = way_of(file, settings, current_entry(collection.folder, file.shard_id))
            decoder = SampleDecoder(encoder, way.decode, Stopwatch(), way.decoding, way.sound)
            for start in range(0, len(rows), BATCH):
                some = rows[start : start + BATCH]
                yield from _check_batch(file, some, encoder, decoder, checked)
        except CollectionError:
            continue  # a damaged file, which check_shards has reported


def files_with_members(collection: Collection) -> Iterator[tuple[EmbeddingFile, np.ndarray]]:
    """Every file that can be read, and the numbers of its rows that are made from a member."""
    prefixes = member_prefixes(collection.identity.columns).values()
    names = [f"{prefix}member" for prefix in prefixes]
    for shard_id in embedded_shard_ids(collection.folder):
        try:
            file = find_embedding(collection.folder, shard_id)
            if file is None:
                continue
            members = file.read(names)
        except CollectionError:
            continue  # damaged, which check_shards has reported
        yield file, np.flatnonzero(np.any([members[name].is_valid() for name in names], axis=0))


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
        EmbedSettings(
            ReadSettings(**settings["read"]),
            DecodeSettings(**settings["decode"]),
            sound=SoundSettings(**settings.get("sound", {})),
        )
        for settings in reversed(recorded)
    ]


def way_of(file: EmbeddingFile, candidates: list[EmbedSettings], entry: LedgerEntry | None) -> Way:
    """How a file's pictures were decoded, so that they are decoded the same way: by the run whose
    settings give its edition; for a shard that --limit cut short by the last run, where no run is
    recorded by the defaults, in both cases by the version in its ledger entry."""
    source, fingerprint = file.footer.as_embedded, file.footer.fingerprint
    for settings in candidates:
        for way in ways_of(settings):
            if file.edition == way.edition(source, fingerprint, settings):
                return way
    decoding = entry.decoding if entry is not None else DECODING
    settings = candidates[0] if candidates else EmbedSettings()
    return next(way for way in ways_of(settings) if way.decoding == decoding)


def _check_batch(
    file: EmbeddingFile,
    rows: np.ndarray,
    encoder: Encoder,
    decoder: SampleDecoder,
    checked: Counter[str],
) -> Iterator[Finding]:
    columns = [*encoder.dims, *map(token_column, token_dims(encoder))]
    names = ["key", "captions", "width", "height"]
    for prefix in member_prefixes(encoder.dims).values():
        names += [f"{prefix}{name}" for name in MEMBER_FIELDS]
    kind = "pictures" if IMAGE in encoder.modalities else "members"
    table = file.read([*names, *columns]).take(rows)
    decoded: list[Decoded] = []
    numbers: list[int] = []  # of the decoded rows in the table
    for number, cells in enumerate(table.select(names).to_pylist()):
        where = f"shard {file.shard_id}, row {rows[number]}"
        checked[kind] += 1
        try:
            item = _decode_again(file, cells, encoder, decoder)
        except ChiasmError as error:
            yield Finding.of(where, error)
            continue
        if isinstance(item, Dropped):
            yield Finding(where, f"{item.reason} {item.detail}".strip())
            continue
        what = _changed_member(item, cells)
        if what:
            yield Finding(where, what)
        else:
            decoded.append(item)
            numbers.append(number)
    if not decoded or file.footer.fingerprint != encoder.fingerprint:  # made in an earlier way
        return
    where = [f"shard {file.shard_id}, row {rows[number]}" for number in numbers]
    yield from _compare(decoded, table.select(columns).take(numbers), where, encoder)


def _compare(
    decoded: list[Decoded], stored_columns: pa.Table, where: list[str], encoder: Encoder
) -> Iterator[Finding]:
    """Rows encoded again, compared with their stored vectors; where: what each is called."""
    embedded = encode(Batch(decoded), encoder, Stopwatch())
    refused = {drop.key: drop for drop, _ in embedded.refused}
    kept = [number for number, row in enumerate(decoded) if row.key not in refused]
    for number, row in enumerate(decoded):
        if row.key in refused:
            drop = refused[row.key]
            what = f"the encoder does not take it: {drop.reason}: {drop.detail}"
            yield Finding(where[number], what)
    for column, again in embedded.columns.items():
        stored, has = vectors_of(stored_columns[column].take(kept))
        cosine = np.einsum("nd,nd->n", stored.astype(np.float32), again.vectors)
        if column in embedded.tokens:  # of which the vector is made, with jumps at hyperplanes
            tokens = tokens_of(stored_columns[token_column(column)].take(kept))
            cosine = token_cosines(tokens, embedded.tokens[column])
        for i in np.flatnonzero((has | again.has) & ~(cosine >= MIN_COSINE)):
            what = f"its {column} vector has cosine {cosine[i]:.4f} to the one encoded again"
            yield Finding(where[kept[i]], f"{what}, less than {MIN_COSINE}")


def _changed_member(item: Decoded, cells: dict) -> str:
    """What differs between the members of a row and its cells, "" where nothing does."""
    prefixes = member_prefixes(item.origins)
    for modality, origin in item.origins.items():
        prefix = prefixes[modality]
        if origin.sha256 != cells[f"{prefix}sha256"]:
            what = "picture" if modality == IMAGE else modality
            return f"the shard holds another {what} at {cells[f'{prefix}member']}"
        if origin.size is not None and origin.size != (cells["width"], cells["height"]):
            found = f"{origin.size[0]} x {origin.size[1]} pixels"
            return f"{found}, embedded as {cells['width']} x {cells['height']}"
    return ""


def _decode_again(
    file: EmbeddingFile, cells: dict, encoder: Encoder, decoder: SampleDecoder
) -> Decoded | Dropped:
    """The row as the decode threads of `embed` make it. Raises SourceError."""
    sources = {}
    for modality, prefix in member_prefixes(encoder.dims).items():
        if cells[f"{prefix}member"] is not None and modality in encoder.modalities:
            place = Place(
                cells[f"{prefix}member"], cells[f"{prefix}offset"], cells[f"{prefix}size"]
            )
            sources[modality] = Source(read_member(file.footer.source.url, place), place)
    captions = tuple(cells["captions"] or ())
    sample = Sample(cells["key"], sources, captions, None)
    return decoder(sample)
