"""st: encoders, on a tiny CLIP and a tiny vision-language model saved as SentenceTransformers."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from encoding import encode_images, encode_joint, encode_texts, mean_of, preprocess
from PIL import Image
from random_models import clip_folder, naflex_folder, siglip_folder
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tiny_llava import TOWER, cross_encoder_folder, llava_folder, tiling_folder

from chiasm.pipeline.batches import BatchSettings, batches
from chiasm.pipeline.encoders import load_encoder, load_matcher, unit
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import capture_warnings
from chiasm.pipeline.pretrained.sentence_costs import picture_cost
from chiasm.pipeline.pretrained.sentence_folders import (
    MULTI_VECTOR,
    SENTENCE_TRANSFORMER,
    SPARSE,
    UNKNOWN,
    kind_of,
)
from chiasm.pipeline.pretrained.sentence_models import MAX_PIXELS
from chiasm.pipeline.records import Place, Sample, Source
from chiasm.pipeline.two_tower.frozen_towers import TextTower

FLOAT32 = EncoderSettings(precision="float32", device="cpu")
LIBRARY = "sentence_transformers"
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


@pytest.fixture(scope="module")
def encoder(saved):
    return load_encoder(f"st:{saved}", FLOAT32)


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


def test_a_text_that_names_a_picture_stays_a_text(clip, saved, encoder, tmp_path):
    """SentenceTransformers fetch bare strings that read like pictures; captions are anybody's."""
    PICTURES[0].save(tmp_path / "there.png")
    texts = [str(tmp_path / "there.png"), "https://example.invalid/cat.jpg", "data:image/png,x"]
    wanted = encode_texts(load_encoder(f"hf:{clip}", FLOAT32), texts)
    np.testing.assert_allclose(encode_texts(encoder, texts), wanted, atol=2e-6)
    with capture_warnings():
        bare = SentenceTransformer(str(saved), device="cpu").encode(texts[0])
    assert images_of(encoder)[0] @ (bare / np.linalg.norm(bare)) > 0.9999


def test_without_fusion_a_pair_is_the_normalised_mean(encoder):
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


def test_large_pictures_are_bounded_in_shape(encoder):
    assert preprocess(encoder, Image.new("RGB", (640, 480))).shape == (480, 640, 3)
    made = preprocess(encoder, Image.new("RGB", (3000, 1500)))
    assert made.dtype == np.uint8 and made.shape == (1024, 2048, 3)
    assert made.shape[0] * made.shape[1] <= MAX_PIXELS
    assert preprocess(encoder, Image.new("RGB", (3_000_000, 1))).shape[0] == 1


def test_no_rows_in_no_rows_out_and_a_lone_surrogate_is_a_question_mark(encoder):
    assert encode_texts(encoder, []).shape == encode_images(encoder, []).shape == (0, 24)
    broken, mark = encode_texts(encoder, ["a \ud83d boat", "a ? boat"])
    np.testing.assert_allclose(broken, mark, atol=1e-5)


def test_the_fingerprint_is_that_of_any_copy_and_sees_its_modules(encoder, copy):
    (copy / "README.md").write_text("notes")
    before = encoder.fingerprint
    assert load_encoder(f"st:{copy}", FLOAT32).fingerprint == before
    config = json.loads((copy / "config_sentence_transformers.json").read_text())
    config |= {"prompts": {"query": "find: "}}
    (copy / "config_sentence_transformers.json").write_text(json.dumps(config))
    prompted = load_encoder(f"st:{copy}", FLOAT32)
    assert prompted.fingerprint != before
    assert prompted.preprocessing["text"] == {"prompt": "", "query_prompt": "find: "}
    np.testing.assert_allclose(
        prompted.encode_queries("text", ["cat"]).vectors,
        encode_texts(encoder, ["find: cat"]),
        atol=2e-6,
    )


def test_loading_prints_nothing(copy, capfd):
    encode_texts(load_encoder(f"st:{copy}", FLOAT32), TEXTS)
    assert capfd.readouterr() == ("", "")


def siglip_kinds(root):
    tiny = {"side": 32, "tower": TOWER, "vision": {"patch_size": 8}}
    yield "siglip", siglip_folder(root / "siglip", **tiny)
    yield "siglip", siglip_folder(root / "gemma", gemma=True, **tiny)
    yield "siglip2", naflex_folder(root / "naflex", patch=8, patches=16, tower=TOWER)


