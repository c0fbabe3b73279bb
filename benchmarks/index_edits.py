"""Edits of a live index: what they cost, what a search pays for them, and that nothing is wrong.

    python -m benchmarks.index_edits [--rows 1000000] [--dim 256] [--only costs ...]

costs     a build; adding 1 % of its rows; deleting 1,000 keys; compacting; rolling back
searches  queries a second in batches of 64, quiet and while another process adds 500 and 1,000 rows
          a second, one `add` a second; recall@10 over the rows of the generation that answers
recall    recall@10 after a thousand random edits, and of an index built from scratch on those rows
random    ten thousand random edits and queries against a dictionary and numpy

Vectors are drawn: overlapping clusters of low dimension; queries lie between them and their rows.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from chiasm.index import IndexSettings, build_index, open_collection
from chiasm.index.build import (
    ByKey,
    add_to_index,
    compact_index,
    delete_from_index,
    roll_back_index,
)
from chiasm.index.plan import lists_for
from chiasm.pipeline.storage import Folder

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from overlap import overlap_at
from tiny_collection import add_shard, make_collection, unit_rows

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = IndexSettings(tune=False, segment_rows=400_000)
SHARD = 10_000  # rows
BATCH = 64
QUERIES = 1000
LATENT = 24  # dimensions that clusters vary in
COLUMN = "image"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--only", nargs="+", default=["costs", "searches", "recall", "random"])
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)  # COLLECTION RATE
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    if args.write:
        write(args.write[0], int(args.write[1]), args.dim, args.seconds)
        return 0
    wrong = 0
    with tempfile.TemporaryDirectory(dir=".") as folder:
        if {"costs", "searches"} & {*args.only}:
            path = str(Path(folder).resolve() / "c")
            rows = fill(path, args.rows, args.dim)
            costs(path, args)
            if "searches" in args.only:
                wrong += searches(path, rows, args)
        if "recall" in args.only:
            wrong += recall(Path(folder).resolve(), args)
    if "random" in args.only:
        wrong += random_edits(args.steps)
    return min(wrong, 1)


def vectors(seed: int, rows: int, dim: int) -> np.ndarray:
    """(rows, dim) float32 unit rows; the clusters are the same for every seed."""
    world = np.random.default_rng(7)
    basis = world.normal(size=(LATENT, dim)).astype(np.float32)
    centres = world.normal(size=(2000, LATENT)).astype(np.float32)
    rng = np.random.default_rng(seed)
    drawn = centres[rng.integers(0, len(centres), rows)]
    drawn = (drawn + 0.7 * rng.normal(size=(rows, LATENT)).astype(np.float32)) @ basis
    drawn += 0.3 * rng.normal(size=(rows, dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def queries(dim: int, count: int = QUERIES) -> np.ndarray:
    """(count, dim): rows that the index does not have, with a constant gap to all."""
    gap = unit_rows(np.random.default_rng(8), 1, dim)
    xq = vectors(999_999, count, dim) + 0.5 * gap
    return (xq / np.linalg.norm(xq, axis=1, keepdims=True)).astype(np.float32)


def fill(path: str, rows: int, dim: int) -> np.ndarray:
    """A collection of so many rows in shards; returns its vectors as stored, float16."""
    make_collection(Path(path), (), dim=dim)
    parts: list[np.ndarray] = []
    for number, start in enumerate(range(0, rows, SHARD)):
        parts.append(vectors(number, min(SHARD, rows - start), dim).astype(np.float16))
        put_shard(path, f"base{number:04d}", parts[-1])
    return np.concatenate(parts)


def put_shard(path: str, name: str, rows: np.ndarray, edition: str = "0000000a") -> None:
    dim = rows.shape[1]
    add_shard(
        Folder(path), name, len(rows), dim=dim, vectors=rows.astype(np.float32), edition=edition
    )


def costs(path: str, args: argparse.Namespace) -> None:
    # Twice what an untuned plan scans: its recall is about 0.94 here.
    settings = replace(SETTINGS, nprobe=lists_for(args.rows) // 8)
    build = timed("build", lambda: build_index(path, columns=[COLUMN], settings=settings))
    put_shard(path, "more", vectors(77_777, max(1, args.rows // 100), args.dim))
    add = timed("add 1 % of the rows", lambda: add_to_index(path, settings=SETTINGS))
    print(f"  {add / build:.2%} of the build")
    keys = [f"base0000/{row:06d}" for row in range(0, min(SHARD, args.rows), 10)][:1000]
    timed(
        f"delete {len(keys):,} keys",
        lambda: delete_from_index(path, lambda generation: ByKey(keys), settings=SETTINGS),
    )
    timed("roll back", lambda: roll_back_index(path, 2, settings=SETTINGS))
    timed("compact", lambda: compact_index(path, settings=SETTINGS))
    timed("open", lambda: open_collection(path).search_vectors(queries(args.dim, 1), 10))


def timed(what: str, call) -> float:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{what:28} {wall:8.2f} s, {cpu:8.2f} CPU s", flush=True)
    return cpu


def searches(path: str, base: np.ndarray, args: argparse.Namespace) -> int:
    """Quiet, beside each rate of adding, and quiet again; returns how many answers were wrong."""
    wrong = 0
    quiet: list[float] = []
    for rate in (0, 500, 0, 1000, 0):
        writer = None
        if rate:
            command = [sys.executable, "-m", "benchmarks.index_edits", "--write", path, str(rate)]
            command += ["--dim", str(args.dim), "--seconds", str(args.seconds)]
            writer = subprocess.Popen(command, cwd=ROOT)
        found = search_for(path, base, args)
        if writer is not None and writer.wait():
            raise SystemExit("the writer failed")
        wall, cpu, recalls, bad, generations = found
        wrong += bad
        if not rate:
            quiet.append(cpu)
        share = f", {cpu / quiet[-1]:.2f} of quiet" if rate else ""
        print(
            f"{rate:5} rows/s added: {wall:8,.0f} q/s, {cpu:8,.0f} q/CPU s{share}, recall@10 "
            f"{np.mean(recalls):.4f}, least {min(recalls):.4f}, {bad} wrong, "
            f"{generations} generations",
            flush=True,
        )
    return wrong


def search_for(path: str, base: np.ndarray, args: argparse.Namespace):
    """Search for some seconds: queries a second of wall and of CPU time, the recall of every 20th
    batch, wrong answers, and generations that answered."""
    index = open_collection(path, allow_stale=True)
    xq = queries(args.dim)
    index.search_vectors(xq[:BATCH], 10)
    count = bad = 0
    recalls: list[float] = []
    seen: set[int] = set()
    wall = cpu = 0.0
    ends = time.perf_counter() + args.seconds
    number = 0
    while time.perf_counter() < ends or not recalls:
        batch = xq[number * BATCH % QUERIES :][:BATCH]
        began, used = time.perf_counter(), time.process_time()
        index.refresh()
        view = index.view()
        scores, positions = view.search_vectors(batch, 10)
        wall += time.perf_counter() - began
        cpu += time.process_time() - used
        count += len(batch)
        seen.add(view.generation.number)
        if number % 20 == 0:
            recall, wrong = compare(view, base, batch, scores, positions)
            recalls.append(recall)
            bad += wrong
        number += 1
    return count / wall, count / cpu, recalls, bad, len(seen)


def compare(view, base: np.ndarray, xq: np.ndarray, scores: np.ndarray, positions: np.ndarray):
    """The recall against all rows of the generation, and how many answers have another score than
    their row."""
    rows = np.concatenate([segment.raw(COLUMN).take(slice(None)) for segment in view.segments])
    near = np.full((len(xq), 10), -np.inf, np.float32)
    truth = np.full((len(xq), 10), -1, np.int64)
    deleted = np.concatenate(
        [
            np.zeros(len(segment), bool) if (gone := segment.deleted()) is None else gone
            for segment in view.segments
        ]
    )
    for start in range(0, len(rows), 100_000):
        block = xq @ rows[start : start + 100_000].astype(np.float32).T
        block[:, deleted[start : start + 100_000]] = -np.inf
        near = np.concatenate([near, block], axis=1)
        ids = np.broadcast_to(np.arange(start, start + block.shape[1]), block.shape)
        truth = np.concatenate([truth, ids], axis=1)
        best = np.argpartition(-near, 9, axis=1)[:, :10]
        near, truth = np.take_along_axis(near, best, 1), np.take_along_axis(truth, best, 1)
    own = np.einsum("qkd,qd->qk", rows[positions].astype(np.float32), xq)
    wrong = (np.abs(own - scores) > 1e-4) | (positions < 0) | deleted[positions]
    assert np.array_equal(rows[:SHARD], base[:SHARD]), "rows are those that were embedded"
    return overlap_at(positions, truth, 10), int(wrong.sum())


def write(path: str, rate: int, dim: int, seconds: float) -> None:
    """Embed and add so many rows a second, at the start of each second."""
    began = time.perf_counter()
    for second in range(int(seconds)):
        time.sleep(max(0.0, began + second - time.perf_counter()))
        name = f"live{int(time.time() * 1000)}"
        put_shard(path, name, vectors(100_000 + second, rate, dim))
        add_to_index(path, settings=SETTINGS)
    late = time.perf_counter() - began - seconds
    print(f"      writer: {late:+.1f} s late at the end", flush=True)


def recall(folder: Path, args: argparse.Namespace) -> int:
    """A thousand random edits, against a build on the same rows."""
    rows, dim = min(args.rows, 20_000), min(args.dim, 64)
    settings = IndexSettings(tune=False, exact_below=1, keep_seconds=0, segment_rows=10_000)
    path, fresh = str(folder / "edited"), str(folder / "fresh")
    fill(path, rows, dim)
    build_index(path, columns=[COLUMN], settings=settings)
    live = {f"base{n:04d}": set(range(SHARD)) for n in range(rows // SHARD)}
    editions = dict.fromkeys(live, 10)
    stored = {name: vectors(n, SHARD, dim) for n, name in enumerate(live)}
    rng = np.random.default_rng(3)
    began = time.perf_counter()
    for number in range(args.edits):
        kind = rng.random()
        name = str(rng.choice([*live]))
        if kind < 0.6 and live[name]:
            picked = rng.choice(sorted(live[name]), min(5, len(live[name])), replace=False)
            keys = [f"{name}/{row:06d}" for row in picked]
            delete_from_index(path, lambda generation, keys=keys: ByKey(keys), settings=settings)
            live[name] -= set(picked.tolist())
        elif kind < 0.98:
            if kind < 0.9 or name.startswith("base"):
                name = f"new{number:04d}"
            editions[name] = editions.get(name, 9) + 1
            stored[name] = vectors(1000 + number, 20, dim)
            put_shard(path, name, stored[name], f"{editions[name]:08x}")
            add_to_index(path, settings=settings)
            live[name] = set(range(20))
        else:
            compact_index(path, settings=settings)
    seconds = time.perf_counter() - began
    left = np.concatenate([stored[name][sorted(rows)] for name, rows in live.items() if rows])
    make_collection(Path(fresh), (), dim=dim)
    put_shard(fresh, "all", left)
    build_index(fresh, columns=[COLUMN], settings=settings)
    xq = queries(dim)
    found: list[float] = []
    for one in (path, fresh):
        index = open_collection(one)
        assert len(index) == len(left)
        scores, positions = index.search_vectors(xq, 10)
        share, wrong = compare_all(index, xq, scores, positions)
        found.append(share)
        assert not wrong
    edited, scratch = found
    print(
        f"recall@10 after {args.edits:,} edits ({seconds / args.edits * 1e3:.0f} ms each): "
        f"{edited:.4f}; built from scratch on the same {len(left):,} rows: {scratch:.4f}"
    )
    return int(edited < scratch - 0.01)


def compare_all(index, xq: np.ndarray, scores: np.ndarray, positions: np.ndarray):
    base = np.concatenate([segment.raw(COLUMN).take(slice(None)) for segment in index.segments])
    return compare(index, base, xq, scores, positions)


def random_edits(steps: int) -> int:
    """Random edits and queries until there were so many; 1 where one differs from the model."""
    from edited_index import EditedIndex
    from hypothesis import HealthCheck, Phase, settings
    from hypothesis.stateful import run_state_machine_as_test

    began = time.perf_counter()
    chosen = settings(
        max_examples=40,
        stateful_step_count=50,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    while EditedIndex.steps < steps:
        run_state_machine_as_test(EditedIndex, settings=chosen)
        print(f"  {EditedIndex.steps:,} edits and queries", flush=True)
    seconds = time.perf_counter() - began
    print(f"{EditedIndex.steps:,} edits and queries equal the model, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
