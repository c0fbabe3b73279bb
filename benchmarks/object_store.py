"""What failing requests cost: the same shards embedded onto S3 with 0 % and 1 % of them failing.

    python -m benchmarks.object_store [--rounds 7] [--shards 60] [--samples 60] [--share 0.01]

Starts an S3 (moto's server) and before it a server that fails requests, drawn with a seed: 500s,
503s, resets, truncated bodies. Each round embeds all shards twice, once with no request failing and
once with some, in turns, each in a process of its own that times itself from the first look at the
shards to the end of the run. The settings of retries are those in force everywhere; pictures are
small, blocks are small (BLOCK) and the encoder costs nothing, so that there are many requests and
little else to hide a wait behind. The slowdown is the median of those of the rounds: the two runs
of a round stand side by side, so what else the machine does weighs on both. Prints a table and
writes benchmarks/results/object_store.json; exits 1 where a byte differs from what local disk gets,
or where no request failed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from s3fs import S3FileSystem

from benchmarks.faulty_server import running_moto
from pipeline import stores, streams
from pipeline.collection import Identity, establish
from pipeline.embed import EmbedSettings, embed_shard
from pipeline.runs import Run
from pipeline.shards import list_shards, write_shard
from pipeline.storage import Folder

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "object_store.json"
KINDS = ("500", "503", "reset", "truncated")
BLOCK = 64 << 10  # bytes of a range read; 8 MiB where nothing is measured
BUCKET = "s3://benchmark"


class CheapEncoder:
    """Vectors of a picture's first pixels or a text's first letters: work for nobody."""

    dim = 16
    image_size: int | None = 64
    name, fingerprint, precision, device = "cheap", "cheap", "float32", "cpu"

    def __init__(self) -> None:
        self.preprocessing: dict[str, Any] = {"resize": 64}

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((64, 64))).transpose(2, 0, 1)

    def encode_images(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        return unit(np.stack([one.ravel()[: self.dim] for one in pixels]))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return unit(np.stack([list(text.ljust(self.dim).encode()[: self.dim]) for text in texts]))

    def encode_pairs(
        self,
        image: np.ndarray,
        text: np.ndarray,
        pixels: Sequence[np.ndarray],
        texts: Sequence[str],
    ) -> np.ndarray:
        return unit(image + text)


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32) + 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pairs(shard: int, samples: int) -> Iterator[dict[str, Any]]:
    """Blurred noise of 256 x 256 pixels, some 7 KB as a JPEG."""
    rng = np.random.default_rng(shard)
    for number in range(samples):
        pixels = rng.integers(0, 256, (24, 24, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).resize((256, 256)).save(out, "JPEG", quality=90)
        yield {
            "__key__": f"{shard:04d}{number:04d}",
            "jpg": out.getvalue(),
            "txt": f"picture {number} of {shard}",
        }


def embed(to: str) -> float:
    """Seconds that all shards of the bucket take into the collection `to`."""
    streams.FIRST = streams.BLOCK = BLOCK
    began, folder, encoder = time.monotonic(), Folder(to), CheapEncoder()
    shards = list_shards([f"{BUCKET}/shards"])
    with Run(folder, "embed", {}) as run:
        establish(folder, Identity.of(encoder), run.id)
        for shard in shards:
            run.hold([shard.id])
            embed_shard(shard, encoder, folder, EmbedSettings(), run_id=run.id)
        run.sweep(["ledger", "embeddings"], own=True)
        run.finish("done", {})
    return time.monotonic() - began


def embedded_behind(s3: str, to: str, share: float, seed: int) -> dict[str, Any]:
    """The figures of one process that embeds through a server of which a share of answers fails."""
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.faulty_server", s3, str(share), str(seed), *KINDS],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    with server:
        endpoint = server.stdout.readline().strip()
        ran = subprocess.run(
            [sys.executable, "-m", "benchmarks.object_store", "--to", to],
            cwd=ROOT,
            env={**os.environ, "AWS_ENDPOINT_URL": endpoint},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        told, _ = server.communicate()
    return {"seconds": float(ran.stdout), **json.loads(told)}


def digest(to: str) -> str:
    """Of the names and bytes of all Parquet files of a collection."""
    folder, found = Folder(to), hashlib.sha256()
    for name in folder.list("embeddings"):
        found.update(name.encode() + hashlib.sha256(folder.read_bytes(name)).digest())
    return found.hexdigest()


def measure(s3: str, scratch: Path, given: argparse.Namespace) -> dict[str, Any]:
    S3FileSystem().mkdir(BUCKET)
    for number in range(given.shards):
        path = scratch / f"{number:05d}.tar"
        write_shard(path, pairs(number, given.samples))
        Folder(f"{BUCKET}/shards").write_whole(path.name, path.read_bytes())
    embed(str(scratch / "here"))
    expected = digest(str(scratch / "here"))

    found: dict[float, list[dict[str, Any]]] = {0.0: [], given.share: []}
    for number in range(given.rounds):
        for share in (0.0, given.share) if number % 2 == 0 else (given.share, 0.0):
            to = f"{BUCKET}/{number}-{share}"
            figures = embedded_behind(s3, to, share, seed=number)
            figures["same_bytes"] = digest(to) == expected
            found[share].append(figures)
            print(f"round {number + 1}, {share:4.0%} failing: {figures}", flush=True)
    none, some = ([figures["seconds"] for figures in runs] for runs in found.values())
    slowdowns = [slow / fast - 1 for fast, slow in zip(none, some, strict=True)]
    faults = sum((Counter(figures["faults"]) for figures in found[given.share]), Counter())
    return {
        "slowdown": round(statistics.median(slowdowns), 4),
        "seconds_none_failing": round(statistics.median(none), 2),
        "seconds_some_failing": round(statistics.median(some), 2),
        "share_failing": given.share,
        "requests": sum(figures["requests"] for figures in found[given.share]),
        "faults": dict(sorted(faults.items())),
        "same_bytes_as_local_disk": all(f["same_bytes"] for runs in found.values() for f in runs),
        "rounds": {"none": none, "some": some, "slowdown": [round(one, 4) for one in slowdowns]},
        "shards": given.shards,
        "samples": given.samples,
        "shard_bytes": (scratch / "00000.tar").stat().st_size,
        "block_bytes": BLOCK,
        "retries": vars(stores.RETRIES),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shards", type=int, default=60)
    parser.add_argument("--samples", type=int, default=60, help="of a shard")
    parser.add_argument("--share", type=float, default=0.01, help="of requests that fail")
    parser.add_argument("--to", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.to:
        print(f"{embed(given.to):.2f}")
        return 0
    os.environ |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "none")
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    with running_moto() as s3, tempfile.TemporaryDirectory() as scratch:
        os.environ["AWS_ENDPOINT_URL"] = s3
        result = measure(s3, Path(scratch), given)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{'failing':>10} {'seconds':>8} {'requests':>9} {'faults':>7}")
    print(f"{'0 %':>10} {result['seconds_none_failing']:8.2f}")
    failed = sum(result["faults"].values())
    told = f"{result['seconds_some_failing']:8.2f} {result['requests']:9d} {failed:7d}"
    print(f"{given.share:10.1%} {told}")
    print(f"slowdown {result['slowdown']:.1%}, same bytes: {result['same_bytes_as_local_disk']}")
    return int(not result["same_bytes_as_local_disk"] or not failed)


if __name__ == "__main__":
    sys.exit(main())