def test_a_siglip_is_refused_and_hf_named(tmp_path):
    """Its texts have to be padded to full length, which sentence-transformers does not do."""
    for kind, folder in siglip_kinds(tmp_path):
        st_format = save([Transformer(str(folder))], folder.with_name(f"{folder.name}-st"))
        for path in (folder, st_format):
            with pytest.raises(EncoderError) as caught:
                load_encoder(f"st:{path}", FLOAT32)
            assert str(caught.value) == (
                f"encoder st:{path}: expected a model whose texts may be of any length, found a "
                f"{kind}, whose texts have to be padded to full length; take hf:{path}"
            )
            with pytest.raises(EncoderError, match="have to be padded to full length"):
                TextTower(str(path), FLOAT32)


def test_a_siglip_that_pads_to_full_length_gives_the_vectors_that_hf_gives(tmp_path):
    (_, folder), *_ = siglip_kinds(tmp_path)
    padded = {"text": {"padding": "max_length", "max_length": 64}}
    saved = save([Transformer(str(folder), processing_kwargs=padded)], tmp_path / "padded")
    ours, theirs = load_encoder(f"hf:{folder}", FLOAT32), load_encoder(f"st:{saved}", FLOAT32)
    texts = ["a red boat", "two cats", "red boat" + " red boat" * 59]
    np.testing.assert_allclose(encode_texts(theirs, texts), encode_texts(ours, texts), atol=2e-6)
    cut = theirs.encode("text", texts).tokens_cut
    assert cut.tolist() == [0, 0, 120 - 63]  # of 64 tokens one is the end's


def pooled_by_mean(modules):
    """What the library makes of a folder of another kind."""
    return [type(module).__name__ for module in modules] == ["Transformer", "Pooling"]


def test_a_model_of_another_kind_is_refused_where_the_library_converts_it(clip, tmp_path):
    llava = llava_folder(tmp_path / "llava", transformers.LlavaModel)
    with capture_warnings() as warnings:
        MultiVectorEncoder(str(llava), device="cpu").save_pretrained(
            str(tmp_path / "several"), create_model_card=False
        )
        converted = SentenceTransformer(str(tmp_path / "several"), device="cpu")
    assert pooled_by_mean(converted) and any("Converting" in line for line in warnings)
    scorer = cross_encoder_folder(tmp_path / "cross")
    several = "found a MultiVectorEncoder, which gives a vector for each token; take another model"
    pairs = "found a CrossEncoder, which scores pairs and gives no vectors; rerank with it: --rer"
    with pytest.raises(EncoderError, match=several):
        TextTower(str(tmp_path / "several"), FLOAT32)
    assert load_encoder(f"st:{tmp_path / 'several'}", FLOAT32).token_dims
    with pytest.raises(EncoderError, match=pairs):
        load_encoder(f"st:{scorer}", FLOAT32)
    with pytest.raises(EncoderError, match="expected a CrossEncoder, which scores pairs and"):
        load_matcher(f"st:{save([Transformer(str(clip))], tmp_path / 'st')}", FLOAT32)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"config.json": {"architectures": ["BertModel"]}}, UNKNOWN),
        ({"config.json": {"architectures": ["ColPaliForRetrieval"]}}, MULTI_VECTOR),
        ({"config.json": {"architectures": ["HF_ColBERT"]}}, MULTI_VECTOR),
        ({"config.json": {"architectures": ["BlipForImageTextRetrieval"]}}, UNKNOWN),
        ({"modules.json": []}, SENTENCE_TRANSFORMER),
        ({"modules.json": [{"type": f"{LIBRARY}.models.Pooling"}]}, SENTENCE_TRANSFORMER),
        ({"modules.json": [{"type": "pylate.models.Dense.Dense"}]}, MULTI_VECTOR),
        (
            {"modules.json": [{"type": f"{LIBRARY}.sparse_encoder.modules.SpladePooling"}]},
            SPARSE,
        ),
        (
            {
                "modules.json": [{"type": f"{LIBRARY}.models.Transformer"}],
                "config_sentence_transformers.json": {"model_type": "ColBERT"},
            },
            MULTI_VECTOR,
        ),
        (
            {
                "modules.json": [{"type": f"{LIBRARY}.models.Transformer"}],
                "config_sentence_transformers.json": {"model_type": "SparseEncoder"},
            },
            SPARSE,
        ),
        (
            {"modules.json": [3, {"type": 1}], "config.json": {"architectures": 3}},
            SENTENCE_TRANSFORMER,
        ),
    ],
)
def test_kinds_are_told_apart_by_their_files(tmp_path, files, kind):
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    assert kind_of(tmp_path) == kind


