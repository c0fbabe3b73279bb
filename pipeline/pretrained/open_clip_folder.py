"""What follows `oc:` -> the files of a model of open_clip, and what its configuration says.

It is a folder with open_clip_config.json, the id of such a folder on the hub (`owner/name`, with or
without open_clip's prefix `hf-hub:`), or the name of a model and a tag of its weights in open_clip
(`ViT-B-32/laion2b_s34b_b79k`), which stand for an id on the hub and a configuration that open_clip
has. Files are fetched by the rules of hub.py, of that one id alone. Weights are read from
safetensors only, and a name without weights is refused: nothing is ever drawn by chance.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained.hub import ModelFolder, from_hub
from chiasm.pipeline.pretrained.open_clip_library import open_clip_for

CONFIG = "open_clip_config.json"
HUB_PREFIX = "hf-hub:"
WEIGHTS = (  # the first of these that is there, as in open_clip
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors"),
)
# On the hub `model.safetensors` is the same model for transformers: it is not fetched.
HUB_WEIGHTS = "open_clip*model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
QUICK = "-quickgelu"  # at the end of names of models that have that activation
NEAR = 0.75  # likeness of two names, from which on one is taken for a slip in the other
LISTED = 6  # names in a message, at the most


@dataclass(frozen=True)
class OpenClipModel:
    """A model as open_clip describes it. folder: its files; `weights` names one. network: its
    `model_cfg`. pictures: its `preprocess_cfg`."""

    folder: ModelFolder
    network: Mapping[str, Any]
    pictures: Mapping[str, Any]


def find_open_clip(model: str) -> OpenClipModel:
    """The model of `oc:model`. Raises EncoderError where there is none, or where its configuration
    or its weights are missing or of a kind that is not read here."""
    title = f"encoder oc:{model}"
    path = Path(os.path.expanduser(model))
    if not model:
        raise EncoderError(title, expected="a folder, a hub id or NAME/TAG after the colon")
    if path.is_dir():
        return _in_folder(path.resolve(), f"oc:{path.resolve()}", model, title)
    if path.exists() or model.startswith(("/", ".", "~")):
        found = "a file" if path.exists() else "no such folder"
        raise EncoderError(title, expected="a model folder", found=found, do="check the path")
    if model.startswith(HUB_PREFIX):
        return _on_hub(model, title)
    library = open_clip_for(title)
    name, slash, tag = model.partition("/")
    if name in library.list_models():
        return _tagged(library, name, tag, title)
    _refuse_slips(library, model, title)
    if slash:
        return _on_hub(model, title)
    raise EncoderError(
        title,
        expected="a folder, a hub id (OWNER/NAME) or a model of open_clip (NAME/TAG)",
        found="none of these",
        do="see open_clip.list_pretrained()",
    )


def _on_hub(model: str, title: str) -> OpenClipModel:
    path = from_hub(model.removeprefix(HUB_PREFIX), title, HUB_WEIGHTS, (CONFIG,))
    return _in_folder(path, f"oc:{model}", model, title, HUB_WEIGHTS)


def _in_folder(
    path: Path, name: str, model: str, title: str, weights: str = "*.safetensors"
) -> OpenClipModel:
    """The model of a folder, with the configuration that lies in it."""
    network, pictures = _configuration(path, model, title)
    folder = ModelFolder(
        name, f"oc:{model}", title, path, _weights(path, weights, title), nested=False
    )
    return OpenClipModel(folder, network, pictures)


def _tagged(library: Any, name: str, tag: str, title: str) -> OpenClipModel:
    """The model of that name with the weights of that tag."""
    tag, at, revision = tag.partition("@")
    network = library.get_model_config(name)
    _require_two_towers(network, title)
    wanted = library.get_pretrained_cfg(name, tag)
    if not wanted:
        names = _nearest(library, name, tag)
        raise EncoderError(
            title,
            expected=f"a tag of weights of {name}" if names else "a model with weights",
            found=repr(tag) if tag else "none, without which its weights are random",
            do=f"take {' or '.join(names)}" if names else "take another: open_clip has none of it",
        )
    if wanted.get("quick_gelu") and not network.get("quick_gelu"):
        # open_clip loads it with another activation than it was trained with, and only warns.
        raise EncoderError(
            title,
            expected="a model with the activation of its weights, which is QuickGELU",
            found=f"{name}, which has GELU",
            do=f"take oc:{name}{QUICK}/{tag}",
        )
    repository, _, file = wanted.get("hf_hub", "").rpartition("/")
    if not repository:
        raise EncoderError(
            title,
            expected="weights that are on the hub as safetensors",
            found="a pickle elsewhere, which is never read here",
            do=f"take {' or '.join(_nearest(library, name, tag)) or 'another model'}",
        )
    weights = f"{Path(file).stem}.safetensors" if file else HUB_WEIGHTS
    path = from_hub(f"{repository}{at}{revision}", f"{title} ({repository})", weights, (CONFIG,))
    what = title.removeprefix("encoder ")
    folder = ModelFolder(what, what, title, path, _weights(path, weights, title), nested=False)
    return OpenClipModel(folder, network, wanted)


def _nearest(library: Any, name: str, tag: str) -> list[str]:
    """Names of that model that can be loaded, of those tags that are most like `tag`."""
    quick = bool(library.get_model_config(name).get("quick_gelu"))
    names: dict[str, str] = {}
    for known in library.list_pretrained_tags_by_model(name):
        wanted = library.get_pretrained_cfg(name, known)
        if wanted.get("hf_hub"):
            names[known] = f"{name}{QUICK if wanted.get('quick_gelu') and not quick else ''}"
    tags = difflib.get_close_matches(tag.lower(), names, n=LISTED, cutoff=0)
    return [f"oc:{names[near]}/{near}" for near in tags]


def _refuse_slips(library: Any, model: str, title: str) -> None:
    """EncoderError for what is nearly a name of open_clip: asked for on the hub, it would be said
    not to be there."""
    given = model.replace(":", "/").partition("/")[0].lower()
    known = {name.lower(): name for name, _ in library.list_pretrained()}
    near = difflib.get_close_matches(given, known, n=LISTED, cutoff=NEAR)
    if near:
        raise EncoderError(
            title,
            expected="a model that open_clip knows, as NAME/TAG",
            found=f"none of this name; near: {', '.join(known[name] for name in near)}",
            do=f"check the spelling; oc:{HUB_PREFIX}OWNER/NAME is always an id of the hub",
        )


def _configuration(path: Path, model: str, title: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`model_cfg`, `preprocess_cfg`) of a folder."""
    file = path / CONFIG
    if not file.is_file():
        _refuse_another_folder(path, model, title)
    try:
        read = json.loads(file.read_bytes())
    except ValueError:
        read = None
    network = _named(read, "model_cfg")
    pictures = _named({"preprocess_cfg": {}} | (_of_names(read) or {}), "preprocess_cfg")
    towers = [_named(network, f"{tower}_cfg") for tower in ("vision", "text")]
    if network is None or pictures is None or None in towers:
        raise EncoderError(
            title,
            expected=f"{CONFIG} with a model_cfg that has vision_cfg and text_cfg",
            found="no json" if read is None else "another json",
            do="fetch or save the model again",
        )
    _require_two_towers(network, title)
    return network, pictures


