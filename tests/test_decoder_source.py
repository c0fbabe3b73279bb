"""What the decoder reads of a text: its tokens, and what the fusion makes of them."""

from dataclasses import replace

import pytest
import torch

from chiasm.jobs.cli.train_pocket import train_settings
from chiasm.jobs.config import TrainOptions
from chiasm.pipeline.model import joint_decoder
from chiasm.pipeline.model.checkpoint import load_model, save_model
from chiasm.pipeline.model.config import (
    DecoderConfig,
    FusionConfig,
    ImageConfig,
    ModelConfig,
    TextConfig,
)
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.tokenizer import train
from chiasm.pipeline.training.joint.build import own_config, own_network
from chiasm.pipeline.training.joint.settings import JointSettings

WORDS = train(["is the boat red", "a blue cat", "红色的船"] * 3, 290)
CONFIG = ModelConfig(
    ImageConfig(side=36, stem=(8, 16), width=32, depth=1, heads=2),
    TextConfig(vocabulary=len(WORDS), context=12, width=16, depth=1, heads=2),
    dim=8,
    fusion=FusionConfig(width=24, depth=1, heads=2),
    decoder=DecoderConfig(width=16, depth=1, heads=2, context=6, reads_fused=True),
)


def network(config=CONFIG):
    torch.manual_seed(0)
    return JointNetwork(config).eval()


def texts_and_pictures(made):
    ids = torch.tensor([[1, 9, 8, 2], [1, 7, 2, 0]])
    chance = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (2, 3, 36, 36), dtype=torch.uint8, generator=chance)
    return made.text_modality(ids), made.image_modality(pixels)


@torch.no_grad()
@pytest.mark.parametrize("form", ["concat", "cross_attention"])
def test_each_word_comes_with_what_the_fusion_makes_of_it(form):
    made = network(replace(CONFIG, fusion=replace(CONFIG.fusion, fusion=form)))
    text, image = texts_and_pictures(made)
    for picture in (image, None):
        source = made.source(text, picture)
        fused = made.fuse(text, picture).tokens[:, :4]
        assert torch.equal(source.tokens, torch.cat([text.tokens, fused], dim=-1))
        assert torch.equal(source.mask, text.mask)
    other = image.take(torch.tensor([1, 0]))
    assert not torch.allclose(made.source(text, image).tokens, made.source(text, other).tokens)


@torch.no_grad()
def test_a_decoder_that_reads_no_fusion_reads_the_text_as_it_is():
    plain = network(replace(CONFIG, decoder=replace(CONFIG.decoder, reads_fused=False)))
    text, image = texts_and_pictures(plain)
    assert plain.source(text, image) is text
    without = network(replace(CONFIG, decoder=None))
    assert without.source(text, image) is text


@torch.no_grad()
def test_the_plain_function_reads_what_its_network_does():
    made = network()
    text, image = texts_and_pictures(made)
    decoder, source = made.decoder, made.source(text, image)
    assert decoder is not None
    target = torch.tensor([[len(WORDS), 4, 5], [len(WORDS) + 1, 3, 3]])
    expected = decoder.logits(decoder(target, decoder.start(source, image))[0], "text")
    by_network = joint_decoder(target, text.tokens, image.tokens, made, text_mask=text.mask)
    alone = joint_decoder(target, source.tokens, image.tokens, decoder, text_mask=text.mask)
    torch.testing.assert_close(by_network, expected)
    torch.testing.assert_close(alone, expected)
    with pytest.raises(ValueError, match="text: expected tokens"):
        joint_decoder(target, text.tokens, image.tokens, decoder, text_mask=text.mask)


@pytest.mark.parametrize("fusion", [None, FusionConfig("add"), FusionConfig("gated")])
def test_a_fusion_that_keeps_no_words_apart_is_refused(fusion):
    with pytest.raises(ValueError, match="reads_fused: expected a fusion that keeps words apart"):
        replace(CONFIG, fusion=fusion)


@torch.no_grad()
def test_a_folder_says_what_its_decoder_reads(tmp_path):
    made = network()
    save_model(tmp_path, made.state_dict(), CONFIG, WORDS)
    loaded, _ = load_model(tmp_path)
    assert loaded.config == CONFIG
    text, image = texts_and_pictures(made)
    found = loaded.source(text, image).tokens
    torch.testing.assert_close(found, made.source(text, image).tokens, atol=1e-2, rtol=1e-2)


def test_a_decoder_is_kept_with_the_fusion_that_it_reads_or_left_out(tmp_path, caplog):
    save_model(tmp_path, network().state_dict(), CONFIG, WORDS)
    for steps in (None, 5):
        options = TrainOptions(fusion_steps=steps, image_token_steps=0, decoder_steps=0)
        assert train_settings(options, tmp_path).model.decoder is None
        assert "reads what its own fusion makes: left out" in caplog.text
        caplog.clear()
    kept = train_settings(TrainOptions(fusion_steps=0, decoder_steps=0), tmp_path).model
    assert (kept.fusion, kept.decoder) == (CONFIG.fusion, CONFIG.decoder)
    assert not caplog.text


@pytest.mark.parametrize(("fusion", "reads"), [(None, True), ("concat", True), ("gated", False)])
def test_a_decoder_that_is_trained_reads_what_its_fusion_can_give(fusion, reads):
    decoder = train_settings(TrainOptions(fusion=fusion), None).model.decoder
    assert decoder is not None and decoder.reads_fused == reads


def test_training_on_shards_keeps_a_decoder_that_can_read_as_before():
    start, settings = network(), JointSettings()
    prefixes = ("caption:en", "ask:en")
    same = own_config(settings, CONFIG, len(WORDS), prefixes)
    assert same.decoder is not None and same.decoder.reads_fused
    kept = own_network(same, start, settings).state_dict()
    name = "decoder.input_projections.0.weight"
    assert torch.equal(kept[name], start.state_dict()[name])
    gated = replace(settings, fusion=FusionConfig("gated"))
    other = own_config(gated, CONFIG, len(WORDS), prefixes)
    assert other.decoder is not None and not other.decoder.reads_fused
    own_network(other, start, gated)  # another decoder, of new weights
    for fusion in (FusionConfig("concat", width=24, depth=1, heads=2), FusionConfig(width=32)):
        config = own_config(replace(settings, fusion=fusion), CONFIG, len(WORDS), prefixes)
        found = own_network(config, start, settings).state_dict()[name]
        assert found.shape != kept[name].shape or not torch.equal(found, kept[name])


def test_facts_of_a_training_on_shards_are_those_of_before():
    """`reads_fused` is new: a training begun without it goes on."""
    facts = JointSettings(fusion=FusionConfig()).facts()
    assert "reads_fused" not in facts["model"]["decoder"]
    assert "residual_of_vectors" not in facts["fusion"] and facts["fusion"]["bounded_residual"]
    reading = replace(JointSettings().model, decoder=DecoderConfig(reads_fused=True))
    assert JointSettings(model=reading).facts()["model"]["decoder"]["reads_fused"]
