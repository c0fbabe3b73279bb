"""Segments that workers on Ray fill are those that one process fills."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from tiny_collection import add_shard, make_collection, unit_rows

from chiasm.index import IndexSettings, build_index, open_collection
from chiasm.index.build import columns, fill_segment, read_reports
from chiasm.index.build.samples import CollectionView
from chiasm.index.build.tune import TunedColumn, tune_column
from chiasm.index.segments import sweep
from chiasm.index.verify import check
from chiasm.jobs.build_index import build_on_cluster
from chiasm.jobs.config import WorkerSettings
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder

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


class Killed(BaseException):
    """What leaves everything as it is."""


class Fills:
    """Fills segments here; killed after so many of its first build. numbers: of the segments that
    each build has filled."""

    def __init__(self, finished: int) -> None:
        self.finished = finished
        self.numbers: list[list[str]] = []

    def __call__(self, tasks, filling):
        if not tasks:  # no shard was replaced meanwhile
            return
        self.numbers.append([task.segment_id.rpartition("-")[2] for task in tasks])
        for number, task in enumerate(tasks):
            if number == self.finished and len(self.numbers) == 1:
                raise Killed
            yield fill_segment(task)


def killed_build(path, monkeypatch, finished: int, settings: IndexSettings = SETTINGS) -> Fills:
    """What a build that is killed after so many segments leaves."""
    fill = Fills(finished)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[sweep.__module__], "remove_unnamed", lambda *of: [])
        with pytest.raises(Killed):
            build_index(path, columns=["image"], settings=settings, fill=fill)
    (record,) = path.glob("runs/*.json")
    record.write_text(record.read_text().replace('"stopped"', '"killed"'))
    return fill


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_a_build_takes_up_what_one_that_was_killed_has_finished(tmp_path, monkeypatch, finished):
    make_collection(tmp_path, (50, 60, 40, 30))
    fill = killed_build(tmp_path, monkeypatch, finished)
    filled = fill.numbers
    (learned,) = tmp_path.glob("index/trained/*/image.safetensors")
    content = learned.read_bytes()
    build_index(tmp_path, columns=["image"], settings=SETTINGS, fill=fill)
    assert filled[1] == ["000", "001", "002", "003"][finished:]
    (learned,) = tmp_path.glob("index/trained/*/image.safetensors")
    assert learned.read_bytes() == content and check(tmp_path).ok
    assert len(list(tmp_path.glob("index/segments/*"))) == 4, "the rest is swept"
    build_index(tmp_path, columns=["image"], settings=SETTINGS, fill=fill)
    assert filled[2] == ["000", "001", "002", "003"], "a build that has ended is made anew"


def test_the_report_of_a_build_that_takes_up_another_has_what_that_one_tried(tmp_path, monkeypatch):
    path, file = tmp_path / "c", tmp_path / "queries.txt"
    make_collection(path, (600,))
    file.write_text("".join(f"query {number}\n" for number in range(600)))
    wanted = IndexSettings(exact_below=1, recall=0.5, kind="ivf", queries=str(file))
    tuned: list[TunedColumn] = []

    def tune_once(view, settings):
        if not tuned:
            tuned.append(tune_column(view, settings))
            return tuned[0]
        return replace(tuned[0], tried=replace(tuned[0].tried, candidates=()))

    def encoded(view, texts, keep=False):
        return unit_rows(np.random.default_rng(len(texts)), len(texts), view.dim)

    monkeypatch.setattr(columns, "tune_column", tune_once)
    monkeypatch.setattr(CollectionView, "_encoded", encoded)
    fill = killed_build(path, monkeypatch, 0, wanted)
    copied = shutil.copytree(path, tmp_path / "other")
    report = build_index(path, columns=["image"], settings=wanted, fill=fill).reports["image"]
    assert len(tuned[0].tried.candidates) > 1
    assert report.candidates == tuned[0].tried.candidates
    assert report.small_vectors == tuned[0].tried.small_vectors
    assert report.seconds.items() >= tuned[0].tried.seconds.items()
    assert check(path).ok and read_reports(Folder(str(path)), 1)["image"] == report
    # Other queries in a file of that name: what was learned of those before is not taken up.
    file.write_text(file.read_text().replace("query", "question"))
    again = build_index(copied, columns=["image"], settings=wanted)
    assert again.reports["image"].candidates == ()


ALL = ["000", "001", "002", "003"]


@pytest.mark.parametrize(
    ("changes", "filled"),
    [
        ({}, ["001", "003"]),
        ({"json_of": lambda row: '{"number": "a text", "odd": null}'}, ALL),
        ({"rows": 100}, ALL),
    ],
    ids=["other vectors", "another type of json", "many more rows"],
)
def test_a_shard_that_changed_since_a_kill_costs_its_segment(
    tmp_path, monkeypatch, changes, filled
):
    make_collection(tmp_path, (50, 60, 40, 30))
    fill = killed_build(tmp_path, monkeypatch, 3)
    (learned,) = tmp_path.glob("index/trained/*/image.safetensors")
    content = learned.read_bytes()
    add_shard(Folder(str(tmp_path)), "s1", changes.pop("rows", 60), seed=7, **changes)
    build_index(tmp_path, columns=["image"], settings=SETTINGS, fill=fill)
    assert fill.numbers[1] == filled and check(tmp_path).ok
    (now,) = tmp_path.glob("index/trained/*/image.safetensors")
    assert (now.read_bytes() == content) == (filled != ALL or "json_of" in changes)
    xq = unit_rows(np.random.default_rng(1), 20, 8)
    found = open_collection(tmp_path).search_vectors(xq, 10, nprobe=1000)
    fresh = build_index(tmp_path, columns=["image"], settings=SETTINGS)
    assert fresh.segments == 4
    again = open_collection(tmp_path).search_vectors(xq, 10, nprobe=1000)
    np.testing.assert_allclose(found[0], again[0], atol=1e-6)
