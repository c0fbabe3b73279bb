"""A caption is never anything but text, for every family of models: what reads like the path or the
URL of a picture is neither opened nor fetched."""

from __future__ import annotations

import base64
import io
import socket
import tarfile

import numpy as np
import pytest
import tiny_towers
import torch
import transformers
from PIL import Image
from random_models import clip_folder
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tiny_llava import TOWER, cross_encoder_folder, llava_folder

from chiasm.pipeline.encoders import load_encoder, load_matcher
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import capture_warnings
from chiasm.pipeline.shards import ReadSettings, list_shards
from chiasm.pipeline.training.two_tower.features import compute
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
    """Texts -> their vectors, by an encoder."""
    encoder = load_encoder(name, CPU)
    return lambda texts: encoder.encode("text", [encoder.preprocess("text", t) for t in texts])


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


def test_a_training_reads_captions_as_texts_alone(clip, sentences, tmp_path, monkeypatch):
    path = tmp_path / "there.png"
    path.write_bytes(PICTURE)
    captions = [str(path), ADDRESSES[0], ADDRESSES[2]]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, caption in enumerate(captions):
            for name, data in ((f"{number}.png", PICTURE), (f"{number}.txt", caption.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    image, text = ImageTower(str(clip), CPU), TextTower(str(sentences), CPU)
    shards = list_shards([str(tmp_path / "a.tar")])
    made = compute(shards, image, text, tmp_path / "f", ReadSettings(), lambda line: None)
    assert (made.pairs, made.captions) == (3, 3)
    wanted = load_encoder(f"hf:{clip}", CPU).encode("text", captions).vectors
    for pair, vector in zip(stream(made.paths), wanted, strict=True):
        pooled = pair.text.float().numpy()[0]
        assert pooled @ vector / np.linalg.norm(pooled) > 0.999
