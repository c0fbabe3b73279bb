"""The live generation verified: checksums, then rows and vectors against the Parquet files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Iterator, Mapping

import numpy as np
import pyarrow as pa

from chiasm.index.segments import (
    FileSum,
    Generation,
    IndexedShard,
    ParquetVectors,
    Proposals,
    Segment,
    SegmentEntry,
    build_command,
    copied_columns,
    current_number,
    digests_of,
    fetch,
    keeping_segments,
    manifest_name,
    numbers,
    open_generation,
    read_audit,
    read_manifest,
    rows_in_lists,
    rows_of_shards,
    segment_file,
    stale_advice,
    stale_shards,
)
from chiasm.index.verify.tokens import fitted_columns, token_differences
from chiasm.pipeline.collection import (
    Collection,
    EmbeddingFile,
    find_embedding,
    read_relocations,
    token_column,
    vectors_of,
)
from chiasm.pipeline.errors import ChiasmError, CollectionError
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.verify import MIN_COSINE, Finding


def check_index(collection: Collection, checked: Counter[str]) -> Iterator[Finding]:
    """Findings of the live generation; none where no index was ever built. Counts the segments in
    `checked`."""
    folder = collection.folder
    rebuild = f"run {build_command(folder)}"
    try:
        number = current_number(folder)
        if number is None:
            if numbers(folder):
                yield Finding("index/CURRENT", "missing, though generations exist", rebuild)
            return
        yield from _check_others(folder, number)
        generation = open_generation(folder, number)
    except ChiasmError as error:
        yield Finding.of("index", error)
        return
    where = f"generation {number:06d}"
    try:
        read_audit(folder, number, generation.manifest.run)
    except CollectionError as error:
        yield Finding.of("index", error)
    if generation.manifest.fingerprint != collection.identity.fingerprint:
        what = f"built for encoder {generation.manifest.encoder}, which is not the collection's"
        yield Finding(where, what, rebuild)
    stale = stale_shards(folder, generation.indexed_shards())
    for shard_id, state in stale.items():
        do = stale_advice(folder, [state])
        yield Finding(where, f"stale: shard {shard_id} is {state} since the build", do)
    shared = list(_check_shared(folder, generation))
    yield from shared
    if shared:
        return  # without these the segments cannot be read
    yield from _check_coverage(generation, where, rebuild)
    fitted = fitted_columns(generation)
    for entry, segment in zip(generation.manifest.segments, generation.segments, strict=True):
        checked["segments"] += 1
        damaged = list(_check_files(folder, segment))
        if not damaged:
            try:
                damaged = list(_check_deleted(entry, segment, rebuild))
            except CollectionError as error:
                damaged = [Finding.of("index", error)]
        yield from damaged
        if not damaged:
            skipped = {*stale, *entry.retired}
            yield from _check_segment(folder, segment, generation, skipped, fitted)


def _check_coverage(generation: Generation, where: str, rebuild: str) -> Iterator[Finding]:
    """Each shard's rows are in one place, but for those that are retired."""
    live = Counter(shard.shard for shard in generation.manifest.without_rows)
    for entry, segment in zip(generation.manifest.segments, generation.segments, strict=True):
        live.update({shard.shard for shard in segment.record.shards} - {*entry.retired})
    for shard_id, count in live.items():
        if count > 1:
            yield Finding(where, f"shard {shard_id} is in {count} segments", rebuild)


def _check_deleted(entry: SegmentEntry, segment: Segment, rebuild: str) -> Iterator[Finding]:
    """As many rows are deleted as the generation says, all of a retired shard's among them."""
    deleted = segment.deleted()
    for shard, rows in rows_of_shards(segment):
        gone = not shard.rows or (deleted is not None and bool(deleted[rows].all()))
        if shard.shard in entry.retired and not gone:
            what = f"rows of shard {shard.shard} are found, though it is retired"
            yield Finding(f"segment {entry.id}", what, rebuild)


def _check_others(folder: Folder, live: int) -> Iterator[Finding]:
    """Generations beside the live one that cannot be read, which keep a sweep from its work."""
    for number in numbers(folder):
        if number == live:
            continue
        try:
            read_manifest(folder, number)
        except CollectionError as error:
            if folder.exists(manifest_name(number)):  # else a sweep has just removed it
                yield Finding.of("index", keeping_segments(error))


def _check_shared(folder: Folder, generation: Generation) -> Iterator[Finding]:
    for name, checksum in generation.manifest.shared_files().items():
        yield from _check_file(folder, name, checksum)


def _check_files(folder: Folder, segment: Segment) -> Iterator[Finding]:
    for name, checksum in segment.record.files.items():
        yield from _check_file(folder, segment_file(segment.record.id, name), checksum)


def _check_file(folder: Folder, name: str, checksum: FileSum) -> Iterator[Finding]:
    rebuild = f"run {build_command(folder)}"
    if not folder.exists(name):
        yield Finding(name, "missing", rebuild)
        return
    with folder.open_stream(name) as file:
        found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    if found != checksum.blake2b:
        yield Finding(name, f"expected checksum {checksum.blake2b}, found {found}", rebuild)


