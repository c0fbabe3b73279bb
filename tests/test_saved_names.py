"""Files keep the names that they have: of tensors, of config keys, of settings."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from conftest import TESTS
from first_format import first_format
from safetensors import safe_open

from chiasm.pipeline.errors import ChiasmError, EncoderError
from chiasm.pipeline.model import JointModel
from chiasm.pipeline.model.checkpoint import (
    CONFIG_NAMES,
    TENSOR_NAMES,
    load_config,
    load_model,
    names_in_code,
    names_in_files,
    save_model,
    tensors_in_code,
    tensors_in_files,
)
from chiasm.pipeline.model.config import (
    DecoderConfig,
    FusionConfig,
    ImageConfig,
    ModelConfig,
    TextConfig,
)
from chiasm.pipeline.model.frozen_joint import (
    FROZEN_FILES,
    FrozenJointConfig,
    FrozenJointNetwork,
    load_frozen_joint,
    save_frozen_joint,
)
from chiasm.pipeline.model.fusion import FUSIONS
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.training.pocket.data import DataSettings, learn_tokenizer, train_batch
from chiasm.pipeline.training.pocket.settings import TrainSettings
from chiasm.pipeline.training.pocket.state import STATE
from chiasm.pipeline.training.pocket.trainer import Training
from chiasm.pipeline.training.two_tower import trainer as two_tower_trainer
from chiasm.pipeline.two_tower import checkpoint as two_tower
from chiasm.pipeline.two_tower.network import TwoTowerConfig, TwoTowerNetwork

CPU = torch.device("cpu")
STORED = TESTS / "data" / "collection-schema-1" / "model"  # of the first format, by its own code
TINY = ModelConfig(
    ImageConfig(side=36, stem=(8, 16), width=32, depth=1, heads=2),
    TextConfig(vocabulary=400, context=40, width=32, depth=1, heads=2),
    dim=16,
    fusion=FusionConfig(width=32, depth=1, heads=2),
)
TWO_TOWER = TwoTowerConfig(
    "an image model", "1", "a text model", "2", image_width=6, patch_width=5, text_width=7,
    word_width=4, landmarks=3, text_landmarks=2, query_bank=3, words=5, dim=9, image_hidden=6,
    text_hidden=6, word_hidden=6,
    fusion=FusionConfig(fusion="gated", width=8, depth=1, heads=2, slots=2),
)  # fmt: skip


def names_of(path):
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def test_a_folder_of_the_first_format_is_read_and_saved_in_the_present_one(tmp_path):
    first, present = tmp_path / "first", tmp_path / "present"
    made = first_format(first, load_config(STORED))
    # The names are those of a folder that was written then.
    assert names_of(first / "model.safetensors") == names_of(STORED / "model.safetensors")
    assert "fusion.mix.nothing" in names_of(STORED / "model.safetensors")
    written, then = (json.loads((folder / "config.json").read_text()) for folder in (first, STORED))
    then["text"]["vocabulary"] = written["text"]["vocabulary"]
    assert written == then
    network, tokenizer = load_model(first)
    save_model(present, network.state_dict(), network.config, tokenizer)
    again, same_tokenizer = load_model(present)
    assert again.config == network.config == made.config
    for name, tensor in made.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
        assert torch.equal(again.state_dict()[name], tensor), name
    for text in ("two big red boats at sea", "一艘红色的船，在夜里", "naïve ✓"):
        assert same_tokenizer.encode(text) == tokenizer.encode(text)
    # The rule of the first format goes with its tokenizer.
    texts = ["what is it?", "two boats ."]
    assert (same_tokenizer.batch(texts, 16) == tokenizer.batch(texts, 16)).all()
    assert same_tokenizer.text_rule == tokenizer.text_rule
    one, two = JointModel(network, tokenizer), JointModel(again, same_tokenizer)
    features = [m(m.preprocess(["a red boat"]))["sentence_embedding"] for m in (one, two)]
    assert torch.equal(*features)


def test_a_joint_model_has_in_files_the_names_that_it_has_in_code(tmp_path):
    tokenizer = learn_tokenizer(300, 20)
    config = replace(
        TINY,
        text=replace(TINY.text, vocabulary=len(tokenizer)),
        decoder=DecoderConfig(width=16, depth=1, heads=2, context=6, prefixes=("ask:en",)),
    )
    weights = weights_of(config)
    save_model(tmp_path, weights, config, tokenizer)
    assert names_of(tmp_path / "model.safetensors") == set(weights)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert list(saved) == ["format", "image", "text", "dim", "fusion", "decoder"]
    assert load_model(tmp_path)[0].config == config


def test_weights_that_are_not_finite_in_files_are_not_written(tmp_path):
    tokenizer = learn_tokenizer(300, 20)
    network = JointNetwork(replace(TINY, text=replace(TINY.text, vocabulary=len(tokenizer))))
    weights = network.state_dict() | {"text.norm.weight": torch.full((32,), 1e6)}
    with pytest.raises(
        ChiasmError, match=r"expected weights .* found others in text\.norm\.weight"
    ):
        save_model(tmp_path, weights, network.config, tokenizer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"format": "chiasm joint model 99"}, "found a chiasm joint model 99"),
        ({"format": 3}, "found ValueError: format 3 in config.json: expected chiasm joint model"),
        ({"format": None}, "format None in config.json"),
        ({"rope": True}, "rope"),
        (
            {"text": {"vocabulary": 300, "rotary": 1}},
            r"unknown: rotary; missing: context, depth, h",
        ),
        ({"decoder": {"width": 16, "depth": 1, "heads": 2, "context": 6}}, "missing: prefixes"),
    ],
)
def test_configs_that_it_does_not_know_are_refused(tmp_path, change, found):
    tokenizer = learn_tokenizer(300, 20)
    config = replace(TINY, text=replace(TINY.text, vocabulary=len(tokenizer)))
    save_model(tmp_path, weights_of(config), config, tokenizer)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved | change))
    with pytest.raises(EncoderError, match=found):
        load_model(tmp_path)


def test_a_tokenizer_of_other_ids_than_the_network_is_refused_in_one_line(tmp_path):
    tokenizer, other = learn_tokenizer(300, 20), learn_tokenizer(280, 20)
    size = len(tokenizer)
    assert len(other) < size
    config = replace(TINY, text=replace(TINY.text, vocabulary=size))
    line = (
        f"model folder {tmp_path}: expected a tokenizer of {size} ids, as its config says, "
        f"found one of {len(other)}"
    )
    with pytest.raises(EncoderError, match=f"^{re.escape(line)}$"):
        save_model(tmp_path, weights_of(config), config, other)
    assert not list(tmp_path.iterdir())
    save_model(tmp_path, weights_of(config), config, tokenizer)
    (tmp_path / "tokenizer.json").write_text(other.to_json())
    with pytest.raises(EncoderError, match=f"^{re.escape(line)}; copy the folder again$"):
        load_model(tmp_path)


def test_the_folder_of_a_frozen_joint_network_is_whole_or_as_it_was(tmp_path):
    torch.manual_seed(0)
    network = FrozenJointNetwork(FrozenJointConfig("pocket", "f" * 32, 8, TINY.fusion))
    save_frozen_joint(tmp_path, network)
    before = {name: (tmp_path / name).read_bytes() for name in FROZEN_FILES}
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            network.matching.conflict.weight[0, 1] = value
        with pytest.raises(
            ChiasmError, match=r"expected finite tensors, found others in matching\.conflict\.w"
        ):
            save_frozen_joint(tmp_path, network)
    assert {name: (tmp_path / name).read_bytes() for name in FROZEN_FILES} == before
    assert load_frozen_joint(tmp_path).config == network.config
    fields = json.loads(before["config.json"])
    for change, found in (
        ({"dim": ...}, "FrozenJointConfig: expected exactly its fields, found missing: dim"),
        ({"rope": 1}, "FrozenJointConfig: expected exactly its fields, found unknown: rope"),
        ({"fusion": {"fusion": "add"}}, "FusionConfig: .* found missing: depth, heads, slots, wid"),
    ):
        changed = {k: v for k, v in {**fields, **change}.items() if v is not ...}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(EncoderError, match=found):
            load_frozen_joint(tmp_path)


def test_the_config_of_two_towers_lacks_no_field():
    fields = two_tower.config_to_json(TWO_TOWER)
    for name in fields:
        some = {key: value for key, value in fields.items() if key != name}
        with pytest.raises(ValueError, match=r"TwoTowerConfig: .* found missing: \w+$"):
            two_tower.config_from_json(some)


def weights_of(config):
    torch.manual_seed(0)
    return JointNetwork(config).state_dict()


@pytest.mark.parametrize("fusion", [*FUSIONS, None])
def test_names_of_every_model_come_back(fusion):
    torch.manual_seed(0)
    joint = replace(TINY, fusion=replace(TINY.fusion, fusion=fusion) if fusion else None)
    towers = replace(TWO_TOWER, fusion=joint.fusion)
    for weights, names in (
        (weights_of(joint), TENSOR_NAMES),
        (TwoTowerNetwork(towers).state_dict(), two_tower.TENSOR_NAMES),
    ):
        saved = tensors_in_files(weights, names)
        assert len(saved) == len(weights)
        back = tensors_in_code(saved, names)
        assert list(back) == list(weights)
        assert all(back[name] is weights[name] for name in weights)
    assert names_in_code(names_in_files(joint.to_dict(), CONFIG_NAMES), CONFIG_NAMES) == (
        joint.to_dict()
    )
    assert two_tower.config_from_json(json.loads(json.dumps(two_tower.config_to_json(towers)))) == (
        towers
    )


def test_a_two_tower_model_has_the_names_that_it_has_in_files(tmp_path):
    torch.manual_seed(0)
    network = TwoTowerNetwork(TWO_TOWER)
    two_tower.save_two_tower(tmp_path / "one", network)
    names = names_of(tmp_path / "one" / "model.safetensors")
    assert {
        "usual", "evidence", "word_ids", "kernel.shift", "kernel.spread",
        "kernel.vectors", "kernel.landmarks", "expansion.rarity", "expansion.meaning",
        "expansion.words", "expansion.landmarks", "hubs.asked", "words.weight", "words.bias",
        "words.net.1.weight", "heads.image.skip.weight", "fusion.inward.0.weight",
        "fusion.mix.query", "fusion.mix.gate.weight",
    } <= names  # fmt: skip
    saved = json.loads((tmp_path / "one" / "config.json").read_text())
    assert {"root", "asked", "hub_power"} <= set(saved) and saved["fusion"]["how"] == "gated"
    two_tower.save_two_tower(tmp_path / "two", two_tower.load_two_tower(tmp_path / "one"))
    for name in two_tower.FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_trainings_keep_the_names_of_their_states_and_settings(tmp_path):
    settings = TrainSettings(
        steps=2, fusion_steps=1, fusion_batch=8, corpus=20, calibrated=4, model=TINY,
        data=DataSettings(batch=8, side=36, context=40),
    )  # fmt: skip
    training = Training(settings, CPU, learn_tokenizer(300, 20))
    training.train_step(train_batch(0, settings.data, training.tokenizer))
    training.save(tmp_path)
    names = names_of(tmp_path / STATE)
    assert {
        "weights.model.fusion.inward.0.weight", "average.matching.benefit",
        "weights.probes.lies_of_vector.weight", "weights.probes.lies_of_tokens.answer.weight",
        "weights.probes.discord.weight", "weights.probes.ground.weight",
        "weights.probes.heard.attention.query.weight", "weights.probes.heard.answer.bias",
        "weights.probes.telling.weight", "weights.probes.log_sharpness", "weights.model.log_scale",
        "optimiser.0.exp_avg",
    } <= names  # fmt: skip
    saved = settings.to_json()
    assert saved["rate"] == 1e-3 and saved["feed"]["batch"] == 8
    assert saved["model"]["fusion"]["how"] == "cross_attention"
    again = Training(settings, CPU, training.tokenizer)
    again.resume(tmp_path)
    for name, tensor in training.tensors().items():
        assert torch.equal(again.tensors()[name], tensor), name


def test_settings_of_two_towers_keep_their_names():
    settings = two_tower_trainer.TrainSettings(learning_rate=0.5, token_mask_rate=0.25)
    saved = settings.to_json()
    assert (saved["rate"], saved["lost"]) == (0.5, 0.25) and "learning_rate" not in saved
    assert two_tower_trainer.TrainSettings.from_json(saved) == settings


def test_a_folder_of_two_towers_is_refused_as_a_joint_model_in_one_line(tmp_path):
    torch.manual_seed(0)
    two_tower.save_two_tower(tmp_path, TwoTowerNetwork(TWO_TOWER))
    with pytest.raises(EncoderError) as caught:
        JointModel.load(str(tmp_path))
    assert str(caught.value) == (
        f"model folder {tmp_path}: expected a chiasm joint model 2 or 1, as chiasm train pocket "
        f"writes, found a chiasm two-tower model 8; load it as an encoder: two-tower:{tmp_path}"
    )


def test_the_folder_of_a_training_is_a_joint_model(tmp_path):
    settings = TrainSettings(
        steps=1, fusion_steps=0, corpus=20, model=replace(TINY, fusion=None),
        data=DataSettings(batch=8, side=36, context=40),
    )  # fmt: skip
    training = Training(settings, CPU, learn_tokenizer(300, 20))
    training.save(tmp_path)
    assert JointModel.load(str(tmp_path)).get_embedding_dimension() == TINY.dim
    with pytest.raises(EncoderError, match=r"found no model\.safetensors"):
        JointModel.load(str(tmp_path / "nowhere"))
