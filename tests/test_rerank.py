"""Reranking: each stage against brute force over the collection, and what cannot be served."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import environment, make_shard
from encoding import match_rows, preprocess
from fake_encoder import FakeEncoder, FakeMatcher
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from tiny_collection import make_collection
from tiny_llava import cross_encoder_folder

from chiasm.index import Query, RerankStage, build_index, open_collection
from chiasm.index.query import OpenIndex, check_stages, pairs, rerank
from chiasm.jobs.cli.search import format_answer
from chiasm.pipeline.collection import Identity, create_or_check
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.encoders import ENCODERS, cross_encoder, load_matcher
from chiasm.pipeline.errors import EncoderError, SourceError, UsageError
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import capture_warnings
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import Folder

rerank_module = sys.modules[rerank.__module__]  # the function has the name of its module
FLOAT32 = EncoderSettings(device="cpu", precision="float32")


def embed_and_index(root, encoder, samples=20, shards=2):
    paths = [make_shard(root / f"s-{n:05d}.tar", samples, seed=n) for n in range(shards)]
    folder = Folder(str(root / "c"))
    create_or_check(folder, Identity.of(encoder), "test")
    for shard in list_shards([str(path) for path in paths]):
        embed_shard(shard, encoder, folder, EmbedSettings(), run_id="test")
    build_index(str(root / "c"))
    return root / "c"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return embed_and_index(tmp_path_factory.mktemp("rerank"), FakeMatcher("matcher"))


def pixels_of(result, encoder):
    return preprocess(encoder, decode(result.picture(), DecodeSettings(), 16).image)


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("vectors:100", RerankStage("vectors", 100)),
        ("match:20", RerankStage("match", 20)),
        ("st:Qwen/Qwen3-VL-Reranker-2B:20", RerankStage("st", 20, "Qwen/Qwen3-VL-Reranker-2B")),
        ("st:/models/a:b:5", RerankStage("st", 5, "/models/a:b")),
        ("hf:/models/a:b:5", RerankStage("hf", 5, "/models/a:b")),
    ],
)
def test_a_stage_is_parsed_from_its_own_text(text, stage):
    assert RerankStage.parse(text) == stage and str(stage) == text
    check_stages([stage])


@pytest.mark.parametrize(
    "text",
    ["", "match", "match:", "match:x", "match:0", "match:-1", "st:5", "hf:5", "match:a:5", "no:5"],
)
def test_other_stages_are_refused_in_one_line(text):
    with pytest.raises(UsageError, match=r"^rerank ") as error:
        check_stages([RerankStage.parse(text)])
    assert "\n" not in str(error.value)


def test_matching_scores_the_first_n_by_logit_plus_similarity(made):
    collection, encoder = open_collection(made), FakeMatcher("matcher")
    plain = collection.search("a red boat", k=40)
    again = collection.search("a red boat", k=40, rerank=["match:15"])
    logits = match_rows(encoder, [pixels_of(r, encoder) for r in plain[:15]], ["a red boat"] * 15)
    final = {r.id: r.score + x for r, x in zip(plain[:15], logits.tolist(), strict=True)}
    expected = sorted(final, key=lambda id: -final[id])
    assert [r.id for r in again[:15]] == expected != [r.id for r in plain[:15]]
    assert [r.id for r in again[15:]] == [r.id for r in plain[15:]]
    before = {r.id: r.score for r in plain}
    for result in again[:15]:
        assert result.score == pytest.approx(final[result.id], abs=1e-5)
        assert result.scores == {"search": before[result.id], "match": result.score}
    assert all(r.scores == {"search": r.score} for r in again[15:])
    assert [r.rank for r in again] == list(range(1, 41))


def test_a_stage_may_score_more_hits_than_the_query_wants(made):
    collection = open_collection(made)
    deep = collection.search("a red boat", k=40, rerank=["match:30"])
    assert [r.id for r in collection.search("a red boat", k=3, rerank=["match:30"])] == [
        r.id for r in deep[:3]
    ]


def test_a_picture_is_matched_with_captions(made):
    collection, encoder = open_collection(made), FakeMatcher("matcher")
    query = collection.search("picture 3 of 1", column="text", k=1)[0].picture()
    plain = collection.search(image=query, column="text", k=12)
    again = collection.search(image=query, column="text", k=12, rerank=["match:12"])
    pixels = preprocess(encoder, decode(query, DecodeSettings(), 16).image)
    logits = match_rows(encoder, [pixels] * 12, [r.caption for r in plain])
    final = {r.id: r.score + x for r, x in zip(plain, logits.tolist(), strict=True)}
    assert [r.id for r in again] == sorted(final, key=lambda id: -final[id])


def test_vectors_scores_by_the_stored_joint_vectors(tmp_path):
    stored = make_collection(tmp_path / "c", (60, 40), holes=0.2)
    build_index(str(tmp_path / "c"))
    xq = np.random.default_rng(5).normal(size=8).astype(np.float32)
    xq /= np.linalg.norm(xq)
    collection = open_collection(tmp_path / "c")
    plain, again = collection.search_many(
        [Query(vector=xq, k=50), Query(vector=xq, k=50, rerank=(RerankStage("vectors", 50),))]
    )
    joint = {}
    for n, (rows, first) in enumerate(((60, 0), (40, 60))):
        joint |= {(n, row): stored["joint"][first + row] for row in range(rows)}
    shards = sorted({r.shard for r in plain})

    def vector(result):
        row = int(result.id.partition("/")[2].partition("@")[0])
        return joint[shards.index(result.shard), row]

    paired = [r for r in plain if vector(r).any()]
    expected = sorted(paired, key=lambda r: -float(vector(r) @ xq))
    lone = [r for r in plain if not vector(r).any()]
    assert lone  # rows without a caption have no joint vector: behind, in their order
    assert [r.id for r in again] == [r.id for r in expected + lone]
    for result in again[: len(expected)]:
        assert result.score == pytest.approx(float(vector(result) @ xq), abs=1e-6)


def test_the_vectors_of_all_queries_are_read_together(tmp_path, monkeypatch):
    make_collection(tmp_path / "c", (60,))
    build_index(str(tmp_path / "c"))
    collection, reads = open_collection(tmp_path / "c"), []
    queries = [
        Query(vector=vector, k=20, rerank=(RerankStage("vectors", 20),))
        for vector in np.eye(8, dtype=np.float32)
    ]
    alone = [collection.search_many([query])[0].results for query in queries]
    monkeypatch.setattr(OpenIndex, "vectors", recording(reads, OpenIndex.vectors))
    assert [answer.results for answer in collection.search_many(queries)] == alone
    [(_, column, positions)] = reads
    assert column == "joint" and len(set(positions)) == len(positions) > 20


def test_stages_follow_one_another(made):
    collection = open_collection(made)
    stages = ["vectors:30", "match:10"]
    chained = collection.search("a red boat", k=30, rerank=stages)
    first = collection.search("a red boat", k=30, rerank=stages[:1])
    assert {r.id for r in chained[:10]} == {r.id for r in first[:10]}
    assert [r.id for r in chained[10:]] == [r.id for r in first[10:]]
    assert list(chained[0].scores) == ["search", "vectors", "match"]


def test_an_encoder_of_vectors_alone_cannot_match(tmp_path):
    collection = open_collection(embed_and_index(tmp_path, FakeEncoder(), samples=3, shards=1))
    with pytest.raises(UsageError, match=r"encoder fake: expected one that matches words"):
        collection.search("a boat", rerank=["match:5"])


def test_a_query_by_vector_cannot_be_matched(made):
    query = Query(vector=np.ones(8, np.float32), rerank=(RerankStage("match", 5),))
    with pytest.raises(UsageError, match=r"expected words or a picture, found a vector"):
        open_collection(made).search_many([query])


def test_a_shard_that_is_gone_is_an_error_that_names_it(tmp_path):
    path = embed_and_index(tmp_path, FakeMatcher("matcher"), samples=3, shards=1)
    (tmp_path / "s-00000.tar").unlink()
    with pytest.raises(SourceError, match=r"s-00000\.tar"):
        open_collection(path).search("a boat", rerank=["match:2"])


def test_the_command_prints_the_score_of_every_stage(made):
    done = subprocess.run(
        [sys.executable, "-c", "import fake_encoder; fake_encoder.register(); "
         "from chiasm.jobs.cli.app import main; main()",
         "search", str(made), "a red boat", "-k", "4",
         "--rerank", "vectors:20", "--rerank", "match:8", "--json"],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["query"]["rerank"] == ["vectors:20", "match:8"]
    assert len(answer["results"]) == 4 and "rerank" in answer["seconds"]
    for result in answer["results"]:
        assert list(result["scores"]) == ["search", "vectors", "match"]
        assert result["score"] == result["scores"]["match"]


def test_one_stage_may_be_given_as_a_text(made):
    collection = open_collection(made)
    as_list = collection.search("a red boat", rerank=["match:5"])
    assert collection.search("a red boat", rerank="match:5").results == as_list.results
    assert (
        collection.search("a red boat", rerank=RerankStage("match", 5)).results == as_list.results
    )
    query = Query("a red boat", rerank="match:5")
    assert collection.search_many([query])[0].results == as_list.results


def test_an_unknown_reranker_is_refused_before_the_encoder_is_loaded(made, monkeypatch):
    monkeypatch.delitem(ENCODERS, "fake")
    for stages in ("nothing:3", "st:3", "match:model:3"):
        with pytest.raises(UsageError, match=r"expected one of vectors:N, match:N, st:MODEL:N"):
            open_collection(made).search("a boat", rerank=stages)


def test_the_score_of_a_stage_that_follows_another_is_the_score_of_the_hit(made):
    """The first and the last stage have one name, hence one score: that of the last."""
    answer = open_collection(made).search(
        "a red boat", k=30, rerank=["vectors:30", "match:20", "vectors:10"]
    )
    assert [result.scored_by for result in answer] == (
        ["vectors"] * 10 + ["match"] * 10 + ["vectors"] * 10
    )
    assert all(list(result.scores)[-1] == result.scored_by for result in answer)
    assert [answer.is_reranked(result) for result in answer] == [True] * 10 + [False] * 20
    assert all(result.score == result.scores[result.scored_by] for result in answer)


def test_results_that_the_last_stage_did_not_score_are_marked(made):
    answer = open_collection(made).search("a red boat", k=6, rerank=["vectors:5", "match:4"])
    marks = [result["reranked"] for result in answer.as_json()["results"]]
    assert marks == [True] * 4 + [False] * 2
    assert answer.score_label(answer[3]) == f"{answer[3].score:.3f}"
    assert answer.score_label(answer[4]) == f"{answer[4].score:.3f} (vectors)"
    assert answer.score_label(answer[5]) == f"{answer[5].score:.3f} (search)"
    lines = repr(answer).splitlines()[1:]
    for result, line in zip(answer, lines, strict=True):
        assert line.startswith(f"  <Result {result.rank}: {answer.score_label(result)} '")
    lines = format_answer(answer).splitlines()
    assert lines[9] == "      not scored by match:4, ordered by vectors:"
    assert len(lines) == 1 + 2 * 6 + 1


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    return cross_encoder_folder(tmp_path_factory.mktemp("reranker"))


def test_any_cross_encoder_for_pictures_reranks(made, reranker):
    # In bfloat16, which a processor may have chosen for it, scores this near are ties.
    collection = open_collection(made, encoding=FLOAT32)
    plain = collection.search("a red boat", k=6)
    again = collection.search("a red boat", k=6, rerank=[f"st:{reranker}:4"])
    with capture_warnings():
        network = CrossEncoder(str(reranker), device="cpu", local_files_only=True)
        scores = {
            r.id: float(
                network.predict(
                    [({"text": "a red boat"}, {"image": Image.open(io.BytesIO(r.picture()))})],
                    show_progress_bar=False,
                )[0]
            )
            for r in plain[:4]
        }
    assert np.diff(sorted(scores.values())).min() > 1e-4, "no near ties"
    assert [r.id for r in again[:4]] == sorted(scores, key=lambda id: -scores[id])
    assert [r.id for r in again[4:]] == [r.id for r in plain[4:]]
    for result in again[:4]:
        assert result.scores[f"st:{reranker}"] == pytest.approx(scores[result.id], abs=1e-5)


def test_a_reranker_that_is_not_there_is_called_so():
    with pytest.raises(
        EncoderError, match=r"^reranker st:/none: expected a model folder, found no"
    ):
        load_matcher("st:/none", FLOAT32)


def test_pairs_of_a_picture_share_one_copy_of_it(reranker, monkeypatch):
    matcher = load_matcher(f"st:{reranker}", FLOAT32)
    pixels = [np.full((8, 8, 3), shade, np.uint8) for shade in (0, 90, 200)]
    texts = [f"caption {number}" for number in range(4)]
    pairs = np.array([(2, 0), (0, 1), (2, 2), (2, 3), (0, 0)])
    given, predict = [], CrossEncoder.predict

    def recorded(self, inputs, **options):
        given.append([picture["image"] for _, picture in inputs])
        return predict(self, inputs, **options)

    with monkeypatch.context() as patch:
        patch.setattr(CrossEncoder, "predict", recorded)
        scores = matcher.match(("image", pixels), ("text", texts), pairs)
        turned = matcher.match(("text", texts), ("image", pixels), pairs[:, ::-1])
    for pictures in given:
        assert [np.asarray(picture)[0, 0, 0] for picture in pictures] == [200, 0, 200, 200, 0]
        assert len(set(map(id, pictures))) == 2
    singly = [matcher.match(("image", pixels), ("text", texts), pair[None])[0] for pair in pairs]
    np.testing.assert_allclose(scores, singly, atol=1e-5)
    np.testing.assert_array_equal(scores, turned)


@pytest.mark.parametrize("fit", [1, 2, 5, 6])
def test_so_many_pairs_are_scored_at_once_as_fit(reranker, monkeypatch, fit):
    matcher = load_matcher(f"st:{reranker}", FLOAT32)
    pixels = [np.full((8, 8 + n, 3), 40 * n, np.uint8) for n in range(3)]
    texts = ["caption", "another one"]
    pairs = np.array([(i, j) for i in range(3) for j in range(2)])
    whole = matcher.match(("image", pixels), ("text", texts), pairs)
    sizes, predict = [], CrossEncoder.predict

    def recorded(self, inputs, **options):
        sizes.append(len(inputs))
        assert options["batch_size"] == len(inputs)
        return predict(self, inputs, **options)

    with monkeypatch.context() as patch:
        patch.setattr(CrossEncoder, "predict", recorded)
        patch.setattr(cross_encoder, "BATCH_BYTES", fit * matcher.cost("image", pixels[-1]))
        scores = matcher.match(("image", pixels), ("text", texts), pairs)
    assert max(sizes) == fit and sum(sizes) == len(pairs)
    np.testing.assert_allclose(scores, whole, atol=1e-5)


def test_a_cross_encoder_that_lacks_weights_is_refused(reranker, tmp_path):
    copy = shutil.copytree(reranker, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    gone = next(name for name in weights if "down_proj" in name)
    save_file({n: t for n, t in weights.items() if n != gone}, copy / "model.safetensors")
    with pytest.raises(EncoderError, match=r"expected all weights of the model, found none for"):
        load_matcher(f"st:{copy}", EncoderSettings())


class Recorded(FakeMatcher):
    """Records how many pairs, and how many items of each side, it matches at once."""

    def __init__(self):
        super().__init__("matcher")
        self.calls: list[tuple[int, int, int]] = []

    def match(self, a, b, pairs):
        self.calls.append((len(pairs), len(a[1]), len(b[1])))
        return super().match(a, b, pairs)


def test_the_pairs_of_all_queries_are_matched_together_and_pictures_are_read_once(
    made, monkeypatch
):
    matcher, reads, decoded = Recorded(), [], []
    monkeypatch.setattr(pairs, "read_checked", recording(reads, pairs.read_checked))
    monkeypatch.setattr(pairs, "decode", recording(decoded, pairs.decode))
    collection = open_collection(made)
    monkeypatch.setattr(collection, "_encoder", matcher)
    picture = collection.search("x", k=1)[0].picture()
    queries = [
        *(Query(f"text {n}", k=40, rerank=f"match:{20 + n}") for n in range(6)),
        Query("text 0", k=40, rerank=["vectors:40", "match:12"]),
        *(Query(image=picture, k=40, column="text", rerank="match:7") for _ in range(2)),
        Query("unranked", k=5),
    ]
    together = collection.search_many(queries)
    hits = [{(r.url, r.place) for r in collection.search(f"text {n}", k=20 + n)} for n in range(6)]
    texts = sum(20 + n for n in range(6))
    first = [*(min(32, texts - start) for start in range(0, texts, 32)), 14]
    assert [count for count, _, _ in matcher.calls] == [*first, 12]  # then the second stage
    assert max(texts for _, texts, _ in matcher.calls[: len(first) - 1]) > 1
    rows = [args[:2] for args in reads[: len(set.union(*hits))]]
    assert set(rows) == set.union(*hits) and len(rows) < texts
    assert len(reads) == len(rows) + 12  # whichever queries have it, a picture is read once
    assert len(decoded) == len(reads)
    for query, answer in zip(queries, together, strict=True):  # its batch changes nothing
        assert collection.search_many([query])[0].results == answer.results


def recording(calls, function):
    def recorded(*args):
        calls.append(args)
        return function(*args)

    return recorded


def test_rows_of_few_queries_are_in_memory_at_once(made, monkeypatch):
    collection = open_collection(made)
    queries = [Query(f"text {n}", k=12, rerank=f"match:{5 + n}") for n in range(5)]
    expected = [answer.results for answer in collection.search_many(queries)]
    monkeypatch.setattr(rerank_module, "MAX_ROWS", 12)
    rows = []
    monkeypatch.setattr(OpenIndex, "rows", recording(rows, OpenIndex.rows))
    assert [answer.results for answer in collection.search_many(queries)] == expected
    assert len(rows) == 5  # of 5 + 6, of 7, of 8 and of 9 hits; and of the results


def test_a_query_whose_every_pair_is_refused_is_named_though_others_are_scored(made, monkeypatch):
    class Deaf(FakeMatcher):
        def match(self, a, b, pairs):
            if any(isinstance(item, str) and item == "unheard" for item in a[1]):
                raise ValueError("no such word")
            return super().match(a, b, pairs)

    collection = open_collection(made)
    monkeypatch.setattr(collection, "_encoder", Deaf("matcher"))
    queries = [Query("boat", rerank="match:9"), Query("unheard", rerank="match:9")]
    assert collection.search_many(queries[:1])
    with pytest.raises(UsageError, match=r'^"unheard": expected what .*no such word'):
        collection.search_many(queries)
