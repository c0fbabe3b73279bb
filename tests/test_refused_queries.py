"""A query without a vector, a picture or a pair that a matcher refuses: told in one line, or left
unscored."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_shard
from fake_encoder import FakeEncoder, FakeMatcher
from PIL import Image

from chiasm.index import Query, build_index, open_collection
from chiasm.index.query import encode_queries
from chiasm.jobs.cli.match import match
from chiasm.pipeline.encoders import ENCODERS, match_each
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.make import make_collection

DIM = 8
HELP = "; take other words or another picture"


def refusal(queries, encoder=None) -> str:
    with pytest.raises(UsageError) as caught:
        encode_queries(queries, encoder or FakeEncoder(), DIM)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("raise", "refused: text: ZeroDivisionError: a fault was asked for" + HELP),
        ("nan", "not_finite: text: NaN or infinity" + HELP),
        ("inf", "not_finite: text: NaN or infinity" + HELP),
        ("zero", "not_unit: text: length 0" + HELP),
        ("memory", "out_of_memory: text: RuntimeError: CUDA out of memory. Tried to allocate"),
    ],
)
def test_a_query_without_a_vector_is_told_by_its_words(fault, found):
    words = f"fault:{fault}"
    queries = [Query("a red boat"), Query(words), Query("a blue boat")]
    for some in (queries, queries[1:2], queries[::-1]):
        line = f'"{words}": expected what fake takes, found {found}'
        assert refusal(some).startswith(line)


def test_a_picture_that_the_encoder_refuses_is_told_by_its_name(tmp_path):
    class Wide(FakeEncoder):
        def preprocess(self, modality, raw):
            if modality == "image" and raw.shape[1] == 77:
                raise ValueError("Unable to infer channel dimension format")
            return super().preprocess(modality, raw)

    class Dark(FakeEncoder):
        def encode(self, modality, items):
            made = super().encode(modality, items)
            for row, item in enumerate(items):
                if modality == "image" and not np.any(item):
                    made.vectors[row] = np.nan
            return made

    Image.new("RGB", (77, 33)).save(tmp_path / "a.png")
    query = Query(image=tmp_path / "a.png")
    assert refusal([query], Wide()) == (
        f"{tmp_path / 'a.png'}: expected what fake takes, found refused: image: "
        f"ValueError: Unable to infer channel dimension format{HELP}"
    )
    assert f"a.png: expected what fake takes, found not_finite: {'image'}: NaN" in refusal(
        [Query("boat"), query], Dark()
    )


def test_words_and_picture_that_do_not_go_together_are_told():
    class Opposed(FakeEncoder):
        def encode_joint_queries(self, parts):
            return np.zeros((1, DIM), np.float32)

    query = Query("a red boat", image=np.zeros((8, 8, 3), np.uint8))
    assert refusal([query], Opposed()).startswith('"a red boat" + picture (given as pixels): expec')


def test_queries_that_fail_only_together_are_answered():
    class OneByOne(FakeEncoder):
        def encode(self, modality, items):
            if modality == "text" and "eleven" in items and len(items) > 1:
                raise ValueError("expected sequences of one length")
            return super().encode(modality, items)

    texts = ["one", "three", "eleven"]
    made = encode_queries([Query(text) for text in texts], OneByOne(), DIM)
    np.testing.assert_array_equal(made, FakeEncoder().encode("text", texts).vectors)


def test_a_model_that_takes_no_query_at_all_is_not_blamed_on_the_query():
    class Dead(FakeEncoder):
        def encode(self, modality, items):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(EncoderError, match="as a trial, found image: RuntimeError: CUDA error"):
        encode_queries([Query("a red boat")], Dead(), DIM)


class Picky(FakeMatcher):
    """Scores nothing that has a caption or a picture of these."""

    def __init__(self, bad: set[str] = frozenset(), nan: set[str] = frozenset()) -> None:
        super().__init__("matcher")
        self.bad, self.nan = bad, nan
        self.calls: list[int] = []

    def match(self, a, b, pairs):
        self.calls.append(len(pairs))
        texts = a[1] if a[0] == "text" else b[1]
        if self.bad & set(texts):
            raise ValueError("such a text")
        scores = super().match(a, b, pairs)
        side = 0 if a[0] == "text" else 1
        for row, text in enumerate(np.array(texts, object)[pairs[:, side]]):
            if text in self.nan:
                scores[row] = np.nan
        return scores


@pytest.mark.parametrize("bad", [{0}, {6}, {1, 2, 5}, set(range(1, 7)), set(range(7))])
def test_pairs_that_a_matcher_refuses_are_found_and_the_others_keep_their_scores(bad):
    texts = [f"text {number}" for number in range(7)]
    pixels = np.arange(2 * 3 * 16 * 16, dtype=np.uint8).reshape(2, 3, 16, 16)
    pairs = np.array([(number % 2, number) for number in range(7)])
    sides = ("image", list(pixels)), ("text", texts)
    whole = FakeMatcher("matcher").match(*sides, pairs)
    refused = {texts[number] for number in sorted(bad)}
    odd = {min(refused)}
    scores, faults = match_each(Picky(refused - odd, odd), *sides, pairs)
    assert set(faults) == bad and np.isnan(scores[sorted(bad)]).all()
    good = sorted(set(range(7)) - bad)
    np.testing.assert_allclose(scores[good], whole[good], rtol=1e-6)
    reasons = {faults[number].reason for number in bad}
    assert reasons == ({"not_finite", "refused"} if len(bad) > 1 else {"not_finite"})
    assert match_each(Picky(), *sides, np.zeros((0, 2), np.int64))[0].shape == (0,)


@pytest.fixture
def indexed(tmp_path):
    make_collection(make_shard(tmp_path / "a.tar", 12), tmp_path / "c", "fake:matcher")
    build_index(str(tmp_path / "c"))
    return tmp_path / "c"


def test_hits_that_the_matcher_refuses_stay_behind_those_that_it_scores(indexed, monkeypatch):
    query = open_collection(indexed).search("anything", k=1)[0].picture()
    monkeypatch.setitem(
        ENCODERS, "fake", lambda model, settings: Picky({"picture 3 of 0"}, {"picture 5 of 0"})
    )
    collection = open_collection(indexed)
    found = collection.search(image=query, column="text", k=12, rerank="match:12")
    unscored = [result.caption for result in found if "match" not in result.scores]
    assert set(unscored) == {"picture 3 of 0", "picture 5 of 0"}
    assert [result.caption for result in found][-2:] == unscored
    with pytest.raises(UsageError, match="expected what fake:matcher takes, found refused"):
        collection.search("picture 3 of 0", k=3, rerank="match:3")


def test_the_command_match_tells_a_refused_pair_in_one_line(tmp_path, monkeypatch, capsys):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    monkeypatch.setitem(
        ENCODERS, "fake", lambda model, settings: Picky({"no such words"}, {"no score"})
    )
    arguments = {"encoder": "fake:matcher", "as_json": True}
    for text, found in (
        ("no such words", "refused: match: ValueError: such a text"),
        ("no score", "not_finite: match: NaN or infinity"),
        ("fault:raise", "refused: match: ZeroDivisionError"),
    ):
        with pytest.raises(UsageError) as caught:
            match(str(tmp_path / "a.png"), ["a red boat", text], **arguments)
        line = str(caught.value)
        assert f'"{text}": expected what fake:matcher takes, found {found}' in line
        assert "\n" not in line and capsys.readouterr().out == ""
    match(str(tmp_path / "a.png"), ["a red boat", ""], **arguments)
    assert capsys.readouterr().out.count("\n") == 2
