""" "Nothing here matches": the stated rate on exchangeable data, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import fake_encoder
import numpy as np
import pytest
import tiny_collection
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_collection import _row as plain_row
from tiny_collection import add_shard, make_collection

from chiasm.index import Answer, Query, Recorder, Term, build_index, open_collection, replay
from chiasm.index.build import ByKey, compact_index, delete_from_index
from chiasm.index.query import calibrate as calibrate_module
from chiasm.index.query import calibrate_index, calibrated
from chiasm.index.query.calibrate import (
    FEATURES,
    FLOOR,
    MIN_SAMPLE,
    Calibration,
    features,
    fit,
    is_pair,
    pairs_of,
    separating_weights,
    words_of,
)
from chiasm.index.query.calibrated import stored_calibration
from chiasm.index.query.calibration_hits import Postings, exact_hits
from chiasm.index.query.calibration_sample import (
    Asking,
    Counts,
    TooFewCaptions,
    calibrate,
    leave_out,
)
from chiasm.index.segments import stem_of
from chiasm.index.verify.index import check_index
from chiasm.jobs.cli.index_edit import status as index_status
from chiasm.jobs.cli.search import search as search_command
from chiasm.pipeline.collection import Collection, identity
from chiasm.pipeline.encoders.registry import ENCODERS
from chiasm.pipeline.errors import CollectionError, UsageError
from chiasm.pipeline.storage import Folder

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


class Drawn:
    """A `Background` of rows that each have three things, named in two orders; brute force."""

    where = "photos"

    def __init__(self, rows, seed, names=NAMES, indexed_caption=False):
        rng = np.random.default_rng(seed)
        things = [rng.choice(names, 3, replace=False).tolist() for _ in range(rows)]
        self.texts = [(" ".join(three), " ".join(three[::-1])) for three in things]
        self.vectors = vectors_of([texts[0] for texts in self.texts], noise=0.05, seed=seed)
        self.positions = np.arange(rows)
        self.indexed_caption = indexed_caption

    def captions(self, positions):
        return {int(at): self.texts[at] for at in positions}

    def postings(self, stems):
        named = [set(map(stem_of, texts[0].split())) for texts in self.texts]
        return {
            stem: Postings([0], [np.array([at for at, some in enumerate(named) if stem in some])])
            for stem in stems
        }

    def encode(self, texts):
        return vectors_of(texts)

    def search(self, xq, k):
        scores = xq @ self.vectors.T
        top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, top, 1), top

    def blocks(self):
        yield self.positions, self.vectors

    def p_values(self, calibration, queries):
        found = []
        for text, scores, top in zip(queries, *self.search(vectors_of(queries), 10), strict=True):
            named = calibration.named([one for at in top for one in self.texts[at]])
            weights = calibration.weights(text)
            found.append(calibration.p_value(features(scores, named, weights)))
        return np.array(found)


@pytest.fixture(scope="module")
def drawn():
    return calibrated_of(Drawn(600, 1, NAMES[:14]))


def p_values(seed: int, present_mean: float, combined: bool) -> np.ndarray:
    """Of a query each by 200 calibrations of one distribution; combined: the absent ones are those
    of combinations too."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(200):
        present = rng.normal(present_mean, 1.0, (300, len(FEATURES)))
        absent = rng.normal(0.0, 1.0, (301, len(FEATURES)))
        pairs = absent[:-1] if combined else absent[:0]
        found.append(fit(present, absent[:-1], pairs).p_value(absent[-1]))
    return np.array(found)


def test_the_stated_rate_holds_on_exchangeable_queries():
    """Within a binomial's 99.9 %."""
    found = p_values(3, 1.0, combined=False)
    for rate in (0.02, 0.05, 0.2):
        alarms = (found <= rate).sum()
        assert abs(alarms - 200 * rate) <= 3.3 * np.sqrt(200 * rate * (1 - rate))


def test_the_rate_of_combinations_holds_where_they_differ_from_rows_that_are_there():
    alarms = (p_values(13, 4.0, combined=True) <= 0.05).sum()
    assert alarms <= 10 + 3.3 * np.sqrt(200 * 0.05 * 0.95)


