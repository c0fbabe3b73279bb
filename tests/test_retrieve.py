"""The read path from words and pictures to results, over a collection made by the write path."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import environment, make_shard
from encoding import encode_images, encode_texts, mean_of, preprocess
from fake_encoder import FakeEncoder
from PIL import Image
from tiny_collection import make_collection

from chiasm.index import Answer, Query, Searcher, build_index, open_collection
from chiasm.index.query import search
from chiasm.pipeline.collection import Identity, create_or_check, embeddings
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.encoders import ENCODERS
from chiasm.pipeline.errors import CollectionError, SourceError, UsageError
from chiasm.pipeline.make import make_collection as embed_into_collection
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import Folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Three shards of 20 embedded and indexed; tests that change something take a copy."""
    root = tmp_path_factory.mktemp("retrieve")
    shards = [make_shard(root / "shards" / f"s-{n:05d}.tar", 20, seed=n) for n in range(3)]
    encoder, folder = FakeEncoder(), Folder(str(root / "c"))
    create_or_check(folder, Identity.of(encoder), "test")
    for shard in list_shards([str(path) for path in shards]):
        embed_shard(shard, encoder, folder, EmbedSettings(), run_id="test")
    build_index(str(root / "c"))
    return root / "c"


def column_of(path: Path, column: str) -> np.ndarray:
    vectors = [file.vectors(column)[0] for file in embeddings(Folder(str(path)))]
    return np.concatenate(vectors).astype(np.float32)


def test_a_text_finds_the_nearest_pictures(made):
    answer = open_collection(made).search("a red boat", k=7)
    assert isinstance(answer, Answer) and len(answer) == 7
    xq = encode_texts(FakeEncoder(), ["a red boat"])[0]
    scores = column_of(made, "image") @ xq
    nearest = np.argsort(-scores, kind="stable")[:7]
    assert [result.rank for result in answer] == list(range(1, 8))
    assert np.allclose([result.score for result in answer], scores[nearest], atol=1e-6)
    keys = [key for file in embeddings(Folder(str(made))) for key in file.read(["key"])["key"]]
    assert [result.key for result in answer] == [keys[place].as_py() for place in nearest]


def test_a_caption_finds_its_own_row_among_captions_and_a_picture_among_pictures(made):
    collection = open_collection(made)
    best = collection.search("picture 7 of 1", column="text", k=1)[0]
    assert (best.caption, best.meta) == ("picture 7 of 1", {"number": 7, "even": False})
    assert best.score == pytest.approx(1, abs=1e-3)
    again = collection.search(image=best.picture(), k=1)[0]
    assert again.id == best.id and again.score == pytest.approx(1, abs=1e-3)
    assert again.id == f"{again.shard}/7@{again.id.partition('@')[2]}"
    assert again.shard.startswith("s-00001-")


def test_a_picture_gives_the_same_answer_as_bytes_path_and_pixels(made, tmp_path):
    collection = open_collection(made)
    data = collection.search("anything", k=1)[0].picture()
    file = tmp_path / "query.jpg"
    file.write_bytes(data)
    pixels = Image.open(io.BytesIO(data))
    sources = [data, file, str(file), file.as_uri(), pixels, np.asarray(pixels)]
    answers = [collection.search(image=source, k=5) for source in sources]
    assert all(answer.results == answers[0].results for answer in answers)
    names = [answer.as_json()["query"]["image"] for answer in answers]
    assert names == [
        "(given as bytes)", str(file), str(file), file.as_uri(), *["(given as pixels)"] * 2
    ]  # fmt: skip


def test_a_grey_array_is_searched_as_a_grey_picture(made):
    collection = open_collection(made)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    answers = [collection.search(image=source) for source in (pixels, Image.fromarray(pixels))]
    assert answers[0].results == answers[1].results


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"text": ["a"]}, "text: expected str, found list; search_many([...]) answers several"),
        ({"text": b"a"}, "text: expected str, found bytes"),
        ({"image": np.zeros((4, 4, 3))}, "found an array of float64 (4, 4, 3)"),
        ({"image": np.zeros((4, 4, 4), np.uint8)}, "uint8 (H, W, 3) or (H, W), found an array of"),
        ({"image": np.zeros((0, 4), np.uint8)}, "found an array of uint8 (0, 4)"),
        ({"image": ["a.jpg"]}, "image: expected a path, a URL, an encoded file as bytes, a PIL"),
        ({"text": "a", "rerank": 3}, "rerank: expected stages such as 'match:20', found int"),
        ({"text": "a", "rerank": [3]}, "rerank: expected stages such as 'match:20', found int"),
    ],
)
def test_queries_of_unusable_types_are_type_errors_that_say_what_to_do(made, query, message):
    with pytest.raises(TypeError) as error:
        open_collection(made).search(**query)
    assert message in str(error.value)


