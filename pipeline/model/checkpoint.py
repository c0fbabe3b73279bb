"""Models and trainings on disk: safetensors and JSON, so that nothing is ever unpickled.

A model folder holds model.safetensors, config.json and tokenizer.json, and is what an encoder
loads. Weights ship as float16: half the size, and after rounding the vectors keep a cosine above
0.9999. A training's state is one file more, float32, and is all that an exact resumption needs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.model.config import ModelConfig
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.tokenizer import Tokenizer

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
FILES = (WEIGHTS, CONFIG, TOKENIZER)
SHIPPED = Path(__file__).resolve().parent.parent / "pocket"


def save_model(
    folder: Path, weights: dict[str, Tensor], config: ModelConfig, tokenizer: Tokenizer
) -> None:
    """Write a model folder: weights of a `JointNetwork` as float16, its config, its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.detach().half().cpu().contiguous() for name, tensor in weights.items()}
    told = {"format": "chiasm joint model 1", **config.to_json()}
    write_whole(folder / WEIGHTS, save(half, metadata={"format": "pt"}))
    write_whole(folder / CONFIG, (json.dumps(told, indent=2) + "\n").encode())
    write_whole(folder / TOKENIZER, (tokenizer.to_json() + "\n").encode())


def load_model(
    folder: Path, precision: torch.dtype = torch.float32
) -> tuple[JointNetwork, Tokenizer]:
    """The model of a folder, on the CPU, in evaluation mode, and its tokenizer.

    Raises EncoderError: no such folder, a file missing, or files that are not what they should be.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise EncoderError(
            f"model folder {folder}",
            expected=", ".join(FILES),
            found="no " + ", no ".join(missing),
            do="name a folder written by chiasm train",
        )
    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        told.pop("format", None)
        config = ModelConfig.from_json(told)
        tokenizer = Tokenizer.from_json((folder / TOKENIZER).read_text(encoding="utf-8"))
        # Not built on the device "meta": numbers drawn there load torch's compiler, 1.5 s for 0.05.
        model = JointNetwork(config)
        weights = {name: t.to(precision) for name, t in load_file(folder / WEIGHTS).items()}
        model.load_state_dict(weights, assign=True)
    except (
        SafetensorError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise EncoderError(
            f"model folder {folder}",
            expected="weights, config and tokenizer of one model",
            found=f"{type(error).__name__}: {error}"[:300],
            do="copy the folder again",
        ) from error
    return model.eval(), tokenizer


def save_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a training's tensors and facts in one file, whole or not at all."""
    told = {"facts": json.dumps(facts)}
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(kept, metadata=told))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_state` wrote. Raises EncoderError where it is something else."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
        return load_file(path), facts
    except (SafetensorError, KeyError, ValueError) as error:
        raise EncoderError(
            f"training state {path}",
            expected="a file written by chiasm train",
            found=f"{type(error).__name__}: {error}"[:300],
            do="remove it to start anew",
        ) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename: a killed training leaves the last whole file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