def test_of_queries_whose_row_is_there_the_floor_leaves_out_few():
    """Though no threshold tells pairs from rows that are there."""
    rng = np.random.default_rng(4)
    present = rng.normal(3.0, 1.0, (4000, len(FEATURES)))
    absent = rng.normal(-3.0, 1.0, (400, len(FEATURES)))
    calibration = fit(present[:2000], absent, rng.normal(3.0, 1.0, (400, len(FEATURES))))
    below = np.mean([calibration.p_value(one) > 0.05 for one in present[2000:]])
    assert FLOOR / 2 < below < FLOOR + 0.025


def test_a_word_that_no_row_has_is_noticed_and_a_row_that_is_there_is_found(drawn):
    """The stated rate, over two collections of two seeds, within a binomial's 99.9 %, the sample's
    own included."""
    alarms = []
    for background, calibration in (drawn, calibrated_of(Drawn(600, 2, NAMES[:14]))):
        there = background.p_values(calibration, [texts[1] for texts in background.texts[:200]])
        assert np.mean(there <= 0.05) > 0.9
        rng = np.random.default_rng(5)
        queries = [
            " ".join([*rng.choice(NAMES[:14], 2, replace=False), str(rng.choice(NAMES[14:]))])
            for _ in range(300)
        ]
        alarms.append(background.p_values(calibration, queries) <= 0.05)
    deviation = np.sqrt(0.05 * 0.95 * (1 / 600 + 1 / 800))
    assert abs(np.mean(alarms) - 0.05) < 3.3 * deviation


def calibrated_of(background):
    return background, calibrate(background)


def test_a_higher_score_and_a_word_that_is_named_never_raise_the_p_value():
    rng = np.random.default_rng(6)
    signs = np.array([1, 1, -1, -1])
    present = signs * rng.normal(1.0, 1.0, (300, 4))
    absent = signs * rng.normal(-1.0, 1.0, (300, 4))
    calibration = fit(present, absent, absent)
    for feature, sign in ((0, 1), (2, -1), (3, -1)):
        steps = np.zeros((50, 4))
        steps[:, feature] = sign * np.linspace(-6, 6, 50)
        ordered = [calibration.p_value(step) for step in steps]
        assert ordered == sorted(ordered, reverse=True)


def test_equal_scores_say_that_nothing_matches():
    same = np.ones((200, len(FEATURES)))
    assert fit(same, same, same).p_value(np.ones(len(FEATURES))) == 1.0
    assert not separating_weights(same, same).any()


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=60))
def test_words_are_parts_of_the_text_in_lower_case(text):
    words = words_of(text)
    for word in words:
        assert word and word in text.lower() and not is_pair(word)
    assert all(is_pair(pair) for pair in pairs_of(words, set(words)))


def test_scripts_without_spaces_have_words_of_two_characters():
    assert words_of("A red-boat, 红色的船") == ["a", "red", "boat", "红色", "色的", "的船"]
    assert words_of("船") == ["船"] and words_of("...") == []


def test_pairs_are_of_usable_words_near_each_other():
    words = words_of("a red boat with two masts left of a red house")
    usable = {"red", "boat", "house", "masts"}
    assert pairs_of(words, usable) == {"red boat", "boat masts", "red house"}


def test_rows_that_are_left_out_are_in_no_hits():
    background = Drawn(300, 2)
    background.vectors[5] = 0  # has no vector
    has = background.vectors.any(axis=1)
    blocks = [
        (background.positions[some][has[some]], background.vectors[some][has[some]])
        for some in (slice(0, 130), slice(130, 131), slice(131, 300))
    ]
    words = [texts[0].split() for texts in background.texts]
    postings = background.postings(NAMES)
    left_out = [[one[:1] for one in words[:20]], [one[1:] for one in words[:20]]]
    variants = [[[postings[word] for word in one] for one in variant] for variant in left_out]
    xq = vectors_of([background.texts[row][0] for row in range(20)])
    hits = exact_hits(blocks, xq, range(20), variants)
    for gone, (scores, positions) in zip(left_out, hits, strict=True):
        for row in range(20):
            allowed = [
                at for at in range(300) if at not in (5, row) and not {*gone[row]} <= {*words[at]}
            ]
            exact = background.vectors[allowed] @ xq[row]
            best = np.array(allowed)[np.argsort(-exact, kind="stable")[:10]]
            assert positions[row].tolist() == best.tolist()
            assert np.allclose(scores[row], background.vectors[best] @ xq[row], atol=1e-6)


