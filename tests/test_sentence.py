"""`JointModel`: the joint model as a module of sentence-transformers."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from encoding import encode_images, encode_joint, encode_texts, mean_of, preprocess
from PIL import Image
from sentence_transformers import SentenceTransformer

from chiasm.pipeline.encoders import load_encoder
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model import JointModel
from chiasm.pipeline.model.checkpoint import save_model
from chiasm.pipeline.model.config import ModelConfig
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import capture_warnings
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.words import plan, render_caption
from chiasm.pipeline.scenes.world import gallery
from chiasm.pipeline.training.pocket.data import learn_tokenizer

CPU = EncoderSettings(device="cpu", precision="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small joint model with a fusion whose joint vectors are no means, on disk."""
    torch.manual_seed(0)
    tokenizer = learn_tokenizer(300, 50)
    base = ModelConfig()
    config = ModelConfig(
        image=type(base.image)(side=72, stem=(16, 16), width=48, depth=1, heads=2),
        text=type(base.text)(vocabulary=len(tokenizer), width=48, depth=1, heads=2),
        dim=32,
    )
    network = JointNetwork(config)
    torch.nn.init.normal_(network.fusion.residual.weight)
    path = tmp_path_factory.mktemp("joint")
    save_model(path, network.state_dict(), config, tokenizer)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return SentenceTransformer(modules=[JointModel.load(str(folder))], device="cpu")


@pytest.fixture(scope="module")
def world():
    scenes = gallery(5, 1)
    rng = random.Random(0)
    return [picture(s) for s in scenes], [render_caption(plan(s, rng), rng, "en") for s in scenes]


def test_vectors_are_those_of_the_encoder(model, folder, world):
    pictures, texts = world
    encoder = load_encoder(f"pocket:{folder}", CPU)
    pixels = [preprocess(encoder, each) for each in pictures]
    image, text = encode_images(encoder, pixels), encode_texts(encoder, texts)
    assert np.allclose(model.encode(pictures), image, atol=1e-5)
    assert np.allclose(model.encode([np.asarray(each) for each in pictures]), image, atol=1e-5)
    assert np.allclose(model.encode(texts), text, atol=1e-5)
    both = [{"text": t, "image": p} for t, p in zip(texts, pictures, strict=True)]
    joint = encode_joint(encoder, pixels, texts)
    assert np.allclose(model.encode(both), joint, atol=1e-5)
    assert not np.allclose(joint, mean_of(image, text), atol=1e-2)
    for way in (("image", "text"), "image", "text"):
        assert model.supports(way)
    assert model.get_embedding_dimension() == encoder.dims["joint"]


def test_one_batch_may_hold_all_kinds(model, world):
    pictures, texts = world
    mixed = [
        texts[0],
        {"text": texts[1], "image": pictures[1]},
        pictures[2],
        {"image": pictures[3]},
        {"text": texts[4]},
        {"image": pictures[0], "text": texts[0]},
    ]
    module = model[0]
    together = module(module.preprocess(mixed))["sentence_embedding"]
    for row, item in enumerate(mixed):
        alone = module(module.preprocess([item]))["sentence_embedding"][0]
        assert np.allclose(together[row].detach(), alone.detach(), atol=1e-5), row


def test_saved_it_is_a_model_folder(model, world, tmp_path):
    """The library wants trust for any class that is not its own; `JointModel.load` runs no code."""
    with capture_warnings():
        model.save_pretrained(str(tmp_path), create_model_card=False)
    again = SentenceTransformer(modules=[JointModel.load(str(tmp_path))], device="cpu")
    assert not list(tmp_path.rglob("*.py"))
    assert np.allclose(again.encode(world[1]), model.encode(world[1]), atol=2e-3)
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=False)


def test_the_shipped_model_by_its_name(world):
    shipped = JointModel.load("pocket")
    found = shipped(shipped.preprocess(world[1]))["sentence_embedding"].detach().numpy()
    assert np.allclose(found, encode_texts(load_encoder("pocket", CPU), world[1]), atol=1e-5)


def test_what_it_does_not_take_is_told(model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    module = model[0]
    text = module.preprocess([str(tmp_path / "a.png")])
    assert "pixels" not in text and "ids" in text  # a path is a text: nothing is opened
    for wrong in (7, {"audio": "x"}, {"text": 7}, {"image": "a.png"}, np.zeros((3, 3)), {},
                  {"text": None}, {"text": None, "image": None}, Image.new("RGB", (0, 5)),
                  np.zeros((0, 5, 3), np.uint8), np.zeros((3, 5, 5), np.uint8),
                  np.zeros((5, 5, 2), np.uint8), np.zeros((5, 5, 3), np.float32)):  # fmt: skip
        with pytest.raises(UsageError, match="input: expected a"):
            module.preprocess([wrong])
    with pytest.raises(UsageError, match="no prompts"):
        module.preprocess(["a boat"], prompt="query: ")
    assert json.dumps(module.modalities)
