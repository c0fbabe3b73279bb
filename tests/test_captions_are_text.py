"""A caption is never anything but text, for every family of models: what reads like the path or the
URL of a picture is neither opened nor fetched."""

from __future__ import annotations

import base64
import builtins
import io
import socket
import tarfile

import numpy as np
import pytest
import tiny_towers
import torch
import transformers
from fake_encoder import FakeEncoder, FakeMatcher
from PIL import Image
from random_models import clip_folder
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tiny_llava import TOWER, cross_encoder_folder, llava_folder

from chiasm.index import Query, build_index, open_collection
from chiasm.index.query.encode import encode_queries
from chiasm.jobs.cli import search
from chiasm.jobs.cli.search_terms import Parts, query_maker
from chiasm.pipeline.caption_filter import read_scores, store_scores
from chiasm.pipeline.encoders import load_encoder, load_matcher
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import capture_warnings
from chiasm.pipeline.shards import ReadSettings, list_shards
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.training.two_tower.features import FeatureSettings, compute
from chiasm.pipeline.training.two_tower.stream import stream
from chiasm.pipeline.two_tower.checkpoint import save_two_tower
from chiasm.pipeline.two_tower.frozen_towers import ImageTower, TextTower
from chiasm.pipeline.two_tower.network import TwoTowerConfig, TwoTowerNetwork

CPU = EncoderSettings(precision="float32", device="cpu")


def png() -> bytes:
    out = io.BytesIO()
    Image.effect_noise((40, 40), 90).convert("RGB").save(out, "PNG")
    return out.getvalue()