def test_postings_of_several_runs():
    rows = [np.array([0, 3, 7], np.int32), np.array([], np.int32), np.array([1, 2], np.int32)]
    some = Postings([0, 10, 20], rows)
    for start, stop in ((0, 30), (3, 22), (8, 21), (12, 13), (22, 23)):
        expected = [at for at in (0, 3, 7, 21, 22) if start <= at < stop]
        assert some.within(start, stop).tolist() == expected


def test_fewer_rows_than_hits():
    background = Drawn(2, 3)
    word = background.texts[0][0].split()[0]
    variants = [[[background.postings([word])[word]]], [[]]]
    gone, none = exact_hits(background.blocks(), vectors_of([word]), [0], variants)
    assert gone[1][0, :1].tolist() == [1] and (gone[1][0, 1:] == -1).all()
    assert (none[1] == -1).all() and np.isinf(none[0]).all()
    assert features(np.zeros(0), (), {"a": 2.0, "a b": 3.0})[2:].tolist() == [2, 3]


def test_words_are_drawn_as_often_as_neighbours_agree_on_them():
    """Of three rows near each caption all name `a`, and none names `b` beside it."""
    captions = {at: ("a b",) if at % 2 else ("a c",) for at in range(200)}
    words = {at: frozenset(texts[0].split()) for at, texts in captions.items()}
    counts = Counts(rows=1000, stems=Counter(a=200, b=100, c=100), terms=Counter(a=200, b=100, c=9))
    near = np.array(
        [[at, *(other for other in range(200) if other % 2 != at % 2)][:5] for at in captions]
    )
    asking = [
        Asking(at, [*"ab"] if at % 2 else [*"ac"], words[at] | {"a b"}, frozenset(), "")
        for at in captions
    ]
    leave_out(asking, near, words, counts, np.random.default_rng(0))
    assert {one.word for one in asking} == {"a"}
    assert all(one.pair == () for one in asking)


def test_pairs_that_are_one_name_are_not_left_out():
    counts = Counts(rows=1000, stems=Counter(sand=50, dune=50, red=90))
    counts.terms.update({"sand": 50, "dunes": 50, "sand dunes": 40, "red": 90, "red sand": 10})
    words = frozenset(["red", "sand", "dunes", "sand dunes", "red sand"])
    asking = [Asking(at, ["red", "sand", "dunes"], words, frozenset(), "") for at in range(50)]
    near = np.tile(np.arange(5), (50, 1))
    leave_out(asking, near, dict.fromkeys(range(5), words), counts, np.random.default_rng(0))
    assert {one.pair for one in asking} == {("red", "sand", "red sand")}
    assert {one.word for one in asking} == {"red", "sand", "dune"}


def test_too_few_captions_are_one_line():
    line = "photos: expected at least 200 captions to calibrate by, found 1; search without"
    with pytest.raises(TooFewCaptions, match=line):
        calibrate(Drawn(1, 4))
    single = Drawn(300, 4, indexed_caption=True)
    single.texts = [texts[:1] for texts in single.texts]
    with pytest.raises(CollectionError, match="beside the first of a row, which is in its vector"):
        calibrate(single)


def test_a_calibration_is_read_back_and_a_damaged_one_is_refused(drawn):
    _, calibration = drawn
    data = calibration.to_json()
    assert Calibration.from_json(data, "c", "run chiasm index build") == calibration
    fields = json.loads(data)
    for damage in (
        {"absence": fields["absence"][:-1]},
        {"without_word": [2.0, 1.0]},
        {"without_pair": [2.0, 1.0]},
        {"floor": "NaN"},
        {"schema": 9},
    ):
        with pytest.raises(CollectionError, match=r"^c: expected"):
            Calibration.from_json(json.dumps(fields | damage).encode(), "c", "")


def test_a_calibration_of_an_earlier_release_is_made_anew(drawn):
    """Schema 1 had six features; a search must not fail at it, nor read its weights as ours."""
    fields = json.loads(drawn[1].to_json())
    earlier = fields | {"schema": 1, "absence": [1.0] * 6, "likeness": [1.0] * 6}
    assert Calibration.from_json(json.dumps(earlier).encode(), "c", "") is None


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


NOUNS = [f"thing{i}" for i in range(9)]
PLACES = np.random.default_rng(1).standard_normal((len(NOUNS), fake_encoder.DIM))


