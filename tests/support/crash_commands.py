"""The commands whose crash points are tried, each with what it finds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from crash_points import Prepare
from fake_encoder import FakeEncoder
from tiny_shards import make_shard

from chiasm.index import build_index
from chiasm.index.build import (
    ByKey,
    add_to_index,
    compact_index,
    delete_from_index,
    roll_back_index,
)
from chiasm.index.plan import IndexSettings
from chiasm.pipeline.collection import FOLDERS, Run
from chiasm.pipeline.forget import forget
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.relocate import relocate
from chiasm.pipeline.storage import Folder


def _shards(folder: Path, samples: int = 3, seed: int = 0) -> list[Path]:
    return [make_shard(folder / "shards" / f"s{n}.tar", samples, seed=seed + n) for n in range(2)]


def _embed(folder: Path, to: str) -> Callable[[], object]:
    shards = _shards(folder)
    return lambda: make_collection(shards, to, FakeEncoder())


def _embed_anew(folder: Path, to: str) -> Callable[[], object]:
    _embed(folder, to)()
    shards = _shards(folder, 4, seed=10)
    return lambda: make_collection(shards, to, FakeEncoder())


def _build(folder: Path, to: str) -> Callable[[], object]:
    _embed(folder, to)()
    return lambda: build_index(to)


def _build_again(folder: Path, to: str) -> Callable[[], object]:
    """Publishing beside a live generation, and sweeping what it replaces."""
    _build(folder, to)()
    _embed_anew(folder, to)()
    settings = IndexSettings(keep_generations=1, keep_seconds=0)
    return lambda: build_index(to, settings=settings)


def _add(folder: Path, to: str) -> Callable[[], object]:
    """A new shard, a changed one and one that is gone."""
    _build(folder, to)()
    delete_from_index(to, lambda generation: ByKey(["00000000", "00100001"]), settings=SWEPT)
    forget(Folder(to), [str(folder / "shards" / "s0.tar")])
    shards = [make_shard(folder / "shards" / f"s{n}.tar", 4, seed=20 + n) for n in (1, 2)]
    make_collection(shards, to, FakeEncoder())
    return lambda: add_to_index(to, settings=SWEPT)


def _delete(folder: Path, to: str) -> Callable[[], object]:
    _build(folder, to)()
    keys = ["00000000", "00100001"]
    return lambda: delete_from_index(to, lambda generation: ByKey(keys), settings=SWEPT)


def _compact(folder: Path, to: str) -> Callable[[], object]:
    """Two segments, rows of one deleted."""
    _delete(folder, to)()
    make_collection([make_shard(folder / "shards" / "s2.tar", 4, seed=22)], to, FakeEncoder())
    add_to_index(to, settings=SWEPT)
    return lambda: compact_index(to, settings=SWEPT)


def _roll_back(folder: Path, to: str) -> Callable[[], object]:
    _delete(folder, to)()
    return lambda: roll_back_index(to, 1, settings=SWEPT)


def _relocate(folder: Path, to: str) -> Callable[[], object]:
    _build(folder, to)()
    old, new = folder / "shards", folder / "elsewhere"
    shutil.copytree(old, new, copy_function=shutil.copy2)
    return lambda: relocate(Folder(to), str(old), str(new))


def _forget(folder: Path, to: str) -> Callable[[], object]:
    _embed(folder, to)()

    def command() -> None:
        forget(Folder(to), [str(folder / "shards" / "s0.tar")])
        # Called again when all is done it does not begin a run: the next run sweeps.
        with Run(Folder(to), "embed", {}) as run:
            run.sweep(FOLDERS)
            run.finish("done", {})

    return command


# A generation that another replaces goes at once, but for the one before it.
SWEPT = IndexSettings(tune=False, exact_below=1, keep_generations=2, keep_seconds=0)
COMMANDS: dict[str, Prepare] = {
    "embed": _embed,
    "embed anew": _embed_anew,
    "index build": _build,
    "index build again": _build_again,
    "index add": _add,
    "index delete": _delete,
    "index compact": _compact,
    "index rollback": _roll_back,
    "relocate": _relocate,
    "forget": _forget,
}
