"""Settings: one place composes them, nothing unknown slips through."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict

import pytest
import torch
import yaml

from chiasm.index.plan import IndexSettings
from chiasm.jobs.config import Settings, compose, keys
from chiasm.jobs.preset_files import presets
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.config import (
    DecoderConfig,
    ImageConfig,
    ImageTokensConfig,
    ModelConfig,
)
from chiasm.pipeline.model.towers import ImageTower
from chiasm.pipeline.two_tower.network import TwoTowerConfig


def test_flags_win_over_set_and_set_over_the_preset(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("batch: {size: 8, decode_threads: 3}\nworkers.count: 5\n")
    settings = compose(
        str(preset),
        ["batch.size=16", "encoder.precision=float32"],
        {"encoder.name": "hf:x", "max_loss": None},
    )
    assert settings.batch.size == 16
    assert settings.batch.decode_threads == 3
    assert settings.workers.count == 5
    assert settings.encoder.precision == "float32"
    assert settings.encoder.name == "hf:x"
    assert settings.max_loss == Settings().max_loss


@pytest.mark.parametrize("name", presets())
def test_every_shipped_preset_is_valid_and_says_something(name):
    assert compose(name) != Settings()


def test_the_settings_in_force_compose_to_themselves(tmp_path):
    settings = compose("cluster", ["batch.size=7"])
    saved = tmp_path / "saved.yaml"
    saved.write_text(yaml.safe_dump(settings.as_dict()))
    assert compose(str(saved)) == settings


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["batch.sise=3"], "unknown setting 'batch.sise' in --set; did you mean batch.size?"),
        (["batch=3"], "unknown setting 'batch' in --set"),
        (["batch.size"], "--set batch.size: expected key=value, as in batch.size=32"),
        (["batch.size=many"], "setting batch.size: expected a whole number, found 'many'"),
        (["batch.size=true"], "setting batch.size: expected a whole number, found True"),
        (["batch.size=32.0"], "setting batch.size: expected a whole number, found 32.0"),
        (["batch.size='32'"], "setting batch.size: expected a whole number, found '32'"),
        (["workers.cpus=yes"], "setting workers.cpus: expected a number, found True"),
        (["train.learning_rate=false"], "setting train.learning_rate: expected a number, found Fa"),
        (["decode.max_seconds=.nan"], "setting decode.max_seconds: expected a number, found nan"),
        (["decode.scaled=1"], "setting decode.scaled: expected true or false, found 1"),
        (["batch.size=99999999999999999999"], "size: expected a number, found one of 67 bits"),
        (["index.nprobe=-0x" + "f" * 9999], "nprobe: expected a number, found one of 39996 bits"),
        (["batch.queue=1000000000001"], "batch.queue: expected 1e+12 or less, found 1e+12"),
        (["decode.max_seconds=.inf"], "decode.max_seconds: expected 1e+12 or less, found inf"),
        (["encoder.threads=5000"], "encoder.threads: expected 4096 or less, found 5000"),
        (["batch.decode_threads=5000"], "batch.decode_threads: expected 4096 or less, found 5000"),
        (["train.drawing_processes=5000"], "processes: expected 4096 or less, found 5000"),
        (["train.seed=-1"], "train.seed: expected 0 or more, found -1"),
        (["workers.count=0"], "workers.count: expected 1 or more, found 0"),
        (["batch.size=0"], "batch.size: expected 1 or more, found 0"),
        (["batch.decode_threads=-1"], "batch.decode_threads: expected 0 or more, found -1"),
        (["read.max_member_bytes=0"], "read.max_member_bytes: expected 1 or more, found 0"),
        (["decode.max_megapixels=-1"], "decode.max_megapixels: expected 0 or more, found -1"),
        (["max_loss=2"], "max_loss: expected a share from 0 to 1, found 2"),
        (["batch.size=[1"], "--set batch.size=[1: expected YAML"),
        (["index.exact_belw=3"], "unknown setting 'index.exact_belw' in --set; did you mean index"),
        (["index.segment_rows=0"], "index.segment_rows: expected 1 or more, found 0"),
        (["train.steps=0"], "train.steps: expected 1 or more, found 0"),
        (["train.learning_rate=0"], "train.learning_rate: expected more than 0, found 0"),
        (["train.learning_rate=-0.001"], "train.learning_rate: expected more than 0, found -0.001"),
        (["train.learning_rate=1.5"], "train.learning_rate: expected 1 or less, found 1.5"),
        (["train.learning_rate=.inf"], "train.learning_rate: expected 1 or less, found inf"),
        (["train.learning_rate=.nan"], "setting train.learning_rate: expected a number, found nan"),
        (["filter.drop=3"], "filter.drop: expected a share from 0 to 1, found 3"),
        (["filter.flag=perhaps"], "setting filter.flag: expected true or false, found 'perhaps'"),
        (["batch.size=*a"], "--set batch.size=*a: expected YAML, found an alias (*name)"),
        (["batch.size=" + "[" * 20000], "expected YAML, found nesting that is too deep"),
        (["workers.cpus=.inf"], "workers.cpus: expected 1e+06 or less, found inf"),
        (["batch.size.x=3"], "unknown setting 'batch.size.x' in --set; did you mean batch.size?"),
    ],
)
def test_a_bad_setting_is_told_in_one_line(assignments, message):
    with pytest.raises(UsageError) as raised:
        compose("laptop", assignments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_preset_lists_the_valid_ones():
    with pytest.raises(UsageError, match="cluster, laptop, one_gpu or the path of a YAML file"):
        compose("nope")


def test_a_preset_with_an_unknown_key_names_the_file(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("batch: {sizes: 8}\n")
    with pytest.raises(UsageError, match=re.escape(f"'batch.sizes' in {preset}")):
        compose(str(preset))


ODD_FILES = {
    "not utf-8": b"max_loss: 0.1 # caf\xe9",
    "utf-16": "max_loss: 0.2".encode("utf-16"),
    "a bomb": b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (n + 1, n + 1, n, n)
                                         for n in range(97, 121)),
    "itself": b"&a {b: *a}",
    "deep": b"{a: " * 2000,
    "no month": b"max_loss: 2026-13-45",
    "long number": b"batch: {size: " + b"9" * 5000 + b"}",
    "number as key": b"1: 2",
    "list as key": b"? [a]\n: 1",
    "a list": b"- a",
    "null": b"\0",
    "python": b"max_loss: !!python/object/apply:os.system ['exit']",
    "null group": b"batch: null",
    "infinite": b"workers: {cpus: .inf}",
    "a key twice": b"batch:\n  size: 1\n  size: 2\n",
    "a group twice": b"batch: {size: 1}\nindex: {nprobe: 2}\nbatch: {queue: 3}\n",
    "a key by a dot and in a group": b"batch.size: 1\nbatch: {size: 2}\n",
    "too large": b"#" * (1 << 20) + b"\n",
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_FILES)
def test_an_odd_file_of_settings_is_one_line(name, tmp_path):
    (tmp_path / "odd.yaml").write_bytes(ODD_FILES[name])
    with pytest.raises(UsageError) as raised:
        compose(str(tmp_path / "odd.yaml"))
    assert "\n" not in str(raised.value)


def test_a_key_that_is_given_twice_is_named_with_its_line(tmp_path):
    path = tmp_path / "mine.yaml"
    for name, found in {
        "a key twice": "expected YAML, found the key 'size' twice in line 3",
        "a group twice": "expected YAML, found the key 'batch' twice in line 3",
        "a key by a dot and in a group": "expected each key once, found batch.size twice",
    }.items():
        path.write_bytes(ODD_FILES[name])
        with pytest.raises(UsageError) as raised:
            compose(str(path))
        assert str(raised.value) == f"{path}: {found}"
    assert compose("laptop", ["batch.size=1", "batch.size=2"]).batch.size == 2


def test_numbers_are_taken_as_people_write_them():
    written = ["train.learning_rate=1e-4", "workers.cpus=2", "max_loss=0", "train.steps=null"]
    settings = compose("laptop", [*written, "batch.size=1_000"])
    assert (settings.train.learning_rate, settings.train.steps) == (1e-4, None)
    assert (settings.workers.cpus, settings.max_loss, settings.batch.size) == (2, 0, 1000)


@pytest.mark.parametrize(
    "preset", ["folder", "pipe", "/dev/zero", "a\0b", "x" * 5000, "\ud800", ""]
)
def test_what_is_no_file_of_settings_is_one_line_and_is_not_waited_for(
    preset, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"laptop, one_gpu or the path of a YAML file, found"):
        compose(preset)


def test_a_file_of_settings_may_begin_with_a_mark(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xef\xbb\xbfmax_loss: 0.2\n")
    assert compose(str(tmp_path / "mine.yaml")).max_loss == 0.2


def test_settings_of_every_command_come_from_one_file(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("index: {nprobe: 4}\ntrain: {fusion: gated}\nfilter: {drop: 0.3}\n")
    settings = compose(str(preset), ["train.learning_rate=1e-3"])
    assert settings.index == IndexSettings(nprobe=4)
    assert (settings.train.fusion, settings.train.learning_rate) == ("gated", 1e-3)
    assert settings.filter.drop == 0.3 and settings.filter.threshold == 0


def test_a_setting_that_the_command_does_not_use_is_refused_but_in_a_file(tmp_path):
    uses = ("encoder.device", "index")
    settings = compose("cluster", ["encoder.device=cpu", "index.nprobe=3"], uses=uses)
    assert settings.index.nprobe == 3 and settings.encoder.device == "cpu"
    message = "--set encoder.name: expected a setting that this command uses: encoder.device, index"
    with pytest.raises(UsageError, match=message):
        compose("laptop", ["encoder.name=pocket"], uses=uses)
    with pytest.raises(UsageError, match=r"did you mean batch\.size"):
        compose("laptop", ["batch.sise=1"], uses=uses)


def test_keys_are_dotted_and_complete():
    assert {"encoder.name", "batch.size", "workers.gpus", "max_loss"} <= set(keys(Settings))


WHOLE = ModelConfig(decoder=DecoderConfig(), image_tokens=ImageTokensConfig())
# Fields of a model's config that folders written earlier lack -> what they are in these.
EARLIER = {
    ("", "fusion"): None,
    ("", "decoder"): None,
    ("", "image_tokens"): None,
    ("fusion", "bounded_residual"): False,
    ("fusion", "residual_of_vectors"): False,
    ("decoder", "grounding"): 0,
    ("decoder", "reads_fused"): False,
}


def part_of(fields, name):
    return fields[name] if name else fields


def plain_fields():
    return json.loads(json.dumps(WHOLE.to_dict()))


@pytest.mark.parametrize("part", ["", "image", "text", "fusion", "decoder", "image_tokens"])
def test_the_config_of_a_model_names_all_fields_that_it_does_not_know_or_lacks(part):
    assert ModelConfig.from_dict(plain_fields()) == WHOLE
    for name in part_of(plain_fields(), part):
        fields = plain_fields()
        del part_of(fields, part)[name]
        if (part, name) in EARLIER:
            found = asdict(ModelConfig.from_dict(fields))
            assert part_of(found, part)[name] == EARLIER[part, name]
            continue
        with pytest.raises(ValueError, match=f"expected exactly its fields, found missing: {name}"):
            ModelConfig.from_dict(fields)
        part_of(fields, part).update({"of a later version": 1, "another": 2})
        line = f"Config: .* found unknown: another, of a later version; missing: {name}$"
        with pytest.raises(ValueError, match=line):
            ModelConfig.from_dict(fields)


def test_parts_of_a_config_that_have_no_fields_are_refused():
    for wrong in ([], {}, "gated", 3):
        with pytest.raises(ValueError, match="FusionConfig: expected"):
            ModelConfig.from_dict(plain_fields() | {"fusion": wrong})
    with pytest.raises(ValueError, match="ModelConfig: expected fields by name, found None"):
        ModelConfig.from_dict(None)


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("prefixes", 3, "prefixes: expected a tuple, found 3"),
        ("grounding", -1, "grounding: expected 0 or more, found -1"),
        ("depth", 0, "depth: expected 1 or more, found 0"),
        ("width", 0, "width: expected 1 or more, found 0"),
        ("width", "wide", "width: expected 1 or more, found 'wide'"),
    ],
)
def test_sizes_that_no_decoder_has_are_refused(field, value, line):
    with pytest.raises(ValueError, match=f"^decoder {line}$"):
        DecoderConfig(**{field: value})
    with pytest.raises(ValueError, match=f"^decoder {line}$"):
        plain = plain_fields()
        ModelConfig.from_dict(plain | {"decoder": plain["decoder"] | {field: value}})


@pytest.mark.parametrize(
    ("part", "field", "value", "line"),
    [
        ("text", "heads", 0, "text heads: expected 1 or more, found 0"),
        ("text", "heads", "3", "text heads: expected 1 or more, found '3'"),
        ("text", "heads", True, "text heads: expected 1 or more, found True"),
        ("image", "heads", 7, "image heads: expected a divisor of the width 192, found 7"),
        ("image", "side", 70, "image: expected a side of whole patches, such as a"),
        (
            "image",
            "stem",
            [48],
            "image: expected a side of whole patches, such as a",
        ),
        (
            "image",
            "stem",
            [48, 0],
            "image stem: expected several numbers, each 1 or more, found (48, 0)",
        ),
        ("fusion", "heads", None, "fusion heads: expected 1 or more, found None"),
        ("fusion", "slots", 2.5, "fusion slots: expected 1 or more, found 2.5"),
        ("fusion", "bounded_residual", "x", "bounded_residual: expected true or false, found 'x'"),
        ("decoder", "heads", True, "decoder heads: expected 1 or more, found True"),
        ("decoder", "heads", 7, "decoder heads: expected a divisor of the width 192, found 7"),
        ("decoder", "reads_fused", "no", "reads_fused: expected true or false, found 'no'"),
        ("image_tokens", "width", -1, "image tokens width: expected 1 or more, found -1"),
        ("image_tokens", "depth", [1], "image tokens depth: expected two numbers, found (1,)"),
        (None, "dim", 0, "dim: expected 1 or more, found 0"),
    ],
)
def test_values_that_no_config_of_a_model_has_are_refused(part, field, value, line):
    plain = ModelConfig(decoder=DecoderConfig(), image_tokens=ImageTokensConfig()).to_dict()
    (plain[part] if part else plain)[field] = value
    with pytest.raises(ValueError, match=re.escape(line)):
        ModelConfig.from_dict(plain)


def test_prefixes_that_no_task_has_are_refused():
    with pytest.raises(ValueError, match=r"expected some of caption:en, .* found sing:en, ask:fr$"):
        DecoderConfig(prefixes=("ask:en", "sing:en", "ask:fr"))
    with pytest.raises(ValueError, match=r"each once, found ask:en, ask:en$"):
        DecoderConfig(prefixes=("ask:en", "ask:en"))
    fields = plain_fields()
    fields["decoder"]["prefixes"] = ["caption:en", "ask"]
    with pytest.raises(ValueError, match=r"decoder prefixes: .* found ask$"):
        ModelConfig.from_dict(fields)


@pytest.mark.parametrize("side", [32, 36, 64, 128, 224])
def test_a_side_of_whole_patches_is_one(side):
    """As the stem makes them: a stride of 4, rounded up, then one of 3, rounded down."""
    config = ImageConfig(side=side, stem=(8, 8), width=8, depth=1, heads=2)
    pixels = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    assert ImageTower(config)(pixels)[0].shape == (1, config.patches, 8)


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("sharpness", "x", "sharpness: expected a number, found 'x'"),
        ("sharpness", float("nan"), "sharpness: expected a number, found nan"),
        ("text_weight", None, "text_weight: expected a number, found None"),
        ("image", 3, "image: expected a text, found 3"),
        ("words", -1, "words: expected 0 or more, found -1"),
        ("dim", 1, "dim: expected 2 or more, found 1"),
        ("sqrt_features", 1, "sqrt_features: expected true or false, found 1"),
    ],
)
def test_values_that_no_two_tower_model_has_are_refused(field, value, line):
    plain = {"image": "a", "image_fingerprint": "1", "text": "b", "text_fingerprint": "2"}
    plain |= {"image_width": 6, "patch_width": 5, "text_width": 7, "word_width": 4}
    with pytest.raises(ValueError, match=re.escape(line)):
        TwoTowerConfig(**{**plain, field: value})
