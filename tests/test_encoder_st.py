"""st: encoders, on a tiny CLIP and a tiny vision-language model saved as SentenceTransformers."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from encoding import encode_images, encode_joint, encode_texts, mean_of, preprocess
from PIL import Image
from random_models import clip_folder
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tiny_llava import TOWER, llava_folder
from tokenizers import Tokenizer, models

from chiasm.pipeline.encoders import load_encoder, unit
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import capture_warnings
from chiasm.pipeline.pretrained.sentence_models import MAX_PIXELS

FLOAT32 = EncoderSettings(precision="float32", device="cpu")
BFLOAT16 = EncoderSettings(precision="bfloat16", device="cpu")
TEXTS = ["a red boat", "", "a photo of people standing in the street", "红色的船"]


def noise(width, height):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


PICTURES = [noise(70, 50), noise(50, 70), noise(33, 33), noise(120, 20)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP in transformers' own form."""
    folder = tmp_path_factory.mktemp("clip")
    return clip_folder(folder, side=32, width=24, tower=TOWER, vision={"patch_size": 8})


@pytest.fixture(scope="module")
def saved(clip, tmp_path_factory):
    """The same as a SentenceTransformer."""
    return save([Transformer(str(clip))], tmp_path_factory.mktemp("st"))


@pytest.fixture(scope="module")
def fusing(tmp_path_factory):
    """A vision-language model that reads pictures and texts as chat messages, left-padded."""
    folder = llava_folder(tmp_path_factory.mktemp("llava"), transformers.LlavaModel)
    modules = [Transformer(str(folder)), Pooling(32, "lasttoken")]
    return save(modules, tmp_path_factory.mktemp("fusing"))


def save(modules, folder):
    with capture_warnings():
        SentenceTransformer(modules=modules, device="cpu").save_pretrained(
            str(folder), create_model_card=False
        )
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def images_of(encoder, pictures=PICTURES):
    return encode_images(encoder, [preprocess(encoder, picture) for picture in pictures])


def test_a_clip_gives_the_vectors_that_hf_gives(clip, saved):
    ours, theirs = load_encoder(f"hf:{clip}", FLOAT32), load_encoder(f"st:{saved}", FLOAT32)
    assert (theirs.dims["joint"], theirs.modalities["image"].side, theirs.name) == (
        24,
        None,
        f"st:{saved}",
    )
    np.testing.assert_allclose(encode_texts(theirs, TEXTS), encode_texts(ours, TEXTS), atol=2e-6)
    np.testing.assert_allclose(images_of(theirs), images_of(ours), atol=2e-6)


def test_bfloat16_is_close_and_comes_back_as_unit_float32(saved):
    exact, fast = load_encoder(f"st:{saved}", FLOAT32), load_encoder(f"st:{saved}", BFLOAT16)
    assert fast.precision == "bfloat16" and fast.fingerprint == exact.fingerprint
    for made, wanted in [
        (encode_texts(fast, TEXTS), encode_texts(exact, TEXTS)),
        (images_of(fast), images_of(exact)),
    ]:
        assert made.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
        assert (made * wanted).sum(1).min() > 0.999
        assert np.abs(made - wanted).max() > 1e-6


def test_a_text_that_names_a_picture_stays_a_text(clip, saved, tmp_path):
    """SentenceTransformers fetch bare strings that read like pictures; captions are anybody's."""
    PICTURES[0].save(tmp_path / "there.png")
    texts = [str(tmp_path / "there.png"), "https://example.invalid/cat.jpg", "data:image/png,x"]
    encoder = load_encoder(f"st:{saved}", FLOAT32)
    wanted = encode_texts(load_encoder(f"hf:{clip}", FLOAT32), texts)
    np.testing.assert_allclose(encode_texts(encoder, texts), wanted, atol=2e-6)
    with capture_warnings():
        bare = SentenceTransformer(str(saved), device="cpu").encode(texts[0])
    assert images_of(encoder)[0] @ (bare / np.linalg.norm(bare)) > 0.9999


@pytest.mark.parametrize("name", ["saved", "fusing"])
def test_vectors_do_not_depend_on_their_neighbours(request, name):
    encoder = load_encoder(f"st:{request.getfixturevalue(name)}", FLOAT32)
    alone = np.concatenate([encode_texts(encoder, [text]) for text in TEXTS])
    np.testing.assert_allclose(encode_texts(encoder, TEXTS), alone, atol=5e-6)
    alone = np.concatenate([images_of(encoder, [picture]) for picture in PICTURES])
    np.testing.assert_allclose(images_of(encoder), alone, atol=5e-6)


def test_without_fusion_a_pair_is_the_normalised_mean(saved):
    encoder = load_encoder(f"st:{saved}", FLOAT32)
    image, text = images_of(encoder), encode_texts(encoder, TEXTS)
    pixels = [preprocess(encoder, picture) for picture in PICTURES]
    assert encoder.preprocessing["joint"] == "normalised mean"
    np.testing.assert_array_equal(encode_joint(encoder, pixels, TEXTS), unit(image + text))


