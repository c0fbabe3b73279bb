"""Sounds made by code, their files, and shards of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
WORDS = ("a", "dog", "cat", "sea", "boat", "sky", "moon", "star")


def tone(hertz: float, seconds: float = 1.0, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """A tone with some noise: (T,) float32."""
    times = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(size=len(times))
    return (0.3 * np.sin(2 * np.pi * hertz * times) + 0.01 * noise).astype(np.float32)


def encoded(
    samples: np.ndarray, form: str = "WAV", rate: int = RATE, subtype: str | None = None
) -> bytes:
    """The bytes of a file of these samples, (T,) or (T, channels)."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


def make_sounds(path: Path, samples: Sequence[Mapping[str, bytes]]) -> Path:
    """A shard of samples `00000`, ...: extension -> bytes of a member."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, members in enumerate(samples):
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{number:05d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def some_samples(count: int) -> list[dict[str, bytes]]:
    """Tones in wav, flac, ogg and mp3, in turn, each with a caption."""
    forms = {"wav": "WAV", "flac": "FLAC", "ogg": "OGG", "mp3": "MP3"}
    return [
        {
            (extension := list(forms)[number % 4]): encoded(
                tone(150 + 90 * number, 0.4 + 0.2 * (number % 5), seed=number), forms[extension]
            ),
            "txt": f"{WORDS[number % 8]} {WORDS[number // 8 % 8]}".encode(),
        }
        for number in range(count)
    ]
