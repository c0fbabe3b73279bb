"""Matching by a model folder with a fusion: the encoder, the command, and reranking with it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from encoding import encode_joint, match_rows, preprocess

from chiasm.pipeline.encoders import Matcher, load_encoder
from chiasm.pipeline.model.checkpoint import load_model, save_model
from chiasm.pipeline.model.config import FusionConfig, ImageConfig, ModelConfig, TextConfig
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.tokenizer import train
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.world import gallery

FLOAT32 = EncoderSettings(precision="float32", device="cpu")
TEXTS = ["a big red boat", "a small boat", "一艘红色的船", "a boat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with random weights, its fusion's too."""
    words = train(TEXTS * 3, 300)
    config = ModelConfig(
        ImageConfig(side=36, stem=(8, 16), width=32, depth=1, heads=2),
        TextConfig(vocabulary=len(words), context=40, width=32, depth=1, heads=2),
        dim=16,
        fusion=FusionConfig(width=32, depth=1, heads=2),
    )
    torch.manual_seed(0)
    network = JointNetwork(config)
    for name, weight in network.named_parameters():
        if name.startswith(("fusion", "matching")) and weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    made = tmp_path_factory.mktemp("model")
    save_model(made, network.state_dict(), config, words)
    return made


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(f"pocket:{folder}", FLOAT32)


@pytest.fixture(scope="module")
def pixels(encoder):
    return [preprocess(encoder, picture(scene)) for scene in gallery(4, seed=1)]


def test_pairs_are_fused_and_matched_as_the_network_does(folder, encoder, pixels):
    network, tokenizer = load_model(folder)
    text = network.text_modality(torch.from_numpy(tokenizer.batch(TEXTS, 40)))
    image = network.image_modality(torch.from_numpy(np.stack(pixels)))
    with torch.inference_mode():
        joint, logits = network.fuse(text, image).joint, network.match(text, image).logit
    encoded = encode_joint(encoder, pixels, TEXTS)
    np.testing.assert_allclose(encoded, joint.numpy(), atol=1e-5)
    np.testing.assert_allclose(match_rows(encoder, pixels, TEXTS), logits.numpy(), atol=1e-4)
    assert isinstance(encoder, Matcher) and logits.std() > 0.01
    assert match_rows(encoder, [], []).shape == (0,)
    assert encode_joint(encoder, [], []).shape == (0, 16)


def test_the_command_tells_what_the_model_says(chiasm, folder, encoder, tmp_path):
    drawn = tmp_path / "scene.png"
    picture(gallery(4, seed=1)[0]).save(drawn)
    done = chiasm("match", drawn, *TEXTS[:2], "--encoder", f"pocket:{folder}", "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["text"] for line in records] == TEXTS[:2]
    pixels = [preprocess(encoder, picture(gallery(4, seed=1)[0]))] * 2
    logits = match_rows(encoder, pixels, TEXTS[:2])
    for line, logit in zip(records, logits.tolist(), strict=True):
        assert line["logit"] == pytest.approx(logit, abs=0.02)
        assert line["probability"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=0.01)
        assert line["match"] == (line["logit"] > 0)
    plain = chiasm("match", drawn, "a boat", "--encoder", f"pocket:{folder}")
    assert plain.stdout.startswith(("yes", "no ")) and plain.stdout.endswith("a boat\n")


def test_words_that_the_shell_has_split_get_a_hint_to_quote_them(chiasm, folder, tmp_path):
    drawn = tmp_path / "scene.png"
    picture(gallery(4, seed=1)[0]).save(drawn)
    split = chiasm("match", drawn, "a", "white", "moon", "--encoder", f"pocket:{folder}")
    assert split.returncode == 0 and len(split.stdout.splitlines()) == 3
    assert f"use quotes: chiasm match {drawn} 'a white moon'" in split.stderr
    for texts in (["boat"], ["a boat", "moon"], ["红船", "蓝船"]):
        assert chiasm("match", drawn, *texts, "--encoder", f"pocket:{folder}").stderr == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("absent.png", "a boat"), "absent.png: expected a picture's file"),
        ((__file__, "a boat"), "expected a picture"),
    ],
)
def test_what_cannot_be_matched_is_told_in_one_line(chiasm, folder, arguments, said):
    done = chiasm("match", *arguments, "--encoder", f"pocket:{folder}")
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
