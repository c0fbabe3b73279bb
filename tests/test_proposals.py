"""What an index fits to tokens, against loops over tokens and against MaxSim."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from chiasm.index.build import propose
from chiasm.index.build.propose import fit_proposals
from chiasm.index.segments.proposals import NEAREST, Proposals, distances, winners
from chiasm.pipeline.encoders import Ragged, unit
from chiasm.pipeline.encoders.muvera import Muvera
from chiasm.pipeline.errors import CollectionError

WIDTH = 8


def joined(items):
    values = np.concatenate([np.zeros((0, WIDTH)), *items]).astype(np.float32)
    return Ragged(values, np.array([len(item) for item in items], np.int64))


def drawn(seed, rows, most=6):
    """Documents and queries that lie apart, as pictures and texts do: each query is of a document,
    token by token, seen from elsewhere."""
    rng = np.random.default_rng(seed)
    words = rng.normal(size=(40, WIDTH))
    apart = 2 * rng.normal(size=WIDTH)
    kinds = [rng.integers(0, 40, rng.integers(1, most + 1)) for _ in range(rows)]
    documents = [unit(words[some] + apart) for some in kinds]
    queries = [unit(words[some] + 0.2 * rng.normal(size=(len(some), WIDTH))) for some in kinds]
    return documents, queries


def max_sim(query, document):
    return float((query @ document.T).max(axis=1).sum())


@pytest.fixture(scope="module")
def fitted():
    documents, queries = drawn(0, 400)
    return fit_proposals(joined(documents), np.concatenate(queries), 48)


def test_documents_are_unit_and_those_without_tokens_zero(fitted):
    documents, _ = drawn(1, 30)
    items = [documents[0], np.zeros((0, WIDTH)), *documents[1:]]
    found = fitted.documents(joined(items))
    assert not found[1].any()
    np.testing.assert_allclose(np.linalg.norm(np.delete(found, 1, 0), axis=1), 1, atol=1e-5)
    alone = np.concatenate([fitted.documents(joined([item])) for item in items])
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_inner_products_are_those_of_the_tokens_that_win_the_partitions():
    """With as many numbers as directions nothing is lost by the projection."""
    documents, queries = drawn(2, 60)
    fitted = fit_proposals(joined(documents), np.concatenate(queries), 61)
    vectors = fitted.documents(joined(documents))
    for query in queries[:5]:
        expected = []
        for document in documents:
            won = winners([document], fitted.centres)[0]
            total = 0.0
            for token in query:
                gaps = distances(token[None], fitted.centres)[0]
                nearest = np.argsort(gaps)[:NEAREST]
                shares = np.exp(-(gaps[nearest] - gaps.min()) / fitted.scatter)
                total += float(won[nearest] @ token @ (shares / shares.sum()))
            expected.append(total)
        found = vectors @ fitted.query(query) * fitted.length
        expected = np.array(expected)
        np.testing.assert_allclose(found - found.mean(), expected - expected.mean(), atol=0.02)


def test_they_propose_what_max_sim_finds_where_random_partitions_do_not(fitted):
    documents, queries = drawn(3, 300)
    muvera = Muvera(WIDTH, 48)
    ways = {
        "fitted": (fitted.documents(joined(documents)), [fitted.query(q) for q in queries]),
        "muvera": (muvera.documents(joined(documents)), muvera.queries(joined(queries))),
    }
    recall = {}
    for name, (rows, vectors) in ways.items():
        found = []
        for query, vector in zip(queries[:60], vectors, strict=False):
            exact = np.array([max_sim(query, document) for document in documents])
            best, proposed = np.argsort(-exact)[:5], np.argsort(-(rows @ vector))[:25]
            found.append(len(set(best.tolist()) & set(proposed.tolist())) / 5)
        recall[name] = np.mean(found)
    assert recall["fitted"] > 0.8 > recall["muvera"] + 0.2


def test_parts_of_a_query_add_up(fitted):
    _, (one, two, *_) = drawn(4, 5)
    both = fitted.query(np.concatenate([one, two]))
    np.testing.assert_allclose(both, fitted.query(one) + fitted.query(two), atol=1e-4)
    assert both[-1] == 0


def test_few_rows_and_few_query_tokens_are_enough():
    documents, queries = drawn(5, 3)
    for tokens in (queries[0][:1], np.concatenate(queries), np.zeros((4, WIDTH))):
        fitted = fit_proposals(joined(documents), tokens, 16)
        found = fitted.documents(joined(documents))
        assert found.shape == (3, 16) and np.isfinite(found).all()
        assert np.isfinite(fitted.query(queries[0])).all()


def test_a_file_gives_them_back_and_another_is_refused(fitted):
    data = fitted.to_bytes()
    again = Proposals.from_bytes(data, 48, "here", "")
    documents, queries = drawn(6, 20)
    found = again.documents(joined(documents))
    np.testing.assert_allclose(found, fitted.documents(joined(documents)), atol=0.02)
    np.testing.assert_allclose(
        again.query(queries[0]), fitted.query(queries[0]), rtol=0.01, atol=0.05
    )
    for wrong in (b"", data[:-8], data):
        with pytest.raises(CollectionError, match="here: expected what proposes rows"):
            Proposals.from_bytes(wrong, 32, "here", "")


def test_the_same_rows_give_the_same_fit():
    documents, queries = drawn(7, 50)
    made = [fit_proposals(joined(documents), np.concatenate(queries), 16) for _ in range(2)]
    assert made[0].to_bytes() == made[1].to_bytes()


class _Rows:
    """An embedding file of seven row groups of 50 rows, each with one row that is unlike others."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.odd, self.tables = [], []
        for group in range(7):
            rows = unit(rng.normal(size=(50, 3, WIDTH)) * 0.3 + np.eye(WIDTH)[0])
            odd = rows[7 * group % 50]
            odd[:] = -np.eye(WIDTH)[0]
            odd[1] = np.eye(WIDTH)[1 + group]
            self.odd.append(odd.astype(np.float16))
            kind = pa.list_(pa.list_(pa.float16(), WIDTH))
            column = pa.array(list(map(list, rows.astype(np.float16))), kind)
            self.tables.append(pa.table({"image_tokens": column}))

    def group_count(self) -> int:
        return len(self.tables)

    def groups(self, columns: list[str], numbers: list[int]) -> Any:
        return (self.tables[number] for number in numbers)


