"""The first answer from an index in an object store, at 60 ms a request; opening the same one here.

    python -m benchmarks.index_remote [--rows 1000000] [--dim 256] [--segments 3] [--wait 0.06]

Makes an index of synthetic vectors with captions, its lists and codes in a projection to 48
dimensions, its `nprobe` the least that reaches recall@10 0.95 on 200 queries. A program of its own
serves its files as S3 does (ranges and listings), each request taking `--wait` seconds. A new
process opens the collection and answers one query, with an empty cache folder; requests, bytes and
seconds are those of both. Rounds are counted by a second such process: its requests are answered
together, once none has come for QUIET seconds. On this machine: opening and the first answer, with
files that were never verified and with files that were; memory beyond the imports after the first
answer (`Pss` and `Anonymous` of /proc/self/smaps_rollup) and that of the whole process after nine;
the rows of 1,000 hits. Prints benchmarks/results/index_remote.json and writes it; exits 1 where two
answers differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import numpy as np
import pyarrow as pa

from chiasm.index import Query, open_collection
from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.plan import Plan
from chiasm.index.query import ColumnIndex, search
from chiasm.index.segments import (
    FileSum,
    IndexedShard,
    Manifest,
    SchemaInference,
    SegmentEntry,
    SegmentWriter,
    SharedFile,
    Trained,
    code_ranges,
    copied_columns,
    publish,
    trained_file,
)
from chiasm.index.segments.generations import open_segments
from chiasm.pipeline.collection import Identity, Run, create_or_check, parquet_name
from chiasm.pipeline.storage import Folder
from tests.support.fake_encoder import FakeEncoder
from tests.support.faulty_server import FaultyServer, Request, Response

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "index_remote.json"
SHARD_ROWS, DIMS, QUIET = 10_000, 48, 0.4
WORDS = [
    "red",
    "blue",
    "boat",
    "house",
    "tree",
    "on",
    "the",
    "a",
    "with",
    "of",
    "small",
    "large",
    "photo",
    "river",
    "dog",
    "cat",
    "sky",
]


def vectors_of(rows: int, dim: int, seed: int) -> np.ndarray:
    """Unit rows around 2,000 centres, in 32 dimensions and a little beside them; float32."""
    world, rng = np.random.default_rng(0), np.random.default_rng(seed)
    centres, turn = world.normal(size=(2000, 32)), world.normal(size=(32, dim))
    latent = centres[rng.integers(0, len(centres), rows)] + 0.7 * rng.normal(size=(rows, 32))
    x = (latent @ turn + 0.5 * rng.normal(size=(rows, dim))).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def train(xb: np.ndarray, lists: int) -> Trained:
    faiss = load_faiss()
    sample = xb[np.random.default_rng(1).permutation(len(xb))[: 64 * lists]]
    projection = np.linalg.eigh(sample.T @ sample)[1][:, ::-1][:, :DIMS].astype(np.float32)
    coded = sample @ projection
    kmeans = faiss.Kmeans(DIMS, lists, niter=8, seed=1)
    kmeans.train(coded)
    plan = Plan(
        "projected", lists, 1, "projected", DIMS, "SQ8", oversample=4, train_rows=len(coded)
    )
    bias = np.zeros(lists, np.float32)
    return Trained(plan, kmeans.centroids.copy(), bias, code_ranges(coded), projection, projection)


def table_of(rows: int, shard: int, vectors: np.ndarray) -> pa.Table:
    rng = np.random.default_rng(shard)
    captions = [" ".join(WORDS[n] for n in row) for row in rng.integers(0, len(WORDS), (rows, 11))]
    keys = [f"{shard:05d}{row:06d}" for row in range(rows)]
    columns: dict[str, Any] = {
        "key": keys,
        "caption": captions,
        "captions": [[caption] for caption in captions],
        "width": pa.array(rng.integers(200, 2000, rows), pa.int32()),
        "height": pa.array(rng.integers(200, 2000, rows), pa.int32()),
        "sha256": [rng.bytes(32).hex() for _ in range(rows)],
        "member": [f"{key}.jpg" for key in keys],
        "offset": pa.array(rng.integers(0, 1 << 30, rows)),
        "size": pa.array(rng.integers(0, 1 << 18, rows)),
        "json": [f'{{"license": "cc0", "number": {row}}}' for row in range(rows)],
        "image": pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.astype(np.float16).ravel()), vectors.shape[1]
        ),
    }
    return pa.table(columns)


def make_index(folder: Folder, given: argparse.Namespace) -> None:
    encoder = FakeEncoder()
    encoder.dims = dict.fromkeys(encoder.dims, given.dim)
    identity = create_or_check(folder, Identity.of(encoder), "benchmark")
    xb = vectors_of(given.rows, given.dim, 1)
    trained = train(xb, 1 << int(np.log2(max(2, 2 * given.rows**0.5))))
    schema = SchemaInference()
    schema.add(['{"license": "cc0", "number": 1}'])
    schema.finish()
    with Run(folder, "index build", {}) as run:
        content, name = trained.to_bytes(), trained_file(run.id, "image")
        folder.write_whole(name, content)
        starts = np.array_split(np.arange(0, given.rows, SHARD_ROWS), given.segments)
        entries = [
            write_segment(folder, run, number, some.tolist(), xb, trained, schema)
            for number, some in enumerate(starts)
        ]
        manifest = Manifest(
            run=run.id,
            created=time.time(),
            encoder=identity.encoder,
            fingerprint=identity.fingerprint,
            dim=given.dim,
            columns={"image": trained.plan},
            trained={"image": SharedFile(name, FileSum.of(content))},
            segments=tuple(entries),
        )
        nprobe = least_nprobe(folder, manifest, trained, xb, given)
        plan = replace(trained.plan, nprobe=nprobe)
        publish(folder, replace(manifest, columns={"image": plan}), run, 0)
        run.finish("done", {})


def write_segment(
    folder: Folder,
    run: Run,
    number: int,
    starts: list[int],
    xb: np.ndarray,
    trained: Trained,
    schema: SchemaInference,
) -> SegmentEntry:
    shards = []
    for start in starts:
        shard_id, rows = f"{start:08d}-0123456789", min(SHARD_ROWS, len(xb) - start)
        name = parquet_name(shard_id)
        folder.write_whole(name, shard_id.encode())  # stands for its rows, which nobody reads
        url, etag = f"s3://shards/of/a/collection/{start:08d}.tar", Store.etag(folder.path(name))
        shards.append(IndexedShard(shard_id, "0000000a", url, rows, len(shard_id), etag))
    with SegmentWriter(
        folder,
        f"{run.id}-{number:03d}",
        run.id,
        shards=shards,
        schema=schema,
        copied=copied_columns(("image",)),
        plans={"image": trained.plan},
        trained={"image": trained},
        dim=xb.shape[1],
        batch_bytes=64 << 20,
        capacity=sum(shard.rows for shard in shards),
    ) as writer:
        for shard, start in enumerate(starts):
            vectors = xb[start : start + SHARD_ROWS]
            writer.add(shard, 0, table_of(len(vectors), start // SHARD_ROWS, vectors))
        record, checksum = writer.commit()
    return SegmentEntry(record.id, record.rows, checksum)


def least_nprobe(
    folder: Folder, manifest: Manifest, trained: Trained, xb: np.ndarray, given: argparse.Namespace
) -> int:
    """Of powers of two and what is halfway between them."""
    xq = vectors_of(200, given.dim, 2)
    index = ColumnIndex(open_segments(folder, manifest), "image", trained.plan, trained)
    truth = np.argpartition(-(xq @ xb.T), 10, axis=1)[:, :10]
    for nprobe in (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128):
        found = search(index, xq, 10, nprobe)[1]
        hits = [len(np.intersect1d(*pair)) for pair in zip(found, truth, strict=True)]
        print(f"nprobe {nprobe}: recall@10 {np.mean(hits) / 10:.3f}", flush=True)
        if np.mean(hits) >= 9.5:
            return nprobe
    raise SystemExit("no nprobe reaches recall 0.95")


class Store:
    """Answers requests as S3 does, from files below a folder. gate: answer them in rounds."""

    def __init__(self, root: Path, wait: float, gate: bool) -> None:
        self.root, self.wait, self.gate = root, wait, gate
        self.requests = self.bytes = self.rounds = 0
        self._lock = threading.Condition()
        self._waiting, self._last, self._round = 0, 0.0, 0

    @staticmethod
    def etag(path: Path) -> str:
        return f"{path.stat().st_size:016x}{path.stat().st_mtime_ns:016x}"

    def __call__(self, request: Request) -> Response:
        if self.gate:
            self._wait_for_the_round()
        else:
            time.sleep(self.wait)
        response = self._answer(request)
        with self._lock:
            self.requests += 1
            self.bytes += len(response.body)
        return response

    def _wait_for_the_round(self) -> None:
        with self._lock:
            mine, self._waiting, self._last = self._round, self._waiting + 1, time.monotonic()
            while self._round == mine:
                self._lock.wait(QUIET / 4)
                if self._round == mine and time.monotonic() - self._last > QUIET:
                    self._round, self.rounds = self._round + 1, self.rounds + 1
                    self._lock.notify_all()

    def _answer(self, request: Request) -> Response:
        parts = urlsplit(request.path)
        query = parse_qs(parts.query)
        if "list-type" in query:
            return self._list(query["prefix"][0])
        path = self.root / unquote(parts.path).removeprefix("/bucket/")
        if not path.is_file():
            return Response(404, {}, b"<Error><Code>NoSuchKey</Code><Message>no</Message></Error>")
        size, headers = path.stat().st_size, {"ETag": f'"{self.etag(path)}"'}
        first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers["range"]).groups()  # type: ignore[union-attr]
        start = int(first) if first else max(0, size - int(last))
        end = min(int(last) + 1, size) if first and last else size
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        with path.open("rb") as file:
            return Response(206, headers, os.pread(file.fileno(), end - start, start))

    def _list(self, prefix: str) -> Response:
        folder, body = self.root / prefix, ""
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            key = escape(f"{prefix}{path.name}")
            if path.is_dir():
                body += f"<CommonPrefixes><Prefix>{key}/</Prefix></CommonPrefixes>"
                continue
            body += f"<Contents><Key>{key}</Key><ETag>&quot;{self.etag(path)}&quot;</ETag>"
            body += f"<Size>{path.stat().st_size}</Size></Contents>"
        xml = f"<ListBucketResult><IsTruncated>false</IsTruncated>{body}</ListBucketResult>"
        return Response(200, {"Content-Type": "application/xml"}, xml.encode())


def serve(root: str, wait: str, gate: str) -> None:
    store = Store(Path(root), float(wait), gate == "gate")
    print(FaultyServer(store).url, flush=True)
    sys.stdin.read()
    print(json.dumps({"requests": store.requests, "bytes": store.bytes, "rounds": store.rounds}))


def answer(url: str, dim: str, queries: str) -> None:
    """Open a collection and answer queries, each alone; what it took, in a process that has done no
    more."""
    load_faiss()
    xq = vectors_of(20, int(dim), 3)[: int(queries)]
    before, resident = memory(), of_status("VmRSS")
    began, cpu = time.perf_counter(), time.process_time()
    # The versions of the shards' files are those that the store tells.
    index = open_collection(url, allow_stale=not url.startswith("s3:"))
    opened, open_grown = time.perf_counter(), of_status("VmRSS") - resident
    found = index.search_many([Query(vector=xq[0])])[0].as_json()["results"]
    answered, cpu = time.perf_counter(), time.process_time() - cpu
    grown = {name: round((size - before[name]) / 1e6, 1) for name, size in memory().items()}
    more = []
    for vector in xq[1:]:
        begun = time.perf_counter()
        index.search_many([Query(vector=vector)])
        more.append(time.perf_counter() - begun)
    result = {
        "results": [(one["id"], one["scores"]) for one in found],
        "open_s": round(opened - began, 3),
        "answer_s": round(answered - opened, 3),
        "cpu_s": round(cpu, 3),
        "later_answers_s": round(statistics.median(more), 4) if more else None,
        "open_grown_resident_mb": round(open_grown / 1e6, 1),
        "first_answer_grown_mb": grown,
        "resident_mb": round(of_status("VmRSS") / 1e6, 1),
        "peak_mb": round(of_status("VmHWM") / 1e6, 1),
    }
    if not url.startswith("s3:"):
        rng, spent, cpu = np.random.default_rng(0), [], []
        for _ in range(7):
            positions = rng.choice(len(index), 1000, replace=False)
            begun, before = time.perf_counter(), time.process_time()
            index.rows(positions.tolist())
            spent.append(time.perf_counter() - begun)
            cpu.append(time.process_time() - before)
        result["rows_of_1000_hits_ms"] = round(1e3 * statistics.median(spent), 1)
        result["rows_of_1000_hits_cpu_ms"] = round(1e3 * statistics.median(cpu), 1)
    print(json.dumps(result))


def memory() -> dict[str, int]:
    """Bytes of this process: `Pss`, in which pages that are shared count in part, mapped ones too;
    `Anonymous`, those of no file."""
    text = Path("/proc/self/smaps_rollup").read_text()
    found = re.findall(r"^(Pss|Anonymous):\s+(\d+)", text, re.MULTILINE)
    return {name: int(size) << 10 for name, size in found}


def of_status(name: str) -> int:
    """Bytes of this process, as Linux has them: VmRSS resident, VmHWM at the most."""
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{name}:\s+(\d+)", text)
    return int(found[1]) << 10 if found else 0


def run(*arguments: str, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.index_remote", *arguments]
    environ = {**os.environ, **environment}
    return json.loads(
        subprocess.run(command, cwd=ROOT, env=environ, check=True, capture_output=True).stdout
    )


def from_store(
    root: Path, given: argparse.Namespace, kind: str, cache: Path, queries: int = 1
) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.index_remote"]
    with subprocess.Popen(
        [*command, "serve", str(root), str(given.wait), kind],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        environment = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": "us-east-1",
            "XDG_CACHE_HOME": str(cache),
        }
        url = f"s3://bucket/{given.name}"
        found = run("first", url, str(given.dim), str(queries), **environment)
        return {**found, **json.loads(server.communicate()[0])}


def from_here(
    here: Path, given: argparse.Namespace, cache: Path, whole: bool = False
) -> dict[str, Any]:
    """whole: every file was verified to its end before, as some hundred searches do."""
    if whole:
        run("verify", str(here), XDG_CACHE_HOME=str(cache))
    return run("first", str(here), str(given.dim), "9", XDG_CACHE_HOME=str(cache))


def verify(path: str) -> None:
    for segment in open_collection(path, allow_stale=True).segments:
        segment.raw("image")
        _ = segment.catalog
    print("{}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--segments", type=int, default=3)
    parser.add_argument("--wait", type=float, default=0.06)
    parser.add_argument("--keep", help="a folder for the index, taken again if it is there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(given.keep or scratch)
        given.name = f"c{given.rows}"
        here = root / given.name
        if not here.exists():
            make_index(Folder(str(here)), given)
        caches = [Path(scratch) / f"cache{number}" for number in range(3)]
        result = {
            "rows": given.rows,
            "dim": given.dim,
            "segments": given.segments,
            "seconds_a_request": given.wait,
            "bytes_here": sum(path.stat().st_size for path in here.rglob("*") if path.is_file()),
            "store": from_store(root, given, "wait", caches[0]),
            "store_in_rounds": from_store(root, given, "gate", caches[1]),
            "store_ten_more_queries": from_store(root, given, "wait", caches[1], 11),
            "here_never_verified": from_here(here, given, caches[2]),
            "here": from_here(here, given, caches[2], whole=True),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        }
    answers = [part.pop("results") for part in result.values() if isinstance(part, dict)]
    result["same_answers"] = all(one == answers[0] for one in answers)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return int(not result["same_answers"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(*sys.argv[2:])
    elif sys.argv[1:2] == ["verify"]:
        verify(*sys.argv[2:])
    elif sys.argv[1:2] == ["first"]:
        answer(*sys.argv[2:])
    else:
        sys.exit(main())
