"""The state of a training on disk: its tensors, and the facts that its weights depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.checkpoint import (
    TENSOR_NAMES,
    load_state,
    names_in_code,
    save_state,
    tensors_in_code,
    tensors_in_files,
)
from chiasm.pipeline.model.config import ModelConfig
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.tokenizer import Tokenizer
from chiasm.pipeline.training.facts import changed, flat, values_of
from chiasm.pipeline.training.optim import without_prefix
from chiasm.pipeline.training.pocket.settings import STATE_CONFIG_NAMES

STATE = "state.safetensors"
# What the weights depend on beside the settings -> the flag that sets it. Rounding depends on the
# number of threads and on versions of torch, too: with others the weights differ by that.
CONDITIONS = {
    "precision": "--precision",
    "processes": "--processes",
    "device": "--device",
    "towers": "--towers",
}
TOKENIZER_DIGEST = "tokenizer"  # a condition, too, which no flag sets
# Name in code -> name in state.safetensors, as in model/checkpoint.py.
STATE_TENSOR_NAMES = {
    "probes.pooled_disagreement.": "probes.discord.",
    "probes.patch_disagreement.": "probes.ground.",
    "probes.word_location.out.": "probes.heard.answer.",
    "probes.word_location.": "probes.heard.",
    "probes.word_weight.": "probes.telling.",
    "probes.log_scale": "probes.log_sharpness",
    "probes.relations_of_vector.": "probes.lies_of_vector.",
    "probes.relations_of_tokens.out.": "probes.lies_of_tokens.answer.",
    "probes.relations_of_tokens.": "probes.lies_of_tokens.",
    **TENSOR_NAMES,
}


def digest_of(tokenizer: Tokenizer, weights: Mapping[str, Tensor] | None = None) -> str:
    """12 hexadecimal digits that name a tokenizer, with the float16 form of weights in order of
    their names, by which a model folder has them."""
    digest = hashlib.sha256(tokenizer.to_json().encode())
    for _, weight in sorted((weights or {}).items()):
        digest.update(weight.half().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def write_state(folder: Path, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
    """Write the state whole or not at all."""
    save_state(folder / STATE, tensors_in_files(tensors, STATE_TENSOR_NAMES), facts)


def average_of(folder: Path, model: JointNetwork) -> dict[str, Tensor]:
    """The weights of the model that a folder has, by name: as they were before they were rounded to
    float16, where its training's state is there and is of this very model."""
    weights = model.state_dict()
    if not (folder / STATE).exists():
        return weights
    tensors = tensors_in_code(load_state(folder / STATE)[0], STATE_TENSOR_NAMES)
    exact = without_prefix(tensors, "average.")
    return {
        name: exact[name] if torch.equal(exact.get(name, weight).half(), weight.half()) else weight
        for name, weight in weights.items()
    }


def read_state(
    folder: Path, settings: Mapping[str, Any], conditions: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of the state in a folder; UsageError where it was written under other
    settings (by their names in files), or other conditions (by the keys of CONDITIONS)."""
    tensors, facts = load_state(folder / STATE)
    # First: the state of an earlier version has other settings as well, which nobody can give.
    _require_same_conditions(folder, facts, conditions)
    if facts["settings"].keys() != settings.keys():
        raise UsageError(
            f"training in {folder}",
            expected="a state with the settings of this version of chiasm",
            found="one of another version, which has others",
            do="train anew in another folder",
        )
    before, now = (
        dict(flat(names_in_code(saved, STATE_CONFIG_NAMES)))
        for saved in (facts["settings"], settings)
    )
    names = changed(before, now)
    if names:
        raise UsageError(
            f"training in {folder}",
            expected=f"{values_of(before, names)}, as it began",
            found=values_of(now, names),
            do="give what it began with, or another folder",
        )
    return tensors_in_code(tensors, STATE_TENSOR_NAMES), facts


def _require_same_conditions(
    folder: Path, facts: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """UsageError where facts of a state and conditions of now are not the same. States of earlier
    versions have no such facts, and could be continued to other weights without a word: refused."""
    names = [*CONDITIONS, TOKENIZER_DIGEST]
    if not set(names) <= facts.keys():
        raise UsageError(
            f"training in {folder}",
            expected="a state that names its " + ", ".join(names),
            found="one of an earlier version of chiasm, which does not",
            do="train anew in another folder",
        )
    changed = [name for name in CONDITIONS if facts[name] != now[name]]
    if changed:
        raise UsageError(
            f"training in {folder}",
            expected=", ".join(f"{name} {facts[name]}" for name in changed),
            found=", ".join(f"{name} {now[name]}" for name in changed),
            do=", ".join(_flag(name, facts[name]) for name in changed) + ", or take another folder",
        )
    if facts[TOKENIZER_DIGEST] != now[TOKENIZER_DIGEST]:
        raise UsageError(
            f"training in {folder}",
            expected=f"the tokenizer it was started with, {facts[TOKENIZER_DIGEST]}",
            found=f"another, {now[TOKENIZER_DIGEST]}",
            do="put its tokenizer.json back, or take another folder",
        )


def _flag(name: str, value: Any) -> str:
    """How to get a condition back."""
    if value is None:
        return f"leave out {CONDITIONS[name]}"
    return f"give {CONDITIONS[name]} " + ("as then" if name == "towers" else str(value))


def shapes_of(names: Sequence[str], config: ModelConfig) -> list[Any]:
    """The settings that shape the tensors of these names."""
    parts = {name.split(".")[0] for name in names}
    kept = [getattr(config, name) for name in ("fusion", "decoder") if name in parts]
    tokens = config.image_tokens if {"decoder", "image_tokens"} & parts else None
    return [config.image, config.text, config.dim, tokens, *kept]