def _things(number):
    """Two of the nouns; a row of each number has the same ones."""
    rng = np.random.default_rng(number)
    return [NOUNS[i] for i in rng.choice(len(NOUNS), 2, replace=False)]


def _vector(self, data):
    words = data.decode(errors="ignore").split()
    seed = int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "big")
    found = 0.2 * np.random.default_rng(seed).standard_normal(fake_encoder.DIM)
    found = found + sum(PLACES[NOUNS.index(word)] for word in words if word in NOUNS)
    return (found / np.linalg.norm(found)).astype(np.float32)


def _row(shard, row, pictured, captioned, json):
    made = plain_row(shard, row, pictured, captioned, json)
    one, other = _things(row)
    return replace(made, captions=(f"{one} and {other}", f"{other} {one} {row}"))


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """A collection whose captions name what is in its rows, and an index with calibrations."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tiny_collection, "_row", _row)
        patched.setitem(ENCODERS, "fake", fake_encoder.load)
        patched.setattr(fake_encoder.FakeEncoder, "_vector", _vector)
        path = tmp_path_factory.mktemp("nothing") / "c"
        for shard in range(2):
            make_collection(path, ())
            vectors = np.stack([_vector(None, " ".join(_things(n)).encode()) for n in range(300)])
            add_shard(Folder(str(path)), f"s{shard}", 300, vectors=vectors, seed=shard)
        build_index(str(path), columns=["image"])
        yield path


def p_absent_of(path, *texts, where=None, k=10):
    queries = [Query(text, calibrated=True, where=where, k=k) for text in texts]
    return [answer.p_absent for answer in open_collection(path).search_many(queries)]


def test_what_is_stored_with_a_build_is_what_a_search_would_make(things):
    index = open_collection(things)
    stored = stored_calibration(index.generation, "image")
    assert stored == calibrate_index(index, "image")
    assert stored.rows == 600 and len(stored.without_word) >= MIN_SAMPLE / 2
    (entry,) = index.generation.manifest.calibrations.values()
    assert entry.rows == 600 and entry.file in index.generation.manifest.shared_files()
    assert not findings(things)


def test_a_search_reads_it_and_makes_it_where_an_index_has_none(things, tmp_path, monkeypatch):
    there, absent = p_absent_of(things, "thing1 and thing2", "zebra thing1")
    assert there < absent
    old = copied(things, tmp_path)
    manifest = manifest_of(old)
    del manifest["calibrations"]
    write_manifest(old, manifest)
    assert p_absent_of(old, "thing1 and thing2", "zebra thing1") == [there, absent]
    monkeypatch.setattr(calibrated, "calibrate", pytest.fail)
    assert p_absent_of(things, "zebra thing1") == [absent]


def test_a_stored_one_of_an_earlier_release_is_passed_over(things, monkeypatch, caplog):
    there, absent = p_absent_of(things, "thing1 and thing2", "zebra thing1")
    monkeypatch.setattr(calibrate_module, "SCHEMA", calibrate_module.SCHEMA + 1)
    with caplog.at_level("INFO"):
        assert p_absent_of(things, "thing1 and thing2", "zebra thing1") == [there, absent]
    assert "calibrated by an earlier version: calibrated anew; chiasm index build" in caplog.text


def test_a_damaged_calibration_is_one_line_and_check_names_it(things, tmp_path):
    path = copied(things, tmp_path)
    (entry,) = open_collection(path).generation.manifest.calibrations.values()
    file = path / entry.file
    file.write_bytes(file.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(CollectionError, match=r"image\.calibration\.json: expected blake2b"):
        p_absent_of(path, "thing1")
    assert [one.where for one in findings(path)] == [entry.file]
    assert open_collection(path).search("thing1").results  # which needs it not


def test_edits_carry_it_and_status_says_when_it_is_old(things, tmp_path, capsys):
    path = copied(things, tmp_path)
    before = open_collection(path).generation.manifest.calibrations
    delete_from_index(str(path), lambda _: ByKey([f"s0/{row:06d}" for row in range(59)]))
    index_status(str(path))
    assert "false-alarm" not in capsys.readouterr().out
    delete_from_index(str(path), lambda _: ByKey([f"s0/{row:06d}" for row in range(59, 70)]))
    compact_index(str(path))
    assert open_collection(path).generation.manifest.calibrations == before
    index_status(str(path))
    line = "image: false-alarm rates were calibrated on 600 rows, now it has 530"
    assert line in capsys.readouterr().out
    assert 0 < p_absent_of(path, "thing1 and thing2")[0] <= 1


def test_under_a_filter_it_is_of_the_rows_that_pass(things):
    index = open_collection(things)
    where = "shard = 's0-0123456789'"
    found = calibrate_index(index, "image", where)
    assert (
        found.rows == 300
        and found.terms["thing1"] < calibrate_index(index, "image").terms["thing1"]
    )
    # Rows of one shard are an index of that shard alone.
    p, again = (
        p_absent_of(things, "thing1 and thing2", "zebra", where=where, k=k) for k in (10, 30)
    )
    assert p == again and p[0] < p[1]
    line = r"image of .* where meta\.number < 20: expected at least 200 captions .*, found 40"
    with pytest.raises(CollectionError, match=line):
        p_absent_of(things, "thing1", where="meta.number < 20")


def test_a_build_without_an_encoder_or_with_few_captions_stores_none(tmp_path, monkeypatch):
    make_collection(tmp_path / "few", (30,))
    monkeypatch.setattr(identity, "load_encoder", pytest.fail)
    build_index(str(tmp_path / "few"))
    assert not open_collection(tmp_path / "few").generation.manifest.calibrations


def test_a_calibrated_answer_depends_neither_on_k_nor_on_its_batch(things):
    index = open_collection(things)
    texts = ["thing3 and thing1", "thing2", "a zebra"]
    alone = [index.search_many([Query(text, calibrated=True, k=3)])[0] for text in texts]
    assert all(0 < answer.p_absent <= 1 and len(answer) == 3 for answer in alone)
    mixed = [Query(text, calibrated=True, k=40) for text in texts] + [Query("thing3")]
    *together, plain = index.search_many(mixed)
    assert [a.p_absent for a in together] == [a.p_absent for a in alone]
    assert [r.id for r in plain] == [r.id for r in index.search("thing3")]
    assert plain.p_absent is None


def test_what_captions_cannot_calibrate_is_refused_in_one_line(things):
    index = open_collection(things)
    with pytest.raises(UsageError, match=r"expected a query of words alone, .*found a vector"):
        index.search_many([Query(vector=np.ones(8), calibrated=True)])
    with pytest.raises(UsageError, match="found a picture"):
        index.search_many([Query("a boat", image=b"", calibrated=True)])
    with pytest.raises(UsageError, match="found weighted terms"):
        index.search_many([Query(terms=[Term("a boat", weight=2)], calibrated=True)])


def test_the_command_says_that_nothing_matches_before_the_results(things, capsys):
    search_command(str(things), ["a zebra"], k=2, false_alarms=0.001)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "nothing here matches (at a false-alarm rate of 0.1 %)"
    assert lines[1].startswith('"a zebra" in image') and len(lines) == 6
    search_command(str(things), ["a zebra"], k=2, false_alarms=0.001, as_json=True)
    assert 0 < json.loads(capsys.readouterr().out)["p_absent"] <= 1
    with pytest.raises(UsageError, match=r"^false alarms: expected a rate above 0"):
        search_command(str(things), ["a zebra"], false_alarms=0.0)


def copied(path, tmp_path):
    """A copy of a collection, to change."""
    return Path(shutil.copytree(path, tmp_path / "copy"))


def findings(path):
    return list(check_index(Collection.open(str(path)), Counter()))


def manifest_of(path):
    return json.loads((path / "index/generations/000001.json").read_text())


def write_manifest(path, fields):
    content = json.dumps(fields).encode()
    (path / "index/generations/000001.json").write_bytes(content)
    (path / "index/CURRENT").write_bytes(b"000001\n" + content)


def test_a_replay_of_a_calibrated_answer_is_the_same(things, tmp_path):
    made = Recorder(open_collection(things), false_alarms=0.1)
    answers = made.search([Query(text, calibrated=True) for text in ("a boat", "a zebra")])
    made.write(str(tmp_path / "r.json"))
    assert all(answer.p_absent is not None for answer in answers)
    found = replay(str(tmp_path / "r.json"))
    assert found.changes == [] and len(found.lines) == 2
    rates = [json.loads(line)["p_absent"] for line in found.lines]
    assert rates == pytest.approx([answer.p_absent for answer in answers], abs=1e-6)
