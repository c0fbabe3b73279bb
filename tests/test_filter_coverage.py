"""Filtered searches by lists: filters at random, with the query and against it, against numpy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_collection import unit_rows

from chiasm.index.build.train import encoded_index, train
from chiasm.index.build.trial_index import SAMPLE, SampleSegment
from chiasm.index.plan import Plan
from chiasm.index.query import ColumnIndex, filtered, scan, search_lists
from chiasm.index.query.coverage import Lists, scan_covering, upper_tail
from chiasm.index.query.filter_plan import MISSED, missed_share
from chiasm.index.segments import Float16Vectors
from chiasm.index.segments.lists import NO_HEAP_INIT

ROWS, DIM, K, NPROBE = 2400, 16, 10, 6
KINDS = ("random", "with", "against", "own")


@dataclass(frozen=True)
class FakeSegment(SampleSegment):
    """Rows in memory. number: of the segment. gone: those that are deleted."""

    number: int = 0
    gone: np.ndarray | None = None
    deletions = None

    @property
    def record(self):
        record = super().record
        record.id = str(self.number)
        return record

    def deleted(self):
        return self.gone

    def lists(self, column, trained):
        return self.index


def make_vectors(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (ROWS, DIM) in overlapping clusters, as float16 has them, and 12 queries near some."""
    rng = np.random.default_rng(seed)
    centers = unit_rows(rng, 40, DIM)
    xb = centers[rng.integers(40, size=ROWS)] + 0.6 * unit_rows(rng, ROWS, DIM)
    xb /= np.linalg.norm(xb, axis=1, keepdims=True)
    xq = xb[:12] + 0.5 * unit_rows(rng, 12, DIM)
    xq /= np.linalg.norm(xq, axis=1, keepdims=True)
    return xb.astype(np.float16).astype(np.float32), np.ascontiguousarray(xq, np.float32)


def make_index(xb: np.ndarray, plan: Plan, gone: np.ndarray | None = None) -> ColumnIndex:
    """Three segments."""
    trained = train(plan, xb, xb[::3], iterations=4)
    segments = []
    for number, part in enumerate(np.array_split(np.arange(len(xb)), 3)):
        coded = np.ascontiguousarray(trained.rows(xb[part]), dtype=np.float32)
        index = encoded_index(trained, coded, trained.assign(xb[part], coded))
        index.parallel_mode = NO_HEAP_INIT
        deleted = None if gone is None else gone[part]
        stored = Float16Vectors(xb[part].astype(np.float16))
        segments.append(FakeSegment(stored, index, number, deleted))
    return ColumnIndex(segments, SAMPLE, plan, trained)


PLAN = Plan("ivf", 48, NPROBE, "full", DIM, "SQ8", spread=1.0, oversample=4, missed=0.002)
PLANS = (
    PLAN,
    replace(PLAN, spread=0.0),
    replace(PLAN, codes="RaBitQ8"),
    Plan("projected", 48, NPROBE, "projected", 12, "SQ8", 1.0, 4, missed=0.002),
)


@pytest.fixture(scope="module")
def made():
    xb, xq = make_vectors(1)
    return xb, xq, [make_index(xb, plan) for plan in PLANS]


def mask_of(kind: str, share: float, xb: np.ndarray, query: np.ndarray, seed: int) -> np.ndarray:
    """The rows that pass: at random, nearest to the query or to something like it, farthest."""
    rng = np.random.default_rng(seed)
    like = query if kind == "own" else query + 0.4 * unit_rows(rng, 1, DIM)[0]
    value = rng.random(len(xb)) if kind == "random" else xb @ like
    value = value if kind == "with" else -value
    return value >= np.quantile(value, 1 - share)


def allowed_of(index: ColumnIndex, mask: np.ndarray) -> list[np.ndarray]:
    return np.split(mask, index.starts[1:-1])


def brute_force(xb, xq, mask, k):
    """Scores (Q, k), best first, and rows, as `search` has them."""
    exact = np.where(mask, xq @ xb.T, -np.inf)
    order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(exact, order, 1)
    return scores, np.where(np.isinf(scores), -1, order)


