"""Segments that workers on Ray fill are those that one process fills."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_collection import make_collection, unit_rows

from chiasm.index import IndexSettings, build_index, open_collection
from chiasm.index.verify import check
from chiasm.jobs.build_index import build_on_cluster
from chiasm.jobs.config import WorkerSettings
from chiasm.pipeline.errors import CollectionError

SETTINGS = IndexSettings(tune=False, exact_below=1, segment_rows=60)
WORKERS = WorkerSettings(count=2, cpus=1)


def test_workers_on_ray_fill_the_segments_that_one_process_fills(tmp_path, ray_session):
    path = tmp_path / "c"
    make_collection(path, (50, 60, 40, 30), holes=0.1)
    xq = unit_rows(np.random.default_rng(7), 20, 8)
    found, files = [], []
    for _ in range(2):
        if found:
            summary = build_on_cluster(path, address=None, workers=WORKERS, settings=SETTINGS)
        else:
            summary = build_index(path, settings=SETTINGS)
        assert (summary.rows, summary.shards, summary.segments) == (180, 4, 4)
        found.append(open_collection(path).search_vectors(xq, 10))
        manifest = json.loads((path / f"index/generations/{len(found):06d}.json").read_text())
        folders = [path / "index/segments" / entry["id"] for entry in manifest["segments"]]
        files.append(
            [
                {file.name: file.read_bytes() for file in folder.glob("[!s]*")}  # no segment.json
                for folder in folders
            ]
        )
    assert files[0] == files[1] and len(files[0]) == 4
    assert all(np.array_equal(*pair) for pair in zip(*found, strict=True))
    assert check(path).ok


def test_what_a_worker_cannot_read_ends_a_build_on_ray(tmp_path, ray_session):
    make_collection(tmp_path, (50, 30))
    build_index(tmp_path, settings=SETTINGS)
    (damaged,) = tmp_path.glob("embeddings/s1-*.parquet")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 3] ^= 0xFF
    damaged.write_bytes(content)
    with pytest.raises(CollectionError, match=r"s1-.*\.parquet: expected a whole Parquet file"):
        build_on_cluster(tmp_path, address=None, workers=WORKERS, settings=SETTINGS)
    assert [file.name for file in (tmp_path / "index/generations").iterdir()] == ["000001.json"]
