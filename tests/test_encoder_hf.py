"""hf: encoders, against the model's own processor and forward in float32, on tiny random models."""

import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from encoding import encode_images, encode_joint, encode_texts, preprocess
from family_differences import PICTURES, TEXTS, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from own_transformers import OWN
from PIL import Image
from random_families import ENCODERS

from chiasm.pipeline.encoders import load_encoder, unit
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.cropped_processing import square_processing
from chiasm.pipeline.pretrained.image_processing import SquareProcessing
from chiasm.pipeline.resizing import by_pillow

KINDS = ("clip", "siglip", "siglip2")  # each of all: test_families.py
FLOAT32 = EncoderSettings(precision="float32", device="cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    return {kind: ENCODERS[kind](base / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def encoders(folders):
    return {kind: load_encoder(f"hf:{folder}", FLOAT32) for kind, folder in folders.items()}


def unit_rows(features):
    return torch.nn.functional.normalize(features.pooler_output).numpy()


def images_of(encoder, pictures=PICTURES):
    return encode_images(encoder, [preprocess(encoder, picture) for picture in pictures])


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


sides = st.integers(1, 90)
resamplings = st.sampled_from([0, 2, 3])  # nearest, bilinear, bicubic


@given(width=sides, height=sides, side=st.integers(8, 40), more=st.integers(-5, 20), by=resamplings)
def test_resize_and_crop_equal_the_processor_bit_by_bit(width, height, side, more, by):
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": side + more},
        crop_size={"height": side, "width": side},
        resample=by,
        do_rescale=False,
        do_normalize=False,
    )
    picture = noise(width, height, width * height)
    ours = SquareProcessing.of(processor, SimpleNamespace(image_size=side), "hf:x")
    with by_pillow():
        made = ours.preprocess(picture)
    np.testing.assert_array_equal(made, processor(picture)["pixel_values"][0])
    assert np.abs(ours.preprocess(picture).astype(int) - made).max() <= 2


@settings(max_examples=40)
@given(
    side=st.integers(8, 40),
    more=st.integers(-3, 9),
    steps=st.fixed_dictionaries(
        dict.fromkeys(
            ("do_center_crop", "do_rescale", "do_normalize", "rescale_offset", "include_top"),
            st.booleans(),
        )
    ),
)
def test_the_steps_of_efficientnets_processor_are_its_own(side, more, steps):
    processor = transformers.EfficientNetImageProcessorPil(
        size={"height": side + more, "width": side + more},
        crop_size={"height": side, "width": side},
        **steps,
    )
    try:
        made = square_processing(processor, None, "hf:x")
    except EncoderError as error:  # which adds a margin
        assert (
            more < 0 and steps["do_center_crop"] and "an image processor that resizes" in str(error)
        )
        return
    pixels = made.preprocess(PICTURES[0])
    found = made.inputs([pixels], torch.device("cpu"), torch.float32)["pixel_values"]
    wanted = processor(PICTURES[0], return_tensors="pt")["pixel_values"]
    assert found.shape == wanted.shape
    rule = made.describe()
    of_255 = (found - wanted).abs().numpy() * np.array(rule["std"])[:, None, None] / rule["rescale"]
    assert of_255.mean() <= 0.05
    edge = made.covered(70, 50)[0] * (side + more)
    assert edge == ((more // 2) if steps["do_center_crop"] else 0)


def test_a_long_strip_costs_no_more_than_its_middle(encoders):
    slope = np.linspace(0, 255, 60_000, dtype=np.uint8)
    strip = Image.fromarray(np.broadcast_to(slope[None, :, None], (2, 60_000, 3)).copy())
    file = io.BytesIO()
    strip.save(file, "PNG")
    middle = decode(
        file.getvalue(), DecodeSettings(), encoders["clip"].modalities["image"].side
    ).image
    made = preprocess(encoders["clip"], middle)  # resized whole it would be 1,080,000 x 36
    assert made.shape == (3, 32, 32)
    assert abs(made.astype(int) - 127).max() <= 1


def test_siglip_texts_are_padded_to_the_full_length(folders, encoders):
    own = OWN["siglip"](folders["siglip"])
    model, tokenizer = own.model, own.tokenizer
    texts = ["a red boat", "two people standing in the street"]
    made = encode_texts(encoders["siglip"], texts)
    with torch.inference_mode():
        short = unit_rows(model.get_text_features(**tokenizer(texts[:1], return_tensors="pt")))
        full = tokenizer(texts, padding="max_length", return_tensors="pt")
        assert full.input_ids.shape == (2, 64)
        full = unit_rows(model.get_text_features(**full))
    assert (made * full).sum(1).min() > 0.99999
    assert (made[:1] * short).sum() < 0.97  # what forgetting it would do


def test_siglip2_of_fixed_resolution_reads_lowercase(folders, encoders):
    tokenizer = OWN["siglip2"](folders["siglip2"]).tokenizer
    assert tokenizer("BOAT").input_ids != tokenizer("boat").input_ids  # its own does not
    assert encoders["siglip2"].preprocessing["text"]["lowercase"]
    upper, lower = encode_texts(encoders["siglip2"], ["A Red BOAT", "a red boat"])
    np.testing.assert_array_equal(upper, lower)


def test_siglips_sentencepiece_tokenizer_is_taken_as_it_is(folders, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece", reason="SigLIP's own tokenizer needs it")
    folder = shutil.copytree(folders["siglip"], tmp_path / "copy")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red boat under the moon"] * 50),
        model_writer=model,
        vocab_size=30,
        hard_vocab_limit=False,
        add_dummy_prefix=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=3,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    (folder / "tokenizer.json").unlink()
    edit_json(folder / "tokenizer_config.json", tokenizer_class="SiglipTokenizer", backend=None)
    encoder = load_encoder(f"hf:{folder}", FLOAT32)
    assert encoder.preprocessing["text"]["tokenizer"] == "SiglipTokenizer"
    # It keeps nothing of what it cuts, and ends a text by the token that it pads with.
    texts = ["a " * 5, "a " * 31, "aa " + "a " * 30, "a " * 32, "a " * 75]  # 63, 64, 65 tokens
    assert encoder.encode("text", texts).tokens_cut.tolist() == [0, 0, 0, 1, 87]
    assert encoder.encode("text", texts[:2]).tokens_cut.tolist() == [0, 0]
    loud, plain, other = encode_texts(encoder, ["A red BOAT!", "a red boat", "under the moon"])
    np.testing.assert_array_equal(loud, plain)  # it lowercases and takes punctuation away
    assert np.abs(plain - other).max() > 1e-3


def test_no_rows_in_no_rows_out(encoders):
    assert encode_texts(encoders["clip"], []).shape == (0, 24)
    assert encode_images(encoders["clip"], []).shape == (0, 24)


def test_a_lone_surrogate_is_read_as_a_question_mark(encoders):
    broken, mark = encode_texts(encoders["clip"], ["a \ud83d boat", "a ? boat"])
    np.testing.assert_allclose(broken, mark, atol=1e-5)


def test_a_pair_is_the_normalised_mean(encoders):
    encoder = encoders["clip"]
    pixels = [preprocess(encoder, picture) for picture in PICTURES[:2]]
    image, text = encode_images(encoder, pixels), encode_texts(encoder, TEXTS[:2])
    np.testing.assert_array_equal(encode_joint(encoder, pixels, TEXTS[:2]), unit(image + text))
