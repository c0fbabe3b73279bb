"""A two-tower model on disk: its weights, and the names of the towers it was trained on.

model.safetensors holds what was trained, solved and counted, float16 but for EXACT; config.json the
shapes and the towers' names and fingerprints: the towers themselves are not copied. TENSOR_NAMES
and CONFIG_NAMES translate between names in code and in files, as in `model/checkpoint.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.model import checkpoint as joint_checkpoint
from chiasm.pipeline.model.checkpoint import (
    CONFIG,
    MISFITS,
    WEIGHTS,
    load_as,
    names_in_code,
    names_in_files,
    require_finite_tensors,
    require_sound,
    tensors_in_code,
    tensors_in_files,
    write_file,
)
from chiasm.pipeline.two_tower.earlier import FormatSevenNetwork, FormatSixNetwork
from chiasm.pipeline.two_tower.network import TwoTowerConfig, TwoTowerNetwork

FILES = (WEIGHTS, CONFIG)
# A format is raised, too, where a constant changes that saved weights rely on: those of
# `expansion.py` and `hubness.py`, CLAMP of `network.py`, CROP_MARGIN, TOKEN_GRID and MAX_TOKENS of
# `frozen_towers.py`.
FORMAT = TwoTowerNetwork.format
READ = (TwoTowerNetwork, FormatSevenNetwork, FormatSixNetwork)
NETWORKS = {kind.format: kind for kind in READ}
EXACT = ("match_weights", "word_prior", "word_ids", "expansion.idf")  # small, or whole numbers
TENSOR_NAMES = {
    "word_prior": "usual",
    "match_weights": "evidence",
    "kernel.mean": "kernel.shift",
    "kernel.std": "kernel.spread",
    "kernel.word_weights": "kernel.shares",
    "expansion.idf": "expansion.rarity",
    "expansion.kernel_weights": "expansion.meaning",
    "expansion.word_weights": "expansion.words",
    "hubness.query_bank": "hubs.asked",
    "word_classifier.": "words.",
    **joint_checkpoint.TENSOR_NAMES,
}
CONFIG_NAMES = {
    "sqrt_features": "root",
    "query_bank": "asked",
    "hubness_power": "hub_power",
    **joint_checkpoint.CONFIG_NAMES,
}


def save_two_tower(folder: Path, network: TwoTowerNetwork) -> None:
    """Write a model folder. ChiasmError where a weight is not finite, or too large for float16."""
    kept = {
        name: (tensor if name in EXACT else tensor.half()).detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
    }
    require_finite_tensors(
        kept,
        f"model folder {folder}",
        "train into another folder, with other towers or a lower --learning-rate",
        "weights that are finite as float16",
    )
    fields = {"format": network.format, **config_to_json(network.config)}
    saved = save(tensors_in_files(kept, TENSOR_NAMES), metadata={"format": "pt"})
    write_file(folder / WEIGHTS, saved)
    write_file(folder / CONFIG, (json.dumps(fields, indent=2) + "\n").encode())


def config_to_json(config: TwoTowerConfig) -> dict[str, Any]:
    """A config by its names in files."""
    return names_in_files(config.to_dict(), CONFIG_NAMES)


def config_from_json(fields: Mapping[str, Any]) -> TwoTowerConfig:
    """Inverse of `config_to_json`; ValueError for unknown or missing fields."""
    return TwoTowerConfig.from_dict(names_in_code(fields, CONFIG_NAMES))


def load_two_tower(folder: Path) -> TwoTowerNetwork:
    """The network of a model folder, float32 on the CPU, in evaluation mode.

    Raises EncoderError: no such folder, a file missing, or files that are not what they should be.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise EncoderError(
            f"model folder {folder}",
            expected=", ".join(FILES),
            found="no " + ", no ".join(missing),
            do="name a folder written by chiasm train two-tower",
        )
    try:
        fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = fields.pop("format", None)
        if kind not in NETWORKS:
            raise _other_format(folder, kind)
        network = NETWORKS[kind](config_from_json(fields))
        saved = tensors_in_code(load_file(folder / WEIGHTS), TENSOR_NAMES)
        require_sound(saved, network)
        weights = {
            name: tensor if name in EXACT else tensor.to(torch.float32)
            for name, tensor in saved.items()
        }
        network.load_state_dict(weights)
    except MISFITS as error:
        raise EncoderError(
            f"model folder {folder}",
            expected="weights and config of one two-tower model",
            found=f"{type(error).__name__}: {error}"[:300],
            do="copy the folder again",
        ) from error
    return network.eval()


def _other_format(folder: Path, found: object) -> EncoderError:
    again = "train again: chiasm train two-tower, into another folder"
    return EncoderError(
        f"model folder {folder}",
        expected=" or ".join(NETWORKS),
        found=str(found),
        do=again if str(found).startswith("chiasm two-tower") else load_as(folder, found) or again,
    )
