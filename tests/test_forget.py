"""Rows of shards taken out: all of a shard's files, by any of its names, and never another's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import make_shard
from dying_disk import DyingDisk, Killed, bury
from fake_encoder import FakeEncoder

from chiasm.index import build_index
from chiasm.index.verify import check
from chiasm.jobs.cli.forget import forget_
from chiasm.pipeline.collection import Run, embeddings, ledger_name, parquet_name
from chiasm.pipeline.errors import CollectionError, UsageError
from chiasm.pipeline.forget import forget
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.storage.local import LocalFiles

NAMES = ("a.tar", "ab.tar", "deep/a.tar", "红.tar", "br[ck].tar")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A collection of five shards, of one row to five."""
    root = tmp_path_factory.mktemp("forget")
    for n, name in enumerate(NAMES):
        make_shard(root / "shards" / name, n + 1, seed=n)
    make_collection([root / "shards", root / "shards/deep"], root / "c", FakeEncoder())
    build_index(root / "c")
    return root


@pytest.fixture
def collection(made, tmp_path) -> Path:
    shutil.copytree(made / "c", tmp_path / "c")
    return tmp_path / "c"


def left(path: Path) -> list[int]:
    """The rows of the shards that are left; each has both of its files."""
    folder = Folder(str(path))
    files = embeddings(folder)
    names = {parquet_name(file.shard_id) for file in files} | {
        ledger_name(file.shard_id) for file in files
    }
    assert names == {*folder.list("embeddings"), *folder.list("ledger")}
    return sorted(file.rows for file in files)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("{shards}/a.tar", [2, 3, 4, 5]),
        ("file://{shards}/a.tar", [2, 3, 4, 5]),
        ("file://{shards}/%E7%BA%A2.tar", [1, 2, 3, 5]),
        ("{shards}/br[ck].tar", [1, 2, 3, 4]),
        ("{shards}/a*.tar", [3, 4, 5]),
        ("{shards}/**/a.tar", [2, 4, 5]),
        ("{shards}/*/*.tar", [1, 2, 4, 5]),
        ("ab-*", [1, 3, 4, 5]),
        ("_-*", [1, 2, 3, 5]),
        ("{shards}/../shards/a?.tar", [1, 3, 4, 5]),
    ],
)
def test_a_shard_is_named_by_path_url_id_or_glob(made, collection, spec, expected):
    spec = spec.format(shards=made / "shards")
    folder = Folder(str(collection))
    kept = sorted(path.read_bytes() for path in collection.rglob("*") if path.is_file())
    planned = forget(folder, [spec], dry_run=True)
    assert kept == sorted(path.read_bytes() for path in collection.rglob("*") if path.is_file())
    done = forget(folder, [spec])
    assert (done.shards, done.rows) == (planned.shards, 15 - sum(expected))
    assert left(collection) == expected
    assert forget(folder, [spec]).already == [spec], "the same command again changes nothing"
    assert left(collection) == expected


def test_the_index_is_stale_and_the_shard_comes_back(made, collection, capsys):
    (shard,) = forget(Folder(str(collection)), [f"{made}/shards/a.tar"], dry_run=True).shards
    forget_(str(collection), [shard.id])
    assert capsys.readouterr().out.splitlines() == [
        f"forgot {made}/shards/a.tar: 1 rows",
        "forgot 1 shards, 1 rows",
        f"the index is stale now: run chiasm index add {collection}",
    ]
    (finding,) = check(collection).findings
    assert finding.what == f"stale: shard {shard.id} is gone since the build"
    assert build_index(collection).rows == 14 and check(collection).ok
    assert make_collection(made / "shards/a.tar", collection, "fake").done == 1
    assert left(collection) == [1, 2, 3, 4, 5]


