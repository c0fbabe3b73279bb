"""A collection out of given vectors: no picture is read, no model is loaded.

    python -m benchmarks.vector_collection xb.npy COLLECTION --texts tq_learn.npy --shards 3

The rows come in order, an even share in each shard; after its share a shard has copies of every
COPIES-th of its rows, which are to be deleted once there is an index: an answer that has one shows
that deletions are not heeded. A row's key is its number, a copy's is `copy` and that number.
Texts are the caption vectors of some of the rows, evenly over the shards; the other rows have none.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from chiasm.pipeline.collection import (
    Footer,
    Identity,
    LedgerEntry,
    ParquetWriter,
    create_or_check,
    write_entry,
)
from chiasm.pipeline.records import (
    COLUMNS,
    Batch,
    Decoded,
    Embedded,
    Origin,
    Place,
    Shard,
    VectorColumn,
)
from chiasm.pipeline.storage import Folder
from tests.support.fake_encoder import FakeEncoder

COPIES = 100  # one row in so many is there twice
ROWS = 1024  # of a batch
WORDS = 10_000  # captions of large collections are of a language, whose words come again
EDITION = "0000000a"
JsonOf = Callable[[int], "str | None"]
VectorsOf = Callable[[int, int], dict[str, VectorColumn]]


def main() -> None:
    """Write the collection."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--shards", type=int, default=3)
    given = parser.parse_args()
    texts = np.load(given.texts) if given.texts else None
    write_collection(given.collection, np.load(given.vectors, mmap_mode="r"), texts, given.shards)


def write_collection(
    path: Path,
    xb: np.ndarray,
    texts: np.ndarray | None = None,
    shards: int = 3,
    *,
    json_of: JsonOf = lambda row: None,
    copies: bool = True,
) -> None:
    """xb (N, D) float32 as pictures, texts (T, D) float32, T <= N, as captions of some rows;
    json_of: the json of a row. Without copies there is nothing to delete."""
    folder, encoder = Folder(str(path)), FakeEncoder()
    encoder.dims = dict.fromkeys(encoder.dims, xb.shape[1])
    create_or_check(folder, Identity.of(encoder), "benchmark")
    captions = np.full(len(xb), -1)
    if texts is not None:
        captions[np.linspace(0, len(xb) - 1, len(texts)).astype(int)] = np.arange(len(texts))
    sources = path.parent / f"{path.name}-shards"
    sources.mkdir(parents=True, exist_ok=True)
    for number, (first, after) in enumerate(_shares(len(xb), shards)):
        source = sources / f"s{number}.tar"
        source.write_bytes(bytes(1024))
        state = source.stat()
        shard = Shard(source.as_uri(), f"s{number}-0123456789", 1024, str(state.st_mtime_ns))
        rows = _rows_of_shard(first, after, copies)
        _write_shard(folder, shard, rows, xb, texts, captions, json_of)


def write_blocks(
    path: Path,
    rows: int,
    dim: int,
    vectors: Callable[[int, int], dict[str, VectorColumn]],
    shard: int,
) -> None:
    """Collections of more rows than fit memory. vectors: the columns of so many rows from one on,
    asked for a shard of `shard` rows; every row has a caption."""
    folder, encoder = Folder(str(path)), FakeEncoder()
    encoder.dims = dict.fromkeys(encoder.dims, dim)
    create_or_check(folder, Identity.of(encoder), "benchmark")
    for number, first in enumerate(range(0, rows, shard)):
        count = min(shard, rows - first)
        source = path / f"s{number}.tar"
        source.write_bytes(bytes(1024))
        modified = str(source.stat().st_mtime_ns)
        described = Shard(source.as_uri(), f"s{number:05d}-0123456789", 1024, modified)
        made = vectors(first, count)
        missing = VectorColumn(np.zeros((count, dim), np.float32), np.zeros(count, bool))
        made = {column: made.get(column, missing) for column in COLUMNS}
        with ParquetWriter(folder, described, dict.fromkeys(COLUMNS, dim), "benchmark") as writer:
            for start in range(0, count, ROWS):
                part = slice(start, min(start + ROWS, count))
                batch = Batch(
                    [_row(first + row, False, True, None, WORDS) for row in range(count)[part]]
                )
                some = {
                    column: VectorColumn(one.vectors[part], one.has[part])
                    for column, one in made.items()
                }
                writer.write(Embedded(batch, some))
            write_entry(folder, LedgerEntry(described, EDITION, count, ()), "benchmark")
            fake = FakeEncoder()
            footer = Footer(described, EDITION, count, 0, fake.name, fake.fingerprint, dim)
            writer.commit(footer)


