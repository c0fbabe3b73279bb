"""The live generation checked: checksums, then every row and vector against the Parquet files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.segments import (
    COPIED,
    FileSum,
    Generation,
    IndexedShard,
    Segment,
    current_number,
    numbers,
    open_generation,
    segment_file,
    stale_shards,
)
from chiasm.pipeline.collection import Collection, EmbeddingFile, find_embedding
from chiasm.pipeline.errors import ChiasmError, CollectionError
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.verify import Finding

SAME_COSINE = 0.999  # of vectors of one edition that were made on unlike devices


def check_index(collection: Collection, checked: Counter[str]) -> Iterator[Finding]:
    """Nothing to find where no index was ever built."""
    folder = collection.folder
    try:
        number = current_number(folder)
        if number is None:
            if numbers(folder):
                yield Finding("index/CURRENT", "missing, though there are generations")
            return
        generation = open_generation(folder, number)
    except ChiasmError as error:
        yield Finding("index", str(error))
        return
    where = f"generation {number:06d}"
    if generation.manifest.fingerprint != collection.identity.fingerprint:
        yield Finding(where, f"made for another encoder, {generation.manifest.encoder}")
    lacking = stale_shards(folder, generation.covered())
    for shard_id, kind in lacking.items():
        yield Finding(where, f"shard {shard_id} is {kind} since: run chiasm index build")
    yield from _check_trained(folder, generation)
    for segment in generation.segments:
        checked["segments"] += 1
        damaged = list(_check_files(folder, segment))
        yield from damaged
        if not damaged:
            yield from _check_segment(folder, segment, generation, set(lacking))


def _check_trained(folder: Folder, generation: Generation) -> Iterator[Finding]:
    for entry in generation.manifest.trained.values():
        yield from _check_file(folder, entry.file, entry.checksum)


def _check_files(folder: Folder, segment: Segment) -> Iterator[Finding]:
    for name, checksum in segment.record.files.items():
        yield from _check_file(folder, segment_file(segment.record.id, name), checksum)


def _check_file(folder: Folder, name: str, checksum: FileSum) -> Iterator[Finding]:
    if not folder.exists(name):
        yield Finding(name, "missing: run chiasm index build")
        return
    with folder.open_stream(name) as file:
        found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    if found != checksum.blake2b:
        told = f"expected checksum {checksum.blake2b}, found {found}"
        yield Finding(name, f"{told}: run chiasm index build")


def _check_segment(
    folder: Folder, segment: Segment, generation: Generation, lacking: set[str]
) -> Iterator[Finding]:
    record = segment.record
    where = f"segment {record.id}"
    rows = sum(shard.rows for shard in record.shards)
    if not len(segment.catalog) == record.rows == rows:
        told = f"{len(segment.catalog)} rows in the catalog, {rows} in its shards"
        yield Finding(where, f"{told}, {record.rows} in segment.json")
        return
    for column in generation.manifest.columns:
        ids = ids_of(segment.index(column))
        expected = np.flatnonzero(np.any(segment.raw(column), axis=1))
        if not np.array_equal(np.sort(ids), expected):
            told = f"{len(ids)} {column} vectors indexed, {len(expected)} stored"
            yield Finding(where, f"{told}, and their positions differ")
    first = 0
    for shard in record.shards:
        try:
            file = None if shard.shard in lacking else find_embedding(folder, shard.shard)
            if file is not None:
                columns = list(generation.manifest.columns)
                yield from _check_shard(segment, shard, first, file, columns)
        except CollectionError:
            pass  # a damaged file or ledger, which check_shards has told of
        first += shard.rows


def _check_shard(
    segment: Segment, shard: IndexedShard, first: int, file: EmbeddingFile, columns: list[str]
) -> Iterator[Finding]:
    """The shard's part of a segment against its Parquet file."""
    where = f"segment {segment.record.id}, shard {shard.shard}"
    table = file.read([*COPIED, *columns])
    part = segment.catalog.table().slice(first, shard.rows)
    for name in COPIED:
        if not part[name].combine_chunks().equals(table[name].combine_chunks()):
            yield Finding(where, f"column {name} of the catalog is not that of the embeddings")
    named = {"shard": shard.shard, "edition": shard.edition, "url": file.footer.source.url}
    for name, value in named.items():
        if set(part[name].to_pylist()) - {value}:
            yield Finding(where, f"rows of the catalog whose {name} is not {value}")
    if part["row"].to_pylist() != list(range(shard.rows)):
        yield Finding(where, "rows of the catalog out of order: ids name other rows")
    for column in columns:
        vectors, has = file.vectors(column)
        stored = segment.raw(column)[first : first + shard.rows]
        if np.array_equal(vectors, stored):
            continue
        cosine = np.einsum("nd,nd->n", vectors, stored, dtype=np.float32)
        far = np.flatnonzero(has & ~(cosine >= SAME_COSINE))
        far = np.union1d(far, np.flatnonzero(~has & stored.any(axis=1)))
        if len(far):
            told = f"{len(far)} {column} vectors are not those of the embeddings"
            yield Finding(where, f"{told}, the first in row {far[0]}")


def ids_of(index: Any) -> np.ndarray:
    """The ids of all vectors in a FAISS index, in no order: (n,) int64."""
    faiss = load_faiss()
    if hasattr(index, "id_map"):
        return faiss.vector_to_array(index.id_map)
    # `lists` is a view into `index`, which the caller keeps alive.
    lists = index.invlists
    parts = [
        faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number)).copy()
        for number in range(lists.nlist)
        if lists.list_size(number)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
