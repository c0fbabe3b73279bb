"""Pictures as codes: quantization against a slow reference, order and limits of codes, the recipe,
and the check of drawn pictures by their pixels."""

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from chiasm.pipeline.encoders import load_encoder, require_matcher
from chiasm.pipeline.model.config import ImageConfig, ImageTokensConfig
from chiasm.pipeline.model.image_tokens import EPSILON, ImageTokens, Quantiser, to_unit
from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.model.towers import ImageTower
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.hard_twins import swapped, without_last
from chiasm.pipeline.scenes.unseen import withheld_in
from chiasm.pipeline.scenes.words import plan
from chiasm.pipeline.scenes.world import (
    WORLD_2,
    Scene,
    Thing,
    attributes,
    edited,
    gallery,
    new_style_seed,
    options,
    random_scene,
)
from chiasm.pipeline.training.pocket.data import DataSettings, scenes_of
from chiasm.pipeline.training.pocket.drawn_check import (
    Reading,
    agrees,
    agrees_with_caption,
    read_picture,
)
from chiasm.pipeline.training.pocket.evaluate_image_tokens import (
    STYLES,
    encode,
    entropy_bits,
    pixels_of,
    predictability,
    reconstruction,
)
from chiasm.pipeline.training.pocket.image_tokens import (
    PieceSettings,
    feature_loss,
    picture_losses,
    piece_batch,
)

TINY = ImageTokensConfig(side=24, stride=12, levels=(4, 3), width=8, depth=(0, 0))
PIECES = PieceSettings(DataSettings(seed=3, batch=4, side=72), stride=12, piece=4, pieces=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def level_by_hand(z: float, count: int) -> int:
    """The level of one number, 0 to count - 1: that whose interval its bounded value is in."""
    half = (count - 1) * (1 + EPSILON) / 2
    if count % 2:
        bounded = half * math.tanh(z)
        return min(range(count), key=lambda level: abs(level - count // 2 - bounded))
    bounded = half * math.tanh(z + math.atanh(0.5 / half)) - 0.5
    return min(range(count), key=lambda level: abs(level - count // 2 - bounded))


def number_of(row, levels):
    """Levels from 0 up, as numbers from -1 to 1."""
    return [(level - count // 2) / (count // 2) for level, count in zip(row, levels, strict=True)]


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 7), (3,), (4, 4, 4)])
def test_codes_and_levels_are_one_to_one(levels):
    quantiser = Quantiser(levels)
    codes = torch.arange(math.prod(levels))
    numbers = quantiser.levels_of(codes)
    assert len(numbers.unique(dim=0)) == len(codes)
    assert torch.equal(quantiser.codes_of(numbers), codes)
    assert numbers.min() >= -1 and numbers.max() <= 1
    # The first dimension is the fastest digit of a mixed-radix number.
    digits = itertools.product(*(range(count) for count in reversed(levels)))
    by_hand = [number_of(n[::-1], levels) for n in digits]
    assert torch.allclose(numbers, torch.tensor(by_hand))


def test_quantization_equals_a_slow_reference():
    levels = (8, 5, 2, 3)
    z = torch.from_numpy(np.random.default_rng(0).normal(0, 1.5, (400, 4))).float()
    quantised = Quantiser(levels)(z)
    by_hand = [list(map(level_by_hand, row, levels)) for row in z.tolist()]
    expected = [number_of(row, levels) for row in by_hand]
    assert torch.allclose(quantised, torch.tensor(expected))
    # Every level is reached, and nothing past the outermost ones.
    for column, count in enumerate(levels):
        assert {row[column] for row in by_hand} == set(range(count))
    far = Quantiser(levels)(torch.tensor([[-1e4] * 4, [1e4] * 4]))
    assert Quantiser(levels).codes_of(far).tolist() == [0, math.prod(levels) - 1]


def test_the_gradient_passes_the_rounding():
    levels = (8, 5)
    z = torch.linspace(-2, 2, 12).reshape(6, 2).requires_grad_()
    weights = torch.arange(1.0, 13).reshape(6, 2)
    (Quantiser(levels)(z) * weights).sum().backward()
    smooth = z.detach().requires_grad_()
    half = torch.tensor([3.5, 2.0]) * (1 + EPSILON)
    offset = torch.tensor([0.5, 0.0])
    bounded = half * torch.tanh(smooth + torch.atanh(offset / half)) - offset
    (bounded / torch.tensor([4, 2]) * weights).sum().backward()
    assert z.grad is not None and smooth.grad is not None
    assert torch.allclose(z.grad, smooth.grad, atol=1e-6) and (z.grad > 0).all()


def test_codes_are_in_row_order():
    torch.manual_seed(0)
    model = ImageTokens(replace(TINY, side=60))  # 5 x 5 cells
    pixels = torch.randint(0, 256, (1, 3, 60, 60), dtype=torch.uint8)
    other = pixels.clone()
    # In the cell top right, where its neighbours do not see it.
    other[..., 2:6, 54:58] = 255 - other[..., 2:6, 54:58]
    with torch.no_grad():
        changed = (model.features(other) != model.features(pixels)).any(-1)
    assert changed.nonzero()[:, 1].tolist() == [4]
    codes = torch.zeros(1, 25, dtype=torch.long)
    blank = model.decode(codes)
    codes[0, 4] = 7
    rows, columns = (model.decode(codes) != blank)[0].any(0).nonzero(as_tuple=True)
    # Its own cell, the neighbours that the convolutions reach, and no others.
    assert rows.min() == 0 and rows.max() < 36 and columns.min() >= 24 and columns.max() == 59


def test_pictures_go_through_codes_and_back():
    torch.manual_seed(1)
    model = ImageTokens(ImageTokensConfig(side=36, stride=12, width=16, depth=(1, 1))).eval()
    pixels = torch.randint(0, 256, (2, 3, 36, 36), dtype=torch.uint8)
    codes = model.encode(pixels)
    assert codes.shape == (2, 9) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < model.config.vocabulary == 1000
    drawn = model.decode(codes)
    assert drawn.shape == pixels.shape and drawn.dtype == torch.uint8
    with torch.no_grad():
        directly = model(pixels)
    error = to_unit(drawn) - directly.clamp(-1, 1)
    assert error.abs().max() <= 0.5 / 127.5 + 1e-5
    assert torch.equal(model.encode(pixels[1:]), codes[1:])
    assert model.decode(codes[:0]).shape == (0, 3, 36, 36)


def test_a_model_is_small():
    parameters = sum(item.numel() for item in ImageTokens(ImageTokensConfig()).parameters())
    assert parameters <= 1_500_000


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"side": 70}, "multiple of the stride"),
        ({"stride": 9}, "multiple of 4"),
        ({"stride": 0}, "stride: expected 1 or more"),
        ({"levels": ()}, "2 or more"),
        ({"levels": (8, 1)}, "2 or more"),
    ],
)
def test_shapes_that_make_no_picture_are_refused(fields, expected):
    with pytest.raises(ValueError, match=expected):
        ImageTokensConfig(**fields)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (torch.zeros(2, 5, dtype=torch.long), r"shape \(2, 5\): expected \(B, 4\)"),
        (torch.zeros(4, dtype=torch.long), r"expected \(B, 4\)"),
        (torch.full((1, 4), 12), "expected 0 to 11"),
        (torch.full((1, 4), -1), "expected 0 to 11"),
    ],
)
def test_codes_of_another_model_are_refused(codes, expected):
    with pytest.raises(ValueError, match=expected):
        ImageTokens(TINY).decode(codes)


