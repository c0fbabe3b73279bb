"""Folders of models that are none of transformers' own, told apart by their files, and the JSON of
config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chiasm.pipeline.errors import EncoderError

OPEN_CLIP = "open_clip_config.json"
ADAPTER = "adapter_config.json"
MODULES = "modules.json"
SENTENCE_TRANSFORMER = "a SentenceTransformer"
OPEN_CLIP_FILES = (OPEN_CLIP, "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def refuse_other_kinds(path: Path, title: str, family: str, model: str, weights: str) -> None:
    """Raise EncoderError for a folder of open_clip's files alone, for an adapter, which is no whole
    model, and for a SentenceTransformer's where one model is read. family, model: its name;
    weights: a glob of weights that are read."""
    with_config = any((path / name).is_file() for name in ("config.json", MODULES))
    of_open_clip = any((path / name).is_file() for name in OPEN_CLIP_FILES)
    if of_open_clip and not (with_config and any(_own(path, weights))):
        raise EncoderError(
            title,
            expected="a model folder of transformers",
            found="files of open_clip",
            do=f"take oc:{model}, the encoder that reads them",
        )
    if family == "hf" and not (path / "config.json").exists() and (path / MODULES).is_file():
        raise EncoderError(
            title,
            expected="a model folder with config.json",
            found=SENTENCE_TRANSFORMER,
            do=f"take st:{model}",
        )
    if (path / ADAPTER).is_file():
        base = _base(path / ADAPTER)
        raise EncoderError(
            title,
            expected="a whole model",
            found=f"a PEFT adapter of {base or 'another model'} ({ADAPTER})",
            do="merge it into that model by merge_and_unload of peft, and name the folder that "
            f"save_pretrained makes then; if that is done already, remove {ADAPTER}",
        )


def read_json_object(path: Path, title: str) -> dict[str, Any]:
    """A file of a model as a JSON object; EncoderError where it is none."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):  # of bytes that are no text too
        found = "no JSON"
    except OSError as error:
        found = error.strerror or "a file that cannot be read"
    else:
        if isinstance(value, dict):
            return value
        found = f"JSON that is no object but {_kind(value)}"
    raise EncoderError(
        title,
        expected=f"a {path.name} that can be loaded",
        found=found,
        do="fetch or save that file again",
    )


def _own(path: Path, weights: str) -> list[Path]:
    return [found for found in path.rglob(weights) if found.name not in OPEN_CLIP_FILES]


def _base(path: Path) -> str:
    """The model that an adapter was made for, "" where its file does not say."""
    try:
        name = json.loads(path.read_bytes())["base_model_name_or_path"]
    except (ValueError, RecursionError, LookupError, TypeError, OSError):
        return ""
    return name[:100] if isinstance(name, str) else ""


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
