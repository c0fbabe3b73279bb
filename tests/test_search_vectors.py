"""`search_vectors`, the door for vectors: what it refuses, and what it takes."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_collection import make_collection, unit_rows

from chiasm.index import IndexSettings, build_index, open_collection
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
        ({"k": -1}, "k: expected 0 or more, found -1"),
        ({"nprobe": -1}, "nprobe: expected 0 or more, found -1"),
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
