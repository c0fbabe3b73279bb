"""Keyword search over captions: terms, the keyword index of a segment, BM25 over all segments, and
its fusion with what vectors find."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_shard
from fake_encoder import FakeEncoder
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.index import Hit, Query, build_index, open_collection
from chiasm.index.query import search_keywords
from chiasm.index.query.keyword import KEYWORD_WEIGHT, RANK_CONSTANT, fuse
from chiasm.index.segments import Keywords, KeywordWriter, query_terms
from chiasm.index.segments import terms as terms_module
from chiasm.index.segments.names import is_final_file, is_segment_file
from chiasm.jobs.cli.search import search as command
from chiasm.pipeline.encoders import ENCODERS
from chiasm.pipeline.errors import CollectionError, UsageError
from chiasm.pipeline.make import make_collection

WORDS = ["boat", "dog", "red", "42", "moon", "狗", "红", "船", "cafe", "of"]


def written(texts: Sequence[str], run_tokens: int = 1 << 20) -> bytes:
    file = io.BytesIO()
    writer = KeywordWriter(file, run_tokens)
    writer.add_texts(texts)
    writer.close()
    return file.getvalue()


def opened(path: Path, content: bytes, rows: int) -> Keywords:
    path.unlink(missing_ok=True)  # another may be mapped
    path.write_bytes(content)
    with open(path, "rb") as file:
        return Keywords(file, "keywords", "chiasm index build c", rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("keyword")


def segments_of(folder: Path, texts: Sequence[str], cuts: Sequence[int], run_tokens: int = 5):
    """The texts as segments that end at `cuts` and at the end."""
    edges = [0, *cuts, len(texts)]
    return [
        opened(folder / "k", written(texts[start:end], run_tokens), end - start)
        for start, end in pairwise(edges)
    ]


def find(texts: Sequence[str], query: str, folder: Path, k: int = 10, **masks) -> list[int]:
    """Positions of the rows that a query finds in one segment, best first."""
    (segment,) = segments_of(folder, texts, [])
    deleted, allowed = masks.get("deleted"), masks.get("allowed")
    _, positions = search_keywords(
        [segment], [query], k, [deleted], None if allowed is None else [allowed]
    )
    return [position for position in positions[0].tolist() if position >= 0]


def bm25(texts: Sequence[str], query: str, alive: Sequence[bool]) -> list[float]:
    """By the formula, row after row; texts of plain words without stems."""
    rows = [Counter(query_terms(text)) for text in texts]
    counts = [{term: count for term, count in row.items() if count >= 1} for row in rows]
    lengths = [sum(row.values()) for row in counts]
    living = [n for n in range(len(texts)) if alive[n] and lengths[n]]
    mean = sum(lengths[n] for n in living) / max(1, len(living))
    scores = [0.0] * len(texts)
    for term, weight in query_terms(text=query).items():
        with_term = sum(term in rows[n] for n in living)
        idf = math.log(1 + (len(living) - with_term + 0.5) / (with_term + 0.5))
        for n in living:
            tf = rows[n].get(term, 0) / (terms_module.PAIR_WEIGHT if is_pair(term) else 1)
            norm = 1.2 * (0.25 + 0.75 * lengths[n] / mean)
            scores[n] += weight * idf * 2.2 * tf / (tf + norm)
    return scores


def is_pair(term: str) -> bool:
    return len(term) == 2 and not term.isascii()


@pytest.mark.parametrize(
    ("query", "caption"),
    [
        ("boats", "a boat"),  # number, by the stem
        ("RUNNING", "he runs"),
        ("the dog's", "two dogs"),
        ("the dog’s", "two dogs"),
        ("ＣＡＦＥ １２", "Café 12"),
        ("cafe\u0301", "CAFE"),
        ("straße", "STRASSE"),
        ("３", "no. 3"),
        ("狗", "一只小狗在跑"),
        ("小狗", "一只小狗在跑"),
        ("red 船", "红船 and a red boat"),
        ("ｶﾌｪ", "カフェ"),
        ("강아지", "강아지가 달린다"),
        ("bus 42", "BUS #42!"),
        ("x" * 70, "x" * 64 + "y"),  # what is longer than a term is cut
    ],
)
def test_a_word_is_found_whatever_its_form(folder, query, caption):
    assert find(["nothing of it", caption], query, folder) == [1]


@pytest.mark.parametrize("query", ["boat", "大海", "7"])
def test_other_words_are_not_found(folder, query):
    assert find(["a dog", "70 x", "一只狗", "", "boathouse_1"], query, folder) == []


def test_two_characters_together_are_before_the_same_apart(folder):
    apart, together = "火把照着小车", "火车开过小山"
    assert find([apart, together], "火车", folder) == [1, 0]
    assert find([together, apart], "火车", folder) == [0, 1]


def test_pairs_do_not_cross_punctuation_nor_texts():
    assert set(query_terms("红,船 red\n狗")) == {"红", "船", "red", "狗"}
    assert query_terms("红船") == {"红": 1.0, "船": 1.0, "红船": terms_module.PAIR_WEIGHT}
    assert query_terms("Dogs dog\x1eDOG") == {"dog": 3.0}
    assert query_terms("!!! ... \x1e _") == {}


texts_lists = st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), max_size=30)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), texts=texts_lists, query=st.lists(st.sampled_from(WORDS), min_size=1))
def test_scores_are_those_of_the_formula_however_rows_are_cut(folder, data, texts, query):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(texts)), max_size=4)))
    alive = np.array(data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts))))
    alive = alive.astype(bool)
    question = " ".join(query)
    results = []
    for edges, run_tokens in ((cuts, 3), ([], 1 << 20)):
        segments = segments_of(folder, texts, edges, run_tokens)
        deleted = np.split(~alive, edges)
        results.append(search_keywords(segments, [question], 12, deleted))
    (scores, positions), whole = results
    assert np.array_equal(scores, whole[0]) and np.array_equal(positions, whole[1])
    expected = bm25(texts, question, alive.tolist())
    found = [n for n in positions[0].tolist() if n >= 0]
    assert len(found) == min(12, sum(score > 0 for score in expected))
    assert np.allclose(scores[0, : len(found)], [expected[n] for n in found], rtol=1e-5)
    order = sorted(zip(-scores[0], positions[0], strict=True))
    assert [n for _, n in order if n >= 0] == found  # ties by position


def test_one_segment_and_five_rank_the_same_and_deleted_rows_leave_no_trace(folder):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(0, 9))) for _ in range(300)]
    none: list[None] = [None] * 5
    one = search_keywords(segments_of(folder, texts, [], 1 << 20), ["red dog 红船"], 50, [None])
    five = search_keywords(
        segments_of(folder, texts, [10, 90, 90, 299], 64), ["red dog 红船"], 50, none
    )
    assert np.array_equal(one[0], five[0]) and np.array_equal(one[1], five[1])
    gone = rng.random(300) < 0.4
    kept = [text for text, out in zip(texts, gone, strict=True) if not out]
    edited = search_keywords(segments_of(folder, texts, [], 64), ["red dog"], 50, [gone])
    anew = search_keywords(segments_of(folder, kept, [], 64), ["red dog"], 50, [None])
    assert np.array_equal(edited[0], anew[0])
    assert np.array_equal(edited[1], np.flatnonzero(~gone)[anew[1]])


def test_a_filter_changes_what_is_found_and_no_score(folder):
    texts = ["red dog", "red boat", "dog", "a red red moon"]
    segments = segments_of(folder, texts, [2])
    scores, positions = search_keywords(segments, ["red dog"], 4, [None, None])
    allowed = [np.array([False, True]), None]
    some, places = search_keywords(segments, ["red dog"], 4, [None, None], allowed)
    kept = positions[0] != 0
    assert places[0].tolist() == [*positions[0][kept].tolist(), -1]
    assert some[0].tolist() == [*scores[0][kept].tolist(), -math.inf]
    gone = np.array([False, True])
    assert find(["red dog", "red boat"], "red", folder, deleted=gone, allowed=gone) == []


def test_captions_and_caption_are_indexed_once(folder):
    table = pa.table(
        {
            "caption": pa.array(["a boat", None, None, "moon"], pa.string()),
            "captions": pa.array([["a boat", "一条船"], [], None, ["dog"]], pa.list_(pa.string())),
        }
    )
    file = io.BytesIO()
    writer = KeywordWriter(file)
    writer.add(table)
    writer.add(table.slice(1, 2))
    writer.close()
    keywords = opened(folder / "k", file.getvalue(), 6)
    (run,) = keywords.runs
    assert run.lengths.tolist() == [5, 0, 0, 2, 0, 0]
    assert [term.as_py() for term in run.terms] == sorted(
        ["a", "boat", "dog", "moon", "一", "条", "船", "一条", "条船"]
    )
    assert [part.tolist() for part in run.postings("boat")] == [[0], [1]]
    assert [part.tolist() for part in run.postings("car")] == [[], []]


def test_counts_and_long_texts_are_bounded(folder):
    keywords = opened(folder / "k", written(["dog " * 1000, "", "dog"], 4), 3)
    assert [part.tolist() for part in keywords.runs[0].postings("dog")] == [[0, 2], [255, 1]]
    assert keywords.runs[0].lengths.tolist() == [1000, 0, 1]
    assert find(["", ""], "dog", folder) == [] and find([], "dog", folder) == []


def test_another_file_and_other_rules_are_refused_in_one_line(folder, monkeypatch):
    good = written(["a dog", "a boat"])
    other = io.BytesIO()
    with pa.ipc.new_file(other, pa.schema([("a", pa.int8())])):
        pass
    for content, rows, found in (
        (b"", 2, "found cannot mmap an empty file"),
        (b"hello", 2, "found "),
        (other.getvalue(), 2, "found other columns"),
        (good, 3, "expected keywords of 3 rows, of 1, snowball"),
    ):
        with pytest.raises(CollectionError) as error:
            opened(folder / "k", content, rows)
        assert found in str(error.value) and "run chiasm index build c" in str(error.value)
        assert "\n" not in str(error.value)
    monkeypatch.setattr("chiasm.index.segments.keywords.rules", lambda: "2, other")
    with pytest.raises(CollectionError, match="of 2, other, found those of 1, snowball"):
        opened(folder / "k", good, 2)


def test_a_segment_may_hold_a_file_of_keywords_and_a_sweep_removes_it():
    assert is_final_file("keywords.arrow") and is_segment_file("keywords.arrow", [])
    assert not is_final_file("keywordsxarrow")


def test_hits_are_fused_by_reciprocal_ranks():
    by_vector = [Hit(n, {"search": 1 - n / 10}) for n in (4, 2, 7)]
    by_words = [Hit(n, {"search": 0.1, "keywords": 9.0 - n}) for n in (2, 4, 5)]
    fused = fuse(by_vector, by_words, weight=1.0)
    assert [hit.position for hit in fused] == [2, 4, 5, 7]  # ties by position
    scale = (RANK_CONSTANT + 1) / 2
    assert fused[0].score == pytest.approx(scale * (1 / 61 + 1 / 62))
    assert fused[0].scores == {"search": 0.1, "keywords": 7.0, "hybrid": fused[0].score}
    assert fuse(by_vector[:1], [Hit(4, {})], weight=0.3)[0].score == pytest.approx(1)
    assert [hit.position for hit in fuse(by_vector, by_words, weight=0.1)] == [4, 2, 7, 5]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two shards of 20 embedded and indexed, the captions being "picture N of S"."""
    root = tmp_path_factory.mktemp("hybrid")
    shards = [make_shard(root / "shards" / f"s-{n:05d}.tar", 20, seed=n) for n in range(2)]
    make_collection(shards, root / "c", FakeEncoder())
    build_index(root / "c")
    return root / "c"