def test_search_many_takes_texts_and_queries_but_not_one_text(made):
    collection = open_collection(made)
    texts = collection.search_many(["one", Query("two")])
    assert [answer.query.text for answer in texts] == ["one", "two"]
    assert texts[0].results == collection.search("one").results
    with pytest.raises(TypeError, match="expected a list of texts or queries, found one str"):
        collection.search_many("one")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "F", "I;16"])
def test_a_picture_of_any_pil_mode_can_be_searched(made, mode):
    assert len(open_collection(made).search(image=Image.new(mode, (20, 30)), k=3)) == 3


def test_a_text_with_a_picture_is_searched_by_the_mean_of_their_vectors(made):
    collection = open_collection(made)
    data = collection.search("x", k=1)[0].picture()
    answer = collection.search("a red boat", image=data, k=5)
    encoder = FakeEncoder()
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (32, 32))
        pixels = preprocess(encoder, image.convert("RGB"))
    xq = mean_of(encode_images(encoder, [pixels]), encode_texts(encoder, ["a red boat"]))
    scores, _ = search(collection.column("image"), xq, 5, 0)
    assert [result.score for result in answer] == pytest.approx(scores[0].tolist(), abs=1e-6)
    assert str(answer.query) == '"a red boat" + picture (given as bytes)'


def test_many_queries_at_once_give_the_answers_of_each_alone(made):
    collection = open_collection(made)
    data = collection.search("x", k=1)[0].picture()
    queries = [
        Query("one"),
        Query("two", column="text", k=3),
        Query(image=data, column="joint", k=1),
        Query("three", data, k=60),
        Query(vector=np.arange(1, 9), column="text", k=100),
        Query("one", k=2),
    ]
    answers = collection.search_many(queries)
    assert [len(answer) for answer in answers] == [10, 3, 1, 60, 60, 2]
    for query, answer in zip(queries, answers, strict=True):
        assert answer.query is query
        assert answer.results == collection.search_many([query])[0].results
        assert list(answer.seconds) == ["load", "encode", "search", "rerank", "results"]
    assert answers[0][:2] == answers[5].results
    assert collection.search_many([]) == []


def test_the_json_of_an_answer_has_the_documented_shape(made):
    answer = open_collection(made).search("a red boat", k=2)
    value = json.loads(json.dumps(answer.as_json()))
    assert list(value) == ["query", "results", "seconds"]
    query = {"text": "a red boat", "image": None, "column": "image", "k": 2, "rerank": []}
    assert value["query"] == {**query, "hybrid": False, "where": None}
    assert list(value["seconds"]) == ["load", "encode", "search", "rerank", "results"]
    assert all(isinstance(seconds, float) for seconds in value["seconds"].values())
    first = value["results"][0]
    assert list(first) == [
        *("rank", "id", "key", "shard", "score", "scores", "caption", "meta"),
        *("url", "member", "offset", "size", "reranked"),
    ]
    data = Path(first["url"].removeprefix("file://")).read_bytes()
    picture = data[first["offset"] : first["offset"] + first["size"]]
    assert picture == answer[0].picture() and first["member"] == first["key"] + ".jpg"
    assert (
        first["rank"] == 1
        and first["reranked"] is False
        and first["id"].startswith(first["shard"] + "/")
    )
    assert list(first["meta"]) == ["even", "number"] and isinstance(first["score"], float)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({}, "query: expected some words or a picture, found neither"),
        ({"text": " \n"}, r"query: expected some words or a picture, found the text ' \n'"),
        ({"text": "x", "k": 0}, "k: expected a whole number from 1 up, found 0"),
        ({"text": "x", "k": None}, "k: expected a whole number from 1 up, found None"),
        ({"text": "x", "k": True}, "k: expected a whole number from 1 up, found True"),
        ({"text": "x", "k": 2.5}, "k: expected a whole number from 1 up, found 2.5"),
        ({"text": "x", "nprobe": 0}, "nprobe: expected a whole number from 1 up, found 0"),
        ({"text": "x", "vector": np.ones(8)}, "query: expected either a vector or words and pict"),
    ],
)
def test_queries_with_unusable_values_are_refused(query, message):
    with pytest.raises(UsageError) as error:
        Query(**query)
    assert str(error.value).startswith(message)