def _check_segment(
    folder: Folder,
    segment: Segment,
    generation: Generation,
    skipped: set[str],
    fitted: Mapping[str, Proposals],
) -> Iterator[Finding]:
    """The segment's parts agree, and are as the embeddings are; not so the shards `skipped`."""
    record = segment.record
    where = f"segment {record.id}"
    rebuild = f"run {build_command(folder)}"
    rows = sum(shard.rows for shard in record.shards)
    if not len(segment.catalog) == record.rows == rows:
        what = f"{len(segment.catalog)} rows in the catalog, {rows} in its shards"
        yield Finding(where, f"{what}, {record.rows} in segment.json", rebuild)
        return
    for column in generation.manifest.columns:
        trained = generation.trained(column)
        expected = np.flatnonzero(segment.raw(column).present())
        if trained is None:
            if len(expected) != record.vectors[column]:
                what = f"{record.vectors[column]} {column} vectors by its record"
                yield Finding(where, f"{what}, {len(expected)} stored", rebuild)
            continue
        fetch(segment.wanted_lists(column, trained))
        rows = np.concatenate(
            [np.empty(0, np.int64), *rows_in_lists(segment.lists(column, trained))]
        )
        if not np.array_equal(np.sort(rows), expected):
            what = f"{len(rows)} {column} vectors in the lists, {len(expected)} stored"
            yield Finding(where, f"{what}, at other positions", rebuild)
    first = 0
    relocated = read_relocations(folder).shards
    for shard in record.shards:
        try:
            file = None if shard.shard in skipped else find_embedding(folder, shard.shard)
            if file is not None:
                columns = list(generation.manifest.columns)
                found = _differences(segment, shard, first, file, columns, relocated, fitted)
                for what in found:
                    yield Finding(f"{where}, shard {shard.shard}", what, rebuild)
        except CollectionError:
            pass  # a damaged file or ledger entry, which check_shards has reported
        first += shard.rows


def _differences(
    segment: Segment,
    shard: IndexedShard,
    first: int,
    file: EmbeddingFile,
    columns: list[str],
    relocated: Container[str],
    fitted: Mapping[str, Proposals],
) -> Iterator[str]:
    """How the shard's part of a segment, from row `first` on, differs from its Parquet file."""
    copied = copied_columns(segment.catalog.modalities)
    table = whole = file.read([*copied, *columns, *map(token_column, fitted)])
    catalog = segment.catalog.table().slice(first, shard.rows)
    numbers = segment.catalog.row_numbers(slice(first, first + shard.rows))
    rising = bool((np.diff(numbers) > 0).all())
    if not rising or set(numbers.tolist()) - set(range(file.rows)) or file.rows != shard.file_rows:
        yield "row numbers of the catalog are not those of the file: ids name other rows"
        return
    if shard.removed:
        table = table.take(pa.array(numbers))
    for name in copied:
        if not catalog[name].combine_chunks().equals(table[name].combine_chunks()):
            yield f"column {name} of the catalog differs from the embeddings"
    constants = {"shard": shard.shard, "edition": shard.edition}
    for name, value in constants.items():
        if set(catalog[name].to_pylist()) - {value}:
            yield f"rows of the catalog whose {name} is not {value}"
    url = file.footer.source.url
    # A row of a relocated shard is read where that is now, whatever URL the catalog has.
    if shard.shard not in relocated and set(catalog["url"].to_pylist()) - {url}:
        yield f"rows of the catalog whose url is not {url}"
    yield from token_differences(segment, slice(first, first + shard.rows), table, fitted)
    for column in columns:
        stored = segment.raw(column)
        if isinstance(stored, ParquetVectors):
            number = segment.record.shards.index(shard)
            if stored.digests_of(number) != digests_of(vectors_of(whole[column])[0]):
                yield f"{column} vectors of the embeddings are not those of the build"
            continue
        vectors, has = vectors_of(table[column])
        form = segment.record.form(column)
        assert form is not None
        theirs = form.opened(form.stored(vectors)).take(slice(None))
        ours = stored.take(slice(first, first + shard.rows))
        if np.array_equal(theirs, ours):
            continue
        wrong = _rows_apart(theirs, ours, has)
        if len(wrong):
            what = f"{len(wrong)} {column} vectors differ from the embeddings"
            yield f"{what}, the first in row {wrong[0]}"


def _rows_apart(theirs: np.ndarray, ours: np.ndarray, has: np.ndarray) -> np.ndarray:
    """The rows, ascending, in which two float32 (N, D) differ by more than rounding. has: bool
    (N,), False where a row has no vector: there `ours` is zeros."""
    norms = np.linalg.norm(theirs, axis=1) * np.linalg.norm(ours, axis=1)
    cosine = np.einsum("nd,nd->n", theirs, ours) / np.maximum(norms, np.finfo(np.float32).tiny)
    wrong = np.flatnonzero(has & ~(cosine >= MIN_COSINE))
    return np.union1d(wrong, np.flatnonzero(~has & ours.any(axis=1)))
