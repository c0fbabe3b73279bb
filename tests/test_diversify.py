"""Near duplicates folded, and maximal marginal relevance: against references in plain Python."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_encoder import FakeEncoder
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_collection import add_shard, unit_rows

from chiasm.index import Query, build_index, open_collection
from chiasm.index.query import diversify
from chiasm.jobs.cli.search import format_answer
from chiasm.pipeline.collection import Identity, create_or_check
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.storage import Folder

room = sys.modules[diversify.__module__]  # a function of the face has the module's name
DIM, GROUPS, COPIES = 8, 12, 20


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A collection of GROUPS x COPIES pictures, those of a group near duplicates of each other."""
    path = tmp_path_factory.mktemp("diversify") / "c"
    create_or_check(Folder(str(path)), Identity.of(FakeEncoder()), "test")
    rng = np.random.default_rng(11)
    centres = np.repeat(unit_rows(rng, GROUPS, DIM), COPIES, axis=0)
    vectors = centres + 0.02 * rng.normal(size=centres.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = rng.permutation(len(vectors))
    for n, rows in enumerate(np.split(order, [90])):
        add_shard(Folder(str(path)), f"s{n}", len(rows), seed=n, vectors=vectors[rows])
    build_index(str(path))
    return path


def stored(path: Path, answer):
    """The stored vectors of an answer's hits, as unit vectors in float64."""
    found = open_collection(path).vectors("image", [r.hit.position for r in answer])
    return unit(found.astype(np.float64))


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def everything(path, xq):
    """All rows of the collection, best first."""
    return open_collection(path).search_many([Query(vector=xq, k=GROUPS * COPIES)])[0]


def folded(answer, vectors, least):
    """(id, ids folded under it) of every distinct hit: each hit goes under the first like it."""
    kept: list[tuple[int, list[str]]] = []
    for row, result in enumerate(answer):
        for number, ids in kept:
            if vectors[row] @ vectors[number] >= least:
                ids.append(result.id)
                break
        else:
            kept.append((row, []))
    return [(answer[row].id, ids) for row, ids in kept]


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.97]))
def test_hits_are_folded_under_the_first_that_they_are_like(made, seed, least):
    """Candidates are searched for until all rows are there: k exceeds what is distinct."""
    xq = np.random.default_rng(seed).normal(size=DIM).astype(np.float32)
    answer = everything(made, xq)
    vectors = stored(made, answer)
    near = np.abs(vectors @ vectors.T - least).min()
    if near < 1e-5:
        return  # rounding would decide
    query = Query(vector=xq, k=200, dedup=least)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "BLOCK", 50)
        found = open_collection(made).search_many([query])[0]
    assert [(r.id, list(r.duplicates)) for r in found] == folded(answer, vectors, least)


def test_more_candidates_are_searched_for_until_k_are_distinct(made, monkeypatch):
    collection, xq = open_collection(made), np.arange(1, DIM + 1)
    counts, search_more = [], room.fold_duplicates

    def recorded(queries, hits, collection, more):
        def wrapped(some, wanted):
            counts.append(list(wanted))
            return more(some, wanted)

        return search_more(queries, hits, collection, wrapped)

    monkeypatch.setattr(room, "fold_duplicates", recorded)
    queries = [Query(vector=xq, k=5, dedup=0.97), Query(vector=xq, k=3), Query(vector=-xq, k=1)]
    answers = collection.search_many(queries)
    assert counts == [[40], [160]]  # 10 at first: two for every result
    truth = folded(everything(made, xq), stored(made, everything(made, xq)), 0.97)
    assert [r.id for r in answers[0]] == [id for id, _ in truth[:5]]
    assert [r.rank for r in answers[0]] == [1, 2, 3, 4, 5]
    assert [r.duplicates for r in answers[1]] == [()] * 3
    for query, answer in zip(queries, answers, strict=True):  # its batch changes nothing
        assert collection.search_many([query])[0].results == answer.results
    counts.clear()
    many = collection.search_many([Query(vector=xq, k=100, dedup=0.97)])[0]
    assert len(many) == GROUPS and counts == [[GROUPS * COPIES]]  # then the index has no more
    assert sum(len(r.duplicates) for r in many) == GROUPS * (COPIES - 1)


def test_the_search_for_candidates_is_bounded(made, monkeypatch):
    monkeypatch.setattr(room, "MAX_CANDIDATES", 25)
    found = open_collection(made).search_many([Query(vector=np.ones(DIM), k=9, dedup=0.97)])[0]
    assert len(found) < 9 and sum(1 + len(r.duplicates) for r in found) == 25


