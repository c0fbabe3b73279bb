"""Shards of a few samples, made by code."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(rng: random.Random, side: int = 32) -> bytes:
    """A picture of coloured blocks, as a JPEG."""
    pixels = np.frombuffer(rng.randbytes(48), np.uint8).reshape(4, 4, 3)
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def make_shard(
    path: Path, samples: int, seed: int = 0, captions: Sequence[str] = (), broken: int = 0
) -> Path:
    """A tar of pictures with captions and json, the same for the same arguments.

    captions: in place of the first samples' own. broken: so many pictures at the end are none.
    """
    rng = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(samples):
            caption = captions[number] if number < len(captions) else f"picture {number} of {seed}"
            members = {
                "jpg": jpeg(rng) if number < samples - broken else b"not a picture",
                "txt": caption.encode(),
                "json": json.dumps({"number": number, "even": number % 2 == 0}).encode(),
            }
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{seed:03d}{number:05d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path
