"""Weighted queries: the vector of several texts and pictures, and how the command line writes
them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from conftest import make_shard
from encoding import encode_images, encode_texts, match_rows, preprocess
from fake_encoder import DIM, FakeEncoder, FakeMatcher
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.index import Query, Term, build_index, open_collection
from chiasm.index.query import encode_queries
from chiasm.index.query.encode import weighted_sum
from chiasm.jobs.cli.app import application
from chiasm.jobs.cli.search import format_answer
from chiasm.jobs.cli.search_terms import Parts, query_maker
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.make import make_collection

PIXELS = np.random.default_rng(3).integers(0, 256, (16, 16, 3), np.uint8)
TEXTS = ("a red boat", "night", "snow")
WEIGHTS = st.floats(-100, 100).filter(lambda weight: abs(weight) > 1e-3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root, encoder = tmp_path_factory.mktemp("terms"), FakeMatcher("matcher")
    make_collection(make_shard(root / "s.tar", 12, seed=0), root / "c", encoder)
    build_index(root / "c")
    return root / "c"


def unit_rows(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@settings(max_examples=30, deadline=None)
@given(st.lists(WEIGHTS, min_size=1, max_size=3))
def test_the_vector_is_the_normalised_weighted_sum(weights):
    encoder = FakeEncoder()
    texts = TEXTS[: len(weights)]
    terms = [Term(text, weight=weight) for text, weight in zip(texts, weights, strict=True)]
    expected = unit_rows(np.array(weights) @ encode_texts(encoder, list(texts)).astype(np.float64))
    made = encode_queries([Query("other"), Query(terms=terms)], encoder, DIM)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made[1], expected, atol=1e-6)


def test_texts_and_pictures_of_all_queries_are_encoded_together():
    calls = []

    class Counted(FakeEncoder):
        def encode(self, modality, items):
            calls.append((modality, len(items)))
            return super().encode(modality, items)

        def encode_joint_queries(self, parts):
            return parts["text"].vectors  # not the mean: plain use keeps it

    queries = [
        Query(terms=[Term("a"), Term(image=PIXELS, weight=0.5), Term("b", weight=-1)]),
        Query("c"),
        Query("d", image=PIXELS),
        Query(vector=np.ones(DIM)),
        Query(image=PIXELS),
    ]
    xq = encode_queries(queries, Counted(), DIM)
    assert calls == [("text", 4), ("image", 3)]
    for number, query in enumerate(queries):  # alone it has the same vector, to the bit
        assert np.array_equal(xq[number], encode_queries([query], Counted(), DIM)[0])
    a, b, d = encode_texts(FakeEncoder(), ["a", "b", "d"])
    picture = encode_images(FakeEncoder(), [preprocess(FakeEncoder(), PIXELS)])[0]
    np.testing.assert_allclose(xq[0], unit_rows(a + 0.5 * picture - b), atol=1e-6)
    np.testing.assert_array_equal(xq[2], d)


def test_weights_of_any_size_are_summed_and_equal_ones_cancel():
    vectors = np.eye(DIM, dtype=np.float32)[:2]
    huge = weighted_sum(vectors, [1e300, 1e300], "q")
    np.testing.assert_allclose(huge, weighted_sum(vectors, [1e-300, 1e-300], "q"))
    line = '"boat" - "boat": expected terms that do not cancel each other out, found a weighted sum'
    for weight in (1.0, 0.9995):
        query = Query(terms=[Term("boat", weight=1), Term("boat", weight=-weight)])
        with pytest.raises(UsageError, match="expected terms that do not cancel"):
            encode_queries([query], FakeEncoder(), DIM)
    with pytest.raises(UsageError) as error:
        encode_queries([Query(terms=[Term("boat"), Term("boat", weight=-1)])], FakeEncoder(), DIM)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_a_term_that_the_encoder_refuses_is_named_by_its_text():
    with pytest.raises(UsageError, match=r'^"fault:nan": expected what fake takes'):
        encode_queries([Query(terms=[Term("a"), Term("fault:nan")])], FakeEncoder(), DIM)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Term(), "term: expected some words or a picture, found neither"),
        (lambda: Term(" "), "term: expected some words or a picture, found neither"),
        (lambda: Term("a", PIXELS), "term: expected some words or a picture, found both"),
        (lambda: Term("a", weight=math.nan), "weight: expected a finite number, found nan"),
        (lambda: Term("a", weight=-math.inf), "weight: expected a finite number, found -inf"),
        (lambda: Term("a", weight=10**400), "weight: expected a finite number, found 1000"),
        (lambda: Term("a", weight=True), "weight: expected a finite number, found True"),
        (lambda: Term("a", weight="2"), "weight: expected a finite number, found '2'"),
        (lambda: Query(terms=[]), "query: expected some words or a picture, found neither"),
        (lambda: Query(terms=[Term("a", weight=0)]), "query: expected a term with a weight other"),
        (
            lambda: Query("a", terms=[Term("b")]),
            "query: expected either terms or words and pi",
        ),
        (lambda: Query(vector=[1], terms=[Term("b")]), "query: expected either a vector or words"),
        (
            lambda: Query(terms=[Term("b")], hybrid=True),
            "hybrid: expected words to find in captions, found weighted terms; search by one text",
        ),
    ],
)
def test_terms_that_cannot_be_searched_are_refused_in_one_line(make, message):
    with pytest.raises(UsageError) as error:
        make()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize("terms", ["ab", Term("a"), ["a"], [Term("a"), None]])
def test_terms_of_unusable_types_are_type_errors(terms):
    with pytest.raises(TypeError, match=r"^terms: expected Term\(text=\.\.\., weight=\.\.\.\) in"):
        Query(terms=terms)


def read(text, *, images=(), plus=(), minus=(), is_data=False):
    """The command line's query, as its string."""
    return str(query_maker(Parts(images, plus, minus), is_data=is_data)(text))


