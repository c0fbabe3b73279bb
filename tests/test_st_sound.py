"""st: models that take sound, on tiny random ones; that their vectors are the library's:
test_families.py."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from conftest import jpeg
from random_models import clap_folder, clip_folder
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Router
from tiny_sounds import RATE, encoded, make_sounds, some_samples, tone

from chiasm.index import build_index, open_collection
from chiasm.pipeline.collection import embeddings
from chiasm.pipeline.encoders import load_encoder, unit
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import capture_warnings
from chiasm.pipeline.storage import Folder

FLOAT32 = EncoderSettings(precision="float32", device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLAP in the format of sentence-transformers."""
    base = tmp_path_factory.mktemp("models")
    with capture_warnings():
        network = SentenceTransformer(str(clap_folder(base / "clap")), device="cpu")
        network.save(str(base / "st"))
    return base / "st"


def sound(length: int) -> np.ndarray:
    return np.random.default_rng(length).normal(0, 0.2, length).astype(np.float32)


def test_of_a_longer_sound_it_is_the_middle_and_no_piece_by_chance(folder):
    encoder = load_encoder(f"st:{folder}", FLOAT32)
    assert list(encoder.modalities) == ["sound", "text"]
    assert encoder.modalities["sound"].rate == RATE and encoder.joint_is_mean
    samples = sound(3 * RATE)
    item = encoder.preprocess("sound", samples)
    np.testing.assert_array_equal(item, samples[RATE : 2 * RATE])
    first, again = (encoder.encode("sound", [item]).vectors for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_a_shard_of_sounds_is_embedded_and_searched(folder, tmp_path):
    shard = make_sounds(tmp_path / "s-00000.tar", some_samples(6))
    assert make_collection(shard, tmp_path / "c", f"st:{folder}", encoding=FLOAT32).rows == 6
    build_index(tmp_path / "c")
    searcher = open_collection(tmp_path / "c")
    assert searcher.search(members={"sound": encoded(tone(150, 0.4))}, k=1)[0].key == "00000"


def test_three_modalities_of_one_model_have_the_mean_of_what_a_row_has(folder, tmp_path):
    """Two networks side by side, as a Router puts them, of one width."""
    clip = clip_folder(
        tmp_path / "clip", side=32, width=24, vision={"patch_size": 16},
        tower={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
               "num_attention_heads": 2},
    )  # fmt: skip
    with capture_warnings():
        clap, pictures = (SentenceTransformer(str(one), device="cpu") for one in (folder, clip))
        routes = {"audio": [clap[0]], "text": [clap[0]], "image": [pictures[0]]}
        network = SentenceTransformer(modules=[Router(routes)], device="cpu")
        network.save(str(tmp_path / "routed"))
    encoder = load_encoder(f"st:{tmp_path / 'routed'}", FLOAT32)
    assert list(encoder.modalities) == ["image", "sound", "text"] and encoder.joint_is_mean
    samples = some_samples(3)
    samples[0]["jpg"] = samples[1]["jpg"] = jpeg(random.Random(0))
    del samples[1]["txt"]
    shard = make_sounds(tmp_path / "s-00000.tar", samples)
    settings = replace(FLOAT32, joint_weights="image=2,sound=1,text=1")
    make_collection(shard, tmp_path / "c", f"st:{tmp_path / 'routed'}", encoding=settings)
    (file,) = embeddings(Folder(str(tmp_path / "c")))
    for row in file.read(["image", "sound", "text", "joint"]).to_pylist():
        weights = {"image": 2, "sound": 1, "text": 1}
        parts = [
            weight * np.float32(row[name])
            for name, weight in weights.items()
            if row[name] is not None
        ]
        assert len(parts) > 1
        np.testing.assert_allclose(row["joint"], unit(sum(parts)[None])[0], atol=2e-3)
