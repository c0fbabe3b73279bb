"""A model folder of the first format, "chiasm joint model 1", small and with random weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from chiasm.pipeline.model.checkpoint import (
    CONFIG_NAMES,
    FIRST_FORMAT,
    TENSOR_NAMES,
    names_in_files,
    tensors_in_files,
)
from chiasm.pipeline.model.config import ModelConfig
from chiasm.pipeline.model.joint import JointNetwork

# Characters and merges of the first weights that shipped.
TOKENIZER = Path(__file__).parent.parent / "data" / "first-tokenizer.json"
VOCABULARY = 998


def first_format(folder: Path, config: ModelConfig, seed: int = 0) -> JointNetwork:
    """Write such a folder, of this config without its vocabulary; what it has to be read as. The
    joint vector of that format is not bounded, and its config does not say so."""
    assert config.fusion is not None and not config.fusion.bounded_residual
    torch.manual_seed(seed)
    network = JointNetwork(replace(config, text=replace(config.text, vocabulary=VOCABULARY)))
    network.half().float().eval()  # as files keep them
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    fields = names_in_files(network.config.to_dict(), CONFIG_NAMES)
    for later in "bounded_residual", "residual_of_vectors":
        del fields["fusion"][later]
    fields = {"format": FIRST_FORMAT, **fields}
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    halves = {name: tensor.half() for name, tensor in network.state_dict().items()}
    save_file(tensors_in_files(halves, TENSOR_NAMES), folder / "model.safetensors")
    return network
