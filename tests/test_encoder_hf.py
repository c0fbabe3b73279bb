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
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from random_models import clip_folder, naflex_folder, siglip_folder

from chiasm.pipeline.encoders import load_encoder, unit
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import capture_warnings
from chiasm.pipeline.pretrained.image_processing import SquareProcessing

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
EIGHT = {"patch_size": 8}
MAKERS = {
    "clip": lambda at: clip_folder(at, side=32, short=36, width=24, tower=TOWER, vision=EIGHT),
    "siglip": lambda at: siglip_folder(at, side=32, tower=TOWER, vision=EIGHT),
    "siglip2": lambda at: siglip_folder(at, side=32, tower=TOWER, vision=EIGHT, gemma=True),
    "naflex": lambda at: naflex_folder(at, patch=8, patches=16, tower=TOWER),
}
KINDS = list(MAKERS)
LENGTHS = {"clip": 77, "siglip": 64, "siglip2": 64, "naflex": 64}
FLOAT32 = EncoderSettings(precision="float32", device="cpu")
BFLOAT16 = EncoderSettings(precision="bfloat16", device="cpu")
TEXTS = ["a red boat under the moon", "", "cat", "a photo of " * 60, "红色的船", "two people, 2!"]


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


PICTURES = [noise(w, h, w) for w, h in [(70, 50), (50, 70), (33, 33), (200, 20), (5, 9)]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    return {kind: make(base / kind) for kind, make in MAKERS.items()}


@pytest.fixture(scope="module")
def encoders(folders):
    return {kind: load_encoder(f"hf:{folder}", FLOAT32) for kind, folder in folders.items()}


def own(folder):
    """The model and the processor as transformers loads them, in float32."""
    with capture_warnings():
        processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
        model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), processor.tokenizer, processor.image_processor


def unit_rows(features):
    return torch.nn.functional.normalize(features.pooler_output).numpy()


def images_of(encoder, pictures=PICTURES):
    return encode_images(encoder, [preprocess(encoder, picture) for picture in pictures])


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_models_own_processor_and_forward(folders, encoders, kind):
    model, tokenizer, processor = own(folders[kind])
    texts = [text.lower() for text in TEXTS]
    with torch.inference_mode():
        tokens = tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=LENGTHS[kind],
            return_tensors="pt",
        )
        wanted_texts = unit_rows(model.get_text_features(**tokens))
        pixels = processor(PICTURES, return_tensors="pt")
        wanted_images = unit_rows(model.get_image_features(**pixels))
    encoder = encoders[kind]
    assert wanted_texts.shape == (len(TEXTS), encoder.dims["joint"])
    np.testing.assert_allclose(encode_texts(encoder, TEXTS), wanted_texts, atol=2e-6)
    np.testing.assert_allclose(images_of(encoder), wanted_images, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_into_the_model_is_what_its_processor_makes(folders, encoders, kind):
    _, _, processor = own(folders[kind])
    wanted = processor(PICTURES, return_tensors="pt")
    encoder = encoders[kind]
    pixels = [preprocess(encoder, picture) for picture in PICTURES]
    assert all(picture.dtype == np.uint8 for picture in pixels)
    made = encoder._pixels.inputs(pixels, torch.device("cpu"), torch.float32)
    assert set(made) == set(wanted)
    for name, values in made.items():
        np.testing.assert_allclose(values.numpy(), np.asarray(wanted[name]), atol=1e-6)


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
    made = SquareProcessing.of(processor, SimpleNamespace(image_size=side), "hf:x").preprocess(
        picture
    )
    np.testing.assert_array_equal(made, processor(picture)["pixel_values"][0])


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
    model, tokenizer, _ = own(folders["siglip"])
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
    _, tokenizer, _ = own(folders["siglip2"])
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
    loud, plain, other = encode_texts(encoder, ["A red BOAT!", "a red boat", "under the moon"])
    np.testing.assert_array_equal(loud, plain)  # it lowercases and takes punctuation away
    assert np.abs(plain - other).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_do_not_depend_on_their_neighbours(encoders, kind):
    encoder = encoders[kind]
    whole, alone = encode_texts(encoder, TEXTS), [encode_texts(encoder, [text]) for text in TEXTS]
    np.testing.assert_allclose(whole, np.concatenate(alone), atol=2e-6)
    whole, alone = images_of(encoder), [images_of(encoder, [picture]) for picture in PICTURES]
    np.testing.assert_allclose(whole, np.concatenate(alone), atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_and_comes_back_as_unit_float32(folders, encoders, kind):
    encoder = load_encoder(f"hf:{folders[kind]}", BFLOAT16)
    assert (encoder.precision, encoder.device) == ("bfloat16", "cpu")
    for made, wanted in [
        (encode_texts(encoder, TEXTS), encode_texts(encoders[kind], TEXTS)),
        (images_of(encoder), images_of(encoders[kind])),
    ]:
        assert made.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
        assert (made * wanted).sum(1).min() > 0.999
        assert np.abs(made - wanted).max() > 1e-6  # it did run in bfloat16
    assert encoder.fingerprint == encoders[kind].fingerprint


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
