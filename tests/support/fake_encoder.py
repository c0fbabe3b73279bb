"""An encoder family `fake` for tests: no model, and faults where a caption asks for one.

Vectors are a function of the bytes alone: equal inputs, equal vectors. A caption that begins with
`fault:` makes the process that encodes it misbehave: `fault:die`, `fault:hang`, `fault:raise`,
`fault:memory` (raises as CUDA does), `fault:bug` (raises where no sample is to blame, when the
shard's ledger entry is made), `fault:slow SECONDS`, `fault:die-once FILE` (dies unless FILE exists,
and makes it), `fault:hang FILE` (makes FILE first), `fault:until FILE` (waits for FILE), or
`fault:meet FOLDER` (waits until two processes are there). FAULTY are captions of odd vectors.

`fake:today` is one that knows rows of `fake` as its own of before.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from chiasm.pipeline.encoders import BaseEncoder, Encoded, Input, register_encoder
from chiasm.pipeline.pretrained import EncoderSettings

DIM = 8
FAULTY = {b"fault:nan": np.nan, b"fault:zero": 0.0, b"fault:inf": np.inf, b"fault:long": 1.0}


class FakeEncoder(BaseEncoder):
    device = "cpu"
    side: int | None = 16
    _bug = False

    def __init__(self, model: str = "", precision: str = "float32") -> None:
        self.precision = precision
        self.name = f"fake:{model}" if model else "fake"
        self.fingerprint = hashlib.blake2b(model.encode(), digest_size=16).hexdigest()
        self.preprocessing = {"resize": 16}
        self.earlier_fingerprints = (
            {FakeEncoder().fingerprint: "prompts"} if model == "today" else {}
        )
        self.dims = dict.fromkeys(("image", "text", "joint"), DIM)

    def __getattribute__(self, name: str) -> Any:
        if name == "fingerprint" and self._bug:  # asked for when the ledger entry is made
            self._bug = False
            raise ZeroDivisionError("a fault was asked for")
        return super().__getattribute__(name)

    @property
    def modalities(self) -> dict[str, Input]:
        return {"image": Input(side=self.side), "text": Input()}

    def preprocess(self, modality: str, raw: Any) -> Any:
        if modality == "text":
            return raw
        return np.asarray(Image.fromarray(raw).resize((16, 16))).transpose(2, 0, 1)

    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        if modality == "text":
            for text in items:
                misbehave(text)
            self._bug |= "fault:bug" in items
            items = [text.encode("utf-8", "surrogatepass") for text in items]
        else:
            items = [one.tobytes() for one in items]
        return Encoded(np.stack([self._vector(item) for item in items]))

    def _vector(self, data: bytes) -> np.ndarray:
        if data in FAULTY:
            return np.full(DIM, FAULTY[data], np.float32)
        digest = hashlib.blake2b(data, key=self.name.encode(), digest_size=8).digest()
        drawn = np.random.default_rng(int.from_bytes(digest, "big")).normal(size=DIM)
        return (drawn / np.linalg.norm(drawn)).astype(np.float32)


class FakeMatcher(FakeEncoder):
    """One that also matches: its log odds are a function of both, as if drawn."""

    def match(self, a, b, pairs) -> np.ndarray:
        first, second = (self.encode(*each).vectors[pairs[:, n]] for n, each in enumerate((a, b)))
        return (10 * np.sin(40 * (first * second).sum(1))).astype(np.float32)


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
    elif fault == "memory":
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
    elif fault == "slow":
        time.sleep(float(argument))


def load(model: str, settings: EncoderSettings) -> FakeEncoder:
    kind = FakeMatcher if model == "matcher" else FakeEncoder
    return kind(model, "float32" if settings.precision == "auto" else settings.precision)


def register() -> None:
    """Make `--encoder fake` known to this process."""
    register_encoder("fake", load)
