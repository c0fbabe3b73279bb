"""Models and training states on disk: safetensors and JSON, so that nothing is ever unpickled.

A model folder holds model.safetensors, config.json and tokenizer.json, and is what an encoder
loads. Weights are saved as float16: half the size, and after rounding the vectors keep a cosine
above 0.9999. A training state is one more file, float32, which is enough for an exact resume.

Folders are written in format 2, in which tensors and config keys have the names they have in code.
Folders of format 1, the first, are read for good: TENSOR_NAMES and CONFIG_NAMES translate theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from chiasm.pipeline.errors import ChiasmError, EncoderError
from chiasm.pipeline.model.config import ModelConfig
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.tokenizer import Tokenizer
from chiasm.pipeline.storage import Folder

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
FILES = (WEIGHTS, CONFIG, TOKENIZER)
SHIPPED = Path(__file__).resolve().parent.parent / "pocket"
FORMAT = "chiasm joint model 2"
FIRST_FORMAT = "chiasm joint model 1"
SLOWER = "train in another folder with a lower learning rate"  # where weights are not finite
# What loading raises of weights and a config that are torn or do not fit together.
MISFITS = (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)

# How the name of a format begins -> the family of encoders that loads it.
FAMILIES = {
    "chiasm joint model": "pocket",
    "chiasm two-tower": "two-tower",
    "chiasm frozen joint": "joint",
}
# Name in code -> name in files of the first format. Tensors: a dotted part of the name, a prefix
# where it ends in a dot; the first that fits is taken. Config keys: the dotted path in code -> the
# key in files.
TENSOR_NAMES = {
    "fusion.input_projections.": "fusion.inward.",
    "fusion.type_embeddings": "fusion.kind",
    "fusion.mixer.null_token": "fusion.mix.nothing",
    "fusion.mixer.": "fusion.mix.",
    "fusion.modality_score.": "fusion.weigh.",
    "matching.bias": "matching.benefit",
}
CONFIG_NAMES = {"fusion.fusion": "how"}


def save_model(
    folder: Path, weights: dict[str, Tensor], config: ModelConfig, tokenizer: Tokenizer
) -> None:
    """Write a model folder: weights of a `JointNetwork` as float16, its config, its tokenizer.
    Nothing is written, ChiasmError where a weight is not finite as float16, EncoderError where the
    tokenizer is not of the config's vocabulary."""
    what = f"model folder {folder}"
    _require_vocabulary(what, config, tokenizer)
    half = {name: tensor.detach().half().cpu().contiguous() for name, tensor in weights.items()}
    require_finite_tensors(half, what, expected="weights that are finite as float16")
    fields = {"format": FORMAT, **config.to_dict()}
    write_file(folder / WEIGHTS, save(half, metadata={"format": "pt"}))
    write_file(folder / CONFIG, (json.dumps(fields, indent=2) + "\n").encode())
    write_file(folder / TOKENIZER, (tokenizer.to_json() + "\n").encode())


def require_finite_tensors(
    tensors: Mapping[str, Tensor],
    what: str,
    do: str = SLOWER,
    expected: str = "finite tensors",
) -> None:
    """ChiasmError about `what`, with what to do, where a tensor has NaN or infinity."""
    wrong = sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all())
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        found = f"others in {', '.join(wrong[:3])}{more}"
        raise ChiasmError(what, expected=expected, found=found, do=do)


def require_sound(saved: Mapping[str, Tensor], network: nn.Module) -> None:
    """ValueError where a saved tensor has whole numbers for a weight that has none, or one that is
    NaN or infinity. Names and shapes are left to `load_state_dict`."""
    wanted = network.state_dict()
    for name, tensor in saved.items():
        floating = name in wanted and wanted[name].is_floating_point()
        if floating and not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
            found = "NaN or infinity" if tensor.is_floating_point() else str(tensor.dtype)
            raise ValueError(f"{name}: expected finite floating numbers, found {found}")


def load_model(
    folder: Path, precision: torch.dtype = torch.float32
) -> tuple[JointNetwork, Tokenizer]:
    """The model of a folder, on the CPU, in evaluation mode, and its tokenizer.

    Raises EncoderError: no such folder, a file missing, a folder of another kind of model, or files
    that do not fit together.
    """
    _require_joint_model(folder)
    try:
        config = load_config(folder)
        tokenizer = load_tokenizer(folder)
        _require_vocabulary(f"model folder {folder}", config, tokenizer, "copy the folder again")
        # Not built on the device "meta": numbers drawn there load torch's compiler, 1.5 s for 0.05.
        model = JointNetwork(config)
        saved = load_file(folder / WEIGHTS)
        if format_of(folder) == FIRST_FORMAT:
            saved = tensors_in_code(saved, TENSOR_NAMES)
        require_sound(saved, model)
        weights = {name: tensor.to(precision) for name, tensor in saved.items()}
        model.load_state_dict(weights, assign=True)
    except MISFITS as error:
        raise EncoderError(
            f"model folder {folder}",
            expected="weights, config and tokenizer of one model",
            found=f"{type(error).__name__}: {error}"[:300],
            do="copy the folder again",
        ) from error
    return model.eval(), tokenizer