@pytest.mark.parametrize(
    ("text", "options", "query"),
    [
        ("2: red boat", {}, '"2: red boat"'),
        ("2: red boat", {"minus": ["night"]}, '2 x "red boat" - "night"'),
        ("12: 30 train", {"minus": ["night"]}, '"12: 30 train" - "night"'),
        ("12:30 train", {"plus": ["4:3 photo"]}, '"12:30 train" + "4:3 photo"'),
        ("2.0: 3 boats", {"minus": ["night"]}, '2 x "3 boats" - "night"'),
        ("1.0: 2: red", {"minus": ["night"]}, '"2: red" - "night"'),
        ("2001: a space odyssey", {"minus": ["film"]}, '"2001: a space odyssey" - "film"'),
        ("Chapter 2: boats", {"plus": ["b"]}, '"Chapter 2: boats" + "b"'),
        ("2: red", {"minus": ["night"], "is_data": True}, '"2: red" - "night"'),
        ("a", {"plus": [".5: b"], "minus": ["0.25: c", "d"]}, '"a" + 0.5 x "b" - 0.25 x "c" - "d"'),
        ("2：红色的船", {"minus": ["3： 夜晚"]}, '2 x "红色的船" - 3 x "夜晚"'),
        ("12：30 的火车", {"minus": ["夜"]}, '"12：30 的火车" - "夜"'),
        ("2：船", {}, '"2：船"'),
        (None, {"images": ["x.jpg", "-0.5：y.jpg"]}, "picture x.jpg - 0.5 x picture y.jpg"),
        (None, {"minus": ["night"]}, '-"night"'),
        (None, {"images": ["x.jpg"]}, "picture x.jpg"),
        (None, {"images": ["x.jpg", "-0.5:y.jpg"]}, "picture x.jpg - 0.5 x picture y.jpg"),
        ("2: boat", {"images": ["x.jpg"]}, '2 x "boat" + picture x.jpg'),
        ("a", {"images": ["s3://b/x.jpg"]}, '"a" + picture s3://b/x.jpg'),
        (None, {"images": ["./0.5:x.jpg"]}, "picture ./0.5:x.jpg"),
    ],
)
def test_weights_are_read_where_they_cannot_be_text(text, options, query):
    assert read(text, **options) == query


def test_a_text_with_a_picture_stays_a_plain_query():
    query = query_maker(Parts(images=["x.jpg"]), is_data=False)("at night")
    assert (query.text, query.image, query.terms) == ("at night", "x.jpg", ())
    query = query_maker(Parts(), is_data=False)("2: red boat")
    assert (query.text, query.terms) == ("2: red boat", ())
    for text in (None, " "):
        with pytest.raises(UsageError, match="query: expected some words or a picture, found"):
            query_maker(Parts(), is_data=False)(text)


def test_a_picture_whose_name_looks_like_a_weight(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0.5:boat.jpg").touch()
    assert read(None, images=["0.5:boat.jpg"]) == "picture 0.5:boat.jpg"
    (tmp_path / "boat.jpg").touch()
    with pytest.raises(UsageError) as error:
        read(None, images=["0.5:boat.jpg"])
    assert str(error.value) == (
        "--image 0.5:boat.jpg: expected one picture, found two: a file of that name, and boat.jpg "
        "with a weight; type ./0.5:boat.jpg for the first, 0.5:./boat.jpg for the second"
    )
    assert read(None, images=["./0.5:boat.jpg"]) == "picture ./0.5:boat.jpg"
    assert read(None, images=["0.5:./boat.jpg"]) == "0.5 x picture ./boat.jpg"


def test_matching_takes_the_weighted_mean_of_the_texts(made):
    collection, encoder = open_collection(made), FakeMatcher("matcher")
    terms = [Term("boat", weight=2), Term(image=PIXELS), Term("night", weight=-0.5)]
    plain, again = collection.search_many(
        [Query(terms=terms, k=12), Query(terms=terms, k=12, rerank="match:9")]
    )
    pixels = [preprocess(encoder, decode(r.picture(), DecodeSettings(), 16).image) for r in plain]
    boat, night = (match_rows(encoder, pixels[:9], [text] * 9) for text in ("boat", "night"))
    logits = (2 * boat - 0.5 * night) / 2.5
    final = {r.id: r.score + x for r, x in zip(plain[:9], logits.tolist(), strict=True)}
    assert [r.id for r in again[:9]] == sorted(final, key=lambda id: -final[id])
    assert [r.score for r in again[:9]] == pytest.approx(sorted(final.values())[::-1], abs=1e-5)
    assert [r.id for r in again[9:]] == [r.id for r in plain[9:]]


def test_the_command_searches_by_terms_and_says_how_it_read_them(made, capsys):
    options = [str(made), "2: boat", "--minus", "night", "-k", "3"]
    application()(["search", *options, "--json"], standalone_mode=False)
    answer = json.loads(capsys.readouterr().out)
    query = Query(terms=[Term("boat", weight=2), Term("night", weight=-1)], k=3)
    expected = open_collection(made).search_many([query])[0]
    assert [result["id"] for result in answer["results"]] == [result.id for result in expected]
    assert answer["query"]["terms"] == [
        {"text": "boat", "image": None, "weight": 2.0},
        {"text": "night", "image": None, "weight": -1.0},
    ]
    assert format_answer(expected).startswith('2 x "boat" - "night" in image: ')
