"""st: models encode queries and rows by their own `encode_query` and `encode_document`: prompts,
routes, lengths, what stands in the fingerprint, and rows of before."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import transformers
from conftest import make_shard
from encoding import preprocess
from PIL import Image
from random_models import clip_folder
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tiny_llava import TOWER, llava_folder
from tiny_towers import text_folder

from chiasm.index import Query, build_index, open_collection
from chiasm.jobs.status import read_status
from chiasm.pipeline.collection import Collection, embeddings, read_identity
from chiasm.pipeline.encoders import load_encoder, unit
from chiasm.pipeline.encoders import sentence_transformer as product
from chiasm.pipeline.errors import CollectionError, UsageError
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import capture_warnings, find_model
from chiasm.pipeline.pretrained.sentence_models import MAX_PIXELS
from chiasm.pipeline.pretrained.sentence_tasks import reads_task
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.verify import check_members

FLOAT32 = EncoderSettings(precision="float32", device="cpu")
TEXTS = ["a red boat", "", "a photo of people standing in the street", "红色的船"]
PICTURES = [
    Image.fromarray(np.random.default_rng(n).integers(0, 256, (40 + n, 50, 3), np.uint8))
    for n in range(len(TEXTS))
]
PROMPTS = {"query": "find: ", "document": "picture of: ", "short": "q "}
WIDTH = 24


def save(modules, folder):
    with capture_warnings():
        SentenceTransformer(modules=modules, device="cpu").save_pretrained(
            str(folder), create_model_card=False
        )
    return folder


def configured(folder, copy, **fields):
    """A copy of a model with other fields in its config_sentence_transformers.json."""
    shutil.copytree(folder, copy)
    path = copy / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return copy


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def clip(folder, seed=0):
    return Transformer(
        str(
            clip_folder(
                folder, seed=seed, side=32, width=WIDTH, tower=TOWER, vision={"patch_size": 8}
            )
        )
    )


@pytest.fixture(scope="module")
def plain(root):
    return save([clip(root / "clip")], root / "plain")


@pytest.fixture(scope="module")
def fusing(root):
    """A vision-language model: a prompt is a system message, before pictures too."""
    folder = llava_folder(root / "llava", transformers.LlavaModel)
    return save([Transformer(str(folder)), Pooling(32, "lasttoken")], root / "fusing")


@pytest.fixture(scope="module")
def routed(root):
    """Queries through one CLIP, what is embedded through another."""
    towers = [clip(root / f"route{seed}", seed) for seed in (1, 2)]
    router = Router.for_query_document([towers[0]], [towers[1]])
    return save([router], root / "routed")


@pytest.fixture(scope="module")
def models(root, plain, fusing, routed):
    lengths = shutil.copytree(plain, root / "lengths")
    path = lengths / "sentence_bert_config.json"
    changed = {"query_length": 6, "document_length": 9}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return {
        "plain": plain,
        "prompts": configured(plain, root / "prompts", prompts=PROMPTS),
        "default query": configured(
            plain, root / "default", prompts=PROMPTS, default_prompt_name="query"
        ),
        "default other": configured(
            plain, root / "other", prompts={"sts": "alike: "}, default_prompt_name="sts"
        ),
        "passage": configured(plain, root / "passage", prompts={"query": "q: ", "passage": "p: "}),
        "fusing": fusing,
        "fusing with prompts": configured(
            fusing, root / "fusing2", prompts=PROMPTS, default_prompt_name="short"
        ),
        "routed": routed,
        "routed with prompts": configured(routed, root / "routed2", prompts=PROMPTS),
        "lengths": lengths,
    }


# Further ones: test_families.py.
NAMES = ("default query", "default other", "passage", "fusing with prompts", "lengths")


def library(folder) -> SentenceTransformer:
    with capture_warnings():
        return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def given_pictures(encoder):
    return [preprocess(encoder, picture) for picture in PICTURES]


@pytest.mark.parametrize("name", NAMES)
def test_queries_and_rows_are_what_the_library_makes_of_them(models, name):
    encoder, network = load_encoder(f"st:{models[name]}", FLOAT32), library(models[name])
    rows, queries = {}, {}
    for modality, raw in (("image", PICTURES), ("text", TEXTS)):
        inputs = [{modality: one} for one in raw]
        items = TEXTS if modality == "text" else given_pictures(encoder)
        rows[modality], queries[modality] = (
            encode(modality, items) for encode in (encoder.encode, encoder.encode_queries)
        )
        wanted = unit(network.encode_document(inputs)), unit(network.encode_query(inputs))
        np.testing.assert_allclose(rows[modality].vectors, wanted[0], atol=1e-6)
        np.testing.assert_allclose(queries[modality].vectors, wanted[1], atol=1e-6)
    pairs = [{"image": one, "text": two} for one, two in zip(PICTURES, TEXTS, strict=True)]
    if network.supports(("image", "text")):
        wanted = unit(network.encode_document(pairs)), unit(network.encode_query(pairs))
    else:
        wanted = tuple(
            unit(parts["image"].vectors + parts["text"].vectors) for parts in (rows, queries)
        )
    np.testing.assert_allclose(encoder.encode_joint(rows), wanted[0], atol=1e-6)
    np.testing.assert_allclose(encoder.encode_joint_queries(queries), wanted[1], atol=1e-6)
    same = np.allclose(rows["text"].vectors, queries["text"].vectors, atol=1e-3)
    assert same == (name == "default other")


def test_options_name_a_prompt_of_the_model_or_are_a_text(models):
    network = library(models["prompts"])
    made = set()
    for option, text in (
        ("short", "q "),
        ("see: ", "see: "),
        ("", ""),
        ("document", "picture of: "),
    ):
        settings = replace(FLOAT32, query_prompt=option, document_prompt=option)
        encoder = load_encoder(f"st:{models['prompts']}", settings)
        wanted = unit(network.encode([{"text": text + one} for one in TEXTS]))
        for encode in (encoder.encode, encoder.encode_queries):
            np.testing.assert_allclose(encode("text", TEXTS).vectors, wanted, atol=1e-6)
        assert encoder.preprocessing["text"] == {"prompt": text, "query_prompt": text}
        made.add(encoder.fingerprint)
    assert len(made) == 4
    named, spelt = (
        load_encoder(f"st:{models['prompts']}", replace(FLOAT32, query_prompt=prompt))
        for prompt in ("short", "q ")
    )
    assert named.fingerprint == spelt.fingerprint
    other = load_encoder(f"st:{models['prompts']}", replace(FLOAT32, query_prompt="r "))
    assert other.fingerprint != named.fingerprint
    own = load_encoder(f"st:{models['prompts']}", FLOAT32)
    stated = load_encoder(f"st:{models['prompts']}", replace(FLOAT32, query_prompt="query"))
    assert own.fingerprint == stated.fingerprint  # the same vectors


def fingerprint_of_before(folder, prompt, joint="normalised mean"):
    """What `st:` gave before it used prompts and routes."""
    said = {
        "image": {"largest": MAX_PIXELS, "then": "the model's own"},
        "text": {"prompt": prompt},
        "joint": joint,
    }
    return find_model("st", str(folder), "*.safetensors", nested=True).fingerprint(said)


def test_a_model_whose_rows_are_what_they_were_keeps_its_fingerprint(models):
    """With a prompt for queries alone as well: rows do not depend on it."""
    asking = configured(
        models["plain"], models["plain"].parent / "asking", prompts={"query": "find: "}
    )
    for folder, joint in (
        (models["plain"], "normalised mean"),
        (models["fusing"], "the model's own"),
        (models["routed"], "normalised mean"),  # its route by default is that of documents
        (asking, "normalised mean"),
    ):
        encoder = load_encoder(f"st:{folder}", FLOAT32)
        assert encoder.fingerprint == fingerprint_of_before(folder, "", joint)
        assert encoder.earlier_fingerprints == {}


@pytest.mark.parametrize(
    ("name", "prompt", "what"),
    [
        ("prompts", "", "prompts"),
        ("default query", "find: ", "prompts"),
        ("default other", "alike: ", "prompts"),
        ("lengths", "", "routes"),
    ],
)
def test_the_fingerprint_of_before_is_known_where_rows_differ(models, name, prompt, what):
    encoder = load_encoder(f"st:{models[name]}", FLOAT32)
    before = fingerprint_of_before(models[name], prompt)
    assert encoder.fingerprint != before
    assert encoder.earlier_fingerprints == {before: what}
    stated = load_encoder(f"st:{models[name]}", replace(FLOAT32, document_prompt="x"))
    assert stated.earlier_fingerprints == {}  # no collection was made with that


def test_which_routers_give_rows_of_another_route_than_by_default(root):
    one, two = (clip(root / f"r{seed}", seed) for seed in (3, 4))

    def routes(modules, **kwargs):
        return reads_task(SentenceTransformer(modules=[Router(modules, **kwargs)], device="cpu"))

    both = {"query": [one], "document": [two]}
    assert not routes(both, default_route="document")
    assert routes(both, default_route="query")
    assert routes(both)  # the first one by default
    assert not routes({"text": [one], "image": [two]})
    assert routes({"text": [one], "document": [two]}, default_route="document")
    by_task = {("document", "text"): "b", (None, "image"): "b", ("query", "text"): "a"}
    assert routes({"a": [one], "b": [two]}, route_mappings=by_task)
    assert not routes({"a": [one], "b": [two]}, route_mappings={("query", None): "a"})


class Earlier(product.SentenceTransformerEncoder):
    """The encoder as it was: rows and queries by a plain `encode`, its fingerprint of before."""

    def _encode(self, task, inputs):
        return unit(self._network.encode(inputs, batch_size=len(inputs)))

    def _describe(self, folder, settings):
        super()._describe(folder, settings)
        del self.preprocessing["text"]["query_prompt"]
        (self.fingerprint,) = self.earlier_fingerprints
        self.earlier_fingerprints = {}


class EarlierWithoutPrompts(product.SentenceTransformerEncoder):
    """The same for a model whose rows have not changed."""

    def _describe(self, folder, settings):
        super()._describe(folder, settings)
        del self.preprocessing["text"]["query_prompt"]


@pytest.fixture
def earlier(models, tmp_path, monkeypatch):
    """A collection of two shards that was made by earlier prompts, and its index."""
    shards = [make_shard(tmp_path / f"s-{n:05}.tar", 8, seed=n) for n in range(2)]
    name = f"st:{models['default query']}"
    with monkeypatch.context() as patch:
        patch.setattr(product, "SentenceTransformerEncoder", Earlier)
        make_collection(shards, tmp_path / "c", name, encoding=FLOAT32)
    build_index(str(tmp_path / "c"))
    return tmp_path / "c", shards, name


def scores(collection, query):
    (answer,) = open_collection(collection, encoding=FLOAT32).search_many([query])
    return {hit.key: hit.score for hit in answer.results}


def stored_vectors(collection, column):
    found = {}
    for file in embeddings(Folder(str(collection))):
        keys = [str(key) for key in file.read(["key"])["key"]]
        found |= dict(zip(keys, file.vectors(column)[0].astype(np.float32), strict=True))
    return found


def require_scores(collection, query, vector):
    """Scores of a search are those of this vector and the stored ones."""
    found = scores(collection, query)
    stored = stored_vectors(collection, query.column)
    assert len(found) == query.k
    for key, score in found.items():
        assert score == pytest.approx(float(stored[key] @ vector), abs=2e-3)


def test_rows_made_by_earlier_prompts_are_searched_and_renewed_only_when_asked(earlier):
    folder, shards, name = earlier
    network = library(name.removeprefix("st:"))
    query = Query("picture 3 of 1", column="text", k=5)
    require_scores(folder, query, unit(network.encode_query([{"text": query.text}]))[0])
    assert read_status(str(folder)).earlier_prompts
    checked = Counter[str]()
    assert not list(check_members(Collection.open(str(folder)), 16, checked, FLOAT32))
    assert checked["pictures"] == 16  # bytes are compared, vectors of another way are not

    line = r"found rows made by earlier prompts, .*; embed all of its shards again by --reembed"
    more = make_shard(shards[0].parent / "s-00002.tar", 3, seed=2)
    for kwargs in ({}, {"reembed": True, "limit": 4}):
        with pytest.raises(CollectionError, match=line):
            make_collection([*shards, more], folder, name, encoding=FLOAT32, **kwargs)
    with pytest.raises(CollectionError, match=r"found 1 that were not named, such as s-00001"):
        make_collection(shards[0], folder, name, encoding=FLOAT32, reembed=True)
    before = read_identity(Folder(str(folder)))

    summary = make_collection([*shards, more], folder, name, encoding=FLOAT32, reembed=True)
    assert (summary.done, summary.skipped) == (3, 0)
    now = read_identity(Folder(str(folder)))
    assert now.fingerprint == load_encoder(name, FLOAT32).fingerprint != before.fingerprint
    assert not read_status(str(folder)).earlier_prompts
    wanted = unit(network.encode_document([{"text": "picture 3 of 1"}]))[0]
    np.testing.assert_allclose(stored_vectors(folder, "text")["00100003"], wanted, atol=1e-3)
    assert read_status(str(folder)).index.state == "other_encoder"
    assert make_collection(shards, folder, name, encoding=FLOAT32, reembed=True).skipped == 2


@pytest.mark.parametrize("reembed", [False, True])
def test_rows_that_are_the_same_by_todays_prompts_stay(models, tmp_path, monkeypatch, reembed):
    shard, name = make_shard(tmp_path / "s-00000.tar", 4), f"st:{models['plain']}"
    with monkeypatch.context() as patch:
        patch.setattr(product, "SentenceTransformerEncoder", EarlierWithoutPrompts)
        make_collection(shard, tmp_path / "c", name, encoding=FLOAT32)
    assert read_status(str(tmp_path / "c")).earlier_prompts
    again = make_collection(shard, tmp_path / "c", name, encoding=FLOAT32, reembed=reembed)
    assert (again.done, again.skipped) == (0, 1)
    assert not read_status(str(tmp_path / "c")).earlier_prompts


def test_a_renewal_that_was_killed_is_gone_on_with(earlier, monkeypatch):
    folder, shards, name = earlier
    with monkeypatch.context() as patch:
        patch.setattr("chiasm.pipeline.make.ATTEMPTS", 1)
        patch.setattr("chiasm.pipeline.make.embed_shard", lambda *args, **kwargs: 1 / 0)
        assert len(make_collection(shards, folder, name, reembed=True).failed) == 2
    # Rows of before are nobody's to index now, and the next run makes them anew unasked.
    with pytest.raises(CollectionError, match="rows of st:"):
        build_index(str(folder))
    assert make_collection(shards, folder, name).done == 2
    build_index(str(folder))
    assert read_status(str(folder)).index.state == "current"


@pytest.fixture(scope="module")
def made(models, root):
    """A collection of a model with prompts, of a routed and of a fusing one, and their indexes."""
    shard = make_shard(root / "s-00000.tar", 12, seed=1)
    folders = {}
    for name in ("default query", "routed with prompts", "fusing with prompts"):
        folders[name] = root / f"collection of {name}"
        make_collection(shard, folders[name], f"st:{models[name]}", encoding=FLOAT32)
        build_index(str(folders[name]))
    return folders


@pytest.mark.parametrize("name", ["default query", "routed with prompts", "fusing with prompts"])
def test_a_search_is_by_the_vector_of_a_query(models, made, tmp_path, name):
    network, folder = library(models[name]), made[name]
    PICTURES[1].save(tmp_path / "asked.png")
    text, image = {"text": "a red boat"}, {"image": PICTURES[1]}
    words = unit(network.encode_query([text]))[0]
    for column in ("text", "image", "joint"):
        require_scores(folder, Query(text["text"], column=column, k=6), words)
    seen = unit(network.encode_query([image]))[0]
    picture = str(tmp_path / "asked.png")
    require_scores(folder, Query(image=picture, column="image", k=6), seen)
    both = unit((words + seen)[None])[0]
    if network.supports(("image", "text")):
        both = unit(network.encode_query([text | image]))[0]
    require_scores(folder, Query(text["text"], image=picture, column="joint", k=6), both)
    stored = json.loads((folder / "collection.json").read_bytes())
    assert stored["preprocessing"]["text"]["query_prompt"] == PROMPTS["query"]
    rows = stored_vectors(folder, "text")
    wanted = unit(network.encode_document([{"text": "picture 3 of 1"}]))[0]
    np.testing.assert_allclose(rows["00100003"], wanted, atol=1e-3)


def test_prompts_that_were_given_are_kept_and_used_by_queries(models, tmp_path):
    shard = make_shard(tmp_path / "s-00000.tar", 6, seed=1)
    settings = replace(FLOAT32, query_prompt="short", document_prompt="")
    make_collection(shard, tmp_path / "c", f"st:{models['prompts']}", encoding=settings)
    build_index(str(tmp_path / "c"))
    stored = json.loads((tmp_path / "c" / "collection.json").read_bytes())
    assert stored["options"] == {"query_prompt": "short", "document_prompt": ""}
    assert stored["preprocessing"]["text"] == {"prompt": "", "query_prompt": "q "}
    vector = unit(library(models["prompts"]).encode([{"text": "q a red boat"}]))[0]
    require_scores(tmp_path / "c", Query("a red boat", column="text", k=4), vector)


@pytest.mark.parametrize("name", ["default query", "routed with prompts", "fusing with prompts"])
def test_tokens_that_are_cut_are_counted_for_rows_and_queries(models, name):
    encoder, network = load_encoder(f"st:{models[name]}", FLOAT32), library(models[name])
    long = ["red boat " * 60, "short", "a boat " * 100]
    for encode, task, prompt in (
        (encoder.encode, "document", "picture of: "),
        (encoder.encode_queries, "query", "find: "),
    ):
        lengths = []
        for whole in (True, False):
            given = {"text": {"truncation": False}} if whole else {}
            made = [
                network.preprocess(
                    [{"text": text}], prompt=prompt, task=task, processing_kwargs=given
                )
                for text in long
            ]
            lengths.append([int(one["attention_mask"].sum()) for one in made])
        wanted = np.subtract(*lengths)
        assert wanted.tolist()[1] == 0 < wanted[0] < wanted[2]
        np.testing.assert_array_equal(encode("text", long).tokens_cut, wanted)
    assert encoder.encode("image", given_pictures(encoder)).tokens_cut is None


def test_a_length_of_rows_of_its_own_is_what_is_counted(models):
    encoder = load_encoder(f"st:{models['lengths']}", FLOAT32)
    text = "red blue green house boat tree star moon cat dog"  # ten tokens, and two at the ends
    for encode, length in ((encoder.encode, 9), (encoder.encode_queries, 6)):
        assert encode("text", [text]).tokens_cut.tolist() == [12 - length]


def test_captions_that_are_cut_are_noted_and_queries_said(models, made, tmp_path, caplog):
    captions = ["red boat " * 60, "short"]
    shard = make_shard(tmp_path / "s.tar", 2, captions=captions)
    summary = make_collection(shard, tmp_path / "c", f"st:{models['plain']}", encoding=FLOAT32)
    assert summary.notes == {"text_truncated": 1}
    scores(made["default query"], Query(captions[0], column="text", k=2))
    assert caplog.messages[-1].startswith('"red boat red boat')
    assert caplog.messages[-1].endswith("takes: its last 50 tokens are not read")
    assert len(caplog.messages[-1]) < 200


def test_a_model_whose_route_for_queries_takes_no_pictures_says_so(root, tmp_path):
    words = Transformer(str(text_folder(tmp_path / "text").parent / "bert"))
    pooling, dense = Pooling(32, "mean"), Dense(32, WIDTH)
    router = Router.for_query_document([words, pooling, dense], [clip(tmp_path / "clip")])
    folder = save([router], tmp_path / "saved")
    encoder, network = load_encoder(f"st:{folder}", FLOAT32), library(folder)
    wanted = unit(network.encode_query(["red and blue"]))
    np.testing.assert_allclose(
        encoder.encode_queries("text", ["red and blue"]).vectors, wanted, atol=1e-6
    )
    make_collection(
        make_shard(tmp_path / "s-00000.tar", 3), tmp_path / "c", f"st:{folder}", encoding=FLOAT32
    )
    build_index(str(tmp_path / "c"))
    PICTURES[0].save(tmp_path / "asked.png")
    line = "expected a route that takes image as a query, found none in this model; query with a t"
    with pytest.raises(UsageError, match=line):
        scores(tmp_path / "c", Query(image=str(tmp_path / "asked.png"), column="image", k=2))
    require_scores(tmp_path / "c", Query("red and blue", column="image", k=3), wanted[0])