def test_one_name_that_is_no_shards_and_nothing_is_removed(made, collection):
    folder = Folder(str(collection))
    for spec, message in {
        f"{made}/shards/b.tar": "found none of that name; give an id, a path or a URL",
        f"{made}/shards": f"found a folder of shards; name its shards: '{made}/shards/\\*\\*'",
        f"{made}/shards/deep/": f"name its shards: '{made}/shards/deep/\\*'$",
        "": "'': expected a path or a URL, found an empty one",
        "a": "none of that name",
        "s3://bucket/*.tar": "none of that name",
    }.items():
        with pytest.raises(UsageError, match=message):
            forget(folder, [f"{made}/shards/a.tar", spec])
    assert left(collection) == [1, 2, 3, 4, 5]


def test_the_glob_that_is_advised_takes_out_what_is_in_a_folder(made, collection):
    folder = Folder(str(collection))
    for spec, rows in ((f"{made}/shards/deep", 3), (f"{made}/shards", 12)):
        with pytest.raises(UsageError) as refused:
            forget(folder, [spec])
        glob = refused.value.do.partition("'")[2].removesuffix("'")
        assert forget(folder, [glob]).rows == rows
    assert left(collection) == []


def test_a_shard_that_a_live_run_holds_stays(made, collection):
    folder = Folder(str(collection))
    (shard,) = forget(folder, ["ab-*"], dry_run=True).shards
    with Run(folder, "embed", {}) as run:
        run.claim([shard.id])
        with pytest.raises(CollectionError, match=f"no other run .* found run {run.id}"):
            forget(folder, ["ab-*", f"{made}/shards/a.tar"])
        assert left(collection) == [1, 2, 3, 4, 5]
        assert forget(folder, [f"{made}/shards/a.tar"]).rows == 1


def test_copies_and_damaged_files_go_by_their_id(made, collection):
    folder = Folder(str(collection))
    (shard,) = forget(folder, ["ab-*"], dry_run=True).shards
    copy = f"{shard.id}.backup"
    for name in (parquet_name, ledger_name):
        folder.write_whole(name(copy), folder.read_bytes(name(shard.id)))
    found = [str(finding) for finding in check(collection).findings]
    assert any(f"names shard {shard.id}: it is a copy; run chiasm forget" in one for one in found)
    assert [each.id for each in forget(folder, [f"{made}/shards/ab.tar"], dry_run=True).shards] == [
        shard.id
    ]
    forget(folder, [copy])
    assert left(collection) == [1, 2, 3, 4, 5] and check(collection).ok
    folder.write_whole(ledger_name(shard.id), b"{")
    folder.write_whole(parquet_name(shard.id), b"PAR1")
    assert forget(folder, [shard.id]).rows == 0
    assert left(collection) == [1, 3, 4, 5]


def test_a_kill_at_any_moment_and_the_same_command_ends_it(made, collection, tmp_path):
    specs = [f"{made}/shards/a.tar", "ab-*", f"{made}/shards/红.tar"]
    disk = DyingDisk(10**9)
    shutil.copytree(collection, tmp_path / "whole")
    forget(Folder(str(tmp_path / "whole"), LocalFiles(disk)), specs)
    assert disk.changes > 15
    for lives in range(disk.changes):
        path = tmp_path / str(lives)
        shutil.copytree(collection, path)
        with pytest.raises(Killed):
            forget(Folder(str(path), LocalFiles(DyingDisk(lives))), specs)
        bury(path)
        folder = Folder(str(path))
        accounts = {name.removeprefix("ledger/")[:-5] for name in folder.list("ledger")}
        assert all(file.shard_id in accounts for file in embeddings(folder)), "rows with an account"
        summary = forget(folder, specs)
        assert len(summary.shards) + len(summary.already) == 3
        assert left(path) == [3, 5]
        shutil.rmtree(path)


def test_the_summary_as_json(made, collection, capsys):
    forget_(str(collection), ["ab-*"], dry_run=True, as_json=True)
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["written"], summary["indexed"]) == (2, False, True)
    assert summary["shards"][0]["url"] == (made / "shards/ab.tar").as_uri()
