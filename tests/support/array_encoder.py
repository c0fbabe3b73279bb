"""An encoder of a modality that is no picture: float32 arrays in `npy` members, beside texts."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.pipeline.encoders import BaseEncoder, Encoded, EncoderSettings, Input, unit
from chiasm.pipeline.errors import Undecodable

WIDTH = 4
WORDS = ("one", "two", "three", "four")  # a text is the sum of the axes that it names


class ArrayEncoder(BaseEncoder):
    """The first WIDTH numbers of an array, and texts that name axes, in one space."""

    name, fingerprint, precision, device = "arrays", "a" * 32, "float32", "cpu"

    def __init__(self) -> None:
        self.preprocessing = {"array": f"the first {WIDTH} numbers"}
        self.modalities = {"array": Input(extensions=("npy",)), "text": Input()}
        self.dims = dict.fromkeys(("array", "text", "joint"), WIDTH)

    def preprocess(self, modality: str, raw: Any) -> Any:
        if modality == "text":
            return raw
        try:
            return np.load(io.BytesIO(raw), allow_pickle=False).astype(np.float32).ravel()
        except ValueError as error:
            raise Undecodable("corrupt", str(error)) from error

    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        if modality == "array":
            return Encoded(unit(np.stack([item[:WIDTH] for item in items])))
        rows = [[float(word in text.split()) for word in WORDS] for text in items]
        return Encoded(unit(np.array(rows) + 1e-3))


def load(model: str, settings: EncoderSettings) -> ArrayEncoder:
    return ArrayEncoder()


def make_arrays(path: Path, arrays: Sequence[np.ndarray | bytes | None]) -> Path:
    """A shard of samples `00000`, ...: an array (or its bytes) where there is one, and a caption
    that names its largest number's axis."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, array in enumerate(arrays):
            members: dict[str, bytes] = {}
            if isinstance(array, bytes):
                members["npy"] = array
            elif array is not None:
                out = io.BytesIO()
                np.save(out, array)
                members["npy"] = out.getvalue()
                members["txt"] = f"mostly {WORDS[int(np.argmax(array[:WIDTH]))]}".encode()
            else:
                members["txt"] = b"a text alone"
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{number:05d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path
