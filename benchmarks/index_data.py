"""Vectors for the benchmarks of the index, made once and kept as .npy files.

    python -m benchmarks.index_data pocket --processes 2
    python -m benchmarks.index_data made300k made1m
    python -m benchmarks.index_data photos --photos ../shared/data/photos --encoder two-tower:DIR

Sets, each in a folder of its name:
pocket    pictures of 300,000 scenes and partial captions in English and Chinese, by the encoder
          `pocket`; 256 dimensions.
made300k  300,000 x 512: joint mixtures of topics in a latent space, picture and text in cones
          apart (`made_vectors`).
made1m    1,000,000 x 256 of the same kind.
photos    photographs and their captions by a two-tower model (benchmarks/index_photos.py).

Files: xb.npy, the rows; tq_learn.npy and tq_report.npy, text queries to learn from and others to be
asked, disjoint; iq.npy, pictures that are no rows. All are float32 unit rows; xb.npy has the values
that float16 has, as the rows of a collection do. What is finished is not made again: `pocket` is
made in parts, and a part that is there is kept.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "chiasm-benchmarks"
FILES = ("xb", "tq_learn", "tq_report", "iq")
LEARN, REPORT, PICTURES = 21_000, 1_000, 1_000  # queries of a set
SCENES, PART = 300_000, 5_000
# More than this at once is slower: the activations leave the cache.
BATCH = 64
# The made sets: topics, latent dimensions and how fast their spectrum falls. With them FAISS HNSW32
# finds between 0.80 and 0.95 of the first ten of text queries at efSearch 64.
TOPICS, LATENT, DECAY = 2_000, 64, 27.0
BLOCK = 50_000  # rows made at a time


def main() -> None:
    """Make what is not there, print where it lies and what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+", choices=[*MAKERS, "photos"])
    parser.add_argument("--to", type=Path, default=CACHE / "index", help="folder of the sets")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rows", type=int, help="of `pocket`, for a trial; 300,000")
    parser.add_argument("--photos", nargs="+", help="shards of photographs with captions")
    parser.add_argument("--encoder", help="of `photos`, two-tower:DIR")
    given = parser.parse_args()
    for name in given.sets:
        started, folder = time.perf_counter(), given.to / name
        if not is_there(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if name == "photos":
                from benchmarks.index_photos import make_photos  # torch, which the others spare

                make_photos(folder, given.photos, given.encoder)
            else:
                MAKERS[name](folder, given)
        shapes = {file: np.load(folder / f"{file}.npy", mmap_mode="r").shape for file in FILES}
        seconds = round(time.perf_counter() - started, 1)
        print(json.dumps({"set": name, "folder": str(folder), **shapes, "seconds": seconds}))


def is_there(folder: Path) -> bool:
    """Whether every file of a set is finished."""
    return all((folder / f"{file}.npy").exists() for file in FILES)


def as_stored(rows: np.ndarray) -> np.ndarray:
    """Rows as a collection has them: float32 values of the float16 that lies in Parquet."""
    return rows.astype(np.float16).astype(np.float32)


def save(path: Path, rows: np.ndarray) -> None:
    """Write an array under its final name once it is whole."""
    beginning = path.with_name(path.name + ".part")
    with beginning.open("wb") as file:
        np.save(file, np.ascontiguousarray(rows, dtype=np.float32))
    beginning.rename(path)


def make_pocket(folder: Path, given: argparse.Namespace) -> None:
    """Scenes, partial captions and other scenes through the encoder `pocket`."""
    rows = given.rows or SCENES
    starts = range(0, rows + PICTURES, PART)
    spans = [(first, min(first + PART, rows + PICTURES)) for first in starts]
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        for done, _ in enumerate(pool.imap_unordered(partial(_encode_span, folder), spans), 1):
            print(f"{done} of {len(spans)} parts", flush=True)
    learn, report = _captions(rows)
    save(folder / "tq_learn.npy", _encode_texts(learn))
    save(folder / "tq_report.npy", _encode_texts(report))
    pictures = np.concatenate([np.load(_part(folder, first)) for first, _ in spans])
    save(folder / "iq.npy", pictures[rows:])
    save(folder / "xb.npy", as_stored(pictures[:rows]))
    for first, _ in spans:
        _part(folder, first).unlink()


def _part(folder: Path, first: int) -> Path:
    return folder / f"part-{first:07d}.npy"


def _scene(number: int):
    """Any scene can be made again anywhere: it is a function of its number."""
    from chiasm.pipeline.scenes.world import random_scene

    return random_scene(random.Random(f"index scene {number}"))


def _encoder():
    from chiasm.pipeline.encoders import load_encoder
    from chiasm.pipeline.pretrained import EncoderSettings

    # One thread a process: `auto` takes bfloat16 where the processor multiplies it.
    return load_encoder("pocket", EncoderSettings(precision="auto", threads=1))


def _encode_span(folder: Path, span: tuple[int, int]) -> None:
    if not _part(folder, span[0]).exists():
        save(_part(folder, span[0]), _encode_scenes(*span))


def _encode_scenes(first: int, after: int) -> np.ndarray:
    from chiasm.pipeline.scenes.draw import picture

    encoder = _encoder()
    # Drawn at the encoder's own size: nothing is resized.
    side = encoder.modalities["image"].side
    assert side is not None
    rows = []
    for start in range(first, after, BATCH):
        scenes = [_scene(number) for number in range(start, min(start + BATCH, after))]
        pixels = [
            np.ascontiguousarray(np.asarray(picture(scene, side)).transpose(2, 0, 1))
            for scene in scenes
        ]
        rows.append(encoder.encode("image", pixels).vectors)
    return np.concatenate(rows)


def fresh_pictures(count: int) -> np.ndarray:
    """Pictures of scenes that the set `pocket` has neither as rows nor as queries."""
    first = SCENES + PICTURES
    return _encode_scenes(first, first + count)


def fresh_texts(count: int) -> np.ndarray:
    """Partial captions that the set `pocket` does not have."""
    learn, report = _captions(SCENES)
    return _encode_texts(_distinct(count, "fresh captions", SCENES, {*learn, *report}))


def _captions(rows: int) -> tuple[list[str], list[str]]:
    """LEARN and REPORT partial captions of scenes of the set; no caption is there twice."""
    texts = _distinct(LEARN + REPORT, "index captions", rows, set())
    return texts[:LEARN], texts[LEARN:]


def _distinct(count: int, seed: str, rows: int, others: set[str]) -> list[str]:
    """Different partial captions in random order, every second one Chinese; none of `others`."""
    from chiasm.pipeline.scenes.words import caption

    rng = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        language = ("en", "zh")[len(texts) % 2]
        number = rng.randrange(rows)
        text = caption(_scene(number), rng.randrange(2**31), language, complete=False).text
        if text not in others:
            texts[text] = None
    shuffled = list(texts)
    rng.shuffle(shuffled)
    return shuffled


def _encode_texts(texts: list[str]) -> np.ndarray:
    encoder = _encoder()
    blocks = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    return np.concatenate([encoder.encode("text", block).vectors for block in blocks])


class MadeWorld:
    """Pictures and texts about the same latent things.

    A picture's latent vector is a mixture of one to three topics, so that clusters overlap, and a
    part of its own; its spectrum falls, so that few dimensions matter. A text tells some of a
    picture's latent coordinates, the small ones less often. Both are carried into D dimensions by
    one orthonormal map, get noise, and are moved into two cones apart.
    """

    OWN, NOISE, OMITTED = 0.45, 0.35, 0.5
    CONE = 0.66  # of a vector's length, against 0.75 that tells one from another

    def __init__(self, dim: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self.dim, self.seed = dim, seed
        self.scale = np.exp(-np.arange(LATENT) / DECAY)
        self.topics = rng.standard_normal((TOPICS, LATENT)) * self.scale
        popularity = rng.pareto(1.2, TOPICS) + 0.02
        self.popularity = popularity / popularity.sum()
        self.into_dim = np.linalg.qr(rng.standard_normal((dim, LATENT)))[0]
        axes = np.linalg.qr(rng.standard_normal((dim, 2)))[0].T
        self.cones = dict(zip(("picture", "text"), axes, strict=True))

    def rows(self, kind: str, count: int, stream: int) -> np.ndarray:
        """(count, dim) float32 unit rows; the same stream gives the same rows."""
        rng = np.random.default_rng([self.seed, stream])
        latent = self._latent(count, rng)
        if kind == "text":
            omitted = self.OMITTED * np.linspace(0.3, 1, LATENT)
            latent *= rng.random((count, LATENT)) >= omitted
        noise = rng.standard_normal((count, self.dim), dtype=np.float32)
        stated = latent @ self.into_dim.T + self.NOISE / np.sqrt(self.dim) * noise
        return _unit(0.75 * _unit(stated) + self.CONE * self.cones[kind]).astype(np.float32)

    def _latent(self, count: int, rng: np.random.Generator) -> np.ndarray:
        picked = rng.choice(TOPICS, (count, 3), p=self.popularity)
        shares = rng.dirichlet([1, 1, 1], count)
        own = self.OWN * self.scale * rng.standard_normal((count, LATENT))
        return np.einsum("bt,btl->bl", shares, self.topics[picked]) + own


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_made(rows: int, dim: int, seed: int, folder: Path, _: argparse.Namespace) -> None:
    """A made set: rows in blocks, then its queries."""
    world = MadeWorld(dim, seed)
    save(folder / "tq_learn.npy", world.rows("text", LEARN, stream=1))
    save(folder / "tq_report.npy", world.rows("text", REPORT, stream=2))
    save(folder / "iq.npy", world.rows("picture", PICTURES, stream=3))
    xb = np.empty((rows, dim), np.float32)
    for first in range(0, rows, BLOCK):
        count = min(BLOCK, rows - first)
        xb[first : first + count] = as_stored(world.rows("picture", count, stream=4 + first))
    save(folder / "xb.npy", xb)


MAKERS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "pocket": make_pocket,
    "made300k": partial(make_made, 300_000, 512, 1),
    "made1m": partial(make_made, 1_000_000, 256, 2),
}


if __name__ == "__main__":
    main()