def test_equal_vectors_are_folded_at_a_cosine_of_one(tmp_path):
    create_or_check(Folder(str(tmp_path)), Identity.of(FakeEncoder()), "test")
    rows = np.repeat(unit_rows(np.random.default_rng(0), 4, DIM), 3, axis=0)
    add_shard(Folder(str(tmp_path)), "s", 12, vectors=rows)
    build_index(str(tmp_path))
    found = open_collection(tmp_path).search_many([Query(vector=np.ones(DIM), k=4, dedup=1)])[0]
    assert [len(r.duplicates) for r in found] == [2] * 4


def test_results_say_how_many_are_folded_and_which(made):
    found = open_collection(made).search_many([Query(vector=np.ones(DIM), k=2, dedup=0.97)])[0]
    first = found.as_json()["results"][0]
    count = len(found[0].duplicates)
    assert first["duplicates"] == list(found[0].duplicates) and count > 1
    assert f"{found[0].id} + {count} near duplicates>" in repr(found)
    assert f"{found[0].id} + {count} near duplicates" in format_answer(found)
    assert found.as_json()["query"]["dedup"] == 0.97 and "diversify" in found.seconds
    plain = open_collection(made).search_many([Query(vector=np.ones(DIM), k=2)])[0]
    assert "duplicates" not in plain.as_json()["results"][0] and "diversify" not in plain.seconds


def marginal(answer, vectors, k, d):
    """Ids by maximal marginal relevance, one after the other."""
    scores = np.array([result.score for result in answer])
    relevance = (scores - scores.min()) / (scores.max() - scores.min())
    taken: list[int] = []
    margins = []
    while len(taken) < k:
        values = {
            row: (1 - d) * relevance[row]
            - d * max((vectors[row] @ vectors[other] for other in taken), default=0)
            for row in range(len(answer))
            if row not in taken
        }
        ordered = sorted(values, key=lambda row: -values[row])
        margins.append(values[ordered[0]] - values[ordered[1]])
        taken.append(ordered[0])
    return [answer[row].id for row in taken], min(margins)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 1), st.integers(1, 8))
def test_results_are_those_of_maximal_marginal_relevance(made, seed, d, k):
    xq = np.random.default_rng(seed).normal(size=DIM).astype(np.float32)
    collection = open_collection(made)
    pool = collection.search_many([Query(vector=xq, k=5 * k)])[0]
    expected, margin = marginal(pool, stored(made, pool), k, d)
    if margin < 1e-4:
        return  # rounding would decide
    found = collection.search_many([Query(vector=xq, k=k, diversity=d), Query(vector=-xq)])[0]
    assert [r.id for r in found] == expected
    scores = {result.id: result.score for result in pool}
    assert all(r.score == scores[r.id] for r in found)


def test_no_diversity_leaves_the_order_and_much_of_it_leaves_the_group(made):
    collection, xq = open_collection(made), np.arange(1, DIM + 1)
    plain, kept, varied = collection.search_many(
        [Query(vector=xq, k=12, diversity=d) for d in (0, 1e-9, 0.9)]
    )
    assert plain.results == kept.results
    vectors = {name: stored(made, answer[:3]) for name, answer in (("p", plain), ("s", varied))}
    cosines = {name: (rows @ rows.T)[np.triu_indices(3, 1)] for name, rows in vectors.items()}
    assert cosines["s"].max() < 0.97 < cosines["p"].min()
    assert varied[0].id == plain[0].id


def test_folding_and_diversity_come_after_reranking(made):
    collection, xq = open_collection(made), np.arange(1, DIM + 1)
    query = {"vector": xq, "k": 60, "rerank": ["vectors:60", "vectors:30"]}
    again = collection.search_many([Query(**query)])[0]
    found = collection.search_many([Query(**query, dedup=0.97)])[0]
    first = folded(again, stored(made, again), 0.97)
    assert [r.id for r in found[: len(first)]] == [id for id, _ in first]
    reranked = [found.is_reranked(result) for result in found]
    expected = {r.id for r in again[:30]}
    assert reranked == [r.id in expected for r in found] == sorted(reranked, reverse=True)
    # Diversity chooses among those that the last stage scored.
    varied = collection.search_many([Query(**{**query, "k": 10}, diversity=0.7)])[0]
    ids, margin = marginal(again[:30], stored(made, again[:30]), 10, 0.7)
    assert margin > 1e-6 and [r.id for r in varied] == ids


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dedup": 1.01}, "dedup: expected a finite number from 0 to 1, found 1.01"),
        ({"dedup": math.nan}, "dedup: expected a finite number from 0 to 1, found nan"),
        ({"dedup": "0.9"}, "dedup: expected a finite number from 0 to 1, found '0.9'"),
        ({"diversity": -0.1}, "diversity: expected a finite number from 0 to 1, found -0.1"),
        ({"diversity": None}, "diversity: expected a finite number from 0 to 1, found None"),
    ],
)
def test_other_values_are_refused(fields, message):
    with pytest.raises(UsageError) as error:
        Query("a", **fields)
    assert str(error.value) == message