def copied_keys(rows: int, shards: int = 3) -> list[str]:
    """The keys of the copies, which are to be deleted."""
    return [f"copy{row:09d}" for share in _shares(rows, shards) for row in range(*share)[::COPIES]]


def row_of_position(rows: int, shards: int = 3, *, copies: bool = True) -> np.ndarray:
    """Row of the vectors at each position of a generation over the collection, int64; -1 for a
    copy. One more at the end: position -1 is no row."""
    parts = [
        np.where(np.arange(len(of_shard)) < after - first, of_shard, -1)
        for first, after in _shares(rows, shards)
        for of_shard in [_rows_of_shard(first, after, copies)]
    ]
    return np.concatenate([*parts, [-1]]).astype(np.int64)


def _shares(rows: int, shards: int) -> Iterator[tuple[int, int]]:
    bounds = [rows * number // shards for number in range(shards + 1)]
    return itertools.pairwise(bounds)


def _rows_of_shard(first: int, after: int, copies: bool) -> np.ndarray:
    rows = np.arange(first, after)
    return np.concatenate([rows, rows[::COPIES]]) if copies else rows


def _write_shard(
    folder: Folder,
    shard: Shard,
    rows: np.ndarray,
    xb: np.ndarray,
    texts: np.ndarray | None,
    captions: np.ndarray,
    json_of: JsonOf,
) -> None:
    dim = xb.shape[1]
    originals = int(rows.argmax()) + 1
    none = VectorColumn(np.zeros((ROWS, dim), np.float32), np.zeros(ROWS, bool))
    with ParquetWriter(folder, shard, dict.fromkeys(COLUMNS, dim), "benchmark") as writer:
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            copies = np.arange(start, start + len(some)) >= originals
            captioned = (captions[some] >= 0) & ~copies
            batch = Batch(
                [
                    _row(int(row), bool(copy), bool(text), json_of(int(row)))
                    for row, copy, text in zip(some, copies, captioned, strict=True)
                ]
            )
            vectors = {
                "image": VectorColumn(xb[some], np.ones(len(some), bool)),
                "text": VectorColumn(none.vectors[: len(some)].copy(), captioned),
                "joint": VectorColumn(none.vectors[: len(some)], none.has[: len(some)]),
            }
            if texts is not None:
                vectors["text"].vectors[captioned] = texts[captions[some[captioned]]]
            writer.write(Embedded(batch, vectors))
        write_entry(folder, LedgerEntry(shard, EDITION, len(rows), ()), "benchmark")
        fake = FakeEncoder()
        writer.commit(Footer(shard, EDITION, len(rows), 0, fake.name, fake.fingerprint, dim))


def _row(
    row: int, copy: bool, captioned: bool, json: str | None, words: int | None = None
) -> Decoded:
    """words: different captions that there are, None for one of its own."""
    key = f"copy{row:09d}" if copy else f"{row:09d}"
    origin = Origin(Place(f"{key}.jpg", 512, 100), "ab" * 32, (64, 64))
    caption = f"caption {row % words if words else row}"
    return Decoded(key, (caption,) if captioned else (), json, {}, {"image": origin})


if __name__ == "__main__":
    main()
