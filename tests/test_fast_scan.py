"""The codes of a column in memory: scanned in two steps, they find what a plain scan finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.plan import Plan
from chiasm.index.query import fast_scan
from chiasm.index.query.code_scan import CodeScan
from chiasm.index.query.fast_scan import FastScan, fit_levels
from chiasm.index.segments import ListCodes, Trained, code_ranges

LISTS = 8


def unit(rng, rows, dim):
    vectors = rng.standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def in_lists(xb, codes="SQ8", seed=0):
    """What is trained, the codes list after list, and the list of each row."""
    plan = Plan("ivf", LISTS, LISTS, "full", xb.shape[1], codes)
    ranges = code_ranges(xb) if codes == "SQ8" else None
    trained = Trained(plan, xb[:LISTS].copy(), np.zeros(LISTS, np.float32), ranges)
    index = trained.empty_index()
    lists = np.random.default_rng(seed).integers(0, LISTS - 1, len(xb))  # the last has no rows
    encoded = np.empty((len(xb), index.code_size), np.uint8)
    faiss = load_faiss()
    xb = np.ascontiguousarray(xb)
    index.encode_vectors(
        len(xb), faiss.swig_ptr(xb), faiss.swig_ptr(lists), faiss.swig_ptr(encoded)
    )
    order = np.argsort(lists, kind="stable")
    starts = lists[order].searchsorted(np.arange(LISTS + 1))
    return trained, ListCodes(encoded[order], order, starts), lists


def by_brute_force(trained, codes, xq, lists, wanted, mask=None):
    """Scores of the best, by the decoded 8-bit codes."""
    low, width = trained.ranges
    decoded = low + (codes.codes + 0.5) / 255 * width
    of_list = np.repeat(np.arange(LISTS), np.diff(codes.starts))
    scores = xq @ decoded.T.astype(np.float32)
    for query, some in enumerate(lists):
        scores[query, ~np.isin(of_list, some)] = -np.inf
    if mask is not None:
        scores[:, ~mask[codes.rows]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :wanted]
    rows = codes.rows[order]
    scores = np.take_along_axis(scores, order, 1)
    rows[scores == -np.inf] = -1
    return scores, rows


def in_order(scores, rows):
    order = np.lexsort((rows, -scores))
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(LISTS, 300),
    dim=st.integers(1, 33),
    wanted=st.integers(1, 40),
    seed=st.integers(0, 99),
    share=st.sampled_from([None, 0.0, 0.05, 0.5, 1.0]),
    copied=st.booleans(),
)
def test_a_shortlist_of_all_rows_gives_what_a_scan_of_the_codes_gives(
    rows, dim, wanted, seed, share, copied
):
    rng = np.random.default_rng(seed)
    xb, xq = unit(rng, rows, dim), unit(rng, 3, dim)
    trained, codes, _ = in_lists(xb, seed=seed)
    scan, mask = FastScan(codes, trained), None
    if share is not None:
        mask = rng.random(rows) < share
        scan = scan.subset(mask) if copied else scan.selecting(mask)
    lists = np.stack([rng.permutation(LISTS)[:5] for _ in xq])
    lists[0, 2:4] = -1
    lists = np.ascontiguousarray(lists)
    before, fast_scan.SHORTLIST = fast_scan.SHORTLIST, 300
    try:
        found = in_order(*scan.candidates(xq, lists, wanted))
    finally:
        fast_scan.SHORTLIST = before
    expected = by_brute_force(trained, codes, xq, lists, wanted, mask)
    assert np.array_equal(found[0] > -np.inf, expected[0][:, : found[0].shape[1]] > -np.inf)
    finite = expected[0] > -np.inf
    np.testing.assert_allclose(found[0][finite], expected[0][finite], atol=1e-5)
    at_rows = codes.rows.argsort()
    low, width = trained.ranges
    decoded = (low + (codes.codes[at_rows] + 0.5) / 255 * width).astype(np.float32)
    for query in range(3):  # each row has its own score
        some = found[1][query][found[1][query] >= 0]
        assert len(set(some.tolist())) == len(some)
        np.testing.assert_allclose(
            decoded[some] @ xq[query], found[0][query][: len(some)], atol=1e-5
        )


def test_what_is_found_depends_on_neither_batch_nor_threads_nor_memory(monkeypatch):
    rng = np.random.default_rng(1)
    xb, xq = unit(rng, 5000, 24), unit(rng, 70, 24)
    trained, codes, _ = in_lists(xb)
    scan = FastScan(codes, trained)
    lists = np.ascontiguousarray(np.tile(np.arange(LISTS), (70, 1)))
    together = in_order(*scan.candidates(xq, lists, 20))
    faiss = load_faiss()
    threads = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        threaded = in_order(*scan.candidates(xq, lists, 20))
    finally:
        faiss.omp_set_num_threads(threads)
    alone = [in_order(*scan.candidates(xq[n, None], lists[n, None], 20)) for n in range(70)]
    monkeypatch.setattr(fast_scan, "GATHERED", 1)
    blocks = in_order(*scan.candidates(xq, lists, 20))
    one_by_one = tuple(np.concatenate(some) for some in zip(*alone, strict=True))
    for other in (threaded, one_by_one, blocks):
        assert np.array_equal(other[1], together[1])
        assert np.array_equal(other[0], together[0])


@pytest.mark.parametrize("equal", [200, 3000])
def test_rows_that_are_equal_by_their_codes_are_all_looked_at(equal):
    """None of equal rows is kept at the end of a shortlist, so more are asked for."""
    rng = np.random.default_rng(2)
    xb, xq = unit(rng, 4000, 16), unit(rng, 2, 16)
    xb[:equal] = xq[0]
    trained, codes, _ = in_lists(xb)
    lists = np.ascontiguousarray(np.tile(np.arange(LISTS), (2, 1)))
    scores, rows = FastScan(codes, trained).candidates(xq, lists, 12)
    expected, _ = by_brute_force(trained, codes, xq, lists, 12)
    np.testing.assert_allclose(np.sort(scores)[:, ::-1], expected, atol=1e-5)
    assert (rows[0] < equal).all() and (rows >= 0).all()


def test_levels_have_the_least_error_that_sixteen_can_have():
    rng = np.random.default_rng(3)
    normal = np.clip(np.rint(rng.standard_normal(40_000) * 40 + 128), 0, 255).astype(np.uint8)
    few = rng.choice([0, 100, 255], 40_000).astype(np.uint8)
    codes = np.stack([normal, few, np.full(40_000, 7, np.uint8)], axis=1)
    levels = fit_levels(codes)
    near = np.abs(codes[:, :, None] - levels).min(axis=2)
    # Max, 1960: the mean squared error of 16 levels for a normal variable is 0.009497.
    assert 0.0090 < np.square(near[:, 0]).mean() / np.var(normal.astype(float)) < 0.0110
    assert near[:, 1:].max() == 0 and (np.diff(levels, axis=1) >= 0).all()


@pytest.mark.parametrize("codes", ["SQ8", "RaBitQ4"])
def test_both_ways_to_scan_some_rows_agree(codes):
    rng = np.random.default_rng(4)
    xb, xq = unit(rng, 400, 16), unit(rng, 5, 16)
    trained, coded, lists = in_lists(xb, codes)
    scan = (FastScan if codes == "SQ8" else CodeScan)(coded, trained)
    mask = rng.random(400) < 0.2
    mask[lists == 3] = False
    subset, selecting = scan.subset(mask), scan.selecting(mask)
    counts = coded.passing(mask)
    assert counts.tolist() == np.bincount(lists[mask], minlength=LISTS).tolist()
    assert counts.tolist() == np.diff(subset.codes.starts).tolist() and len(subset) == mask.sum()
    all_lists = np.ascontiguousarray(np.tile(np.arange(LISTS), (5, 1)))
    some, others = (in_order(*one.candidates(xq, all_lists, 80)) for one in (subset, selecting))
    found = some[1][some[1] >= 0]
    assert (
        np.array_equal(some[1], others[1])
        and mask[found].all()
        and len(found) == 5 * min(80, mask.sum())
    )
    np.testing.assert_allclose(some[0], others[0], atol=1e-6)


@pytest.mark.parametrize("codes", ["SQ8", "RaBitQ1", "RaBitQ2", "RaBitQ4", "RaBitQ8"])
@pytest.mark.parametrize("dim", [8, 15, 48])
def test_a_plan_says_how_many_bytes_a_code_has(codes, dim):
    plan = Plan("ivf", 4, 4, "full", dim, codes)
    centroids = np.zeros((4, dim), np.float32)
    trained = Trained(plan, centroids, np.zeros(4, np.float32), np.ones((2, dim), np.float32))
    assert trained.empty_index().code_size == plan.code_size
