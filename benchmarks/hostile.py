"""What becomes of broken and odd picture files: each a row or a drop, against plain Pillow.

    python -m benchmarks.hostile --data FOLDER

FOLDER holds shards of such files and, if it likes, `expected.jsonl`: what plain Pillow made of each
elsewhere. The shards are embedded by the `chiasm embed` command; then each file is decoded alone by
us and by plain Pillow, in a process of its own. Every file with an extension that is read, which
Pillow opens within our limits, has to be a row with an image vector. Told beside that: drops by
reason, the memory and the seconds of the dearest files, and what C libraries printed. Prints a
table and writes benchmarks/results/hostile.json; exits 1 where a bar is missed, 2 without the data.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import PIL
from PIL import Image, features

from chiasm.jobs.console import divert_c_output
from chiasm.pipeline.collection import embeddings, entries
from chiasm.pipeline.errors import Undecodable
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.images.decode import BYTES_OVERHEAD, BYTES_PER_PIXEL
from chiasm.pipeline.records import Sample
from chiasm.pipeline.shards import ReadSettings, Tar, list_shards, read_samples, split_member_name
from chiasm.pipeline.storage import Folder

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "hostile.json"
TARGET = 72  # the side that the pocket encoder sees
LIMITS = DecodeSettings()
LISTED = 5  # of the dearest files
# What `chiasm embed` itself says on stderr, where that is no terminal and wide enough.
OURS = re.compile(r"\s*$|\d+ workers starting|shards \d|loading |dropped |and [\d,]+ more|chiasm: ")


def plainly(data: bytes) -> dict[str, Any]:
    """What Image.open and load make of a file, without a limit but Pillow's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                size, form = image.size, image.format
                image.load()
        except Exception as error:  # noqa: BLE001  Pillow raises nearly everything
            return {"outcome": "err", "exception": type(error).__name__}
    within = size[0] * size[1] <= LIMITS.max_megapixels * 1e6
    return {"outcome": "ok", "format": form, "size": list(size), "within": within}


def by_us(data: bytes) -> dict[str, Any]:
    """Reason or None, CPU seconds of this thread, MB of memory at the most beyond those before."""
    ctypes.CDLL(None).malloc_trim(0)  # what others freed would hide what this one takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, began = memory("VmRSS"), time.thread_time()
    try:
        reason, detail = None, ""
        picture = decode(data, LIMITS, TARGET)
        pixels = picture.width * picture.height
    except Undecodable as failure:
        reason, detail, pixels = failure.reason, failure.detail, 0
    seconds = time.thread_time() - began
    return {
        "reason": reason,
        "detail": detail,
        "pixels": pixels,
        "seconds": round(seconds, 4),
        "mb": round(max(0, memory("VmHWM") - before) / 1024, 1),
    }


