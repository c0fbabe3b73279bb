"""An encoder of a modality that is no picture: float32 arrays in `npy` members, beside texts."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.pipeline.arrays import decode_array
from chiasm.pipeline.collection import (
    EmbeddingFile,
    Identity,
    LedgerEntry,
    create_or_check,
    find_embedding,
)
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.encoders import BaseEncoder, Encoded, EncoderSettings, Input, unit
from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import Folder

WIDTH = 4
WORDS = ("one", "two", "three", "four")  # a text is the sum of the axes that it names


class ArrayEncoder(BaseEncoder):
    """The first WIDTH numbers of an array, and texts that name axes, in one space."""

    name, precision, device = "arrays", "float32", "cpu"
    fingerprint: str = "a" * 32

    def __init__(self) -> None:
        self.preprocessing = {"array": f"the first {WIDTH} numbers"}
        self.modalities = {"array": Input(extensions=("npy",)), "text": Input()}
        self.dims = dict.fromkeys(("array", "text", "joint"), WIDTH)

    def preprocess(self, modality: str, raw: Any) -> Any:
        if modality == "text":
            return raw
        return decode_array(raw, kinds="f").astype(np.float32).ravel()

    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        if modality == "array":
            return Encoded(unit(np.stack([item[:WIDTH] for item in items])))
        rows = [[float(word in text.split()) for word in WORDS] for text in items]
        return Encoded(unit(np.array(rows) + 1e-3))


def load(model: str, settings: EncoderSettings) -> ArrayEncoder:
    return ArrayEncoder()


def make_arrays(path: Path, arrays: Sequence[np.ndarray | bytes | None]) -> Path:
    """A shard of samples `00000`, ...: an array (or its bytes) where there is one, and a caption
    that names its largest number's axis. Compressed where its name ends in `.gz`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
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


def embed_arrays(
    root: Path, arrays: Sequence[np.ndarray | bytes | None], name: str = "a.tar"
) -> tuple[Shard, LedgerEntry, EmbeddingFile]:
    """The shard `root/name` of `make_arrays`, embedded into the collection `root/c`."""
    folder = Folder(str(root / "c"))
    create_or_check(folder, Identity.of(ArrayEncoder()), "r1")
    (shard,) = list_shards([str(make_arrays(root / name, arrays))])
    entry = embed_shard(shard, ArrayEncoder(), folder, EmbedSettings(), run_id="r1")
    file = find_embedding(folder, shard.id)
    assert file is not None
    return shard, entry, file