def _of_names(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _named(value: Any, name: str) -> dict[str, Any] | None:
    """The json object of that name in another; None where either is none."""
    return _of_names(value.get(name)) if isinstance(value, dict) else None


def _refuse_another_folder(path: Path, model: str, title: str) -> NoReturn:
    """EncoderError for a folder without a configuration of open_clip, which says whose it is."""
    families = {"modules.json": "st", "config.json": "hf"}
    other = next((name for name in families if (path / name).is_file()), None)
    if other:
        found, do = f"{other} alone", f"take {families[other]}:{model.removeprefix(HUB_PREFIX)}"
    else:
        found = ", ".join(sorted(os.listdir(path))[:LISTED]) or "an empty folder"
        do = "name a folder that open_clip has saved"
    raise EncoderError(title, expected=f"a model folder with {CONFIG}", found=found, do=do)


def _require_two_towers(network: Mapping[str, Any], title: str) -> None:
    if "multimodal_cfg" in network:
        raise EncoderError(
            title,
            expected="a model of two towers",
            found="a CoCa, whose text tower also reads pictures",
            do="take another model of open_clip",
        )


def _weights(path: Path, pattern: str, title: str) -> str:
    """The name of the file of weights: the first that open_clip would take, or the only one."""
    found = sorted(file.name for file in path.glob(pattern) if file.is_file())
    known = [name for name in WEIGHTS if name in found]
    if known or len(found) == 1:
        return known[0] if known else found[0]
    pickled = sorted(file.name for ending in PICKLES for file in path.glob(ending))[:3]
    if found:
        said, do = ", ".join(found[:LISTED]), f"give the right one this name: {WEIGHTS[0]}"
    elif pickled:
        said = f"{', '.join(pickled)} alone, a pickle, which is never read here"
        do = f"save its state dict as {WEIGHTS[0]} by safetensors.torch.save_file"
    else:
        said, do = "none", "take a revision that has them (ID@refs/pr/N), or copy them there"
    raise EncoderError(title, expected=f"weights as {WEIGHTS[0]}", found=said, do=do)
