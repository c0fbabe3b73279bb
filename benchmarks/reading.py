"""Whether shards are read as the webdataset package reads them, and every picture decodes.

    python -m benchmarks.reading --shards SHARD... [--target 224]

Reads each shard through our path (samples, decode threads, batches) and through webdataset, and
compares keys, pictures and captions (from txt, and from a list in json's `captions` where there is
one); then reads each picture again by its place in the tar. Prints the result as JSON and writes it
to benchmarks/results/photos_reading.json; exits 1 for any loss or difference.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL
import webdataset
from PIL import Image

from benchmarks.free_encoder import FreeEncoder
from chiasm.pipeline.batches import BatchSettings, batches
from chiasm.pipeline.collection import Tally
from chiasm.pipeline.encoders import Input
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.records import Sample, Shard
from chiasm.pipeline.resizing import resize
from chiasm.pipeline.shards import (
    PICTURE_EXTENSIONS,
    ReadSettings,
    list_shards,
    read_member,
    read_samples,
)
from chiasm.pipeline.storage import display_name
from chiasm.pipeline.timing import Stopwatch

RESULT = Path(__file__).parent / "results" / "photos_reading.json"


def by_webdataset(shard: Shard) -> Iterator[dict[str, Any]]:
    """The samples as the package groups them, members as bytes."""
    return iter(
        webdataset.WebDataset(display_name(shard.url), shardshuffle=False, empty_check=False)
    )


def by_us(shard: Shard, caption_field: str) -> list[Sample]:
    read = read_samples(shard, ReadSettings(caption_field=caption_field))
    return [item for item in read if isinstance(item, Sample)]


def differences(shard: Shard) -> Counter[str]:
    """How many samples differ from webdataset's, by what differs."""
    theirs = list(by_webdataset(shard))
    ours, ours_json = by_us(shard, "caption"), by_us(shard, "captions")
    found: Counter[str] = Counter({"number of samples": abs(len(theirs) - len(ours))})
    for their, our, with_json in zip(theirs, ours, ours_json, strict=False):
        picture = next((their[ending] for ending in PICTURE_EXTENSIONS if ending in their), None)
        text = their["txt"].decode().strip() if "txt" in their else None
        table = json.loads(their["json"]) if "json" in their else {}
        all_of_them = table.get("captions", [text] if text else [])
        source = our.sources.get("image")
        again = read_member(shard.url, source.place) if source is not None else None
        found["key"] += their["__key__"] != our.key
        found["picture"] += picture != our.picture
        found["caption"] += text is not None and our.captions != (text,)
        found["captions of json"] += [c.strip() for c in all_of_them] != list(with_json.captions)
        found["json"] += "json" in their and our.json != their["json"].decode()
        found["bytes at the offset"] += again != picture
    return found


class Resize(FreeEncoder):
    """Pictures resized to a square, as a stand-in for an encoder's preprocessing."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self.modalities = {"image": Input(side=target), "text": Input()}

    def preprocess(self, modality: str, raw: Any) -> Any:
        if modality == "text":
            return raw
        side = self.modalities["image"].side or 0
        return resize(raw, (side, side), Image.Resampling.BICUBIC)


def through_the_threads(shard: Shard, target: int, tally: Tally, clock: Stopwatch) -> int:
    """Rows of the shard when all is read, decoded and resized."""
    items = read_samples(shard, ReadSettings())
    settings = BatchSettings(decode_threads=os.cpu_count() or 1)
    made = batches(items, Resize(target), DecodeSettings(), settings, tally=tally, clock=clock)
    return sum(len(batch) for batch in made)


def measure(shards: list[Shard], target: int) -> dict[str, Any]:
    tally, clock, differ = Tally(), Stopwatch(), Counter[str]()
    start = time.perf_counter()
    for shard in shards:
        tally.keep(through_the_threads(shard, target, tally, clock))
    wall = time.perf_counter() - start
    for shard in shards:
        differ.update(differences(shard))
    return {
        "shards": len(shards),
        "samples": tally.samples,
        "rows": tally.rows,
        "dropped": dict(Counter(drop.reason for drop in tally.dropped)),
        "notes": dict(Counter(note.reason for note in tally.notes)),
        "differences_from_webdataset": dict(differ),
        "rows_per_second": round(tally.rows / wall, 1),
        "busy_seconds": {stage: round(seconds, 2) for stage, seconds in clock.seconds.items()},
        "cpus": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            "webdataset": webdataset.__version__,
            "pillow": PIL.__version__,
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shards", nargs="+", required=True, help="paths, ranges, globs, folders")
    parser.add_argument("--target", type=int, default=224, help="side of what an encoder sees")
    arguments = parser.parse_args()
    result = measure(list_shards(arguments.shards), arguments.target)
    text = json.dumps(result, indent=1)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text + "\n")
    print(text)
    return int(bool(result["dropped"]) or any(result["differences_from_webdataset"].values()))


if __name__ == "__main__":
    sys.exit(main())
