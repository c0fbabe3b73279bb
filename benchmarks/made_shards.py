"""Shards of photograph-like JPEGs with captions, made by code, the same for the same arguments.

Pixels are noise whose power falls with the cube of the frequency, much as that of photographs does,
so that a JPEG of 640 x 480 at quality 90 has some 80 KB and costs a decoder what a photograph does.
Shards are kept under benchmarks/.cache and made once. 64 pictures are drawn and then reused,
mirrored and shifted, since drawing is slower than decoding; their bytes differ all the same.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from chiasm.pipeline.shards import write_shard
from tests.support.random_models import WORDS

CACHE = Path(__file__).parent / ".cache"
DRAWN = 64


def make_shards(
    shards: int, samples: int, *, width: int = 640, height: int = 480, words: int = 14
) -> list[Path]:
    """Paths of `shards` tars of `samples` pairs each. A caption has `words` words, each one token
    of the tokenizers in random_models.py, which add two of their own."""
    folder = CACHE / f"shards-{width}x{height}-{words}w-{samples}"
    paths = [folder / f"{number:05d}.tar" for number in range(shards)]
    drawn: list[Image.Image] = []
    for number, path in enumerate(paths):
        if not path.exists():
            drawn = drawn or [photograph(seed, width, height) for seed in range(DRAWN)]
            write_shard(path, pairs(number, samples, drawn, words))
    return paths


def pairs(shard: int, samples: int, drawn: list[Image.Image], words: int) -> Iterator[dict]:
    rng = np.random.default_rng(shard)
    for number in range(samples):
        image = drawn[int(rng.integers(len(drawn)))]
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = Image.fromarray(np.roll(np.asarray(image), rng.integers(640, size=2), (0, 1)))
        yield {
            "__key__": f"{shard:03d}{number:06d}",
            "jpg": encoded(image),
            "txt": " ".join(rng.choice(WORDS, words)),
        }


def photograph(seed: int, width: int, height: int) -> Image.Image:
    """RGB noise with an amplitude of 1 / f^1.5; the channels share most, as in photographs."""
    rng = np.random.default_rng(seed)
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = np.maximum(np.hypot(down, across), 1 / max(width, height)) ** -1.5
    grey, *tints = (_shaped(rng, amplitude, (height, width)) for _ in range(4))
    channels = [128 + 55 * grey + 14 * tint for tint in tints]
    return Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8))


def _shaped(rng: np.random.Generator, amplitude: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """White noise filtered to `amplitude`, with mean 0 and deviation 1."""
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=shape)) * amplitude, shape)
    return (noise - noise.mean()) / noise.std()


def encoded(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()
