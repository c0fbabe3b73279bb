"""oc: encoders, against open_clip called directly in float32, on tiny random models."""

import importlib.util
import json
import os
import shutil
import sys

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from encoding import encode_images, encode_joint, encode_texts, preprocess
from PIL import Image

from chiasm.pipeline.encoders import load_encoder, load_matcher, require_explainer, unit
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.open_clip_images import OpenClipImages
from chiasm.pipeline.pretrained.open_clip_library import CLASSES, open_clip_for, parallelism_kept
from chiasm.pipeline.pretrained.open_clip_network import _require_known

if importlib.util.find_spec("open_clip") is None:
    pytest.skip("needs open_clip: make install", allow_module_level=True)

from open_clip_models import CLIP, CONFIGS, open_clip_folder, save_weights
from own_open_clip import OpenClip

KINDS = list(CONFIGS)
LENGTHS = {"clip": 16, "siglip": 12, "resnet": 16, "roberta": 14}
FLOAT32 = EncoderSettings(precision="float32", device="cpu")
LONG = "a photo of " * 60
TEXTS = ["a red boat under the moon", "", "cat", LONG, "红色的船", "Two people, 2!!!"]
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def noise(width, height):
    """Each in other colours."""
    seed = np.random.default_rng(width * 1000 + height)
    pixels = seed.integers(0, 256, (height, width, 3)) * seed.uniform(0.2, 1, 3)
    return Image.fromarray(pixels.astype(np.uint8))


IMAGES = [noise(*size) for size in [(70, 50), (50, 70), (33, 33), (200, 20), (5, 9)]]


