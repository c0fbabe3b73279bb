"""How fast a collection's vectors come back from Parquet, and one row by its key, on one core.

    python -m benchmarks.parquet_reading [--rounds R] [--no-json]

100,000 rows of 512 numbers in 10 shards, written by our writer; the same table written by pyarrow
as it comes, beside it. What is timed includes opening the files and ends with numpy arrays; the
files are in the page cache. A row is found as a caller does who has its shard and its key: the
shard's file and ledger are opened, checked against each other, and the row is read with all its
columns. Writes benchmarks/results/parquet_reading.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import keep, machine, table
from chiasm.pipeline.collection import (
    EmbeddingFile,
    Footer,
    LedgerEntry,
    ParquetWriter,
    embeddings,
    find_embedding,
    parquet_name,
    vectors_of,
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

SHARDS, ROWS, DIM, BATCH = 10, 10_000, 512, 500
LOOKUPS = 200


def write_collection(folder: Folder) -> None:
    rng = np.random.default_rng(0)
    for number in range(SHARDS):
        shard = Shard(f"file:///{number:05d}.tar", f"{number:05d}-{number:010x}", 1, "1")
        with ParquetWriter(folder, shard, dict.fromkeys(COLUMNS, DIM), "benchmark") as writer:
            for start in range(0, ROWS, BATCH):
                writer.write(rows_of(rng, number, start))
            write_entry(folder, LedgerEntry(shard, "0" * 8, ROWS), "benchmark")
            writer.commit(Footer(shard, "0" * 8, ROWS, 0, "random", "0" * 32, DIM))


def rows_of(rng: np.random.Generator, shard: int, start: int) -> Embedded:
    rows = [
        Decoded(
            key_of(shard, n),
            (f"caption {n}",),
            "{}",
            {},
            {"image": Origin(Place(f"{n}.jpg", 1024 * n, 80_000), f"{n:064x}", (640, 480))},
        )
        for n in range(start, start + BATCH)
    ]
    drawn = {column: rng.normal(size=(BATCH, DIM)).astype(np.float32) for column in COLUMNS}
    unit = {c: v / np.linalg.norm(v, axis=1, keepdims=True) for c, v in drawn.items()}
    full = np.ones(BATCH, bool)
    return Embedded(Batch(rows), {c: VectorColumn(v, full) for c, v in unit.items()})


def key_of(shard: int, number: int) -> str:
    return f"{shard:03d}{number:06d}"


def read_ours(folder: Folder) -> int:
    """Bytes of all the vectors of a collection, as float16 arrays."""
    return sum(file.vectors(column)[0].nbytes for file in embeddings(folder) for column in COLUMNS)


def read_plain(files: list[Path]) -> int:
    return sum(
        vectors_of(pq.read_table(file, columns=[column], memory_map=True)[column])[0].nbytes
        for file in files
        for column in COLUMNS
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-json", action="store_true", help="leave the results file alone")
    given = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    rates: dict[str, list[float]] = {"ours": [], "pyarrow as it comes": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Folder(str(Path(place) / "c"))
        write_collection(folder)
        plain = [plain_copy(folder, file, Path(place)) for file in embeddings(folder)]
        sizes = {
            "ours": sum(
                os.path.getsize(folder.path(parquet_name(f.shard_id))) for f in embeddings(folder)
            ),
            "pyarrow as it comes": sum(map(os.path.getsize, plain)),
        }
        for _ in range(given.rounds):
            for name, read in (
                ("ours", lambda: read_ours(folder)),
                ("pyarrow as it comes", lambda: read_plain(plain)),
            ):
                began = time.perf_counter()
                size = read()
                rates[name].append(size / (time.perf_counter() - began) / 1e6)
        lookups = sorted(look_up(folder))
    figures = {
        "on": {**machine(), "cores": 1},
        "MB_per_second": {name: round(statistics.median(each)) for name, each in rates.items()},
        "all rounds": {name: [round(rate) for rate in each] for name, each in rates.items()},
        "file_MB": {name: round(size / 1e6, 1) for name, size in sizes.items()},
        "row_by_key_ms": {
            "median": round(statistics.median(lookups), 2),
            "99 of 100": round(lookups[len(lookups) * 99 // 100], 2),
        },
    }
    if not given.no_json:
        keep("parquet_reading", figures)
    rows = [(n, figures["MB_per_second"][n], figures["file_MB"][n]) for n in rates]
    print(table(("all vectors, one core", "MB/s", "files, MB"), rows))
    print(table(("one row by key", "ms"), list(figures["row_by_key_ms"].items())))


def plain_copy(folder: Folder, file: EmbeddingFile, place: Path) -> Path:
    path = place / f"{file.shard_id}.plain.parquet"
    pq.write_table(file.read(), path)
    return path


def look_up(folder: Folder) -> list[float]:
    """Milliseconds of lookups at random places."""
    rng = np.random.default_rng(1)
    taken = []
    for shard, number in zip(
        rng.integers(SHARDS, size=LOOKUPS), rng.integers(ROWS, size=LOOKUPS), strict=True
    ):
        began = time.perf_counter()
        file = find_embedding(folder, f"{shard:05d}-{shard:010x}")
        row = file.row(key_of(shard, number)) if file else None
        taken.append((time.perf_counter() - began) * 1e3)
        if row is None or row["offset"][0].as_py() != 1024 * number:
            sys.exit(f"expected the row of {key_of(shard, number)}, found {row}")
    return taken


if __name__ == "__main__":
    main()
