"""Folders and pictures of open_clip, as far as they are read without the library."""

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from chiasm.pipeline.encoders import load_encoder
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained.open_clip_images import MEAN, STD, OpenClipImages
from chiasm.pipeline.resizing import by_pillow

CPU = torch.device("cpu")
BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
PLAIN = {"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}}


@pytest.fixture(autouse=True)
def _resized_by_pillow():
    """What is computed by hand here is Pillow's."""
    with by_pillow():
        yield


def noise(width, height):
    seed = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(seed.integers(0, 256, (height, width, 3), dtype=np.uint8))


def planes(image):
    return np.asarray(image).transpose(2, 0, 1)


def images(size=32, **preprocess):
    return OpenClipImages.of(preprocess, size, "oc:x")


@pytest.mark.parametrize(
    ("size", "resized", "left", "top"),
    [  # by hand from torchvision: the long side is rounded down, half a pixel to the even place
        ((70, 50), (44, 32), 6, 0),
        ((50, 70), (32, 44), 0, 6),
        ((71, 50), (45, 32), 6, 0),  # 6.5
        ((75, 50), (48, 32), 8, 0),
        ((74, 50), (47, 32), 8, 0),  # 7.5
        ((32, 32), (32, 32), 0, 0),
        ((8, 9), (32, 36), 0, 2),
    ],
)
def test_the_shortest_side_fills_the_square_and_the_middle_is_cut_out(size, resized, left, top):
    picture = noise(*size)
    wanted = picture.resize(resized, BICUBIC).crop((left, top, left + 32, top + 32))
    np.testing.assert_array_equal(images().preprocess(np.asarray(picture)), planes(wanted))


@pytest.mark.parametrize(
    ("size", "resized", "border"),
    [  # rounded to the nearest; the odd pixel of the margin lies right and below
        ((70, 50), (32, 23), (0, 4, 0, 5)),
        ((50, 70), (23, 32), (4, 0, 5, 0)),
        ((16, 16), (32, 32), (0, 0, 0, 0)),
        ((160, 10), (32, 2), (0, 15, 0, 15)),
    ],
)
def test_the_longest_side_fills_the_square_and_the_rest_is_fill(size, resized, border):
    picture = noise(*size)
    wanted = ImageOps.expand(picture.resize(resized, BILINEAR), border, fill=(7, 80, 200))
    made = images(resize_mode="longest", interpolation="bilinear", fill_color=[7, 80, 200])
    np.testing.assert_array_equal(made.preprocess(np.asarray(picture)), planes(wanted))


def test_a_strip_that_rounds_to_nothing_is_one_pixel_high():
    red = Image.new("RGB", (500, 3), "red")
    made = images(resize_mode="longest", fill_color=9).preprocess(np.asarray(red))
    assert (made[:, 15, 3:-3] == [[255], [0], [0]]).all() and (made[:, :15] == 9).all()


@given(width=st.integers(1, 90), height=st.integers(1, 90), tall=st.integers(8, 40))
def test_both_sides_are_squashed_whatever_the_shape(width, height, tall):
    picture = noise(width, height)
    made = images((tall, 24), resize_mode="squash", interpolation="random").preprocess(
        np.asarray(picture)
    )
    np.testing.assert_array_equal(made, planes(picture.resize((24, tall), BICUBIC)))


def test_a_shape_that_is_no_square_is_filled_by_bicubic():
    picture = noise(90, 60)  # ratios 60 / 40 and 90 / 24: the height fills it, 60 x 40
    made = images((40, 24), interpolation="bilinear")
    wanted = picture.resize((60, 40), BICUBIC).crop((18, 0, 42, 40))
    np.testing.assert_array_equal(made.preprocess(np.asarray(picture)), planes(wanted))
    assert (made.side, made.describe()["resample"]) == (24, "bicubic")


def test_values_are_scaled_to_one_and_normalised_by_channel():
    made = images(2, mean=[0.1, 0.2, 0.3], std=0.5)
    pixels = np.array([0, 51, 255, 102] * 3, dtype=np.uint8).reshape(3, 2, 2)
    values = made.inputs([pixels], CPU, torch.float32)
    wanted = (np.array([0, 0.2, 1, 0.4] * 3).reshape(3, 2, 2) - [[[0.1]], [[0.2]], [[0.3]]]) / 0.5
    np.testing.assert_allclose(values.numpy(), wanted[None], atol=1e-6)


def test_what_a_configuration_leaves_out_is_openais():
    nulls = dict.fromkeys(("mean", "std", "interpolation", "resize_mode"))
    for nothing in ({}, nulls, {"mean": 0, "std": 0.0, "fill_color": 0}):  # as `mean or MEAN`
        said = images(**nothing).describe()
        assert (tuple(said["mean"]), tuple(said["std"])) == (MEAN, STD)
        assert tuple(images(**nothing).fill) == (0, 0, 0)
        assert (said["size"], said["resize"], said["resample"]) == ([32, 32], "shortest", "bicubic")


@pytest.mark.parametrize(
    ("size", "preprocess", "message"),
    [
        (32, {"resize_mode": "crop"}, "resize_mode of preprocess_cfg to be shortest or squash or"),
        (
            32,
            {"interpolation": "lanczos"},
            "expected interpolation of preprocess_cfg to be bicubic",
        ),
        (32, {"mode": "L"}, "expected mode of preprocess_cfg to be RGB, found 'L'"),
        (32, {"mean": [0.5]}, "expected mean of preprocess_cfg to be one number or three"),
        (32, {"std": [0.5, 0, 0.5]}, "expected a std above 0"),
        ("large", {}, "expected image_size of vision_cfg to be one or two numbers, found 'large'"),
        ([32, 0], {}, "one or two numbers, found [32, 0]"),
    ],
)
def test_preprocessing_that_open_clip_does_not_have_is_refused(size, preprocess, message):
    with pytest.raises(EncoderError) as caught:
        images(size, **preprocess)
    assert str(caught.value).startswith("oc:x: ") and message in str(caught.value)


def folder_of(at, **files):
    at.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (at / name.replace("__", ".")).write_text(text)
    return at


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"modules__json": []}, "found modules.json alone; take st:FOLDER"),
        ({"notes__txt": ""}, "found notes.txt; name a folder that open_clip has saved"),
        ({}, "expected a model folder with open_clip_config.json, found an empty folder"),
        ({"open_clip_config__json": "{"}, "found no json; fetch or save the model again"),
        ({"open_clip_config__json": []}, "found another json"),
        ({"open_clip_config__json": {"model_cfg": {"vision_cfg": {}}}}, "found another json"),
        ({"open_clip_config__json": PLAIN | {"preprocess_cfg": 3}}, "found another json"),
        ({"open_clip_config__json": PLAIN}, "expected weights as open_clip_model.safetensors, fou"),
        ({"open_clip_config__json": PLAIN, "a__pt": ""}, "found a.pt alone, a pickle"),
        (
            {"open_clip_config__json": PLAIN, "a__safetensors": "", "b__safetensors": ""},
            "found a.safetensors, b.safetensors; give the right one this name: open_clip_m",
        ),
        (
            {
                "open_clip_config__json": PLAIN | {"preprocess_cfg": {"resize_mode": "none"}},
                "open_clip_model__safetensors": "",
            },
            "expected resize_mode of preprocess_cfg",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_gets_one_line(tmp_path, files, message):
    folder = folder_of(tmp_path / "model", **files)
    with pytest.raises(EncoderError) as caught:
        load_encoder(f"oc:{folder}")
    assert message.replace("FOLDER", str(folder)) in str(caught.value)
    assert str(caught.value).startswith(f"encoder oc:{folder}: expected ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("oc:", "expected a folder, a hub id or NAME/TAG after the colon"),
        ("oc:./none", "expected a model folder, found no such folder; check the path"),
        (f"oc:{__file__}", "expected a model folder, found a file"),
    ],
)
def test_a_path_that_is_no_folder_gets_one_line(name, message):
    with pytest.raises(EncoderError) as caught:
        load_encoder(name)
    assert message in str(caught.value)


@pytest.mark.parametrize("model", ["ViT-B-32/laion2b_s34b_b79k", "owner/name", "FOLDER"])
def test_without_the_extra_one_line_says_what_to_install(monkeypatch, tmp_path, model):
    monkeypatch.setitem(sys.modules, "open_clip", None)  # for Python: there is none
    files = {"open_clip_config__json": PLAIN, "open_clip_model__safetensors": ""}
    model = model.replace("FOLDER", str(folder_of(tmp_path / "model", **files)))
    with pytest.raises(EncoderError) as caught:
        load_encoder(f"oc:{model}")
    assert str(caught.value) == (
        f"encoder oc:{model}: expected the package open_clip_torch, found none installed; "
        "pip install 'chiasm[openclip]'"
    )