def test_the_models_own_width_is_heard_and_may_be_cut_further(saved, copy):
    config = json.loads((copy / "config_sentence_transformers.json").read_text())
    (copy / "config_sentence_transformers.json").write_text(
        json.dumps(config | {"truncate_dim": 10})
    )
    whole, short = (load_encoder(f"st:{folder}", FLOAT32) for folder in (saved, copy))
    assert short.dims == dict.fromkeys(("image", "text", "joint"), 10)
    np.testing.assert_allclose(
        encode_texts(short, TEXTS), unit(encode_texts(whole, TEXTS)[:, :10]), atol=1e-6
    )
    shorter = load_encoder(f"st:{copy}", EncoderSettings(precision="float32", dims=4))
    np.testing.assert_allclose(images_of(shorter), unit(images_of(whole)[:, :4]), atol=1e-6)
    with pytest.raises(UsageError, match=r"encoder\.dims=11: expected at most 10"):
        load_encoder(f"st:{copy}", EncoderSettings(dims=11))


def blank(side):
    return np.zeros((side, side, 3), np.uint8)


def test_a_picture_costs_what_the_models_processor_makes_of_it(saved, tmp_path):
    fixed = load_encoder(f"st:{saved}", FLOAT32)
    costs = [fixed.cost("image", blank(side)) for side in (64, 1024)]
    assert costs[1] - costs[0] == 3 * (1024**2 - 64**2)  # only the picture itself is larger

    tiling = Transformer(str(tiling_folder(tmp_path / "tiling")))
    folder = save([tiling, Pooling(32, "lasttoken")], tmp_path / "saved")
    free = load_encoder(f"st:{folder}", FLOAT32)
    small, large = (free.cost("image", blank(side)) - 3 * side**2 for side in (64, 1448))
    assert small < large
    tiles = 1 + 3 * 3  # of 32 x 32 pixels, in patches of 16: the whole picture, and its parts
    pixels, numbers = 3 * 32 * 32, 6 * 32 + 2 * 64  # of a patch in the widest moment of a layer
    assert large > 4 * tiles * (pixels + (32 // 16) ** 2 * numbers)


def test_pictures_of_free_size_cost_by_their_patches():
    """By the processor of Qwen-VL, which makes a patch of every 14 x 14 pixels."""
    processor = transformers.Qwen2VLImageProcessorPil(max_pixels=MAX_PIXELS)
    config = transformers.Qwen2VLConfig(
        vision_config={"embed_dim": 1280, "hidden_size": 1536, "patch_size": 14}
    )
    found = picture_cost(
        lambda picture: processor(picture, return_tensors="pt"), config, torch.bfloat16
    )
    patches = MAX_PIXELS / 14**2
    own = patches * 4 * 3 * 2 * 14**2  # two frames of each, as float32
    in_layer = patches * 2 * (6 * 1280 + 2 * 4 * 1280)
    assert found(MAX_PIXELS) == pytest.approx(own + in_layer, rel=0.05)
    assert found(MAX_PIXELS // 2) == pytest.approx(found(MAX_PIXELS) / 2, rel=0.05)
    assert found(4 * MAX_PIXELS) == found(MAX_PIXELS)  # which is the most


def test_a_batch_of_large_pictures_is_cut_by_what_they_take(tmp_path):
    tiling = Transformer(str(tiling_folder(tmp_path / "tiling")))
    folder = save([tiling, Pooling(32, "lasttoken")], tmp_path / "saved")
    encoder = load_encoder(f"st:{folder}", FLOAT32)
    sides = [64, 64, 64, 64, 300, 300, 300]
    pictures = [Image.fromarray(blank(side)) for side in sides]
    settings = BatchSettings(max_bytes=2 * encoder.cost("image", blank(300)))
    samples = [
        Sample(str(n), {"image": Source(png(picture), Place("a.png", 0, 1))}, (), None)
        for n, picture in enumerate(pictures)
    ]
    rows = [
        [row.key for row in batch.rows]
        for batch in batches(iter(samples), encoder, DecodeSettings(), settings)
    ]
    assert [len(some) for some in rows] != [7] and sum(map(len, rows)) == 7
    assert all(
        sum(encoder.cost("image", blank(sides[int(key)])) for key in some) <= settings.max_bytes
        for some in rows
    )


def png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_no_code_of_a_model_is_run(copy):
    marker = copy / "ran"
    (copy / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")
    modules = json.loads((copy / "modules.json").read_text())
    modules[0]["type"] = "evil.Evil"
    (copy / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderError, match="expected a SentenceTransformer that can be loaded"):
        load_encoder(f"st:{copy}", FLOAT32)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
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