def test_losses_equal_numpy():
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    drawn = rng.normal(size=pixels.shape).astype(np.float32)
    losses = picture_losses(torch.from_numpy(drawn), torch.from_numpy(pixels))
    error = drawn - (pixels / 127.5 - 1)
    edges = np.abs(error[..., 1:] - error[..., :-1]).mean()
    edges += np.abs(error[..., 1:, :] - error[..., :-1, :]).mean()
    assert losses["pixels"].item() == pytest.approx(np.square(error).mean(), abs=1e-5)
    assert losses["edges"].item() == pytest.approx(edges, abs=1e-5)


def test_features_are_those_of_the_towers_convolutions():
    torch.manual_seed(5)
    tower = ImageTower(ImageConfig(side=24, stem=(8, 8), width=16, depth=1, heads=2))
    pixels = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    drawn = to_unit(pixels) + 0.1 * torch.randn(2, 3, 28, 28)
    drawn.requires_grad_()
    loss = feature_loss(tower, drawn, pixels)
    expected = 0.0
    for layers in (6, 7):  # the second convolution with norm and activation; all three
        have, want = (tower.stem[:layers](x[..., :24, :24]) for x in (drawn, to_unit(pixels)))
        expected += np.square((have - want).detach().numpy()).mean() / want.var().item()
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert drawn.grad is not None and drawn.grad[..., :24, :24].abs().sum() > 0
    assert feature_loss(tower, to_unit(pixels), pixels).item() == 0


def test_batches_are_of_the_step_and_show_nothing_withheld():
    data = PIECES.scenes
    pixels = piece_batch(7, PIECES).pixels
    assert pixels.shape == (8, 3, 48, 48) and pixels.dtype == np.uint8
    assert np.array_equal(pixels, piece_batch(7, PIECES).pixels)
    assert not np.array_equal(pixels, piece_batch(8, PIECES).pixels)
    halves = replace(PIECES, scenes=replace(data, batch=2))
    parts = [piece_batch(7, halves, rank=rank, world_size=2).pixels for rank in range(2)]
    assert np.array_equal(np.concatenate(parts), pixels)
    assert not any(withheld_in(scene) for scene in scenes_of(7, replace(data, batch=200)))
    # Of a picture with fewer codes in a row than a piece has, the whole.
    small = replace(PIECES, scenes=replace(data, side=36))
    assert piece_batch(7, small).pixels.shape == (8, 3, 36, 36)


