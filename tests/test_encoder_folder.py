"""The folders that hf: encoders are made of: names, fingerprints, and what is refused."""

import json
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import errors as hub_errors
from random_models import clip_folder
from safetensors.torch import load_file, save_file

from chiasm.pipeline.encoders import load_encoder, load_matcher
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.pretrained import EncoderSettings

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
FLOAT32 = EncoderSettings(precision="float32", device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return clip_folder(
        tmp_path_factory.mktemp("clip"),
        side=32,
        short=36,
        width=24,
        tower=TOWER,
        vision={"patch_size": 8},
    )


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(f"hf:{folder}", FLOAT32)


@pytest.fixture
def clip_copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_fingerprint_is_that_of_any_copy(encoder, clip_copy):
    (clip_copy / "README.md").write_text("notes")
    (clip_copy / "checkpoint-5").mkdir()
    shutil.copy(clip_copy / "model.safetensors", clip_copy / "checkpoint-5")
    copied = load_encoder(f"hf:{clip_copy}", FLOAT32)
    assert copied.fingerprint == encoder.fingerprint
    assert copied.name == f"hf:{clip_copy}" != encoder.name
    assert len(copied.fingerprint) == 32


@pytest.mark.parametrize(
    "form",
    [
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 36, "crop_size": 32},
        {"image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 36}},
    ],
)
def test_the_forms_of_older_checkpoints_mean_the_same(encoder, clip_copy, form):
    config = json.loads((clip_copy / "preprocessor_config.json").read_text())
    del config["image_processor_type"], config["size"]
    (clip_copy / "preprocessor_config.json").write_text(json.dumps(config | form))
    older = load_encoder(f"hf:{clip_copy}", FLOAT32)
    assert older.preprocessing == encoder.preprocessing


@pytest.mark.parametrize("part", ["model.safetensors", "tokenizer.json", "processor"])
def test_the_fingerprint_sees_every_part(encoder, clip_copy, part):
    if part == "model.safetensors":
        weights = load_file(clip_copy / part)
        weights["text_projection.weight"][0, 0] += 1
        save_file(weights, clip_copy / part, metadata={"format": "pt"})
    elif part == "tokenizer.json":
        (clip_copy / part).write_text((clip_copy / part).read_text() + "\n")
    else:
        edit_json(clip_copy / "preprocessor_config.json", resample=2)
    assert load_encoder(f"hf:{clip_copy}", FLOAT32).fingerprint != encoder.fingerprint


def test_a_relative_folder_is_named_so_that_it_is_found_again(clip_copy, monkeypatch):
    monkeypatch.chdir(clip_copy.parent)
    assert load_encoder("hf:copy", FLOAT32).name == f"hf:{clip_copy}"


def test_loading_prints_nothing_and_leaves_the_libraries_as_they_were(clip_copy, capfd):
    logger = transformers.utils.logging.get_logger("transformers")
    before = (logger.level, logger.handlers, logger.propagate)
    load_encoder(f"hf:{clip_copy}", FLOAT32)
    (clip_copy / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(EncoderError):
        load_encoder(f"hf:{clip_copy}", FLOAT32)
    assert (logger.level, logger.handlers, logger.propagate) == before
    assert transformers.utils.logging.is_progress_bar_enabled()
    assert capfd.readouterr() == ("", "")


def test_threads_are_set(clip_copy):
    before = torch.get_num_threads()
    try:
        load_encoder(f"hf:{clip_copy}", EncoderSettings(device="cpu", threads=before + 1))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_importing_the_package_imports_no_model_library():
    code = (
        "import sys, chiasm.pipeline.encoders; print({'torch', 'transformers'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("file", "known"),
    [("config.json", False), ("config.json", True), ("preprocessor_config.json", True)],
)
def test_no_code_of_a_model_is_run(clip_copy, file, known, monkeypatch):
    def refuse_input(*_):
        raise AssertionError("transformers asked at the terminal")

    monkeypatch.setattr("builtins.input", refuse_input)
    marker = clip_copy / "ran"
    (clip_copy / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")
    names = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor")
    edit_json(clip_copy / file, auto_map=dict.fromkeys(names, "evil.Evil"))
    if known:
        load_encoder(f"hf:{clip_copy}", FLOAT32)  # transformers has its own code for these
    else:
        edit_json(clip_copy / file, model_type="evil")
        with pytest.raises(EncoderError, match=r"'evil', which needs code of its own, which is n"):
            load_encoder(f"hf:{clip_copy}", FLOAT32)
    assert not marker.exists()


def widen(folder):
    size = {"height": 40, "width": 40}
    edit_json(folder / "preprocessor_config.json", size={"shortest_edge": 40}, crop_size=size)


def configured(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


def of_text(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", text_config={**config["text_config"], **changes})


def stretched(folder):
    of_text(folder, hidden_size="x")


def open_clip_beside_config(folder):
    (folder / "model.safetensors").rename(folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text("{}")


def sentence_transformer_of_texts(folder):
    (folder / "modules.json").write_text("[]")
    edit_json(folder / "config.json", model_type="bert")


def without(name):
    return lambda folder: (folder / name).unlink()


def overwritten(name, data):
    return lambda folder: (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("config.json"), "expected a model folder with config.json, found model.safet"),
        (without("model.safetensors"), "expected weights as model*.safetensors, found none;"),
        (without("tokenizer.json"), "expected its tokenizer (tokenizer.json or vocab.json"),
        (without("preprocessor_config.json"), "expected its image processor (preprocessor_con"),
        (overwritten("tokenizer.json", b"{}"), "expected a tokenizer that can be loaded, found"),
        (overwritten("config.json", b"{"), "expected a config.json that can be loaded, found"),
        (overwritten("config.json", b"[1]"), "can be loaded, found JSON that is no object but a "),
        (overwritten("config.json", b"\xff"), "that can be loaded, found no JSON; fetch or save"),
        (overwritten("config.json", b"{}"), "found a config.json without model_type; name a fold"),
        (overwritten("model.safetensors", b"junk"), "found a safetensors file that is cut or dam"),
        (
            overwritten("tokenizer.json", b"\xff"),
            "tokenizer.json that can be loaded, found no JSON",
        ),
        (
            overwritten("tokenizer_config.json", b"[]"),
            "tokenizer_config.json that can be loaded, f",
        ),
        (
            overwritten("preprocessor_config.json", b"{"),
            "processor_config.json that can be loaded, f",
        ),
        (
            lambda folder: edit_json(
                folder / "preprocessor_config.json",
                image_processor_type="Evil",
                auto_map={"AutoImageProcessor": "x--y.Z"},
            ),
            "found preprocessor_config.json of a model with code of its own, which is never run he",
        ),
        (configured(projection_dim=None), "a width of vectors above 0 in config.json, found None;"),
        (configured(projection_dim=0), "a width of vectors above 0 in config.json, found 0; fetch"),
        (configured(model_type=["clip"]), "found a config.json without model_type"),
        (configured(model_type="jina_clip", auto_map={}), "type 'jina_clip', which transformers "),
        (configured(model_type="clip_text_model"), "found a model of texts alone (type 'clip_tex"),
        (stretched, "hidden_size' expected int, got str (value: 'x'); fetch that file again, or"),
        (open_clip_beside_config, "found files of open_clip; take oc:"),
        (sentence_transformer_of_texts, "found a SentenceTransformer; take st:"),
        (widen, "expected pictures of 32 px, as config.json says, found an image processor that"),
        (
            lambda folder: edit_json(folder / "preprocessor_config.json", do_resize=False),
            "expected an image processor that resizes, or resizes and crops, to a square, found",
        ),
    ],
)
def test_a_bad_folder_gets_one_line(clip_copy, spoil, message):
    spoil(clip_copy)
    with pytest.raises(EncoderError) as caught:
        load_encoder(f"hf:{clip_copy}", FLOAT32)
    line = str(caught.value)
    assert line.startswith(f"encoder hf:{clip_copy}: ") and message in line
    assert "\n" not in line
    with pytest.raises((EncoderError, UsageError)):  # by the door of matchers too
        load_matcher(f"hf:{clip_copy}", FLOAT32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:", "expected a folder or an id after the colon"),
        ("hf:/no/such/folder", "expected a model folder, found no such folder; check the path"),
        ("hf:./none", "found no such folder"),
        (f"hf:{__file__}", "expected a model folder, found a file"),
        ("hf:two words", "expected a model folder or a Hugging Face id, found neither; check the"),
        ("hf:a/b/c", "an id reads owner/name"),
    ],
)
def test_a_bad_name_gets_one_line(name, message):
    with pytest.raises(EncoderError) as caught:
        load_encoder(name, FLOAT32)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (hub_errors.LocalEntryNotFoundError("long\ntext"), "no answer from huggingface.co and no"),
        (OSError("\nConnection reset\nTraceback"), "from the hub: Connection reset; try again"),
    ],
)
def test_a_hub_that_does_not_answer_gets_one_line(monkeypatch, error, message):
    def answer(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    with pytest.raises(EncoderError) as caught:
        load_encoder("hf:owner/name", FLOAT32)
    assert str(caught.value).startswith("encoder hf:owner/name: ") and message in str(caught.value)


def test_an_id_is_fetched_at_its_revision_and_without_what_is_not_needed(
    monkeypatch, folder, encoder
):
    requested = {}

    def answer(name, **arguments):
        requested.update(arguments, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    fetched = load_encoder("hf:owner/name@refs/pr/3", FLOAT32)
    assert fetched.name == "hf:owner/name@refs/pr/3"
    assert fetched.fingerprint == encoder.fingerprint
    assert (requested["name"], requested["revision"]) == ("owner/name", "refs/pr/3")
    assert "model*.safetensors" in requested["allow_patterns"]
    assert not [pattern for pattern in requested["allow_patterns"] if ".bin" in pattern]
