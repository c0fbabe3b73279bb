"""An encoder family `tokens` for tests: a vector for each token, without a model.

A picture is four squares of a colour each, a token for each; a text has a token for each word, and
the names of colours mean what they say. As in real models, pictures and texts lie apart.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tars import write_tar

from chiasm.pipeline.encoders import BaseEncoder, Encoded, Input, Ragged, register_encoder, unit
from chiasm.pipeline.encoders.muvera import Muvera
from chiasm.pipeline.errors import Undecodable
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import Shard

WIDTH, DIMS = 16, 32
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "yellow": (255, 255, 0),
    "pink": (255, 0, 255),
    "cyan": (0, 255, 255),
}
NAMES = tuple(COLOURS)
SIDE = 8  # of a square


def _drawn(name: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")
    return np.random.RandomState(seed).randn(WIDTH).astype(np.float32)


class TokenEncoder(BaseEncoder):
    device, precision = "cpu", "float32"

    def __init__(self, model: str = "") -> None:
        self.name = f"tokens:{model}" if model else "tokens"
        self.fingerprint = hashlib.blake2b(f"tokens {model}".encode(), digest_size=16).hexdigest()
        self.preprocessing = {"squares": 4}
        self.modalities = {"image": Input(), "text": Input()}
        self.dims = dict.fromkeys(self.modalities, DIMS)
        self.token_dims = dict.fromkeys(self.modalities, WIDTH)
        self._single = Muvera(WIDTH, DIMS)

    def preprocess(self, modality: str, raw: Any) -> Any:
        if modality == "text":
            return raw
        if raw.shape[0] < 2 * SIDE:
            raise Undecodable("refused", "a small picture")
        half = SIDE // 2
        pixels = [raw[y, x] for y in (half, SIDE + half) for x in (half, SIDE + half)]
        values = np.array([COLOURS[name] for name in NAMES])
        return [NAMES[np.abs(values - pixel).sum(1).argmin()] for pixel in pixels]

    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        rows = []
        for item in items:
            words = item.split() if modality == "text" else item
            tokens = np.array([_drawn(word) for word in words], np.float32).reshape(-1, WIDTH)
            if modality == "image":
                squares = [_drawn(f"square {n}") for n in range(4)]
                tokens = tokens + 0.5 * np.array(squares) + 2 * _drawn("picture")
            rows.append(unit(tokens))
        lengths = np.array([len(row) for row in rows], np.int64)
        tokens = Ragged(np.concatenate([np.zeros((0, WIDTH), np.float32), *rows]), lengths)
        return Encoded(self._single.documents(tokens), tokens)

    def encode_queries(self, modality: str, items: Sequence[Any]) -> Encoded:
        found = self.encode(modality, items)
        assert found.tokens is not None
        return Encoded(self._single.queries(found.tokens), found.tokens)


def load(model: str, settings: EncoderSettings) -> TokenEncoder:
    return TokenEncoder(model)


def register() -> None:
    """Make `--encoder tokens` known to this process."""
    register_encoder("tokens", load)


def squares(names: Sequence[str]) -> bytes:
    """A PNG of four squares of these colours."""
    pixels = np.zeros((2 * SIDE, 2 * SIDE, 3), np.uint8)
    for number, name in enumerate(names):
        y, x = divmod(number, 2)
        pixels[y * SIDE : (y + 1) * SIDE, x * SIDE : (x + 1) * SIDE] = COLOURS[name]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def squares_shard(
    path: Path, samples: int, seed: int, *, holes: bool = True, captions: bool = True
) -> Shard:
    """A tar of such pictures, each with two of its colours as a caption. holes: every seventh
    sample has no picture, every ninth no caption."""
    rng = np.random.default_rng(seed)
    members: dict[str, dict[str, bytes]] = {}
    for number in range(samples):
        names = [NAMES[n] for n in rng.integers(0, len(NAMES), 4)]
        member = {"png": squares(names), "txt": f"{names[0]} {names[3]}".encode()}
        if holes and number % 7 == 3:
            del member["png"]
        elif holes and number % 9 == 4:
            del member["txt"]
        if not captions:
            member.pop("txt", None)
        members[f"{seed}-{number:05d}"] = member
    return write_tar(path, members)