def test_a_piece_is_of_its_picture_and_shows_a_thing():
    settings = replace(PIECES, scenes=replace(PIECES.scenes, batch=12))
    pieces = piece_batch(2, settings).pixels
    scenes = [scene for scene in scenes_of(2, settings.scenes) for _ in range(settings.pieces)]
    for piece, scene in zip(pieces, scenes, strict=True):
        drawn = to_pixels(picture(scene), 72)
        found = [
            (row, column)
            for row in (0, 12, 24)
            for column in (0, 12, 24)
            if np.array_equal(drawn[:, row : row + 48, column : column + 48], piece)
        ]
        # At 72 pixels a place is 24 wide, around 13, 36 and 59.
        middles = [(24 * thing.row + 12, 24 * thing.column + 12) for thing in scene.things]
        assert any(
            row <= y - 12 and y + 12 <= row + 48 and column <= x - 12 and x + 12 <= column + 48
            for row, column in found
            for y, x in middles
        )


def test_entropy_and_agreement_are_those_of_the_counts():
    assert entropy_bits(np.array([1, 1, 0, 2])) == pytest.approx(1.5)
    assert entropy_bits(np.array([5])) == entropy_bits(np.array([], dtype=int)) == 0
    torch.manual_seed(4)
    model = ImageTokens(replace(TINY, levels=(5, 5)))
    found = predictability(model, seed=1, samples=4)
    # The slow way: every two pictures of the same facts, code by code.
    rng, same = random.Random("predictability 1"), []
    for scene in gallery(4, 1):
        styles = [replace(scene, style_seed=new_style_seed(rng)) for _ in range(STYLES)]
        codes = encode(model, pixels_of(styles, 24))
        same += [float((a == b).mean()) for a, b in itertools.combinations(codes, 2)]
    assert found["agreement"] == pytest.approx(np.mean(same))
    assert 0 <= found["bits"] <= math.log2(STYLES)


class Identity(ImageTokens):
    """A code that loses nothing: what is decoded is what was encoded last."""

    def encode(self, pixels):
        self.kept = pixels
        return super().encode(pixels)

    def decode(self, codes):
        return self.kept


def test_a_code_that_loses_nothing_keeps_all_facts():
    encoder = load_encoder("pocket", EncoderSettings(precision="float32", device="cpu"))
    found = reconstruction(Identity(ImageTokensConfig()), require_matcher(encoder), 5, 20)
    for name in ("r1", "match", "agrees"):
        assert found[name] == found[f"true_{name}"] >= 0.9
    assert found["error"] == 0 and 1 <= found["perplexity"] <= found["codes"] <= 1000
    torch.manual_seed(0)
    blank = reconstruction(ImageTokens(ImageTokensConfig()), require_matcher(encoder), 5, 20)
    assert blank["agrees"] == 0 and blank["r1"] < 0.5 and blank["error"] > 10


BOAT = Thing("boat", "red", "big", "striped", "left")
STAR = Thing("star", "white", "small", "plain", "top right")
SCENE = Scene((BOAT, STAR), "snow", style_seed=1)


def test_background_colours_and_places_are_read_from_pixels():
    wanted = Reading("snow", {"left": "red", "top right": "white"})
    for side in (72, 96):
        assert read_picture(picture(SCENE, side)) == wanted
    assert read_picture(picture(Scene((), "sunset", 5))) == Reading("sunset", {})


def test_true_pictures_agree_and_other_facts_do_not():
    rng = random.Random("check")
    for _ in range(12):
        scene = random_scene(rng)
        assert agrees(picture(scene), scene)
        read = [a for a in attributes(scene) if a[1] in ("background", "colour", "place")]
        attribute = rng.choice(read)
        other = edited(scene, attribute, rng.choice(options(scene, attribute)[1:]), 7)
        assert not agrees(picture(other), scene)
        if len(scene.things) > 1:
            assert not agrees(picture(without_last(scene)), scene)


def test_backgrounds_of_both_worlds_are_read():
    rng = random.Random("worlds")
    for name in WORLD_2.backgrounds:
        scene = replace(random_scene(rng, WORLD_2), background=name)
        assert agrees(picture(scene), scene), scene


def test_captions_are_checked_by_their_claims():
    claims = plan(SCENE, random.Random(0), relation=(0, "below", 1))
    assert agrees_with_caption(picture(SCENE), claims)
    # Where the two lie is not said, only how the one lies to the other.
    elsewhere = replace(SCENE, things=(replace(BOAT, place="bottom"), replace(STAR, place="left")))
    assert agrees_with_caption(picture(elsewhere), claims)
    third = Thing("cup", "blue", "big", "plain", "right")
    for wrong in (
        swapped(SCENE),
        without_last(SCENE),
        replace(SCENE, background="room"),
        replace(SCENE, things=(replace(BOAT, colour="green"), STAR)),
        replace(SCENE, things=(BOAT, STAR, third)),
    ):
        assert not agrees_with_caption(picture(wrong), claims)