def test_half_of_the_rows_that_are_fitted_to_are_the_most_unusual(monkeypatch):
    file, given = _Rows(0), []
    identity = SimpleNamespace(tokens={"image": WIDTH}, dim=16)
    covered = SimpleNamespace(
        files=[file], replaced_errors=lambda file: nullcontext(), identity=identity
    )
    monkeypatch.setattr(propose, "ROWS", 28)
    monkeypatch.setattr(propose, "fit_proposals", lambda *arguments: given.append(arguments))
    propose.sampled_proposals(cast(Any, covered), "image", "", cast(Any, None))
    rows = given[0][0].values.reshape(-1, 3, WIDTH)
    assert len(rows) == 28
    for odd in file.odd:
        assert (rows == odd).all(axis=(1, 2)).sum() == 1
    unusual = np.random.default_rng(1).permutation(20).astype(np.float32)
    rng = np.random.default_rng(2)
    taken = np.argsort(-propose._half_unusual(unusual, rng))[:6]
    assert set(np.argsort(-unusual)[:3].tolist()) <= set(taken.tolist())
    assert not set(taken.tolist()) <= set(np.argsort(-unusual)[:6].tolist())


def test_rows_are_as_unusual_as_their_products_with_the_tokens_of_queries_say():
    documents, queries = drawn(8, 20)
    marks = np.concatenate(queries)[:7].astype(np.float32)
    items = [documents[0], np.zeros((0, WIDTH)), *documents[1:]]
    found = propose._unusual(joined(items), marks)
    best = np.array([[max(float(x @ mark) for x in item) for mark in marks] for item in documents])
    expected = ((best - best.mean(axis=0)) ** 2).sum(axis=1)
    np.testing.assert_allclose(np.delete(found, 1), expected, rtol=1e-4)
    assert found[1] == 0
    assert not propose._unusual(joined([]), marks).size
