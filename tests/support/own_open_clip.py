"""The models of a folder as open_clip itself runs them, called directly in float32."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from family_differences import Library
from PIL import Image, ImageOps

from chiasm.pipeline.encoders import unit
from chiasm.pipeline.pretrained.open_clip_library import open_clip_for

CPU = torch.device("cpu")
CONFIG = "open_clip_config.json"


class OpenClip(Library):
    """Its text tower of transformers, which it would look for on the hub, is named by its
    folder."""

    def __init__(self, folder: Path) -> None:
        self.library = open_clip_for("tests")
        said = json.loads((folder / CONFIG).read_text())
        if "hf_model_name" in said["model_cfg"]["text_cfg"]:
            folder = shutil.copytree(
                folder, folder.with_name(f"{folder.name}-named"), dirs_exist_ok=True
            )
            said["model_cfg"]["text_cfg"]["hf_model_name"] = str(folder)
            (folder / CONFIG).write_text(json.dumps(said))
        place = f"local-dir:{folder}"
        self.model: Any = self.library.create_model(place).eval()
        self.tokenizer: Any = self.library.get_tokenizer(place)
        towers = self.model.visual, getattr(self.model, "text", None)
        names = [type(tower).__name__ for tower in towers if tower is not None]
        self.network = f"open_clip {type(self.model).__name__} ({', '.join(names)})"
        self.reads = (self.network,)

    def made(self, model: Any, modality: str, items: Sequence[Any]) -> dict[str, Any]:
        return {"pixel_values": model._pixels.inputs(items, CPU, torch.float32)}

    def inputs(self, modality: str, raw: Sequence[Any]) -> dict[str, Any]:
        said = self.library.transform.PreprocessCfg(**self.model.visual.preprocess_cfg)
        with torchvision_by_pillow(self.library):
            transform = self.library.transform.image_transform_v2(said, is_train=False)
            return {"pixel_values": torch.stack([transform(picture) for picture in raw])}

    def level(self, model: Any, modality: str) -> float:
        return 255 * float(np.mean(self.model.visual.preprocess_cfg["std"]))

    def rows(self, modality: str, raw: Sequence[Any], inputs: dict[str, Any]) -> Any:
        return unit(self.model.encode_image(inputs["pixel_values"]).numpy())

    def text_rows(self, texts: Sequence[str]) -> Any:
        return unit(self.model.encode_text(self.tokenizer(list(texts))).numpy())


@contextmanager
def torchvision_by_pillow(library: Any) -> Iterator[None]:
    """Inside, open_clip's own transform runs without torchvision: of that it takes the functions
    below, which for Pillow's pictures are calls of Pillow. One that is installed is used."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    steps = {
        "Compose": _compose,
        "Resize": _resize,
        "CenterCrop": _center_crop,
        "MaybeToTensor": lambda: _to_tensor,
        "Normalize": _normalize,
        "F": SimpleNamespace(
            resize=_resized,
            get_dimensions=lambda picture: (3, picture.height, picture.width),
            pad=lambda picture, sides, fill: ImageOps.expand(picture, tuple(sides), (fill,) * 3),
            crop=_cropped,
        ),
    }
    with mock.patch.multiple(library.transform, **steps):
        yield


def _compose(steps: Sequence[Any]) -> Any:
    def run(picture: Any) -> Any:
        for step in steps:
            picture = step(picture)
        return picture

    return run


def _resized(picture: Image.Image, size: Sequence[int], interpolation: Any) -> Image.Image:
    """size: (height, width)."""
    return picture.resize((size[1], size[0]), Image.Resampling[interpolation.name])


def _resize(size: Any, interpolation: Any) -> Any:
    """To a size, or the shorter side to a number: the longer one is rounded down."""

    def run(picture: Image.Image) -> Image.Image:
        if not isinstance(size, int):
            return _resized(picture, size, interpolation)
        width, height = picture.size
        least = min(width, height)
        sides = int(size * height / least), int(size * width / least)
        return _resized(picture, sides, interpolation)

    return run


def _cropped(picture: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    return picture.crop((left, top, left + width, top + height))


def _center_crop(size: Sequence[int]) -> Any:
    def run(picture: Image.Image) -> Image.Image:
        top, left = round((picture.height - size[0]) / 2), round((picture.width - size[1]) / 2)
        return _cropped(picture, top, left, *size)

    return run


def _to_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def _normalize(mean: Sequence[float], std: Sequence[float]) -> Any:
    of_mean, of_std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return lambda pixels: (pixels - of_mean) / of_std