def memory(field: str) -> int:
    """Kilobytes, from Linux's account of this process."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1])


def each_alone(shards: list[str], log: Path) -> None:
    """In a process of its own: a line of JSON for each sample with a picture."""
    divert_c_output(log)
    by_us(b"")  # imports and first allocations are nobody's
    for key, member, data in pictures(shards):
        alone = {"key": key, "member": member, "bytes": len(data), **by_us(data)}
        print(json.dumps({**alone, "pillow": plainly(data)}), flush=True)


def pictures(shards: list[str]) -> Iterator[tuple[str, str, bytes]]:
    """(key, member, bytes) of every sample that has a picture with an extension that is read."""
    for shard in list_shards(shards):
        for item in read_samples(shard, ReadSettings()):
            if isinstance(item, Sample) and "image" in item.sources:
                source = item.sources["image"]
                yield item.key, source.place.member, source.data


def embedded(shards: list[str], folder: Path) -> dict[str, Any]:
    """`chiasm embed` of the shards: its account, what it dropped, and what is in its Parquet."""
    command = ["-m", "chiasm", "embed", *shards, "--to", str(folder), "--json", "--max-loss", "1"]
    ran = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "1000"},
        capture_output=True,
        text=True,
    )
    if ran.returncode:
        sys.exit(f"chiasm embed ended with {ran.returncode}:\n{ran.stderr[-3000:]}")
    summary = json.loads(ran.stdout)  # nothing else is on descriptor 1, or this raises
    collection = Folder(str(folder))
    vectors: dict[str, bool] = {}
    for file in embeddings(collection):
        table = file.read(["key", "image"])
        vectors.update(
            zip(table["key"].to_pylist(), table["image"].is_valid().to_pylist(), strict=True)
        )
    drops = [asdict(drop) for entry in entries(collection) for drop in entry.dropped]
    foreign = [line for line in ran.stderr.splitlines() if not OURS.match(line)]
    return {"told": summary, "vectors": vectors, "lost": drops, "foreign": foreign}


def keys_of(shards: list[str]) -> set[str]:
    """Every key of the shards, by a look at the names alone."""
    found = set()
    for shard in list_shards(shards):
        with Tar(shard.url) as tar:
            found |= {name[0] for member in tar if (name := split_member_name(member.name))}
    return found


def compared(run: dict[str, Any], alone: list[dict[str, Any]], keys: set[str]) -> dict[str, Any]:
    """Where the rows, the drops, and Pillow disagree; each list should be empty."""
    vectors, drops = run["vectors"], {one["key"]: one for one in run["lost"]}
    owed = [one for one in alone if one["pillow"]["outcome"] == "ok" and one["pillow"]["within"]]
    return {
        "neither row nor drop, or both": sorted(keys ^ (vectors.keys() ^ drops.keys())),
        "opened by Pillow, not a row": [
            {**drops.get(one["key"], {"key": one["key"]}), "pillow": one["pillow"]}
            for one in owed
            if not vectors.get(one["key"])
        ],
        "dropped in the run, not alone, or otherwise": [
            one["key"]
            for one in alone
            if drops.get(one["key"], {"reason": None})["reason"] != one["reason"]
        ],
        "dearer than told": [
            one["key"]
            for one in alone
            if one["mb"] * 2**20 > BYTES_PER_PIXEL * one["pixels"] + BYTES_OVERHEAD
            or one["seconds"] > LIMITS.max_seconds + 1
        ],
    }


def unlike_expected(data: Path, alone: list[dict[str, Any]]) -> dict[str, Any] | None:
    """How many files this Pillow takes otherwise than the one of `expected.jsonl`."""
    if not (data / "expected.jsonl").exists():
        return None
    lines = (data / "expected.jsonl").read_text().splitlines()
    outcomes = {one["key"]: one["outcome"] for one in map(json.loads, lines)}
    ways = Counter(
        f"{outcomes[one['key']]} there, {one['pillow']['outcome']} here"
        for one in alone
        if outcomes.get(one["key"], one["pillow"]["outcome"]) != one["pillow"]["outcome"]
    )
    return {"files": len(outcomes), "unlike": dict(ways)}


def measure(data: Path, shards: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        log = Path(place) / "c-output.log"
        run = embedded(shards, Path(place) / "collection")
        command = [
            sys.executable,
            "-m",
            "benchmarks.hostile",
            "--alone",
            str(log),
            "--data",
            str(data),
        ]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            sys.exit(f"decoding one by one ended with {ran.returncode}:\n{ran.stderr[-3000:]}")
        alone = [json.loads(line) for line in ran.stdout.splitlines()]
        printed = log.stat().st_size
    summary = run["told"]
    opened = [one for one in alone if one["pillow"]["outcome"] == "ok"]
    return {
        "samples": summary["samples"],
        "rows": summary["rows"],
        "dropped": summary["reasons"],
        "files with an extension that is read": len(alone),
        "of them opened by Pillow": len(opened),
        "of them within our limits": sum(one["pillow"]["within"] for one in opened),
        "rows that Pillow alone cannot open": sum(
            one["reason"] is None and one["pillow"]["outcome"] == "err" for one in alone
        ),
        "disagreements": compared(run, alone, keys_of(shards)),
        "pillow and expected.jsonl": unlike_expected(data, alone),
        "most memory": dearest(alone, "mb"),
        "slowest": dearest(alone, "seconds"),
        "bytes that C libraries printed": {
            "on descriptors 1 and 2 of the command": sum(map(len, run["foreign"])),
            "on descriptor 2 when decoding one by one": len(ran.stderr),
            "into the log then": printed,
        },
        "versions": {
            "python": platform.python_version(),
            "pillow": PIL.__version__,
            "libtiff": features.version_codec("libtiff"),
            "webp": features.version_module("webp"),
            "avif": features.version_module("avif"),
        },
        "cpus": os.cpu_count(),
    }


def dearest(alone: list[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    most = sorted(alone, key=lambda one: -one[by])[:LISTED]
    names = ("member", by, "pixels", "bytes", "reason")
    return [{name: one[name] for name in names} for one in most]


def report(found: dict[str, Any]) -> bool:
    """Print the table; True where every bar is met."""
    for name in ("samples", "rows", *(name for name in found if name.startswith(("files", "of")))):
        print(f"{found[name]:>8,}  {name}")
    for reason, count in found["dropped"].items():
        print(f"{count:>8,}  dropped: {reason}")
    bars = {name: len(those) for name, those in found["disagreements"].items()}
    bars["bytes of C libraries on descriptors 1 and 2"] = sum(
        size for name, size in found["bytes that C libraries printed"].items() if "log" not in name
    )
    for name, count in bars.items():
        print(f"{count:>8,}  {name} (bar: 0)")
    for name, unit in (("most memory", "mb"), ("slowest", "seconds")):
        one = found[name][0]
        print(f"{one[unit]:>8,}  {unit}, {name}: {one['member']}, {one['pixels']:,} pixels")
    return not any(bars.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="a folder of shards")
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    shards = sorted(map(str, given.data.glob("*.tar")))
    if not shards:
        print(f"no data: expected *.tar in {given.data}, found none", file=sys.stderr)
        return 2
    if given.alone is not None:
        each_alone(shards, given.alone)
        return 0
    found = measure(given.data, shards)
    met = report(found)
    RESULT.write_text(json.dumps({"bars_met": met, **found}, indent=1) + "\n")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
