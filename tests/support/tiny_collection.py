"""Collections made from numbers, for tests of the index: vectors are drawn, no tar is read. Their
shards are in `SHARDS`, files of no meaning, so that `check` finds them where they were."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from fake_encoder import FakeEncoder

from chiasm.pipeline.collection import (
    Footer,
    Identity,
    LedgerEntry,
    ParquetWriter,
    create_or_check,
    write_entry,
)
from chiasm.pipeline.collection.identity import NAME
from chiasm.pipeline.records import (
    COLUMNS,
    Batch,
    Decoded,
    Dropped,
    Embedded,
    Origin,
    Place,
    Shard,
    VectorColumn,
)
from chiasm.pipeline.storage import Folder

_KEPT = tempfile.TemporaryDirectory(prefix="chiasm-shards-")
SHARDS = Path(_KEPT.name).resolve()


def unit_rows(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    drawn = rng.normal(size=(rows, dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def plain_json(row: int) -> str | None:
    return f'{{"number": {row}, "odd": {str(row % 2 == 1).lower()}}}'


def make_collection(
    path: Path,
    rows: Sequence[int] = (50, 30),
    *,
    dim: int = 8,
    seed: int = 0,
    json_of: Callable[[int], str | None] = plain_json,
    holes: float = 0.0,
) -> dict[str, np.ndarray]:
    """A collection of one shard for each number of rows; returns its vectors as they were stored:
    column -> (rows in all, dim) float32, zero where there is none.

    holes: the share of rows that lack their picture, and as many their caption; never both.
    """
    folder = Folder(str(path))
    if not (path / NAME).exists():
        encoder = FakeEncoder()
        encoder.dims = dict.fromkeys(encoder.dims, dim)
        create_or_check(folder, Identity.of(encoder), "test")
    made = [
        add_shard(folder, f"s{n}", count, dim=dim, seed=seed + n, json_of=json_of, holes=holes)
        for n, count in enumerate(rows)
    ]
    none = np.empty((0, dim), np.float32)
    return {column: np.concatenate([none, *(part[column] for part in made)]) for column in COLUMNS}


def add_shard(
    folder: Folder,
    name: str,
    rows: int,
    *,
    dim: int = 8,
    seed: int = 0,
    edition: str = "0000000a",
    json_of: Callable[[int], str | None] = plain_json,
    holes: float = 0.0,
    vectors: np.ndarray | None = None,
    shard: Shard | None = None,
    dropped: int = 0,
) -> dict[str, np.ndarray]:
    """Add, or embed again, the shard `name`; `vectors` in place of drawn pictures, `shard` in place
    of one that is made from the name; so many samples `dropped`."""
    rng = np.random.default_rng(seed)
    shard = shard or _shard(name)
    drops = tuple(Dropped(f"dropped {n}", "decode", "corrupt") for n in range(dropped))
    dice = rng.random(rows)
    has = {"image": dice >= holes, "text": dice < 1 - holes}
    has["joint"] = has["image"] & has["text"]
    drawn = {column: unit_rows(rng, rows, dim) for column in COLUMNS}
    if vectors is not None:
        drawn["image"] = vectors
    stored = {
        column: np.where(has[column][:, None], drawn[column].astype(np.float16), 0).astype(
            np.float32
        )
        for column in COLUMNS
    }
    fingerprint = FakeEncoder().fingerprint
    with ParquetWriter(folder, shard, dict.fromkeys(COLUMNS, dim), "test") as writer:
        for start in range(0, rows, 256):
            some = slice(start, start + 256)
            batch = Batch(
                [
                    _row(name, row, bool(has["image"][row]), bool(has["text"][row]), json_of(row))
                    for row in range(rows)[some]
                ]
            )
            writer.write(
                Embedded(
                    batch,
                    {
                        column: VectorColumn(stored[column][some], has[column][some])
                        for column in COLUMNS
                    },
                )
            )
        write_entry(folder, LedgerEntry(shard, edition, rows, drops), "test")
        writer.commit(Footer(shard, edition, rows, dropped, "fake", fingerprint, dim))
    return stored


def _shard(name: str) -> Shard:
    path = SHARDS / f"{name}.tar"
    path.write_bytes(bytes(4096))
    os.utime(path, ns=(1, 1))
    return Shard(path.as_uri(), f"{name}-0123456789", 4096, "1")


def _row(shard: str, row: int, pictured: bool, captioned: bool, json: str | None) -> Decoded:
    key = f"{shard}/{row:06d}"
    captions = (f"caption {row} of {shard}", f"another {row} of {shard}") if captioned else ()
    origin = Origin(Place(f"{key}.jpg", 512 * row, 100), "ab" * 32, (64, 64))
    return Decoded(key, captions, json, {}, {"image": origin} if pictured else {})