def test_with_fusion_a_pair_is_read_together(fusing):
    encoder = load_encoder(f"st:{fusing}", FLOAT32)
    pixels = [preprocess(encoder, picture) for picture in PICTURES]
    image, text = encode_images(encoder, pixels), encode_texts(encoder, TEXTS)
    made = encode_joint(encoder, pixels, TEXTS)
    assert encoder.preprocessing["joint"] == "the model's own"

    with capture_warnings():
        processor = transformers.AutoProcessor.from_pretrained(fusing, backend="pil")
        model = transformers.AutoModel.from_pretrained(fusing, dtype=torch.float32).eval()
    for row, (picture, caption) in enumerate(zip(PICTURES, TEXTS, strict=True)):
        inputs = processor(
            text=f"user: <image>{caption}</s>", images=[picture], return_tensors="pt"
        )
        with torch.inference_mode():
            wanted = model(**inputs).last_hidden_state[0, -1].numpy()
        assert (wanted / np.linalg.norm(wanted)) @ made[row] > 0.99999
    assert ((made * mean_of(image, text)).sum(1) < 0.9999).any()


def test_large_pictures_are_bounded_in_shape(saved):
    encoder = load_encoder(f"st:{saved}", FLOAT32)
    assert preprocess(encoder, Image.new("RGB", (640, 480))).shape == (480, 640, 3)
    made = preprocess(encoder, Image.new("RGB", (3000, 1500)))
    assert made.dtype == np.uint8 and made.shape == (1024, 2048, 3)
    assert made.shape[0] * made.shape[1] <= MAX_PIXELS
    assert preprocess(encoder, Image.new("RGB", (3_000_000, 1))).shape[0] == 1


def test_no_rows_in_no_rows_out_and_a_lone_surrogate_is_a_question_mark(saved):
    encoder = load_encoder(f"st:{saved}", FLOAT32)
    assert encode_texts(encoder, []).shape == encode_images(encoder, []).shape == (0, 24)
    broken, mark = encode_texts(encoder, ["a \ud83d boat", "a ? boat"])
    np.testing.assert_allclose(broken, mark, atol=1e-5)


def test_the_fingerprint_is_that_of_any_copy_and_sees_its_modules(saved, copy):
    (copy / "README.md").write_text("notes")
    before = load_encoder(f"st:{saved}", FLOAT32).fingerprint
    assert load_encoder(f"st:{copy}", FLOAT32).fingerprint == before
    config = json.loads((copy / "config_sentence_transformers.json").read_text())
    config |= {"prompts": {"query": "find: "}, "default_prompt_name": "query"}
    (copy / "config_sentence_transformers.json").write_text(json.dumps(config))
    prompted = load_encoder(f"st:{copy}", FLOAT32)
    assert prompted.fingerprint != before
    assert prompted.preprocessing["text"] == {"prompt": "find: "}
    plain = load_encoder(f"st:{saved}", FLOAT32)
    np.testing.assert_allclose(
        encode_texts(prompted, ["cat"]), encode_texts(plain, ["find: cat"]), atol=2e-6
    )


def test_loading_prints_nothing(copy, capfd):
    encode_texts(load_encoder(f"st:{copy}", FLOAT32), TEXTS)
    assert capfd.readouterr() == ("", "")


def test_a_model_for_texts_alone_is_refused(tmp_path):
    config = transformers.BertConfig(vocab_size=9, max_position_embeddings=16, **TOWER)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2}, unk_token="[UNK]"))
    torch.manual_seed(0)
    with capture_warnings():
        transformers.BertModel(config).save_pretrained(tmp_path)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=16
    ).save_pretrained(tmp_path)
    with pytest.raises(EncoderError) as caught:
        load_encoder(f"st:{tmp_path}", FLOAT32)
    assert "expected a SentenceTransformer for pictures and texts, found one without image;" in str(
        caught.value
    )


def test_no_code_of_a_model_is_run(copy):
    marker = copy / "ran"
    (copy / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")
    modules = json.loads((copy / "modules.json").read_text())
    modules[0]["type"] = "evil.Evil"
    (copy / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderError, match="expected a SentenceTransformer that can be loaded"):
        load_encoder(f"st:{copy}", FLOAT32)
    assert not marker.exists()


def pickle_a_part(folder):
    (folder / "1_Dense").mkdir()
    (folder / "1_Dense" / "pytorch_model.bin").write_bytes(b"x")


def lose_a_layer(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".layers.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pickle_a_part, "found 1_Dense/pytorch_model.bin alone, a pickle, which is never read"),
        (lose_a_layer, "expected all weights of the model, found none for text_model.encoder.la"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"junk"),
            "expected a SentenceTransformer that can be loaded, found ",
        ),
        (shutil.rmtree, "expected a model folder, found no such folder; check the path"),
    ],
)
def test_a_bad_folder_gets_one_line(copy, spoil, message):
    spoil(copy)
    with pytest.raises(EncoderError) as caught:
        load_encoder(f"st:{copy}", FLOAT32)
    line = str(caught.value)
    assert line.startswith(f"encoder st:{copy}: ") and message in line
    assert "\n" not in line