def test_a_hybrid_query_ranks_by_its_vector_and_by_its_words(made):
    index = open_collection(made)
    plain = index.search("Pictures: ７ of 1!", k=40)
    answer = index.search("Pictures: ７ of 1!", k=40, hybrid=True)
    by_words = sorted(answer, key=lambda hit: (-hit.scores["keywords"], hit.hit.position))
    assert by_words[0].caption == "picture 7 of 1"
    ranks = {result.id: result.rank for result in plain}
    expected = {
        found.id: (1 / (60 + ranks[found.id]) + KEYWORD_WEIGHT / (60 + rank))
        * 61
        / (1 + KEYWORD_WEIGHT)
        for rank, found in enumerate(by_words, 1)
    }
    assert [result.score for result in answer] == sorted(
        [result.score for result in answer], reverse=True
    )
    assert all(result.score == pytest.approx(expected[result.id]) for result in answer)
    assert list(answer[0].scores) == ["search", "keywords", "hybrid"]
    vector_scores = {result.id: result.score for result in plain}
    for result in answer:
        assert result.scores["search"] == pytest.approx(vector_scores[result.id], abs=1e-6)
    assert "keywords" in answer.seconds and "keywords" not in plain.seconds
    assert answer.as_json()["query"]["hybrid"] is True
    together = index.search_many(["a", Query("picture 7 of 1", k=3, hybrid=True)])
    assert len(together[0]) == 10 and len(together[1]) == 3
    assert together[0].results == index.search("a").results


