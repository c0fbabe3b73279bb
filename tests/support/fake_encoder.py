"""An encoder family `fake` for tests: no model, and faults where a caption asks for one.

Vectors are a function of the bytes alone: equal inputs, equal vectors. A caption that begins with
`fault:` makes the process that encodes it misbehave: `fault:die`, `fault:hang`, `fault:raise`,
`fault:slow SECONDS`, `fault:die-once FILE` (dies unless FILE exists, and makes it), `fault:hang
FILE` (makes FILE first), `fault:until FILE` (waits for FILE), or `fault:meet FOLDER` (waits until
two processes are there).
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

import numpy as np
from PIL import Image

from chiasm.pipeline.encoders import FAMILIES
from chiasm.pipeline.pretrained import EncoderSettings

DIM = 8


class FakeEncoder:
    dim, device = DIM, "cpu"
    image_size: int | None = 16

    def __init__(self, model: str = "", precision: str = "float32") -> None:
        self.precision = precision
        self.name = f"fake:{model}" if model else "fake"
        self.fingerprint = hashlib.blake2b(model.encode(), digest_size=16).hexdigest()
        self.preprocessing = {"resize": 16}

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((16, 16))).transpose(2, 0, 1)

    def encode_images(self, pixels) -> np.ndarray:
        return np.stack([self._vector(one.tobytes()) for one in pixels])

    def encode_texts(self, texts) -> np.ndarray:
        for text in texts:
            misbehave(text)
        return np.stack([self._vector(text.encode("utf-8", "surrogatepass")) for text in texts])

    def encode_pairs(self, image, text, pixels, texts) -> np.ndarray:
        mean = image + text
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def _vector(self, data: bytes) -> np.ndarray:
        digest = hashlib.blake2b(data, key=self.name.encode(), digest_size=8).digest()
        drawn = np.random.default_rng(int.from_bytes(digest, "big")).normal(size=DIM)
        return (drawn / np.linalg.norm(drawn)).astype(np.float32)


class FakeMatcher(FakeEncoder):
    """One that also matches: its log odds are a function of both, as if drawn."""

    def match_pairs(self, pixels, texts) -> np.ndarray:
        images, words = self.encode_images(pixels), self.encode_texts(texts)
        return (10 * np.sin(40 * (images * words).sum(1))).astype(np.float32)


def misbehave(text: str) -> None:
    fault, _, argument = text.removeprefix("fault:").partition(" ")
    if not text.startswith("fault:"):
        return
    if fault == "die" or (fault == "die-once" and not Path(argument).exists()):
        if argument:
            Path(argument).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "hang":
        if argument:
            Path(argument).touch()
        time.sleep(3600)
    elif fault == "until":
        while not Path(argument).exists():
            time.sleep(0.01)
    elif fault == "meet":
        Path(argument, str(os.getpid())).touch()
        while len(list(Path(argument).iterdir())) < 2:
            time.sleep(0.01)
    elif fault == "raise":
        raise ZeroDivisionError("a fault was asked for")
    elif fault == "slow":
        time.sleep(float(argument))


def load(model: str, settings: EncoderSettings) -> FakeEncoder:
    kind = FakeMatcher if model == "matcher" else FakeEncoder
    return kind(model, "float32" if settings.precision == "auto" else settings.precision)


def register() -> None:
    """Make `--encoder fake` known to this process."""
    FAMILIES["fake"] = "fake_encoder"