@given(st.sampled_from(KINDS), st.sampled_from([0.6, 0.3, 0.05, 0.004]), st.integers(0, 3))
@settings(max_examples=24, deadline=None, derandomize=True)
def test_recall_is_kept_whether_a_filter_goes_with_the_query_or_against_it(made, kind, share, plan):
    xb, xq, indexes = made
    index, recalls = indexes[plan], []
    for number, query in enumerate(xq[:6]):
        mask = mask_of(kind, share, xb, query, number)
        allowed = allowed_of(index, mask)
        scores, ids = search_lists(index, query[None], K, NPROBE, allowed)
        best, _ = brute_force(xb, query[None], mask, K)
        found = ids[ids >= 0]
        assert mask[found].all() and len(set(found.tolist())) == len(found)
        assert len(found) == min(K, mask.sum())
        np.testing.assert_allclose(scores[0, : len(found)], xb[found] @ query, atol=1e-6)
        assert (np.diff(scores[0, : len(found)]) <= 0).all()
        recalls.append(np.mean(scores >= best.min() - 1e-6))
    assert np.mean(recalls) >= 0.9


@given(st.sampled_from(KINDS), st.floats(0.002, 0.9), st.integers(0, 3), st.integers(1, 40))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_all_lists_and_enough_candidates_are_exact(made, kind, share, plan, k):
    xb, xq, indexes = made
    index = replace(indexes[plan], plan=replace(indexes[plan].plan, oversample=2400))
    mask = mask_of(kind, share, xb, xq[0], 5)
    scores, ids = search_lists(index, xq[:3], k, PLAN.lists, allowed_of(index, mask))
    best, rows = brute_force(xb, xq[:3], mask, k)
    np.testing.assert_allclose(scores, best, atol=1e-6)
    assert np.array_equal(ids, rows)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_does_not_depend_on_the_batch_nor_on_where_codes_lie(made, kind, monkeypatch):
    xb, xq, indexes = made
    index = indexes[0]
    allowed = allowed_of(index, mask_of(kind, 0.2, xb, xq[0], 2))
    together = search_lists(index, xq, K, NPROBE, allowed)
    for number in range(len(xq)):
        alone = search_lists(index, xq[number, None], K, NPROBE, allowed)
        assert np.array_equal(alone[1][0], together[1][number])
    monkeypatch.setattr(filtered, "MAX_CANDIDATES", 100)  # few queries at once
    assert np.array_equal(search_lists(index, xq, K, NPROBE, allowed)[1], together[1])
    monkeypatch.setattr(scan, "RESIDENT_BYTES", 0)  # segment by segment, by a bitmap
    mapped = ColumnIndex(index.segments, SAMPLE, index.plan, index.trained)
    best, _ = brute_force(xb, xq, np.concatenate(allowed), K)
    scores, ids = search_lists(mapped, xq, K, NPROBE, allowed)
    assert len(mapped.scan(allowed).parts) == 3 and (ids >= 0).all()
    assert np.mean(scores >= best.min(axis=1, keepdims=True) - 1e-6) >= 0.9


def test_deleted_rows_and_a_filter_that_nothing_passes(made):
    xb, xq, _ = made
    gone = np.random.default_rng(3).random(ROWS) < 0.3
    index = make_index(xb, PLAN, gone)
    mask = mask_of("against", 0.3, xb, xq[0], 1)
    allowed = allowed_of(index, mask)
    _, ids = search_lists(index, xq, K, PLAN.lists, allowed)
    assert np.array_equal(ids, brute_force(xb, xq, mask & ~gone, K)[1])
    scores, ids = search_lists(index, xq, K, NPROBE, allowed_of(index, mask & gone))
    assert (ids == -1).all() and np.isinf(scores).all()


def test_rows_that_codes_do_not_tell_apart_get_more_candidates(made, monkeypatch):
    """Of a filter that leaves out the better half for the query, a coarse code finds the best."""
    xb, xq, _ = made
    plan = replace(PLAN, codes="RaBitQ2", oversample=1, nprobe=PLAN.lists)
    index = make_index(xb, plan)
    counts = []

    def counting(scan, xq, k, wanted, **options):
        counts.append(wanted)
        return scan_covering(scan, xq, k, wanted, **options)

    monkeypatch.setattr(filtered, "scan_covering", counting)
    mask = xb @ xq[0] <= np.median(xb @ xq[0])
    scores, _ = search_lists(index, xq[:1], K, PLAN.lists, allowed_of(index, mask))
    best, _ = brute_force(xb, xq[:1], mask, K)
    assert np.mean(scores >= best.min() - 1e-6) >= 0.9
    assert counts[0] == K + 8 and counts[-1] >= 8 * counts[0]


