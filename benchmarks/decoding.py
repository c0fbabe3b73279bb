"""From bytes to the pixels of a model: how fast, how near Pillow, and with which verdicts.

    python -m benchmarks.decoding [--photos SHARD...] [--hostile FOLDER] [--rounds N] [--pictures N]

JPEGs of 640 x 480 made by code, and photographs where shards are given, are made CLIP's input of
224 x 224 in three ways by turns: by our decode function and resize; by Pillow alone, decoded in
full; by simplejpeg and torch called directly on bytes in memory, which is the limit. Told are
ratios of processor time, the median of all rounds with the least and the greatest, the difference
from Pillow's pixels, and what two threads make of two cores. With --hostile every picture of the
shards in FOLDER is decoded both ways: verdicts and pixels have to agree. Prints a table and writes
benchmarks/results/decoding.json; exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image

from benchmarks.hostile import pictures as pictures_of
from benchmarks.machine import CORES, RESULTS, machine
from benchmarks.made_shards import encoded, photograph
from chiasm.pipeline.errors import Undecodable
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.pretrained.image_processing import Scale, SquareProcessing
from chiasm.pipeline.resizing import by_pillow

SIDE = 224
PROCESSING = SquareProcessing(
    SIDE, SIDE, int(Image.Resampling.BICUBIC), Scale(1, (0,) * 3, (1,) * 3)
)
FAST, EXACT = DecodeSettings(), DecodeSettings(exact=True)
# name -> (the bar, whether more is better)
BARS = {
    "processor time of Pillow, of ours": (2.4, True),
    "processor time of simplejpeg and torch, of ours": (0.92, True),
    "mean difference from Pillow, of 255": (0.05, False),
    "rate of two threads, of one": (1.8, True),
}
Way = Callable[[bytes], np.ndarray]


def ours(data: bytes) -> np.ndarray:
    return PROCESSING.preprocess(decode(data, FAST, SIDE).pixels)


def by_pillow_alone(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        rgb = image.convert("RGB")
    factor = SIDE / min(rgb.size)
    small = rgb.resize([int(length * factor) for length in rgb.size], Image.Resampling.BICUBIC)
    left, top = (small.width - SIDE) // 2, (small.height - SIDE) // 2
    square = small.crop((left, top, left + SIDE, top + SIDE))
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def by_libraries(data: bytes) -> np.ndarray:
    pixels = simplejpeg.decode_jpeg(data)
    height, width, _ = pixels.shape
    factor = SIDE / min(height, width)
    small = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None],
        size=(int(height * factor), int(width * factor)),
        mode="bicubic",
        antialias=True,
    )[0].numpy()
    left, top = (small.shape[2] - SIDE) // 2, (small.shape[1] - SIDE) // 2
    return np.ascontiguousarray(small[:, top : top + SIDE, left : left + SIDE])


WAYS: dict[str, Way] = {"ours": ours, "Pillow": by_pillow_alone, "libraries": by_libraries}


def seconds(way: Way, files: Sequence[bytes]) -> float:
    """Processor seconds of this thread."""
    began = time.thread_time()
    for data in files:
        way(data)
    return time.thread_time() - began


def rate(threads: int, files: Sequence[bytes]) -> float:
    """Pictures a second of wall clock, each thread over all files."""
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: seconds(ours, files), range(threads)))
    return threads * len(files) / (time.perf_counter() - began)


def spread(values: Sequence[float]) -> dict[str, float]:
    found = {"median": statistics.median(values), "least": min(values), "greatest": max(values)}
    return {name: round(float(value), 4) for name, value in found.items()}


def measure(files: Sequence[bytes], rounds: int) -> dict[str, Any]:
    spent: dict[str, list[float]] = {name: [] for name in WAYS}
    threads: list[float] = []
    for number in range(rounds + 1):  # the first warms up
        order = list(WAYS)[:: 1 if number % 2 else -1]
        made = {name: seconds(WAYS[name], files) for name in order}
        both = [(count, rate(count, files)) for count in ((1, 2) if number % 2 else (2, 1))]
        if number:
            for name, value in made.items():
                spent[name].append(value)
            threads.append(dict(both)[2] / dict(both)[1])
    apart = [np.abs(ours(data).astype(int) - by_pillow_alone(data)).mean() for data in files]
    return {
        "pictures": len(files),
        "ratios": {
            "processor time of Pillow, of ours": spread(_ratios(spent, "Pillow")),
            "processor time of simplejpeg and torch, of ours": spread(_ratios(spent, "libraries")),
            "mean difference from Pillow, of 255": spread(apart),
            "rate of two threads, of one": spread(threads),
        },
        "pictures a processor second": {
            name: round(len(files) / statistics.median(values)) for name, values in spent.items()
        },
    }


def _ratios(spent: dict[str, list[float]], name: str) -> list[float]:
    return [other / own for other, own in zip(spent[name], spent["ours"], strict=True)]


def compared(folder: Path) -> dict[str, Any]:
    """Every picture of the shards, decoded in both ways for a model of any size."""
    shards = sorted(map(str, folder.glob("*.tar")))
    changed, apart, count = [], [(0.0, "")], 0
    for _, member, data in pictures_of(shards):
        count += 1
        fast, exact = _verdict(data, FAST), _verdict(data, EXACT)
        if fast[0] != exact[0]:
            changed.append({"member": member, "fast": fast[0], "exact": exact[0]})
        elif fast[1] is not None and exact[1] is not None:
            apart.append((float(np.abs(fast[1].astype(int) - exact[1]).mean()), member))
    worst, member = max(apart)
    return {"files": count, "changed": changed, "worst mean difference": [worst, member]}


def _verdict(data: bytes, chosen: DecodeSettings) -> tuple[tuple[Any, ...], np.ndarray | None]:
    try:
        with by_pillow(chosen.exact):
            picture = decode(data, chosen, None)
    except Undecodable as failure:
        return (failure.reason, failure.detail), None
    return (picture.width, picture.height, picture.pixels.shape), picture.pixels


def report(found: dict[str, Any]) -> bool:
    """Print the table; True where every bar is met."""
    met = True
    for files, measured in found["files"].items():
        rates = measured["pictures a processor second"]
        line = ", ".join(f"{name} {value:,}" for name, value in rates.items())
        print(f"{files}: pictures a processor second: {line}")
        for name, values in measured["ratios"].items():
            bar, more = BARS[name]
            holds = values["median"] >= bar if more else values["greatest"] <= bar
            if name != "rate of two threads, of one" or CORES > 1:
                met &= holds
            numbers = f"{values['median']:.4g} ({values['least']:.4g} to {values['greatest']:.4g})"
            print(f"  {name}: {numbers}, bar {bar}")
    if hostile := found.get("hostile"):
        changed, (worst, member) = len(hostile["changed"]), hostile["worst mean difference"]
        print(f"hostile: {hostile['files']:,} files, {changed} verdicts changed (bar: 0)")
        print(f"  pixels {worst:.3f} apart at most in the mean (bar: 1) {member}")
        met &= not changed and worst <= 1
    return met


def photographs(shards: list[str], most: int) -> Iterator[bytes]:
    yield from itertools.islice((data for _, _, data in pictures_of(shards)), most)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", nargs="+", default=[], help="shards of photographs")
    parser.add_argument("--hostile", type=Path, help="a folder of shards of odd pictures")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pictures", type=int, default=32)
    given = parser.parse_args()
    made = [encoded(photograph(seed, 640, 480)) for seed in range(given.pictures)]
    found: dict[str, Any] = {"files": {"made by code": measure(made, given.rounds)}}
    if given.photos:
        photos = list(photographs(given.photos, 8 * given.pictures))
        found["files"]["photographs"] = measure(photos, given.rounds)
    if given.hostile:
        found["hostile"] = compared(given.hostile)
    met = report(found)
    result = {"bars_met": met, "machine": machine(), **found}
    (RESULTS / "decoding.json").write_text(json.dumps(result, indent=1) + "\n")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