def test_words_find_only_what_passes_the_filter(made):
    queries = [
        Query("picture 7 of 1", k=40, hybrid=True, where=where) for where in ("row < 3", None)
    ]
    some, every = open_collection(made).search_many(queries)
    rows = [int(result.id.partition("/")[2].partition("@")[0]) for result in every]
    few = {result.id for result, row in zip(every, rows, strict=True) if row < 3}
    assert 0 < len(few) < len(every)
    assert {result.id for result in some} == few
    assert any("keywords" in result.scores for result in some)


@pytest.mark.parametrize("much", [{"k": 10**12}, {"rerank": "vectors:999999999"}])
def test_more_than_there_is_takes_no_more_memory_than_all(made, much):
    index = open_collection(made)
    few = {} if "k" in much else {"k": 40}
    assert index.search("picture 7", hybrid=True, **few, **much).results
    segments = [segment.keywords for segment in index.segments]
    scores, positions = search_keywords(segments, ["of", "7"], 10**12, [None] * len(segments))
    assert scores.shape == positions.shape == (2, 40)


def test_a_row_that_only_words_find_has_its_vector_score(made, monkeypatch):
    monkeypatch.setattr("chiasm.index.queries.FUSED_DEPTH", 2)
    index = open_collection(made)
    answer = index.search("picture 7 of 1", k=2, hybrid=True)
    before = {hit.id for hit in index.search("picture 7 of 1", k=2)}
    assert {result.id for result in answer} - before
    scores = {result.id: result.score for result in index.search("picture 7 of 1", k=40)}
    for result in answer:
        assert result.scores["search"] == pytest.approx(scores[result.id], abs=1e-6)