@pytest.fixture(scope="module")
def library():
    return open_clip_for("tests")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    return {kind: open_clip_folder(base / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def encoders(folders):
    return {kind: load_encoder(f"oc:{folder}", FLOAT32) for kind, folder in folders.items()}


@pytest.fixture
def copy(folders, tmp_path):
    """A copy of a folder, for a test to damage."""
    return lambda kind: shutil.copytree(folders[kind], tmp_path / kind)


@pytest.fixture
def own(folders):
    """The model and the tokenizer as open_clip loads them."""

    def load(kind):
        made = OpenClip(folders[kind])
        return made.model, made.tokenizer

    return load


def edit(folder, change):
    said = json.loads((folder / CONFIG).read_text())
    change(said["model_cfg"])
    (folder / CONFIG).write_text(json.dumps(said))


def pixels_of(encoder, pictures=IMAGES):
    return [preprocess(encoder, picture) for picture in pictures]


def refused(name, *parts):
    with pytest.raises(EncoderError) as caught:
        load_encoder(name, FLOAT32)
    line = str(caught.value)
    assert line.startswith(f"encoder {name}") and "\n" not in line and len(line) < 500
    for part in parts:
        assert part in line
    return line


@pytest.mark.parametrize("kind", KINDS)
def test_the_parameters_of_the_transform_are_those_that_open_clip_attaches(encoders, own, kind):
    model, _ = own(kind)
    attached, said = model.visual.preprocess_cfg, encoders[kind].preprocessing["image"]
    size, mean, std = (
        list(value) if isinstance(value, list | tuple) else [value] * number
        for value, number in [(attached["size"], 2), (attached["mean"], 3), (attached["std"], 3)]
    )
    assert (said["size"], said["mean"], said["std"]) == (size, mean, std)
    assert said["resize"] == attached["resize_mode"]
    assert said["resample"] == attached["interpolation"]
    if said["resize"] == "longest":
        assert said["fill"] == [attached["fill_color"]] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_a_text_loses_are_counted(encoders, own, kind):
    _, tokenizer = own(kind)
    length = LENGTHS[kind]
    whole = tokenizer([LONG, "cat"], context_length=1000)
    padding = tokenizer([""], context_length=1000)[0, -1]
    counts = [int((row != padding).nonzero().max()) + 1 for row in whole]
    if kind == "siglip":
        counts = [count + 1 for count in counts]  # `</s>` at the end, which is its padding too
    encoder = encoders[kind]
    cut = encoder.encode("text", [LONG, "cat"]).tokens_cut
    assert cut.dtype == np.int64 and cut.tolist() == [counts[0] - length, 0] and counts[0] > 100


def test_counting_leaves_the_tokenizer_that_lanes_share_as_it_is(folders):
    encoder = load_encoder(f"oc:{folders['siglip']}", FLOAT32)
    shared = encoder._tokens._tokenizer.tokenizer._tokenizer
    encoder.encode("text", [LONG])
    assert shared.truncation["max_length"] == LENGTHS["siglip"] and shared.padding is not None


def test_a_text_that_just_fits_loses_nothing(encoders):
    fits, more = "cat " * 14, "cat " * 15  # and two special tokens, of 16
    assert encoders["clip"].encode("text", [fits, more]).tokens_cut.tolist() == [0, 1]
    rows = encode_texts(encoders["clip"], [fits, more])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)  # it does not see the fifteenth
    fits, more = "cat " * 11, "cat " * 12  # and `</s>`, of 12
    assert encoders["siglip"].encode("text", [fits, more]).tokens_cut.tolist() == [0, 1]


def test_a_pair_is_the_normalised_mean_and_nothing_in_is_nothing_out(encoders):
    encoder = encoders["clip"]
    pixels = pixels_of(encoder)[:2]
    image, text = encode_images(encoder, pixels), encode_texts(encoder, TEXTS[:2])
    np.testing.assert_array_equal(encode_joint(encoder, pixels, TEXTS[:2]), unit(image + text))
    assert encode_texts(encoder, []).shape == encode_images(encoder, []).shape == (0, 24)


def test_a_lone_surrogate_is_read_as_a_question_mark(encoders):
    broken, mark = encode_texts(encoders["clip"], ["a \ud83d boat", "a ? boat"])
    np.testing.assert_allclose(broken, mark, atol=1e-6)


def test_matching_and_explanations_are_refused(folders, encoders):
    with pytest.raises(UsageError, match="one that matches words with pictures"):
        load_matcher(f"oc:{folders['clip']}", FLOAT32)
    with pytest.raises(UsageError, match="one that explains its scores, found one that does not"):
        require_explainer(encoders["clip"])


def test_the_fingerprint_is_of_the_model_and_not_of_its_place(folders, encoders, copy):
    folder = copy("clip")
    (folder / "README.md").write_text("a card")
    again = load_encoder(f"oc:{folder}", FLOAT32)
    assert again.name == f"oc:{folder}"
    assert again.fingerprint == encoders["clip"].fingerprint
    edit(folder, lambda said: said.update(quick_gelu=True))  # the same weights, other vectors
    assert load_encoder(f"oc:{folder}", FLOAT32).fingerprint != again.fingerprint
    edit(folder, lambda said: said.pop("quick_gelu"))
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    weights["logit_scale"] += 1
    save_weights(folder, weights)
    assert load_encoder(f"oc:{folder}", FLOAT32).fingerprint != again.fingerprint


def test_loading_leaves_random_numbers_as_they_were(folders):
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    load_encoder(f"oc:{folders['clip']}", FLOAT32)
    torch.testing.assert_close(torch.rand(4), wanted, atol=0, rtol=0)


@pytest.mark.parametrize("before", ["true", None])
def test_importing_open_clip_leaves_threads_of_tokenizers_as_they_were(monkeypatch, before):
    name = "TOKENIZERS_PARALLELISM"
    monkeypatch.setenv(name, before or "")
    if before is None:
        monkeypatch.delenv(name)
    for module in [module for module in sys.modules if module.startswith("open_clip.tokenizer")]:
        monkeypatch.delitem(sys.modules, module)
    with parallelism_kept():
        importlib.import_module("open_clip.tokenizer")
        assert os.environ[name] == "false"
    assert os.environ.get(name) == before


def test_names_of_torchvision_are_there_only_while_open_clip_is_imported(library):
    if importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is installed, and used as it is")
    assert not [name for name in CLASSES if name in sys.modules]
    with pytest.raises(ImportError, match="needs torchvision, which is not installed"):
        library.image_transform(32, is_train=False)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_weights_of_a_distributed_training_are_read(encoders, copy, kind):
    folder = copy(kind)
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    save_weights(folder, {f"module.{name}": value for name, value in weights.items()})
    encoder = load_encoder(f"oc:{folder}", FLOAT32)
    np.testing.assert_array_equal(encode_texts(encoder, TEXTS), encode_texts(encoders[kind], TEXTS))


def change_weights(folder, change):
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    change(weights)
    save_weights(folder, weights)


@pytest.mark.parametrize(
    ("kind", "change", "parts"),
    [
        ("clip", lambda all: all.update(extra=torch.zeros(2)), ["1 that it does not have, the fi"]),
        ("siglip", lambda all: all.pop("logit_bias") and all.pop("text.ln_final.bias"), ["1 miss"]),
        (
            "clip",
            lambda all: all.update({"visual.proj": torch.zeros(32, 25)}),
            ["expected visual.proj of shape (32, 24), as its model_cfg says, found (32, 25) in"],
        ),
        (  # open_clip resizes these, and says nothing
            "clip",
            lambda all: all.update({"visual.positional_embedding": torch.zeros(10, 32)}),
            ["visual.positional_embedding of shape (17, 32)", "found (10, 32)"],
        ),
        (
            "roberta",
            lambda all: all.update({"text.proj.0.weight": torch.zeros(1, 2)}),
            ["text.proj.0.weight of shape (28, 32)"],
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(copy, kind, change, parts):
    folder = copy(kind)
    change_weights(folder, change)
    refused(f"oc:{folder}", *parts, "check that all files are of one model")


def test_weights_that_are_no_safetensors_are_refused(copy):
    folder = copy("clip")
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-100])
    refused(f"oc:{folder}", "in the format of safetensors, found another format, or a file that w")
    torch.save({"a": torch.zeros(2)}, folder / WEIGHTS)  # a pickle by that name
    refused(f"oc:{folder}", "found another format")


@pytest.mark.parametrize(
    ("kind", "change", "parts"),
    [
        ("clip", lambda said: said["vision_cfg"].update(spin=1), ["a vision_cfg that", "'spin'"]),
        ("clip", lambda said: said["text_cfg"].update(spin=1), ["a text_cfg that", "'spin'"]),
        ("clip", lambda said: said.update(output_dict=True), ["'output_dict' in it"]),
        ("clip", lambda said: said.pop("embed_dim"), ["expected embed_dim in its model_cfg"]),
        (
            "siglip",
            lambda said: said["vision_cfg"].update(timm_model_name="hf-hub:owner/name"),
            ["an image tower that timm 1.", "found 'hf-hub:owner/name'"],
        ),
        (
            "clip",
            lambda said: said["text_cfg"].update(tokenizer_kwargs={"reduction_mask": "random"}),
            ["expected tokenizer_kwargs of", "found reduction_mask"],  # tokens drawn by chance
        ),
        (
            "siglip",
            lambda said: said["text_cfg"].update(tokenizer_kwargs={"trust_remote_code": True}),
            ["found trust_remote_code"],
        ),
        (
            "siglip",
            lambda said: said["text_cfg"].update(tokenizer_mode="other"),
            ["expected tokenizer_mode clips, or none, found 'other'"],
        ),
    ],
)
def test_configurations_that_are_not_known_are_refused(copy, kind, change, parts):
    folder = copy(kind)
    edit(folder, change)
    refused(f"oc:{folder}", *parts)


def test_towers_and_tokenizers_of_other_repositories_are_not_fetched(copy, monkeypatch):
    def no_network(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", no_network)
    folder = copy("roberta")
    load_encoder(f"oc:{folder}", FLOAT32)
    config = (folder / "config.json").read_text()
    (folder / "config.json").unlink()
    line = refused(f"oc:{folder}", "the config.json of its text tower owner/tower, which open_clip")
    assert line.endswith(
        "; copy it from owner/tower into a folder with the files of the model, and name that"
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    refused(f"oc:{folder}", "found one of type 'clip'")
    (folder / "config.json").write_text(config)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    refused(
        f"oc:{folder}", "expected its tokenizer owner/tower (tokenizer.json or", "found none in"
    )


def test_code_in_a_folder_is_not_run(copy, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # nobody is asked whether it may be
    folder = copy("siglip")
    (folder / "evil.py").write_text("raise SystemExit('it was run')")
    said = json.loads((folder / "tokenizer_config.json").read_text())
    said |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    refused(f"oc:{folder}", "expected a tokenizer that can be loaded")


@pytest.fixture
def zoo(library, folders, monkeypatch, tmp_path):
    """open_clip's own tables with one more model, Tiny-B-32, whose weights `snapshot_download`
    finds in a folder; yields what was asked of the hub."""
    (tmp_path / "Tiny-B-32.json").write_text(json.dumps(CLIP))
    (tmp_path / "Tiny-coca.json").write_text(json.dumps(CLIP | {"multimodal_cfg": {}}))
    factory, pretrained = library.factory, library.pretrained
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    library.add_model_config(tmp_path)
    tags = {
        "first_s1b": {"hf_hub": "owner/tiny/", "mean": (0.5,) * 3, "interpolation": "bilinear"},
        "quick": {"hf_hub": "owner/tiny/", "quick_gelu": True},
        "named": {"hf_hub": "owner/tiny/pytorch_model.bin"},
        "far": {"url": "https://example.org/tiny.pt"},
    }
    monkeypatch.setitem(pretrained._PRETRAINED, "Tiny-B-32", tags)
    requests = []

    def snapshot(name, **arguments):
        requests.append((name, arguments["revision"], arguments["allow_patterns"]))
        return str(folders["clip"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return requests


def test_a_name_and_a_tag_are_the_weights_of_one_id(zoo, encoders):
    encoder = load_encoder("oc:Tiny-B-32/first_s1b", FLOAT32)
    assert encoder.name == "oc:Tiny-B-32/first_s1b"
    ((name, revision, patterns),) = zoo
    assert (name, revision) == ("owner/tiny", None)
    assert "open_clip*model.safetensors" in patterns and CONFIG in patterns
    assert not [each for each in patterns if each.endswith((".bin", ".pt", ".py"))]
    wanted = encode_texts(encoders["clip"], TEXTS)
    np.testing.assert_array_equal(encode_texts(encoder, TEXTS), wanted)
    said = encoder.preprocessing["image"]  # of the tag, not of the folder
    assert (said["mean"], said["resample"], said["resize"]) == ([0.5] * 3, "bilinear", "shortest")
    load_encoder("oc:Tiny-B-32/FIRST-s1b@refs/pr/2", FLOAT32)  # tags as open_clip reads them
    assert zoo[1][:2] == ("owner/tiny", "refs/pr/2")
    refused("oc:Tiny-B-32/named", "expected weights as open_clip_model.safetensors, found none")
    assert zoo[2][2][0] == "pytorch_model.safetensors"  # that file alone


def test_an_id_of_the_hub_is_a_folder_with_its_own_configuration(zoo, encoders):
    for name in ("owner/tiny@main", "hf-hub:owner/tiny@main"):
        encoder = load_encoder(f"oc:{name}", FLOAT32)
        assert (encoder.name, encoder.fingerprint) == (f"oc:{name}", encoders["clip"].fingerprint)
    assert [request[:2] for request in zoo] == [("owner/tiny", "main")] * 2


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (
            "Tiny-B-32",
            [
                "expected a tag of weights of Tiny-B-32, found none, without which its weights are",
                "oc:Tiny-B-32/first_s1b",
                "oc:Tiny-B-32-quickgelu/quick",
            ],
        ),
        ("Tiny-B-32/", ["found none, without which its weights are random"]),
        ("Tiny-B-32/first_s2b", ["found 'first_s2b'; take oc:Tiny-B-32/first_s1b or"]),
        ("Tiny-B-32/quick", ["which is QuickGELU", "take oc:Tiny-B-32-quickgelu/quick"]),
        ("Tiny-B-32/far", ["found a pickle elsewhere", "Tiny-B-32/named or oc:Tiny-B-32"]),
        ("tiny-B32/first_s1b", ["found none of this name; near: Tiny-B-32", "oc:hf-hub:OWNER/"]),
        ("Tiny-B-32:first_s1b", ["near: Tiny-B-32"]),
        ("ViT-B-23/openai", ["near: ViT-B-32"]),
        ("Tiny-coca/first", ["found a CoCa"]),
        ("coca_ViT-B-32/laion2b_s13b_b90k", ["found a CoCa"]),
        ("ViT-B-32/openai", ["take oc:ViT-B-32-quickgelu/openai"]),
        ("ViT-B-32/laion2b_s34b_b79", ["take oc:ViT-B-32/laion2b_s34b_b79k or"]),
        (
            "ViT-M-16",
            ["expected a model with weights, found none", "take another: open_clip has none of it"],
        ),
        ("something", ["expected a folder, a hub id (OWNER/NAME) or a model of open_clip"]),
    ],
)
def test_a_name_without_weights_of_its_own_is_refused(zoo, model, parts):
    refused(f"oc:{model}", *parts)
    assert not zoo  # nothing was fetched


def test_every_tag_of_the_zoo_has_a_configuration_that_is_read(library):
    """Names and preprocessing of all that open_clip lists; no weights."""
    tags = library.list_pretrained()
    assert len(tags) > 190
    for name, tag in tags:
        network, said = library.get_model_config(name), library.get_pretrained_cfg(name, tag)
        if "multimodal_cfg" in network:
            continue
        made = OpenClipImages.of(said, network["vision_cfg"].get("image_size", 224), name)
        assert made.describe()["resize"] == said["resize_mode"]
        network.pop("custom_text", None)
        _require_known(library, library.CLIP, network, name)
