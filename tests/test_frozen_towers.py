"""Frozen towers: what they make of pictures and texts, whatever the model."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import tiny_towers
import torch
import transformers
from PIL import Image
from random_models import clip_folder

from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import capture_warnings
from chiasm.pipeline.two_tower.frozen_towers import ImageTower, TextTower

CPU = EncoderSettings(device="cpu", precision="float32")


def test_what_pads_on_the_left_is_read_as_what_pads_on_the_right(towers):
    right, left = (TextTower(str(towers[1]), CPU) for _ in range(2))
    left._network.tokenizer.padding_side = "left"
    texts = ["red", "a picture of red beside pink"]
    ours, theirs = right(texts), left(texts)
    assert torch.equal(ours.mask, theirs.mask) and ours.mask[0].sum() < ours.mask[1].sum()
    assert ours.ids == theirs.ids
    assert theirs.tokens.shape == ours.tokens.shape


def test_tokens_that_are_cut_and_those_that_no_fusion_attends_to_are_counted(towers):
    """A tower of 32 positions, two of them for special tokens; a fusion attends to 24 tokens."""
    made = TextTower(str(towers[1]), CPU)(["red " * words for words in (1, 22, 23, 30, 31, 50)])
    assert made.cut.tolist() == [0, 0, 0, 0, 1, 20]
    assert made.unattended.tolist() == [0, 0, 1, 8, 8, 8]
    assert made.tokens.shape[1] == 24


def test_a_tower_that_does_not_mask_its_padding_is_refused(tmp_path):
    """A tokenizer that makes no mask, as some checkpoints have it: padding is read and pooled."""
    folder = tiny_towers.text_folder(tmp_path)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"model_input_names": ["input_ids"]}
    path.write_text(json.dumps(config))
    with pytest.raises(EncoderError, match="alone and beside a longer one; take another model"):
        TextTower(str(folder), CPU)


@pytest.mark.parametrize("kind", ["BertModel", "BertForPreTraining"])
def test_a_model_with_fewer_layers_than_its_weights_is_refused(tmp_path, kind):
    """Heads for another task may be there, under a prefix of that task's too."""
    config = transformers.BertConfig(
        vocab_size=5, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    with capture_warnings():
        getattr(transformers, kind)(config).save_pretrained(tmp_path)
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    tokenizer.save_pretrained(tmp_path)
    assert TextTower(str(tmp_path), CPU).width == 32
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 1}))
    with pytest.raises(EncoderError, match=r"does not take: \S*encoder\.layer\.1\."):
        TextTower(str(tmp_path), CPU)


def test_a_closer_look_is_of_the_mirror_image_and_the_middle_too(towers):
    tower = ImageTower(str(towers[0]), CPU)
    rng = random.Random(3)
    side = tower.side
    pixels = [tower.preprocess(tiny_towers.picture("red", c, rng)) for c in ("blue", "pink")]
    whole = tower(pixels).pooled
    mirrored = tower([np.ascontiguousarray(each[:, :, ::-1]) for each in pixels]).pooled
    box = (side / 9, side / 9, side * 8 / 9, side * 8 / 9)
    images = [Image.fromarray(np.ascontiguousarray(each.transpose(1, 2, 0))) for each in pixels]
    larger = [image.resize((side, side), tower._resample, box) for image in images]
    middle = tower([np.asarray(each).transpose(2, 0, 1).copy() for each in larger]).pooled
    assert not torch.allclose(whole, mirrored, atol=1e-3)
    assert not torch.allclose(whole, middle, atol=1e-3)
    close = tower.augmented(pixels, whole)
    assert torch.allclose(close, (whole + mirrored + middle) / 3, atol=1e-6)
    assert tower.augmented([], whole[:0]).shape == (0, tower.width)


def test_any_vision_tower_will_do(tmp_path, towers):
    """CLIP's, asked for by the whole CLIP: its vision tower is taken."""
    clip = clip_folder(
        tmp_path / "clip", side=32, width=24, vision={"patch_size": 8},
        tower={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
               "num_attention_heads": 2},
    )  # fmt: skip
    tower = ImageTower(str(clip), CPU)
    rng = random.Random(0)
    pixels = [
        tower.preprocess(tiny_towers.picture("red", c, rng)) for c in ("blue", "pink", "black")
    ]
    seen = tower(pixels)
    assert (seen.pooled.shape, seen.tokens.shape) == ((3, 32), (3, 16, 32))
    with pytest.raises(EncoderError, match="its image processor"):
        ImageTower(str(towers[1]), CPU)


def test_a_text_model_without_words_is_read_by_its_vector(tmp_path):
    """Averaged word vectors: no tokens to look at one by one, no ids to take for evidence."""
    tower = TextTower(str(tiny_towers.static_text_folder(tmp_path)), CPU)
    encoded = tower(["red and blue", "pink"])
    assert encoded.tokens.shape == (2, 1, 32) and torch.equal(encoded.tokens[:, 0], encoded.pooled)
    assert encoded.mask.all() and encoded.ids == [[], []]
    assert not torch.allclose(encoded.pooled[0], encoded.pooled[1])
