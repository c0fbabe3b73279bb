"""The network of a model of open_clip, built from its configuration and filled from safetensors.

Nothing is fetched by open_clip or timm: towers of timm are built without weights, a text tower of
transformers by a config.json in the model's own folder. Every weight has to be in the file, in the
shape that the configuration says: open_clip would resize positions, and leave the rest as drawn.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open

from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained.hub import ModelFolder, translating_load_errors
from chiasm.pipeline.pretrained.open_clip_texts import OURS_ALONE

_NOT_IN_FILES = {"self", "cast_dtype", "output_dict"}  # arguments for programs, not of a model
_OLD_PREFIX = "module."  # of weights that were saved by a distributed training


def open_clip_network(library: Any, folder: ModelFolder, network: Mapping[str, Any]) -> Any:
    """The network of a `model_cfg`, for inference, in float32; library: open_clip.

    Raises EncoderError for a configuration that this open_clip does not know, and for weights that
    do not fit it."""
    settings = deepcopy(dict(network))
    custom = bool(settings.pop("custom_text", False)) or "hf_model_name" in settings["text_cfg"]
    kind = library.CustomTextCLIP if custom else library.CLIP
    _require_known(library, kind, settings, folder.title)
    _without_fetching(library, settings, folder)
    # Weights are drawn before they are read: the caller's random numbers are left as they are.
    with translating_load_errors(folder.title, "a model_cfg"), torch.random.fork_rng(devices=()):
        made = kind(**settings)
    (file,) = folder.files(folder.weights)
    _require_shapes(file, made, folder.title)
    with translating_load_errors(folder.title, "weights"):
        report = library.load_checkpoint(made, str(file), strict=False)
    _require_all(report, folder.title)
    return made.eval().requires_grad_(False)


def _require_known(library: Any, kind: type, settings: Mapping[str, Any], title: str) -> None:
    """EncoderError for a name in the configuration that open_clip does not have: what it says of
    the network would not be heard."""
    named = {
        "model_cfg": (settings, inspect.signature(kind).parameters.keys() - _NOT_IN_FILES),
        "vision_cfg": (settings["vision_cfg"], _fields(library.CLIPVisionCfg)),
        "text_cfg": (settings["text_cfg"], _fields(library.CLIPTextCfg)),
    }
    for part, (given, known) in named.items():
        if unknown := sorted(set(given) - set(known)):
            raise EncoderError(
                title,
                expected=f"a {part} that open_clip {library.__version__} knows",
                found=f"{unknown[0]!r} in it",
                do="install an open_clip that has it",
            )
    if "embed_dim" not in settings:
        raise EncoderError(title, expected="embed_dim in its model_cfg", found="none")


def _fields(settings: Any) -> Collection[str]:
    return {field.name for field in dataclasses.fields(settings)}


def _without_fetching(library: Any, settings: dict[str, Any], folder: ModelFolder) -> None:
    """Change the settings so that no tower is fetched, and each gives its vector alone."""
    timm = library.timm_model.timm
    vision, text = settings["vision_cfg"], settings["text_cfg"]
    vision["output_tokens"] = text["output_tokens"] = False
    vision["timm_model_pretrained"] = text["hf_model_pretrained"] = False
    tower = vision.get("timm_model_name")
    if tower and not timm.is_model(tower):
        raise EncoderError(
            folder.title,
            expected=f"an image tower that timm {timm.__version__} has",
            found=repr(tower),
            do="install a timm that has it",
        )
    if text.get("hf_model_name"):
        types = library.hf_model.arch_dict
        _require_text_tower(folder, text["hf_model_name"], types)
        text["hf_model_name"] = str(folder.path)


def _require_text_tower(folder: ModelFolder, name: str, types: Collection[str]) -> None:
    """EncoderError where the folder has no configuration of its text tower of transformers, of one
    of the types that open_clip knows."""
    if not (folder.path / "config.json").is_file():
        raise EncoderError(
            folder.title,
            expected=f"the config.json of its text tower {name}, which open_clip would fetch",
            found=f"none in {folder.path}",
            do=f"copy it from {name} into a folder with the files of the model, and name that",
        )
    with translating_load_errors(folder.title, "the config.json of its text tower"):
        config = transformers.AutoConfig.from_pretrained(folder.path, **OURS_ALONE)
    if config.model_type not in types:
        raise EncoderError(
            folder.title,
            expected=f"a config.json of its text tower {name}",
            found=f"one of type {config.model_type!r}",
            do=f"copy it from {name} into a folder with the files of the model, and name that",
        )


def _require_shapes(file: Path, network: Any, title: str) -> None:
    """EncoderError for weights of another shape than the network's: open_clip resizes positions of
    another size of picture or length of text, and does not say so."""
    wanted = {name: value for name, value in network.state_dict().items() if value.numel() > 1}
    for name, found in _shapes(file, title).items():
        own = name.removeprefix(_OLD_PREFIX)
        if own not in wanted and f"text.{own}" in wanted:  # of before open_clip 2.0
            own = f"text.{own}"
        if own in wanted and found != tuple(wanted[own].shape):
            raise EncoderError(
                title,
                expected=f"{own} of shape {tuple(wanted[own].shape)}, as its model_cfg says",
                found=f"{found} in {file.name}",
                do="check that all files are of one model",
            )


def _shapes(file: Path, title: str) -> dict[str, tuple[int, ...]]:
    """Of each tensor of a file, from its header."""
    try:
        with safe_open(file, framework="pt") as weights:
            names = weights.keys()
            return {name: tuple(weights.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise EncoderError(
            title,
            expected=f"{file.name} in the format of safetensors",
            found="another format, or a file that was cut short",
            do="fetch or save it again",
        ) from error


def _require_all(report: Any, title: str) -> None:
    """EncoderError where weights are missing, or are not the network's."""
    parts = [
        (sorted(names), word)
        for names, word in (
            (report.missing_keys, "missing"),
            (report.unexpected_keys, "that it does not have"),
        )
        if names
    ]
    if parts:
        raise EncoderError(
            title,
            expected="the weights of its model_cfg",
            found=", ".join(f"{len(n)} {word}, the first {n[0]}" for n, word in parts),
            do="check that all files are of one model",
        )