def _require_vocabulary(what: str, config: ModelConfig, tokenizer: Tokenizer, do: str = "") -> None:
    """EncoderError where ids of the tokenizer are not those that the network has."""
    if len(tokenizer) != config.text.vocabulary:
        raise EncoderError(
            what,
            expected=f"a tokenizer of {config.text.vocabulary} ids, as its config says",
            found=f"one of {len(tokenizer)}",
            do=do,
        )


def load_as(folder: Path, kind: object) -> str:
    """What to do with a model folder of this format: how it is loaded; "" for an unknown one."""
    family = next((FAMILIES[name] for name in FAMILIES if str(kind).startswith(name)), None)
    return f"load it as an encoder: {family}:{folder}" if family else ""


def _require_joint_model(folder: Path) -> None:
    """EncoderError where the folder holds another kind of model, or lacks one of FILES."""
    kind = format_of(folder)
    if kind is not None and kind not in (FORMAT, FIRST_FORMAT):
        raise EncoderError(
            f"model folder {folder}",
            expected=f"a {FORMAT} or 1, as chiasm train pocket writes",
            found=f"a {kind}",
            do=load_as(folder, kind),
        )
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise EncoderError(
            f"model folder {folder}",
            expected=", ".join(FILES),
            found="no " + ", no ".join(missing),
            do="name a folder written by chiasm train",
        )


def format_of(folder: Path) -> str | None:
    """The format that config.json states, None where it states none or cannot be read."""
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kind if isinstance(kind, str) else None


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder; OSError, ValueError or KeyError where it has none."""
    return Tokenizer.from_json((folder / TOKENIZER).read_text(encoding="utf-8"))


def load_config(folder: Path) -> ModelConfig:
    """The config of a model folder; ValueError, or another of MISFITS, where it is none."""
    fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    kind = fields.pop("format")
    if kind not in (FORMAT, FIRST_FORMAT):
        raise ValueError(f"format {kind!r} in {CONFIG}: expected {FORMAT}")
    first = kind == FIRST_FORMAT
    return ModelConfig.from_dict(names_in_code(fields, CONFIG_NAMES) if first else fields)


def save_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a training's tensors and facts in one file, whole or not at all."""
    metadata = {"facts": json.dumps(facts)}
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_file(path, save(kept, metadata=metadata))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of `save_state`. Raises EncoderError where the file is something else."""
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


def write_file(path: Path, data: bytes) -> None:
    """Write a local file whole or not at all, flushed to the disk before it gets its name.
    StorageError where that cannot be done."""
    Folder(str(path.parent)).write_whole(path.name, data)


def tensors_in_files(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors by their names in code -> by their names in files. names: as TENSOR_NAMES."""
    return {_renamed(name, names): tensor for name, tensor in tensors.items()}


def tensors_in_code(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Inverse of `tensors_in_files`."""
    inverse = {saved: name for name, saved in names.items()}
    return {_renamed(name, inverse): tensor for name, tensor in tensors.items()}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        end = "" if old.endswith(".") else r"(?![^.])"
        found = re.search(rf"(?<![^.]){re.escape(old)}{end}", name)
        if found:
            return name[: found.start()] + new + name[found.end() :]
    return name


def names_in_files(fields: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Nested fields by their names in code -> by their names in files, in the same order. names:
    as CONFIG_NAMES."""
    return _with_keys(fields, names, "")


def names_in_code(fields: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Inverse of `names_in_files`."""
    inverse: dict[str, str] = {}
    for path, saved in names.items():
        *parents, name = path.split(".")
        steps = [".".join(parents[: i + 1]) for i in range(len(parents))]
        in_file = [names.get(step, step.rpartition(".")[2]) for step in steps]
        inverse[".".join([*in_file, saved])] = name
    return _with_keys(fields, inverse, "")


def _with_keys(fields: Mapping[str, Any], names: Mapping[str, str], path: str) -> dict[str, Any]:
    return {
        names.get(path + key, key): (
            _with_keys(value, names, f"{path}{key}.") if isinstance(value, Mapping) else value
        )
        for key, value in fields.items()
    }
