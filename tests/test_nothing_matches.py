""" "Nothing here matches": the stated rate on exchangeable data, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_collection import make_collection

from chiasm.index import Answer, Query, Term, build_index, open_collection
from chiasm.index.query.calibrate import (
    FEATURES,
    FLOOR,
    Calibration,
    features,
    fit,
    separating_weights,
    words_of,
)
from chiasm.index.query.calibration_sample import Sampled, calibrate, draw, exact_hits
from chiasm.jobs.cli.search import search as search_command
from chiasm.pipeline.errors import CollectionError, UsageError

NAMES = [f"noun{i}" for i in range(40)]
DIM = 48
DIRECTIONS = np.random.default_rng(7).standard_normal((len(NAMES), DIM)).astype(np.float32)
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)


def vectors_of(texts, noise=0.0, seed=0):
    """The mean of the words' directions, with noise; unit rows."""
    rows = np.stack(
        [
            sum((DIRECTIONS[NAMES.index(word)] for word in text.split()), np.zeros(DIM))
            for text in texts
        ]
    )
    rows = rows + noise * np.random.default_rng(seed).standard_normal(rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def collection(rows, seed, names=NAMES):
    """Captions of rows, two of each in another order of its words, and the rows' vectors."""
    rng = np.random.default_rng(seed)
    things = [rng.choice(names, 3, replace=False).tolist() for _ in range(rows)]
    captions = [(" ".join(three), " ".join(three[::-1])) for three in things]
    return captions, vectors_of([texts[0] for texts in captions], noise=0.05, seed=seed)


def calibrated(captions, rows, **options):
    return calibrate(lambda: captions, lambda: [(0, rows)], vectors_of, **options)


def p_values(calibration, captions, rows, queries):
    found = []
    for text, xq in zip(queries, vectors_of(queries), strict=True):
        top = np.argsort(-(rows @ xq), kind="stable")[:10]
        words = [frozenset().union(*map(words_of, captions[i])) for i in top]
        given_ = features((rows @ xq)[top], words, calibration.query_words(text), np.zeros(10))
        found.append(calibration.p_value(given_))
    return np.array(found)


def test_the_stated_rate_holds_on_exchangeable_queries():
    """200 calibrations of one distribution, a query each: within a binomial's 99.9 %."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(200):
        present = rng.normal(1.0, 1.0, (200, len(FEATURES)))
        absent = rng.normal(0.0, 1.0, (201, len(FEATURES)))
        found.append(fit(present, absent[:-1], absent[:-1], 10, {}).p_value(absent[-1]))
    for rate in (0.02, 0.05, 0.2):
        alarms = sum(p <= rate for p in found)
        assert alarms <= 200 * rate + 3.1 * np.sqrt(200 * rate * (1 - rate))
    assert sum(p <= 0.2 for p in found) >= 20  # and is no empty promise


def test_of_queries_whose_row_is_there_the_floor_leaves_out_few():
    rng = np.random.default_rng(4)
    present = rng.normal(3.0, 1.0, (4000, len(FEATURES)))
    absent = rng.normal(-3.0, 1.0, (400, len(FEATURES)))
    calibration = fit(present[:2000], absent, absent, 10, {})
    below = np.mean([calibration.p_value(one) > 0.05 for one in present[2000:]])
    assert abs(below - FLOOR) < 0.025


def test_a_word_that_no_row_has_is_noticed_and_a_row_that_is_there_is_found():
    captions, rows = collection(600, 1, NAMES[:-4])
    calibration = calibrated(captions, rows)
    there = p_values(calibration, captions, rows, [texts[1] for texts in captions[:200]])
    rng = np.random.default_rng(5)
    queries = [
        " ".join([*rng.choice(NAMES[:-4], 2, replace=False), str(rng.choice(NAMES[-4:]))])
        for _ in range(200)
    ]
    absent = p_values(calibration, captions, rows, queries)
    assert np.mean(there <= 0.05) > 0.9
    assert np.mean(absent <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_a_higher_score_and_a_word_that_is_named_never_raise_the_p_value():
    rng = np.random.default_rng(6)
    signs = np.array([1, 1, -1, 1, 1])
    present = signs * rng.normal(1.0, 1.0, (300, 5))
    absent = signs * rng.normal(-1.0, 1.0, (300, 5))
    calibration = fit(present, absent, absent, 10, {})
    for feature, sign in ((0, 1), (2, -1)):
        steps = np.zeros((50, 5))
        steps[:, feature] = sign * np.linspace(-6, 6, 50)
        ordered = [calibration.p_value(step) for step in steps]
        assert ordered == sorted(ordered, reverse=True)


def test_equal_scores_say_that_nothing_matches():
    same = np.ones((200, len(FEATURES)))
    calibration = fit(same, same, same, 10, {})
    assert calibration.p_value(np.ones(len(FEATURES))) == 1.0
    assert not separating_weights(same, same).any()


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=60))
def test_words_are_parts_of_the_text_in_lower_case(text):
    for word in words_of(text):
        assert word and word in text.lower()


def test_scripts_without_spaces_have_words_of_two_characters():
    assert words_of("A red-boat, 红色的船") == {"a", "red", "boat", "红色", "色的", "的船"}
    assert words_of("船") == {"船"} and words_of("...") == frozenset()


def test_rows_that_are_left_out_are_in_no_hits():
    captions, rows = collection(300, 2)
    rng = np.random.default_rng(8)
    out = [np.sort(rng.choice(300, 120, replace=False)) for _ in range(20)]
    rows[5] = 0  # has no vector
    sample = [Sampled(0, "", frozenset(), (out[i], out[-i]), "") for i in range(20)]
    xq = vectors_of([captions[i][0] for i in range(20)])
    blocks = [(0, rows[:130]), (130, rows[130:131]), (131, rows[131:])]
    hits = exact_hits(lambda: blocks, xq, sample)
    for variant, (scores, positions) in enumerate(hits):
        for query in range(20):
            allowed = np.setdiff1d(np.arange(300), [5])
            if variant:
                allowed = np.setdiff1d(allowed, sample[query].left_out[variant - 1])
            exact = rows[allowed] @ xq[query]
            best = allowed[np.argsort(-exact, kind="stable")[:10]]
            assert positions[query].tolist() == best.tolist()
            assert np.allclose(scores[query], rows[best] @ xq[query], atol=1e-6)


def test_fewer_rows_than_hits():
    rows = vectors_of(["noun1", "noun2"])
    nobody = np.array([], np.int64)
    sample = [Sampled(0, "", frozenset(), (nobody, np.array([0, 1])), "")]
    (_, positions), _, none = exact_hits(lambda: [(0, rows)], rows[:1], sample)
    assert positions[0, :2].tolist() == [0, 1] and (positions[0, 2:] == -1).all()
    assert (none[1] == -1).all() and np.isinf(none[0]).all()
    assert features(np.zeros(0), [], {"a": 2.0}, np.zeros(0))[2] == 2.0


def test_the_words_of_a_sample_leave_out_every_row_that_names_them():
    captions, _ = collection(400, 3)
    counts = {word: sum(word in texts[0].split() for texts in captions) for word in NAMES}
    for one in draw(lambda: captions, counts, 400, 0)[:50]:
        naming = {row for row, texts in enumerate(captions) if one.word in texts[0].split()}
        assert set(one.left_out[0].tolist()) == naming | {one.row}
        assert one.text in captions[one.row]


def test_too_few_captions_are_one_line():
    captions, rows = collection(1, 4)
    line = "photos: expected at least 200 captions to calibrate by, found 0; search without"
    with pytest.raises(CollectionError, match=line):
        calibrated(captions, rows, where="photos")
    captions, rows = collection(300, 4)
    with pytest.raises(CollectionError, match="beside the first of a row, which is in its vector"):
        calibrated([texts[:1] for texts in captions], rows, indexed_caption=True)


def test_a_calibration_is_read_back_and_a_damaged_one_is_refused():
    captions, rows = collection(400, 5)
    calibration = calibrated(captions, rows)
    data = calibration.to_json()
    assert Calibration.from_json(data, "c", "run chiasm index build") == calibration
    fields = json.loads(data)
    for damage in (
        {"absence": fields["absence"][:-1]},
        {"absent": [2.0, 1.0]},
        {"compared": 0, "absent": [1.0]},
        {"floor": "NaN"},
        {"schema": 9},
    ):
        with pytest.raises(CollectionError, match=r"^c: expected"):
            Calibration.from_json(json.dumps(fields | damage).encode(), "c", "")


def test_an_answer_without_a_calibration_and_a_rate_that_is_none_are_refused():
    query = Query("a boat", calibrated=True)
    assert Answer(query, (), {}, 0.051).nothing_matches()
    assert not Answer(query, (), {}, 0.05).nothing_matches(0.05)
    assert Answer(query, (), {}, 0.05).as_json()["p_absent"] == 0.05
    assert "p_absent" not in Answer(query, ()).as_json()
    with pytest.raises(UsageError, match="search with calibrated=True"):
        Answer(Query("a boat"), ()).nothing_matches()
    for rate in (0, 1, -0.1, float("nan")):
        with pytest.raises(UsageError, match="expected a rate above 0 and below 1"):
            Answer(query, (), {}, 0.5).nothing_matches(rate)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Three shards with the same numbers in their captions, so that each is in three rows."""
    path = tmp_path_factory.mktemp("nothing") / "c"
    make_collection(path, (150, 150, 150))
    build_index(str(path))
    return path


def test_a_calibrated_answer_depends_neither_on_k_nor_on_its_batch(numbered):
    index = open_collection(numbered)
    texts = ["caption 3 of s0", "caption 9 of s1", "a zebra"]
    alone = [index.search_many([Query(text, calibrated=True, k=3)])[0] for text in texts]
    assert all(0 < answer.p_absent <= 1 and len(answer) == 3 for answer in alone)
    mixed = [Query(text, calibrated=True, k=40) for text in texts] + [Query("caption 3 of s0")]
    *together, plain = index.search_many(mixed)
    assert [a.p_absent for a in together] == [a.p_absent for a in alone]
    assert [r.id for r in plain] == [r.id for r in index.search("caption 3 of s0")]
    assert plain.p_absent is None
    assert open_collection(numbered).search_many(mixed)[0].p_absent == alone[0].p_absent


def test_what_captions_cannot_calibrate_is_refused_in_one_line(numbered):
    index = open_collection(numbered)
    with pytest.raises(UsageError, match=r"expected a query of words alone, .*found a vector"):
        index.search_many([Query(vector=np.ones(8), calibrated=True)])
    with pytest.raises(UsageError, match="found a picture"):
        index.search_many([Query("a boat", image=b"", calibrated=True)])
    with pytest.raises(UsageError, match="found weighted terms"):
        index.search_many([Query(terms=[Term("a boat", weight=2)], calibrated=True)])
    # The second caption of each row is `another`, which no word of can be left out.
    with pytest.raises(CollectionError, match=r"^column text of .*beside the first of a row"):
        index.search_many([Query("a boat", column="text", calibrated=True)])


def test_the_command_says_that_nothing_matches_before_the_results(numbered, capsys):
    search_command(str(numbered), ["a zebra"], k=2, false_alarms=0.001)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "nothing here matches (at a false-alarm rate of 0.1 %)"
    assert lines[1].startswith('"a zebra" in image') and len(lines) == 6
    search_command(str(numbered), ["a zebra"], k=2, false_alarms=0.001, as_json=True)
    assert 0 < json.loads(capsys.readouterr().out)["p_absent"] <= 1
    with pytest.raises(UsageError, match=r"^false alarms: expected a rate above 0"):
        search_command(str(numbered), ["a zebra"], false_alarms=0.0)
