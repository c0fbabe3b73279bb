"""`search_vectors`, the door for vectors: what it refuses, and what it takes."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_collection import make_collection, unit_rows

from chiasm.index import IndexSettings, Query, build_index, open_collection
from chiasm.index.query import open_index as open_index_module
from chiasm.pipeline.errors import UsageError

KINDS = {"exact": IndexSettings(), "lists": IndexSettings(tune=False, exact_below=1, nprobe=4)}
DIM = 8


@pytest.fixture(scope="module", params=KINDS)
def index(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("searched") / "c"
    make_collection(path, (200, 130))
    build_index(path, settings=KINDS[request.param])
    return open_collection(path)


@pytest.fixture
def xq() -> np.ndarray:
    return unit_rows(np.random.default_rng(4), 3, DIM)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0])
def test_vectors_that_are_no_queries_are_refused_by_number(index, xq, bad):
    xq[1] = bad
    with pytest.raises(UsageError) as error:
        index.search_vectors(xq, 3)
    assert str(error.value) == (
        "query vector 1: expected finite numbers, not all zero, found zeros, NaN or infinity"
    )


@pytest.mark.parametrize("shape", [(DIM,), (2, DIM + 1), (1, 1, DIM), (0,)])
def test_another_shape_is_refused(index, shape):
    with pytest.raises(UsageError, match=r"^query vectors: expected shape \(Q, 8\), found shape"):
        index.search_vectors(np.ones(shape, np.float32), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": -1}, "k: expected a whole number from 0 up, found -1"),
        ({"k": 1.5}, "k: expected a whole number from 0 up, found 1.5"),
        ({"k": None}, "k: expected a whole number from 0 up, found None"),
        ({"k": True}, "k: expected a whole number from 0 up, found True"),
        ({"k": 10**9}, "k: expected at most 22,369,621 for 3 queries of 330 rows, found 1,000,000"),
        ({"nprobe": -1}, "nprobe: expected a whole number from 0 up, found -1"),
        ({"nprobe": "9"}, "nprobe: expected a whole number from 0 up, found '9'"),
        ({"column": "sound"}, "column 'sound': expected one of image, text, joint, found no such"),
        ({"where": "nothing = 1"}, "where: expected a field, one of key, shard,"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(index, xq, options, message):
    with pytest.raises(UsageError) as error:
        index.search_vectors(xq, **{"k": 3, **options})
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_any_layout_and_type_of_the_same_numbers_gives_the_same(index, xq):
    scores, ids = index.search_vectors(xq, 5)
    assert (scores.dtype, ids.dtype) == (np.float32, np.int64) and scores.shape == ids.shape
    wide = np.repeat(xq, 2, axis=1)[:, ::2]
    for same in (np.asfortranarray(xq), xq.astype(np.float64), xq.tolist(), wide):
        found = index.search_vectors(same, 5)
        np.testing.assert_array_equal(found[0], scores)
        np.testing.assert_array_equal(found[1], ids)


def test_more_than_there_is_none_at_all_and_no_query(index, xq):
    scores, ids = index.search_vectors(xq, 400, nprobe=1000)
    beyond = ids < 0
    assert (np.isneginf(scores) == beyond).all() and (np.diff(beyond.astype(int)) >= 0).all()
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() <= 330 for row in ids)
    assert index.search_vectors(xq, 0)[0].shape == (3, 0)
    assert index.search_vectors(xq[:0], 4)[1].shape == (0, 4)
    scores, ids = index.search_vectors(xq, 4, "width < 0")
    assert np.isneginf(scores).all() and (ids == -1).all()


def test_far_more_than_there_is_takes_the_memory_of_the_answer_alone(index, xq, monkeypatch):
    whole = index.search_vectors(xq, 330, nprobe=1000)
    widest = []
    kept = open_index_module.search_filtered
    monkeypatch.setattr(
        open_index_module,
        "search_filtered",
        lambda *some: widest.append(some[2]) or kept(*some),
    )
    scores, ids = index.search_vectors(xq, 5000, nprobe=1000)
    assert widest == [330] and scores.shape == ids.shape == (3, 5000)
    np.testing.assert_array_equal(ids[:, :330], whole[1])
    assert (ids[:, 330:] == -1).all() and np.isneginf(scores[:, 330:]).all()


@pytest.mark.parametrize("where", [None, "width >= 0"])
@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_vectors_of_any_length_are_taken(index, xq, length, where):
    scores, ids = index.search_vectors(xq, 9, where)
    mixed = xq.copy()
    mixed[1] *= np.float32(length)
    found, places = index.search_vectors(mixed, 9, where)
    np.testing.assert_array_equal(places, ids)
    np.testing.assert_allclose(found[1], scores[1] * np.float32(length), rtol=1e-5)
    np.testing.assert_array_equal(found[[0, 2]], scores[[0, 2]])
    answers = [index.search_many([Query(vector=one)])[0] for one in (xq[1], mixed[1])]
    assert [one.id for one in answers[0]] == [one.id for one in answers[1]] != []


def test_what_is_no_array_of_numbers_or_no_condition_is_one_line(index, xq):
    for bad in ("a", [[1, 2], [3]], [[10**400] * DIM], object()):
        with pytest.raises(UsageError, match=r"^query vectors: expected shape \(Q, 8\), found "):
            index.search_vectors(bad, 3)
    with pytest.raises(TypeError, match=r"^where: expected str, found int$"):
        index.search_vectors(xq, 3, 5)