PICTURE = png()
ADDRESSES = (
    "http://127.0.0.1:9/x.png",
    "https://example.invalid/cat.jpg",
    "data:image/png;base64," + base64.b64encode(PICTURE).decode()[:120],
    "http://169.254.169.254/latest/meta-data/",
    "file:///etc/passwd",
    "/etc/passwd",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def clip(root):
    return clip_folder(root / "clip", side=32, width=24, tower=TOWER, vision={"patch_size": 8})


def saved(modules, folder):
    with capture_warnings():
        made = SentenceTransformer(modules=modules, device="cpu")
        made.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def sentences(clip, root):
    """CLIP as a SentenceTransformer: of texts and of pictures."""
    return saved([Transformer(str(clip))], root / "sentences")


@pytest.fixture(scope="module")
def words(root):
    """A model of texts alone, of a network that knows the names of kinds."""
    return tiny_towers.text_folder(root / "words")


@pytest.fixture(scope="module")
def word_vectors(root):
    """A model of texts alone that takes them bare and in no other form."""
    return tiny_towers.static_text_folder(root / "static")


@pytest.fixture(scope="module")
def fusing(root):
    folder = llava_folder(root / "llava", transformers.LlavaModel)
    return saved([Transformer(str(folder)), Pooling(32, "lasttoken")], root / "fusing")


@pytest.fixture(scope="module")
def two_tower(clip, sentences, root):
    """A model with random weights on that text tower."""
    image, text = ImageTower(str(clip), CPU), TextTower(str(sentences), CPU)
    config = TwoTowerConfig(
        image=image.folder.name, image_fingerprint=image.fingerprint,
        text=text.folder.name, text_fingerprint=text.fingerprint,
        image_width=image.width, patch_width=image.token_width,
        text_width=text.width, word_width=text.token_width,
        landmarks=4, text_landmarks=0, query_bank=0, words=8, dim=17,
        image_hidden=16, text_hidden=16, word_hidden=16,
    )  # fmt: skip
    torch.manual_seed(0)
    network = TwoTowerNetwork(config)
    for weight in network.parameters():
        if weight.is_floating_point():
            torch.nn.init.uniform_(weight, 0.1, 0.5)
    network.word_ids.data = torch.arange(8)
    (root / "two").mkdir()
    save_two_tower(root / "two", network)
    return root / "two"


@pytest.fixture(scope="module")
def reranker(root):
    return cross_encoder_folder(root / "cross")


def vectors_of(name):
    """Texts -> their vectors as captions, then as queries, by an encoder."""
    encoder = load_encoder(name, CPU)

    def both(texts):
        rows = encoder.encode("text", [encoder.preprocess("text", text) for text in texts])
        queries = encode_queries([Query(text) for text in texts], encoder, encoder.dims["text"])
        return np.concatenate([rows.vectors, queries])

    return both


def pairs_of(name):
    """Texts -> their joint vectors with one picture."""
    encoder = load_encoder(name, CPU)
    pixels = encoder.preprocess("image", np.asarray(Image.open(io.BytesIO(PICTURE))))

    def joint(texts):
        parts = {"image": [pixels] * len(texts), "text": list(texts)}
        return encoder.encode_joint({name: encoder.encode(name, parts[name]) for name in parts})

    return joint


def scores_of(name):
    """Texts -> their scores with one picture, by a matcher."""
    matcher = load_matcher(name, CPU)
    pixels = matcher.preprocess("image", np.asarray(Image.open(io.BytesIO(PICTURE))))
    return lambda texts: matcher.match(
        ("image", [pixels]),
        ("text", [matcher.preprocess("text", text) for text in texts]),
        np.array([(0, number) for number in range(len(texts))]),
    )


def by_tower(folder):
    tower = TextTower(str(folder), CPU)
    return lambda texts: tower(texts).pooled.numpy()


WAYS = {
    "pocket": (lambda _: vectors_of("pocket"), None),
    "hf": (lambda folder: vectors_of(f"hf:{folder}"), "clip"),
    "st": (lambda folder: vectors_of(f"st:{folder}"), "sentences"),
    "st that fuses": (lambda folder: vectors_of(f"st:{folder}"), "fusing"),
    "joint of st that fuses": (lambda folder: pairs_of(f"st:{folder}"), "fusing"),
    "two-tower": (lambda folder: vectors_of(f"two-tower:{folder}"), "two_tower"),
    "joint of two-tower": (lambda folder: pairs_of(f"two-tower:{folder}"), "two_tower"),
    "text tower": (by_tower, "sentences"),
    "text tower of texts alone": (by_tower, "words"),
    "text tower of word vectors": (by_tower, "word_vectors"),
    "pocket matches": (lambda _: scores_of("pocket"), None),
    "two-tower matches": (lambda folder: scores_of(f"two-tower:{folder}"), "two_tower"),
    "cross-encoder": (lambda folder: scores_of(f"st:{folder}"), "reranker"),
}


@pytest.fixture
def closed(monkeypatch):
    """Nothing is opened as a picture, and nobody is called."""

    def refuse(*arguments, **options):
        raise AssertionError(f"opened or called: {arguments!r:.200}")

    def close():
        monkeypatch.setattr(Image, "open", refuse)
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        opened = io.open
        for module in (builtins, io):
            monkeypatch.setattr(
                module,
                "open",
                lambda file, *options, **named: (
                    refuse(file) if "passwd" in str(file) else opened(file, *options, **named)
                ),
            )

    return close


def values(made) -> np.ndarray:
    return np.asarray(getattr(made, "vectors", made))


@pytest.mark.parametrize("way", WAYS)
def test_a_caption_that_reads_like_a_picture_is_encoded_as_text(way, request, tmp_path, closed):
    make, fixture = WAYS[way]
    encode = make(fixture and request.getfixturevalue(fixture))
    path = tmp_path / "there.png"
    texts = [str(path), path.as_uri(), *ADDRESSES, "a red boat"]
    closed()
    before = values(encode(texts))
    path.write_bytes(PICTURE)
    np.testing.assert_array_equal(values(encode(texts)), before)
    alone = values(encode([str(path)]))
    np.testing.assert_allclose(alone[0], before[0], atol=1e-5)
    assert np.isfinite(before).all() and np.unique(before.round(6), axis=0).shape[0] > 1


def test_an_encoder_of_anybody_gets_captions_and_queries_as_texts(tmp_path, monkeypatch):
    """As they are, whatever they read like: when shards are embedded and filtered, by a query, and
    by a list of them."""
    path = tmp_path / "there.png"
    path.write_bytes(PICTURE)
    texts = [str(path), path.as_uri(), *ADDRESSES]
    shard = shard_of(tmp_path / "a.tar", texts)
    encoder, got = FakeEncoder(), []
    encode = FakeEncoder.encode

    def seen(self, modality, items):
        got.extend(items if modality == "text" else ())
        return encode(self, modality, items)

    monkeypatch.setattr(FakeEncoder, "encode", seen)
    assert make_collection(shard, tmp_path / "c", encoder).rows == len(texts)
    assert [text for text in got if text in texts] == texts
    build_index(tmp_path / "c")
    searcher = open_collection(tmp_path / "c")
    for ask in (
        lambda: [searcher.search(text, k=1, column="text") for text in texts],
        lambda: searcher.search_many([Query(text, k=1, column="text") for text in texts]),
    ):
        got.clear()
        assert [answer[0].caption for answer in ask()] == texts
        assert [text for text in got if text in texts] == texts
    make_query = query_maker(Parts((), (), ()), is_data=False, k=1, column="text")
    (query,) = next(search._batches(str(path), make_query, from_stdin=False))
    assert searcher.search_many([query])[0][0].caption == query.words == str(path)
    got.clear()
    (filtered,) = list_shards([str(shard)])
    folder = Folder(str(tmp_path / "filtered"))
    store_scores(filtered, FakeMatcher("matcher"), ReadSettings(), folder, "r")
    scored = [caption for one in read_scores(filtered, folder) for caption in one.captions]
    assert scored == texts and set(texts) <= set(got)


def shard_of(path, captions):
    """A shard of one picture under each caption."""
    with tarfile.open(path, "w") as tar:
        for number, caption in enumerate(captions):
            for name, data in ((f"{number}.png", PICTURE), (f"{number}.txt", caption.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def test_a_training_reads_captions_as_texts_alone(clip, sentences, tmp_path, monkeypatch):
    path = tmp_path / "there.png"
    path.write_bytes(PICTURE)
    captions = [str(path), ADDRESSES[0], ADDRESSES[2]]
    shard_of(tmp_path / "a.tar", captions)
    image, text = ImageTower(str(clip), CPU), TextTower(str(sentences), CPU)
    shards = list_shards([str(tmp_path / "a.tar")])
    made = compute(shards, image, text, tmp_path / "f", FeatureSettings(), lambda line: None)
    assert (made.pairs, made.captions) == (3, 3)
    wanted = load_encoder(f"hf:{clip}", CPU).encode("text", captions).vectors
    for pair, vector in zip(stream(made.paths), wanted, strict=True):
        pooled = pair.text.float().numpy()[0]
        assert pooled @ vector / np.linalg.norm(pooled) > 0.999