def test_the_full_codes_are_scanned_where_few_bits_do_not_tell_rows_apart(made):
    """Half of the rows go, the better ones for the query: the best others are about equally far."""
    xb, xq, indexes = made
    index, recalls = indexes[0], []
    for query in xq:
        mask = xb @ query <= np.median(xb @ query)
        allowed = allowed_of(index, mask)
        scores, _ = search_lists(index, query[None], K, PLAN.lists, allowed)
        best, _ = brute_force(xb, query[None], mask, K)
        recalls.append(np.mean(scores >= best.min() - 1e-6))
        (fast,) = index.scan(allowed).memory
        assert fast.plain() is fast.plain() is not fast and len(fast.plain()) == mask.sum()
    assert np.mean(recalls) >= 0.95
    some = index.scan(None).memory[0].selecting(mask)
    assert some.plain() is some


def test_equal_rows_are_found_in_their_order(made):
    """Truth by the six different rows: a matrix product may give equal rows different last bits."""
    xb, xq, _ = made
    copies = ROWS // 6
    same = np.repeat(xb[:6], copies, axis=0)
    index = make_index(same, replace(PLAN, lists=6, nprobe=2))
    mask = np.arange(len(same)) % 3 == 1
    _, ids = search_lists(index, xq, K, 6, allowed_of(index, mask))
    allowed = np.flatnonzero(mask)
    best = np.argmax(xq @ xb[:6].T, axis=1)
    assert np.array_equal(ids, [allowed[allowed // copies == group][:K] for group in best])


def test_a_filter_against_the_query_scans_more_lists(made, monkeypatch):
    xb, xq, indexes = made
    scanned: list[int] = []
    in_lists = scan.Scan.in_lists

    def counting(self, xq, coded, lists, wanted):
        scanned.append(int((lists >= 0).sum()))
        return in_lists(self, xq, coded, lists, wanted)

    monkeypatch.setattr(scan.Scan, "in_lists", counting)
    sums = {}
    for kind in ("with", "random", "own"):
        sums[kind] = 0
        for query in xq:
            scanned.clear()
            mask = mask_of(kind, 0.4, xb, query, 1)
            search_lists(indexes[0], query[None], K, NPROBE, allowed_of(indexes[0], mask))
            sums[kind] += sum(scanned)
    assert sums["with"] < sums["own"] and sums["random"] < sums["own"]


def test_lists_are_taken_until_the_others_are_expected_to_hold_few_of_the_best():
    mean = np.array([[0.5, 0.1, 0.9], [0.5, 0.6, 0.55]], np.float32)
    numbers, deviation = np.array([3, 5, 8]), np.full(3, 1e-3, np.float32)
    lists = Lists(numbers, mean, mean, deviation, np.array([20, 10, 10], np.float32))
    assert lists.best(1).tolist() == pytest.approx([0.9, 0.6])
    assert lists.best(9).tolist() == pytest.approx([0.1, 0.5])
    bound, least = lists.best(1), np.array([0.5, 0.5], np.float32)
    # Of query 0: 10, 0 and 10 rows expected above 0.5; of query 1: 10, 10 and 10.
    for missed, expected in (
        (0.7, [[8], [5]]),
        (0.4, [[8, 3], [8, 5]]),
        (0.1, [[8, 3], [3, 5, 8]]),
    ):
        enough = lists.enough(least, bound, missed)
        found = lists.where(mean >= enough[:, None])
        assert [sorted(set(row) - {-1}) for row in found.tolist()] == [sorted(e) for e in expected]
    assert (lists.enough(least, bound, 0.0) == -np.inf).all()
    least[1] = -np.inf
    assert lists.enough(least, bound, 0.6)[1] == -np.inf


@given(st.floats(-5, 5))
def test_the_tail_of_the_normal_is_near_enough(x):
    found = float(upper_tail(np.array([x], np.float32))[0])
    exact = 1 - NormalDist().cdf(x) if x < 0 else NormalDist().cdf(-x)
    assert abs(found - exact) < 0.007 and 0.5 < found / exact < 2


def test_more_lists_miss_less():
    assert missed_share(PLAN, NPROBE) == PLAN.missed
    assert missed_share(PLAN, 2 * NPROBE) == PLAN.missed / 2
    assert missed_share(PLAN, PLAN.lists) == 0
    assert missed_share(replace(PLAN, missed=0.0), NPROBE) == MISSED