def test_several_texts_are_advised_to_search_many_where_that_helps():
    with pytest.raises(TypeError, match=r"^text: expected str, found list$"):
        Query(["a", "b"])  # a line of a file, for one
    with pytest.raises(TypeError, match=r"found list; search_many\(\[\.\.\.\]\) answers several"):
        Searcher.search(None, ["a", "b"])


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.ones(7), "query vector: expected 8 finite numbers, not all zero, found shape (7,)"),
        (
            np.ones((1, 8)),
            "query vector: expected 8 finite numbers, not all zero, found shape (1, 8)",
        ),
        (np.full(8, np.nan), "found zeros, NaN or infinity"),
        (np.zeros(8), "found zeros, NaN or infinity"),
    ],
)
def test_a_vector_of_another_space_is_refused(made, vector, message):
    with pytest.raises(UsageError) as error:
        open_collection(made).search_many([Query(vector=vector)])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"no picture at all", "the query's picture: expected a picture, found not_a_picture"),
        (b"", "the query's picture: expected a picture, found not_a_picture: no bytes"),
        ("/nowhere/a.jpg", "/nowhere/a.jpg: expected a picture's file, found No such file"),
    ],
)
def test_a_picture_that_cannot_be_read_is_refused(made, image, message):
    with pytest.raises(UsageError) as error:
        open_collection(made).search(image=image)
    assert str(error.value).startswith(message)


def test_a_column_without_an_index_is_refused_before_the_encoder_is_loaded(
    made, tmp_path, monkeypatch
):
    shutil.copytree(made, tmp_path / "c")
    build_index(str(tmp_path / "c"), columns=["text"])
    monkeypatch.delitem(ENCODERS, "fake")
    with pytest.raises(CollectionError) as error:
        open_collection(tmp_path / "c").search("x")
    assert str(error.value) == (
        f"column image of {tmp_path / 'c'}: expected an indexed column, one of text, found none; "
        f"run chiasm index build {tmp_path / 'c'}"
    )


def test_a_column_of_which_no_row_has_a_vector_is_not_to_be_built(tmp_path):
    """Building the index again would not help."""
    shard = make_shard(tmp_path / "a.tar", 3, captions=["", "", ""])
    embed_into_collection(shard, tmp_path / "c", "fake")
    build_index(tmp_path / "c")
    with pytest.raises(CollectionError) as error:
        open_collection(tmp_path / "c").search("x", column="text")
    assert str(error.value).endswith(
        "found none; no row has such a vector: embed samples with captions, or search another "
        "--column"
    )


