"""Which way a filtered search takes, and that each finds the best of the rows that pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_collection import make_collection, unit_rows

from chiasm.index import IndexSettings, build_index, open_collection
from chiasm.index.plan import Plan
from chiasm.index.query import filter_plan, search_filtered
from chiasm.index.query.filter_plan import SUBSET_BYTES, lists_until, plan_scan
from chiasm.index.query.filtered import explain

SIZE = {"dim": 256, "queries": 64, "nprobe": 64, "resident": True}
PLAN = Plan("ivf", lists=2048, nprobe=64, dims=256, codes="SQ8", oversample=4)


@pytest.mark.parametrize(
    ("passing", "way"),
    [(0, "nothing"), (30, "exact"), (3000, "exact"), (60_000, "subset"), (300_000, "all")],
)
def test_the_way_goes_by_how_many_rows_pass(passing, way):
    found = plan_scan(passing, 300_000, 10, PLAN, **SIZE)
    assert found.way == way and "\n" not in found.reason
    assert found.lists <= PLAN.lists and found.target <= passing


def test_the_way_goes_by_what_is_in_memory_and_by_the_batch():
    assert plan_scan(60_000, 300_000, 10, PLAN, **SIZE | {"resident": False}).way == "selector"
    many = SUBSET_BYTES // (256 + 8) + 1
    assert plan_scan(many, 300_000, 10, PLAN, **SIZE).way == "selector"
    assert plan_scan(9000, 300_000, 10, PLAN, **SIZE | {"queries": 1}).way == "subset"
    assert plan_scan(1000, 300_000, 10, PLAN, **SIZE | {"dim": 9999}).way == "exact"
    assert plan_scan(5, 10, 3, Plan(), **SIZE).way == "exact"


@given(st.integers(1, 300_000), st.integers(1, 50), st.sampled_from([0, 99, 900]), st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_plan_scans_no_fewer_lists_than_without_a_filter(passing, k, filtered, resident):
    plan, size = replace(PLAN, filtered_nprobe=filtered), SIZE | {"resident": resident}
    found = plan_scan(passing, 300_000, k, plan, **size)
    assert "\n" not in found.reason
    if found.way in ("exact", "all"):
        return
    assert plan.nprobe <= found.lists <= plan.lists and 0 < found.target <= passing
    assert k <= found.candidates
    fewer = plan_scan(max(1, passing // 2), 300_000, k, plan, **size)
    assert fewer.way == "exact" or fewer.lists >= found.lists
    more = plan_scan(passing, 300_000, k, replace(plan, filtered_nprobe=2048), **size)
    assert more.way == "exact" or more.target >= found.target


def test_lists_are_taken_until_they_hold_the_target():
    ranked = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    passing = np.array([5, 0, 2, 1])
    assert lists_until(ranked, passing, 6).tolist() == [[0, -1, 2, -1], [3, 2, -1, 0]]
    assert lists_until(ranked, passing, 1).tolist() == [[0], [3]]


@pytest.mark.parametrize("way", ["exact", "subset", "selector"])
def test_each_way_finds_the_best_of_the_rows_that_pass(tmp_path, monkeypatch, way):
    vectors = make_collection(tmp_path / "c", (50, 30, 60), holes=0.1)["image"]
    build_index(tmp_path / "c", settings=IndexSettings(kind="ivf", tune=False, exact_below=1))
    monkeypatch.setattr(filter_plan, "ALWAYS_EXACT", 1000 if way == "exact" else -1)
    monkeypatch.setattr(filter_plan, "MULTIPLY", 1e9)
    opened = open_collection(tmp_path / "c")
    index = opened.column("image")
    xq = unit_rows(np.random.default_rng(3), 5, vectors.shape[1])
    mask = np.random.default_rng(4).random(len(vectors)) < 0.5
    allowed = np.split(mask, index.starts[1:-1])
    k = 10
    index.plan = replace(index.plan, oversample=100)  # all rows that pass
    if way == "selector":
        monkeypatch.setattr(filter_plan, "SUBSET_BYTES", 0)
    taken = explain(index, k, opened.lists_to_scan("image"), allowed, len(xq)).way
    assert taken == way
    scores, ids = search_filtered(index, xq, k, opened.lists_to_scan("image"), allowed)
    exact = xq @ vectors.T
    exact[:, ~(mask & np.any(vectors, axis=1))] = -np.inf
    order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    np.testing.assert_allclose(scores, np.take_along_axis(exact, order, 1), atol=1e-6)
    assert np.array_equal(ids, order)
