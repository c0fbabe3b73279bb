"""What failing requests cost: the same shards embedded onto S3 with 0 % and 1 % of them failing.

    python -m benchmarks.object_store [--rounds 5] [--shards 60] [--samples 60] [--share 0.01]

Starts an S3 (moto's server) and two servers before it, one of which fails requests, drawn with a
seed: 500s, 503s, resets, truncated bodies. In each round all shards are embedded through both,
shard by shard in turns, so that what else the machine does weighs on both; the slowdown is the
median of the rounds'. Retries are those in force everywhere; pictures are small, blocks are small
(BLOCK) and the encoder costs nothing, so that there are many requests and little else to hide a
wait behind. Prints a table and writes benchmarks/results/object_store.json; exits 1 where a byte
differs from what local disk gets, or where no request failed.
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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from s3fs import S3FileSystem

from chiasm.pipeline.collection import Identity, Run, create_or_check
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.encoders import BaseEncoder, Encoded, Input, unit
from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards import list_shards, write_shard
from chiasm.pipeline.storage import Folder, retry, schemes, streams
from chiasm.pipeline.storage.s3 import S3Store
from tests.support.faulty_server import running_moto

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "object_store.json"
KINDS = ("500", "503", "reset", "truncated")
BLOCK = 64 << 10  # bytes of a range read; 8 MiB where nothing is measured
NAME = "benchmark"
BUCKET = f"s3://{NAME}"


class CheapEncoder(BaseEncoder):
    """Vectors of a picture's first pixels or a text's first letters: work for nobody."""

    dim = 16
    side: int | None = 64
    name, fingerprint, precision, device = "cheap", "cheap", "float32", "cpu"

    def __init__(self) -> None:
        self.preprocessing: dict[str, Any] = {"resize": 64}
        self.modalities = {"image": Input(side=self.side), "text": Input()}
        self.dims = dict.fromkeys(("image", "text", "joint"), self.dim)

    def preprocess(self, modality: str, raw: Any) -> Any:
        if modality == "text":
            return raw
        return np.asarray(Image.fromarray(raw).resize((64, 64))).transpose(2, 0, 1)

    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        if modality == "image":
            first = np.stack([one.ravel()[: self.dim] for one in items]).astype(np.float32) + 1
        else:
            first = np.array([list(text.ljust(self.dim).encode()[: self.dim]) for text in items])
        return Encoded(unit(first))


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


class Side:
    """S3 through one server, which fails a share of requests, and what was done through it."""

    def __init__(self, s3: str, share: float) -> None:
        self.share = share
        self.seconds: list[float] = []  # by round
        self.same_bytes = True
        arguments = [s3, str(share), "1", *KINDS]  # 1: the seed
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.faulty_server", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout is not None
        os.environ["AWS_ENDPOINT_URL"] = self._server.stdout.readline().strip()
        self._store = S3Store(retry.RETRIES)
        self._store.is_folder(NAME)  # opens its session, which reads the environment

    @contextmanager
    def timed(self) -> Iterator[None]:
        """What is done on S3 in the block goes this way, and takes the time of this round."""
        schemes.S3_STORE.replace(self._store)
        began = time.monotonic()
        yield
        self.seconds[-1] += time.monotonic() - began
        schemes.S3_STORE.replace(None)

    def end(self) -> dict[str, Any]:
        """How many requests there were, and the failed ones by kind."""
        output, _ = self._server.communicate()
        return json.loads(output)


def embed(sides: Sequence[Side], number: int) -> None:
    """All shards into a collection of each side, shard by shard in turns."""
    with ExitStack() as ends:
        runs: dict[float, Run] = {}
        for side in sides:
            side.seconds.append(0.0)
            with side.timed():
                shards = list_shards([f"{BUCKET}/shards"])
                folder = Folder(f"{BUCKET}/{number}-{side.share}")
                runs[side.share] = ends.enter_context(Run(folder, "embed", {}))
                create_or_check(folder, Identity.of(CheapEncoder()), runs[side.share].id)
        for turn, shard in enumerate(shards):
            for side in sides if turn % 2 == 0 else sides[::-1]:
                with side.timed():
                    embed_one(shard, runs[side.share])
    for side in sides:
        with side.timed():
            runs[side.share].sweep(["ledger", "embeddings"], own=True)


def embed_one(shard: Shard, run: Run) -> None:
    run.claim([shard.id])
    embed_shard(shard, CheapEncoder(), run.folder, EmbedSettings(), run_id=run.id)


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
    with Run(Folder(str(scratch / "here")), "embed", {}) as here:
        for shard in list_shards([f"{BUCKET}/shards"]):
            embed_one(shard, here)
    expected = digest(here.folder.url)

    streams.FIRST_BLOCK = streams.BLOCK = BLOCK
    sides = [Side(s3, 0.0), Side(s3, given.share)]
    os.environ["AWS_ENDPOINT_URL"] = s3  # of what is not timed
    for number in range(given.rounds):
        embed(sides, number)
        for side in sides:
            side.same_bytes &= digest(f"{BUCKET}/{number}-{side.share}") == expected
        line = ", ".join(f"{side.share:.0%} failing {side.seconds[-1]:.2f} s" for side in sides)
        print(f"round {number + 1}: {line}", flush=True)
    none, some = sides
    slowdowns = [slow / fast - 1 for fast, slow in zip(none.seconds, some.seconds, strict=True)]
    without, failing = none.end(), some.end()
    return {
        "slowdown": round(statistics.median(slowdowns), 4),
        "slowdown_by_round": [round(one, 4) for one in slowdowns],
        "seconds_none_failing": round(statistics.median(none.seconds), 2),
        "seconds_some_failing": round(statistics.median(some.seconds), 2),
        "share_failing": given.share,
        "requests_none_failing": without["requests"],
        "requests_some_failing": failing["requests"],
        "faults": dict(sorted(failing["faults"].items())),
        "same_bytes_as_local_disk": none.same_bytes and some.same_bytes,
        "rounds": given.rounds,
        "shards": given.shards,
        "samples": given.samples,
        "shard_bytes": (scratch / "00000.tar").stat().st_size,
        "block_bytes": BLOCK,
        "retries": vars(retry.RETRIES),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shards", type=int, default=60)
    parser.add_argument("--samples", type=int, default=60, help="of a shard")
    parser.add_argument("--share", type=float, default=0.01, help="of requests that fail")
    given = parser.parse_args()
    os.environ |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "none")
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    with running_moto() as s3, tempfile.TemporaryDirectory() as scratch:
        os.environ["AWS_ENDPOINT_URL"] = s3
        result = measure(s3, Path(scratch), given)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    failed = sum(result["faults"].values())
    rows = [("failing", "seconds", "requests", "faults")]
    rows += [("0 %", result["seconds_none_failing"], result["requests_none_failing"], 0)]
    share = f"{given.share:.1%}"
    rows += [(share, result["seconds_some_failing"], result["requests_some_failing"], failed)]
    for row in rows:
        print(*(f"{cell:>10}" for cell in row))
    print(f"slowdown {result['slowdown']:.1%}, same bytes: {result['same_bytes_as_local_disk']}")
    return int(not result["same_bytes_as_local_disk"] or not failed)


if __name__ == "__main__":
    sys.exit(main())