def test_a_picture_with_a_text_is_found_by_the_words_of_its_text_alone(made):
    index = open_collection(made)
    picture = index.search("x", k=1)[0].picture()
    answer = index.search("of 1", image=picture, k=40, hybrid=True)
    with_words = [result.caption for result in answer if "keywords" in result.scores]
    assert len(with_words) == 40  # "of" is in every caption
    assert answer[0].caption is not None and answer[0].caption.endswith("of 1")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"image": b"x"}, "found a picture alone; add a text"),
        ({"text": " ", "image": b"x"}, "found a picture alone; add a text"),
        ({"vector": np.ones(8, np.float32)}, "found a vector; search without hybrid"),
    ],
)
def test_a_hybrid_query_needs_a_text(query, found):
    with pytest.raises(UsageError) as error:
        Query(**query, hybrid=True)
    assert str(error.value) == f"hybrid: expected words to find in captions, {found}"


def test_a_text_without_words_is_refused_before_anything_is_loaded(made, monkeypatch):
    monkeypatch.setitem(ENCODERS, "fake", None)
    with pytest.raises(UsageError, match=r"expected words to find in captions, found '!!!'"):
        open_collection(made).search("!!!", hybrid=True)


def test_an_index_without_keywords_says_to_build_it_anew(made, monkeypatch):
    index = open_collection(made)
    monkeypatch.delitem(index.segments[0].record.files, "keywords.arrow")
    with pytest.raises(CollectionError) as error:
        index.search("a boat", hybrid=True)
    assert "expected an index with keywords, found one of an earlier version" in str(error.value)
    assert str(error.value).endswith(f"run chiasm index build {made}")
    assert len(index.search("a boat"))


def test_damaged_keywords_are_found_by_their_checksum(made, tmp_path):
    segment = open_collection(made).segments[0]
    name = f"index/segments/{segment.record.id}/keywords.arrow"
    copy = shutil.copytree(made, tmp_path / "c")
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(CollectionError, match="expected checksum"):
        open_collection(copy).search("a boat", hybrid=True)


def test_the_command_searches_by_words_too(made, capsys):
    expected = open_collection(made).search("picture 7 of 1", k=2, hybrid=True)
    command(str(made), ["picture 7 of 1"], k=2, hybrid=True, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["query"]["hybrid"] is True
    assert [result["id"] for result in answer["results"]] == [result.id for result in expected]
    assert list(answer["results"][0]["scores"]) == ["search", "keywords", "hybrid"]
