"""An answerer without a model, for tests: what it says is a function of pixels and request."""

from __future__ import annotations

from typing import Any

import numpy as np

from chiasm.pipeline.encoders import TASKS, Input, Reply


def described(pixels: np.ndarray) -> str:
    """What the fake says of a picture: the mean of each channel."""
    return "means " + " ".join(f"{mean:.0f}" for mean in pixels.reshape(-1, 3).mean(0))


class FakeAnswerer:
    """It raises for the text `crash` and says nothing to `silence`. settings: of every call."""

    name, fingerprint, precision, device = "fake", "0" * 32, "float32", "cpu"
    tasks = dict.fromkeys(TASKS, ("en", "zh"))
    broken = False

    def __init__(self) -> None:
        self.modalities = {"image": Input(), "text": Input()}
        self.settings: list[Any] = []

    def preprocess(self, modality: str, raw: Any) -> Any:
        return raw

    def cost(self, modality: str, item: Any) -> int:
        return item.size

    def answer(self, requests, settings) -> list[Reply]:
        if self.broken or any(request.text == "crash" for request in requests):
            raise RuntimeError("no kernel")
        self.settings.append(settings)
        return [self._reply(request) for request in requests]

    def _reply(self, request) -> Reply:
        words = described(request.image)
        if request.task != "caption":
            words = f"{request.task} {request.language} {request.text} {words}"
        return Reply("" if request.text == "silence" else words, confidence=0.5)