def test_another_encoder_of_the_same_name_is_refused(made, monkeypatch):
    class Retrained(FakeEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.fingerprint = "0" * 32

    collection = open_collection(made)
    monkeypatch.setitem(ENCODERS, "fake", lambda model, settings: Retrained())
    with pytest.raises(CollectionError) as error:
        collection.search("x")
    assert str(error.value) == (
        f"{made}: expected encoder fake ({FakeEncoder().fingerprint[:12]}), found another of that "
        "name (000000000000); name the weights that made it, as in --encoder fake:DIR, or embed "
        "the shards into another collection"
    )
    assert len(collection.search_many([Query(vector=np.ones(8))])[0]) == 10


def test_the_encoder_is_loaded_once_and_only_for_words_and_pictures(made, monkeypatch):
    loaded: list[str] = []

    def load(model: str, settings: object) -> FakeEncoder:
        loaded.append(model)
        return FakeEncoder(model)

    monkeypatch.setitem(ENCODERS, "fake", load)
    collection = open_collection(made)
    collection.search_many([Query(vector=np.ones(8))])
    assert loaded == []
    collection.search("a")
    collection.search("b")
    assert loaded == [""]


def test_a_missing_collection_or_index_names_the_command_to_run(tmp_path):
    with pytest.raises(CollectionError, match=r"found none; make one: chiasm embed SHARDS --to"):
        open_collection(tmp_path / "none")
    make_collection(tmp_path / "c", (5,))
    with pytest.raises(CollectionError) as error:
        open_collection(tmp_path / "c")
    assert str(error.value) == (
        f"{tmp_path / 'c'}: expected an index, found none; run chiasm index build {tmp_path / 'c'}"
    )


def test_an_index_of_another_encoder_is_refused(made, tmp_path):
    path = tmp_path / "c"
    shutil.copytree(made, path)
    name = "index/generations/000001.json"
    manifest = (path / name).read_text().replace(FakeEncoder().fingerprint, "0" * 32)
    (path / name).write_text(manifest)
    with pytest.raises(CollectionError, match=r"of encoder fake \(.*, found one of fake \(0000"):
        open_collection(path)


def test_the_picture_of_a_result_is_the_bytes_of_its_member(made):
    for result in open_collection(made).search("a red boat", k=60):
        path = result.url.removeprefix("file://")
        assert result.place is not None
        with tarfile.open(path) as tar:
            member = tar.extractfile(result.place.member)
            assert member is not None and result.picture() == member.read()
        with Image.open(io.BytesIO(result.picture())) as image:
            assert image.size == (result.width, result.height)


def test_a_changed_or_missing_shard_gives_no_wrong_picture(made, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(made.parent / "shards", shards)
    result = open_collection(made).search("x", k=1)[0]
    moved = result.url.replace(str(made.parent / "shards"), str(shards))
    copy = replace(result, row=replace(result.row, url=moved))
    assert copy.picture() == result.picture()
    path = Path(moved.removeprefix("file://"))
    path.write_bytes(path.read_bytes().replace(result.picture()[100:110], bytes(10)))
    with pytest.raises(SourceError, match=r"that were embedded, found others; the shard has chan"):
        copy.picture()
    path.unlink()
    with pytest.raises(SourceError, match=f"{path}: expected a file to read, found nothing there"):
        copy.picture()


def test_a_row_without_a_picture_has_none_to_read(tmp_path):
    make_collection(tmp_path, (30,), holes=0.5)
    build_index(str(tmp_path))
    answer = open_collection(tmp_path).search("x", column="text", k=30)
    alone = [result for result in answer if result.place is None]
    assert alone and all(result.caption for result in answer)
    with pytest.raises(SourceError, match="expected a picture, found a row without a picture"):
        alone[0].picture()


def test_a_cold_search_loads_only_what_it_needs(made):
    """Half of what torch could load, and pandas, would cost more than the search itself."""
    program = (
        "import sys; from chiasm.index import open_collection; "
        "from chiasm.pipeline.encoders import load_encoder;"
        "open_collection(sys.argv[1]).search('x')[0];"
        "assert 'torch' not in sys.modules;"
        "load_encoder('pocket').encode('text', ['x']);"
        "print(*{'pandas', 'sympy', 'scipy', 'torch._dynamo', 'transformers'} & set(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(made)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout.split()) == (0, []), ran.stderr


def test_the_representation_of_an_answer_lists_its_first_results_on_safe_lines(made):
    collection = open_collection(made)
    lines = repr(collection.search("a red\nboat\x1b[31m", k=60)).splitlines()
    assert lines[0].startswith('<Answer to "a red\\nboat\\x1b[31m" in image: 60 results, ')
    assert len(lines) == 12 and lines[-1] == "  ... and 50 more"
    best = collection.search("picture 7 of 1", column="text", k=1)[0]
    assert repr(best) == f"<Result 1: {best.score:.3f} 'picture 7 of 1' {best.id}>"


def test_the_representation_of_a_searcher_says_what_it_searches(made):
    assert repr(open_collection(made)) == (
        f"<Searcher {made}: encoder fake, 60 rows, columns image, text, joint>"
    )


def test_dir_lists_the_public_names_alone():
    import chiasm
    from chiasm import pipeline

    assert set(dir(chiasm)) == {*chiasm.__all__, "index", "jobs", "pipeline"}
    assert dir(pipeline) == sorted(pipeline.__all__)


def test_the_face_of_index_has_what_answers_and_their_settings_are_made_of():
    from chiasm import index

    assert {"AskSettings", "CollectionAnswer", "ask_collection"} <= {*index.__all__}
    assert all(hasattr(index, name) for name in index.__all__)


def test_a_notebook_shows_small_pictures_and_escaped_captions(made):
    answer = open_collection(made).search("a <b>red</b> boat", k=30)
    first = answer[0]
    evil = replace(first, row=replace(first.row, caption="<script>alert(1)</script>" + "x" * 999))
    gone = replace(answer[1], row=replace(answer[1].row, url="file:///nowhere/b.tar"))
    alone = replace(answer[2], row=replace(answer[2].row, place=None))
    page = replace(answer, results=(evil, gone, alone, *answer[3:]))._repr_html_()
    assert "a &lt;b&gt;red&lt;/b&gt; boat" in page and "&lt;script&gt;alert(1)" in page
    assert "<script>" not in page and "x" * 200 not in page
    assert "/nowhere/b.tar: expected a file to read, found nothing there" in page
    assert "a row without a picture" in page and "... and 10 more" in page
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 18
    with Image.open(io.BytesIO(base64.b64decode(pictures[0]))) as image:
        assert max(image.size) <= 160


def test_the_time_of_an_answer_says_apart_what_loading_took():
    seconds = {"load": 2.1, "encode": 0.01, "search": 0.002}
    assert Answer(Query("a"), (), seconds).time_label() == "12 ms, loading 2.1 s"
    assert Answer(Query("a"), (), {**seconds, "load": 0.001}).time_label() == "12 ms"


def test_a_column_that_the_collection_does_not_have_is_refused(made):
    with pytest.raises(UsageError, match="column 'audio': expected one of image, text, joint"):
        open_collection(made).search("x", column="audio")
