"""Shards that were moved: the collection follows them once they are proven, and nothing else is
touched."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import make_shard
from dying_disk import DyingDisk, Killed, bury
from shard_scores import Judge

from chiasm.index import build_index, open_collection
from chiasm.index.verify import check
from chiasm.jobs.cli.relocate import relocate_
from chiasm.pipeline.collection import (
    RELOCATE,
    Relocations,
    Run,
    ShardFiles,
    Survey,
    embeddings,
    entries,
    parquet_name,
    read_relocations,
)
from chiasm.pipeline.errors import CollectionError, UsageError
from chiasm.pipeline.forget import forget
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.records import Shard
from chiasm.pipeline.relocate import relocate
from chiasm.pipeline.storage import Folder, below, canonical_url, folder_url, replace_prefix
from chiasm.pipeline.storage.local import LocalFiles


def files(path: Path) -> dict[str, bytes]:
    """The content of a collection, without its runs and what they sum up."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.parent.name not in ("runs", "summaries")
    }


def urls(path: Path | str) -> list[str]:
    """Where ledgers and footers say that the shards are; both have to say the same."""
    ledgers = sorted(entry.source.url for entry in entries(Folder(str(path))))
    footers = sorted(file.footer.source.url for file in embeddings(Folder(str(path))))
    assert ledgers == footers
    return ledgers


def embedded(root: Path, *names: str) -> Path:
    """Shards below `root/old`, embedded into `root/c`."""
    shards = [make_shard(root / "old" / name, 5, seed=n) for n, name in enumerate(names)]
    make_collection(shards, root / "c", "fake")
    return root / "c"


def move(root: Path, target: str = "new") -> None:
    """The folder is renamed, and its files get new times."""
    os.rename(root / "old", root / target)
    for file in (root / target).rglob("*.*"):
        os.utime(file)


def test_rows_ids_and_index_stay_and_the_new_place_is_done(tmp_path, monkeypatch):
    path = embedded(tmp_path, "a.tar", "b.tar")
    build_index(path)
    searchers = [open_collection(path), open_collection(path)]
    for searcher in searchers:
        assert searcher.search("picture 1 of 0")
    before = {file.shard_id: file.read() for file in embeddings(Folder(str(path)))}
    kept = files(path)
    move(tmp_path)
    assert [str(finding).split(";")[0] for finding in check(path).findings] == [
        f"shards of {tmp_path}/old: 2 of its 2 shards are not there any more (a.tar, b.tar)"
    ]
    summary = relocate(Folder(str(path)), f"{tmp_path}/old", f"{tmp_path}/new")
    assert (len(summary.moved), summary.rows, summary.refused) == (2, 10, [])
    assert urls(path) == [canonical_url(f"{tmp_path}/new/{name}.tar") for name in "ab"]
    for file in embeddings(Folder(str(path))):
        assert file.read().equals(before[file.shard_id])
        name = parquet_name(file.shard_id)
        rows = len(kept[name]) - 8 - pq.read_metadata(path / name).serialized_size - 1000
        assert (path / name).read_bytes()[:rows] == kept[name][:rows], "row groups are copied"
    (result, *_) = open_collection(path).search("picture 1 of 0", column="text", k=10)
    assert result.url.startswith(f"file://{tmp_path}/new/") and result.picture()
    (result, *_) = searchers[0].search("picture 1 of 0")
    assert result.url.startswith(f"file://{tmp_path}/new/"), "it is open since before"
    with monkeypatch.context() as patch:  # of a store nothing is asked before a picture is missed
        patch.setattr(Folder, "local", None)
        patch.setattr(Folder, "stat", lambda *_: pytest.fail("a request"))
        (result, *_) = searchers[1].search("picture 1 of 0")
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "local", None)
        searchers[1]._encoder = judge = Judge()
        patch.setattr(judge, "match", lambda a, b, pairs: np.zeros(len(pairs), np.float32))
        (result, *_) = searchers[1].search("picture 1 of 0", rerank="match:3")
    assert result.url.startswith(f"file://{tmp_path}/new/") and "match" in result.scores
    assert check(path, reencode=10).findings == []

    survey = Survey(Folder(str(path)), ShardFiles.list(Folder(str(path))))
    assert {summary.source.url for summary in survey.summaries()} == set(urls(path))
    again = make_collection(tmp_path / "new", path, "fake")
    assert (again.done, again.skipped, again.rows) == (0, 2, 10)
    make_shard(tmp_path / "new/a.tar", 6, seed=7)
    again = make_collection(tmp_path / "new", path, "fake")
    assert (again.done, again.skipped, again.rows) == (1, 1, 11), "a changed one is embedded anew"
    assert len(embeddings(Folder(str(path)))) == 2


def test_moved_back_every_file_has_its_bytes_again(tmp_path):
    path = embedded(tmp_path, "a.tar", "deep/er/b.tar")
    kept = files(path)
    os.rename(tmp_path / "old", tmp_path / "new")
    assert len(relocate(Folder(str(path)), f"{tmp_path}/old", f"{tmp_path}/new").moved) == 2
    moved = files(path)
    assert moved.keys() - kept.keys() == {"relocated.json"}
    rows = [name for name in kept if name.startswith(("embeddings/", "ledger/"))]
    assert len(rows) == 4 and all(moved[name] != kept[name] for name in rows)
    os.rename(tmp_path / "new", tmp_path / "old")
    assert len(relocate(Folder(str(path)), f"{tmp_path}/new", f"{tmp_path}/old").moved) == 2
    assert {name: data for name, data in files(path).items() if name in kept} == kept
    assert make_collection([tmp_path / "old", tmp_path / "old/deep/er"], path, "fake").skipped == 2


def test_only_what_is_below_the_folder_moves_whatever_its_name(tmp_path):
    odd = "sp ace #1 100% {x} 红?.tar"
    path = embedded(tmp_path, f"a/{odd}", "ab/x.tar", "a/deep/y.tar", "a/packed.tar.gz")
    os.rename(tmp_path / "old/a", tmp_path / "old/abc")
    summary = relocate(Folder(str(path)), f"{tmp_path}/old/a/", f"{tmp_path}/old/abc")
    assert len(summary.moved) == 3
    names = [f"abc/{odd}", "ab/x.tar", "abc/deep/y.tar", "abc/packed.tar.gz"]
    assert urls(path) == sorted(canonical_url(f"{tmp_path}/old/{name}") for name in names)
    assert check(path).ok


@pytest.mark.parametrize(("source", "target"), [("old", "old/in/side"), ("old/in/side", "old")])
def test_a_folder_inside_the_other_and_the_command_twice(tmp_path, source, target):
    names = ["a.tar", "in/side/a.tar", "in/side/in/side/a.tar"]
    path = embedded(tmp_path, *names[source != "old" :])
    shutil.copytree(tmp_path / source, tmp_path / "aside")
    shutil.rmtree(tmp_path / source)
    shutil.copytree(tmp_path / "aside", tmp_path / target, dirs_exist_ok=True)
    command = (f"{tmp_path}/{source}", f"{tmp_path}/{target}")
    moved = relocate(Folder(str(path)), *command)
    assert moved.refused == [] and len(moved.moved) == len(embeddings(Folder(str(path))))
    kept = files(path)
    again = relocate(Folder(str(path)), *command)
    assert (again.moved, again.already, again.refused) == ({}, len(moved.moved), [])
    assert files(path) == kept and check(path).ok


def test_to_a_store_and_back(tmp_path, s3):
    names = ["a b%20.tar", "红/c.tar"]
    path = f"{s3.root}/c"  # the collection, too
    shards = [make_shard(tmp_path / "old" / name, 5, seed=n) for n, name in enumerate(names)]
    make_collection(shards, path, "fake")
    for name in names:
        Folder(f"{s3.root}/there").write_whole(name, (tmp_path / "old" / name).read_bytes())
    relocate(Folder(str(path)), f"{tmp_path}/old", f"{s3.root}/there/")
    assert urls(path) == sorted(f"{s3.root}/there/{name}" for name in names)
    new = [f"{s3.root}/there/{name}" for name in names]
    assert make_collection(new, path, "fake").skipped == 2
    os.rename(tmp_path / "old", tmp_path / "back")
    relocate(Folder(str(path)), f"{s3.root}/there", f"{tmp_path}/back")
    assert urls(path) == sorted(canonical_url(f"{tmp_path}/back/{name}") for name in names)
    assert check(path).ok


def test_what_is_not_proven_stays_and_nothing_is_written(tmp_path, capsys):
    path = embedded(tmp_path, "gone.tar", "other.tar", "short.tar", "same.tar", "held.tar")
    move(tmp_path)
    (tmp_path / "new/gone.tar").unlink()
    data = bytearray((tmp_path / "new/other.tar").read_bytes())
    place = next(f for f in embeddings(Folder(str(path))) if f.shard_id.startswith("other"))
    last = place.read(["member", "offset"]).to_pylist()[-1]
    data[last["offset"] + 30] ^= 1
    (tmp_path / "new/other.tar").write_bytes(data)
    with open(tmp_path / "new/short.tar", "ab") as file:
        file.write(bytes(512))
    make_collection(tmp_path / "new/held.tar", path, "fake")
    kept = files(path)
    command = (Folder(str(path)), f"{tmp_path}/old", f"{tmp_path}/new")
    assert relocate(*command, dry_run=True) == relocate(*command)
    assert files(path) == kept
    with pytest.raises(CollectionError, match="found 4 that are not, listed above, and none was"):
        relocate_(str(path), command[1], command[2])
    reasons = dict(
        line.removeprefix(f"not moved {tmp_path}/old/").split(": ", 1)
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("not moved")
    )
    assert reasons["gone.tar"].endswith("new/gone.tar: nothing there")
    assert f"another shard: another {last['member']} than was embedded" in reasons["other.tar"]
    assert "bytes, embedded were" in reasons["short.tar"]
    assert "the collection holds that shard already, as held-" in reasons["held.tar"]
    assert "chiasm forget" in reasons["held.tar"]

    summary = relocate(*command, partial=True)
    assert [Path(url).name for url in summary.moved] == ["same.tar"] and len(summary.refused) == 4
    assert [url for url in urls(path) if "/new/" in url] == [
        canonical_url(f"{tmp_path}/new/{name}.tar") for name in ("held", "same")
    ]


def test_a_shard_without_members_is_known_by_its_keys_and_one_without_rows_by_its_size(tmp_path):
    """Captions alone; nothing but broken pictures; a file that is no tar; a compressed shard."""
    for name, keys in {"text": "abc", "twin": "abd"}.items():
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for key in keys:
                tar.addfile(tarfile.TarInfo(f"{key}.txt"))
    old = tmp_path / "old"
    make_shard(old / "none.tar", 3, broken=3)
    packed = make_shard(tmp_path / "packed.tar", 9, seed=3).read_bytes()
    (old / "packed.tar.gz").write_bytes(gzip.compress(packed, 0, mtime=0))
    shutil.move(tmp_path / "text.tar", old)
    (old / "bad.tar").write_bytes(b"no tar" * 1000)
    path = tmp_path / "c"
    assert len(make_collection(old, path, "fake").failed) == 1
    move(tmp_path)
    shutil.copy(tmp_path / "twin.tar", tmp_path / "new/text.tar")
    summary = relocate(Folder(str(path)), str(old), f"{tmp_path}/new", partial=True)
    assert [refusal.reason for refusal in summary.refused] == [
        "another shard: no sample c, which was embedded"
    ]
    assert len(summary.moved) == 3
    other = gzip.compress(make_shard(tmp_path / "packed.tar", 9, seed=4).read_bytes(), 0, mtime=0)
    (tmp_path / "other.tar.gz").write_bytes(other)
    command = (f"{tmp_path}/new/packed.tar.gz", f"{tmp_path}/other.tar.gz")
    (refusal,) = relocate(Folder(str(path)), *command).refused
    assert refusal.reason == "another shard: no 00300000.jpg of the size that was embedded"


def test_a_kill_at_any_moment_loses_nothing_and_the_same_command_ends_it(tmp_path):
    start = embedded(tmp_path / "x", "a.tar", "红.tar")
    move(tmp_path / "x")
    command = (f"{tmp_path}/x/old", f"{tmp_path}/x/new")
    disk, whole = DyingDisk(10**9), tmp_path / "whole"
    shutil.copytree(start, whole)
    relocate(Folder(str(whole), LocalFiles(disk)), *command)
    assert 20 < disk.changes < 60
    for lives in range(disk.changes):
        path = tmp_path / str(lives)
        shutil.copytree(start, path)
        with pytest.raises(Killed):
            relocate(Folder(str(path), LocalFiles(DyingDisk(lives))), *command)
        bury(path)
        assert [file.rows for file in embeddings(Folder(str(path)))] == [5, 5], "both are done"
        relocate(Folder(str(path)), *command)
        assert files(path) == files(whole)
        shutil.rmtree(path)
    assert make_collection(tmp_path / "x/new", whole, "fake").skipped == 2


def test_a_copy_left_behind_is_the_same_shard_and_another_one_at_its_url_is_not(tmp_path):
    path = embedded(tmp_path, "a.tar")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    relocate(Folder(str(path)), f"{tmp_path}/old", f"{tmp_path}/new")
    both = [tmp_path / "old/a.tar", tmp_path / "new/a.tar"]
    assert make_collection(both, path, "fake").skipped == 1, "one shard, named twice"
    make_shard(tmp_path / "old/a.tar", 3, seed=8)
    summary = make_collection(both, path, "fake")
    assert (summary.done, summary.skipped, summary.rows) == (1, 1, 8)
    assert make_collection(both, path, "fake").skipped == 2
    assert sorted(file.rows for file in embeddings(Folder(str(path)))) == [3, 5]
    assert check(path).ok
    shutil.move(tmp_path / "old/a.tar", tmp_path / "b.tar")
    relocate(Folder(str(path)), f"{tmp_path}/old/a.tar", f"{tmp_path}/b.tar")
    assert make_collection([tmp_path / "b.tar", both[1]], path, "fake").skipped == 2


def test_moved_back_without_a_word_the_command_is_named(tmp_path):
    path = embedded(tmp_path, "a.tar")
    os.rename(tmp_path / "old", tmp_path / "new")
    relocate(Folder(str(path)), f"{tmp_path}/old", f"{tmp_path}/new")
    os.rename(tmp_path / "new", tmp_path / "old")
    fix = f"chiasm relocate {path} --from {tmp_path}/new/a.tar --to {tmp_path}/old/a.tar"
    with pytest.raises(CollectionError, match=fix):
        make_collection(tmp_path / "old", path, "fake")
    relocate(Folder(str(path)), f"{tmp_path}/new/a.tar", f"{tmp_path}/old/a.tar")
    assert make_collection(tmp_path / "old", path, "fake").skipped == 1 and check(path).ok


def test_a_forgotten_shard_whose_place_another_has_taken_gets_an_id_of_its_own(tmp_path):
    path = embedded(tmp_path, "a.tar")
    copy = shutil.copy2(tmp_path / "old/a.tar", tmp_path / "kept.tar")
    command = (f"{tmp_path}/old/a.tar", f"{tmp_path}/b.tar")
    shutil.move(*command)
    relocate(Folder(str(path)), *command)
    forget(Folder(str(path)), [command[1]])
    make_shard(tmp_path / "c.tar", 4, seed=5)
    make_collection(tmp_path / "c.tar", path, "fake")
    os.replace(tmp_path / "c.tar", tmp_path / "b.tar")
    relocate(Folder(str(path)), f"{tmp_path}/c.tar", f"{tmp_path}/b.tar")
    shutil.copy2(copy, command[0])
    for done in (1, 0):
        summary = make_collection([command[0], tmp_path / "b.tar"], path, "fake")
        assert (summary.done, summary.skipped, summary.rows) == (done, 2 - done, 9)
    assert check(path).ok


def test_new_times_alone_are_taken_over_by_the_same_folder_twice(tmp_path):
    path = embedded(tmp_path, "a.tar")
    os.utime(tmp_path / "old/a.tar")
    assert check(path).ok, "the bytes are those that were embedded"
    for moved in (1, 0):
        summary = relocate(Folder(str(path)), f"{tmp_path}/old", f"{tmp_path}/old")
        assert (len(summary.moved), summary.already) == (moved, 1 - moved)
    assert make_collection(tmp_path / "old", path, "fake").skipped == 1


def test_no_two_runs_that_name_shards_are_at_work_at_once(tmp_path):
    path = embedded(tmp_path, "a.tar")
    move(tmp_path)
    command = (Folder(str(path)), f"{tmp_path}/old", f"{tmp_path}/new")
    kept = files(path)
    with (
        Run(Folder(str(path)), "embed", {}) as run,
        pytest.raises(CollectionError, match=f"no other run at work, found run {run.id}"),
    ):
        relocate(*command)
    with (
        Run(Folder(str(path)), RELOCATE, {}),
        pytest.raises(CollectionError, match="no shards being relocated"),
    ):
        make_collection(tmp_path / "new", path, "fake")
    assert files(path) == kept


def test_a_folder_without_shards_is_wrong_usage(tmp_path):
    path = embedded(tmp_path, "a.tar")
    with pytest.raises(UsageError, match=rf"found none of them there; they are in {tmp_path}/old"):
        relocate(Folder(str(path)), f"{tmp_path}/ol", f"{tmp_path}/new")


def test_a_link_may_have_the_old_name(tmp_path):
    path = embedded(tmp_path, "a.tar")
    os.rename(tmp_path / "old", tmp_path / "new")
    (tmp_path / "old").symlink_to(tmp_path / "new")
    assert len(relocate(Folder(str(path)), f"{tmp_path}/old", f"{tmp_path}/new").moved) == 1


def test_fields_of_later_versions_are_kept(tmp_path):
    path = embedded(tmp_path, "a.tar")
    (ledger,) = (path / "ledger").glob("*.json")
    ledger.write_text(json.dumps({**json.loads(ledger.read_text()), "later": [1]}))
    move(tmp_path)
    relocate(Folder(str(path)), f"{tmp_path}/old", f"{tmp_path}/new")
    fields = json.loads(ledger.read_text())
    assert fields["later"] == [1] and fields["embedded_from"]["url"].endswith("/old/a.tar")
    (moved,) = read_relocations(Folder(str(path))).shards.values()
    assert moved.url == fields["source"]["url"]


@pytest.mark.parametrize(
    ("url", "folder", "target", "expected"),
    [
        ("file:///a/b%25/%E7%BA%A2%20.tar", "file:///a", "s3://b/k", "s3://b/k/b%/红 .tar"),
        ("s3://b/k/b%/红 .tar", "s3://b/k", "file:///a", "file:///a/b%25/%E7%BA%A2%20.tar"),
        ("s3://b/x//y.tar", "s3://b", "gs://c", "gs://c/x//y.tar"),
        ("file:///a/%FF%3F.tar", "file:///a", "file:///b/c", "file:///b/c/%FF%3F.tar"),
        ("file:///a/x%3Fy%23.tar", "file:///a", "https://h/p", "https://h/p/x%3Fy%23.tar"),
        ("https://h/p/x%3Fy.tar?v=1", "https://h/p", "file:///a", "file:///a/x%3Fy.tar"),
        ("https://h/p/x%20y.tar?v=1", "https://h", "http://g", "http://g/p/x%20y.tar?v=1"),
        ("file:///a.tar", "file://", "s3://b", "s3://b/a.tar"),
        ("s3://b/a.tar", "s3://b/a.tar", "s3://c/d.tar", "s3://c/d.tar"),
        ("http://h/a?t=1", "http://h/a?t=1", "http://g/a?t=1", "http://g/a?t=1"),
    ],
)
def test_a_name_is_the_same_below_another_folder(url, folder, target, expected):
    assert below(url, folder) and not below(url, folder[:-1] + "~")
    assert replace_prefix(url, folder, target) == expected


def test_the_id_of_a_shard_whose_own_is_taken_never_changes():
    """Ids are in ledgers and indexes: a later version has to give the same one."""
    shard = Shard("file:///new/a.tar", "a-0123456789", 1, "1")
    second = "a-" + hashlib.blake2b(b"file:///new/a.tar\n1", digest_size=5).hexdigest()
    third = "a-" + hashlib.blake2b(b"file:///new/a.tar\n2", digest_size=5).hexdigest()
    moves = {shard.id: (replace(shard, url="file:///old/a.tar"), "file:///elsewhere/a.tar")}
    relocations = Relocations().with_moves(moves)
    assert relocations.of(shard).id == second
    moves = {second: (replace(shard, url="file:///old/b.tar"), "file:///elsewhere/b.tar")}
    assert relocations.with_moves(moves).of(shard).id == third


def test_a_query_is_for_those_who_say_so():
    with pytest.raises(UsageError, match="a query that may hold credentials"):
        folder_url("http://h/c?t=1")
    assert folder_url("http://h/c?t=1", allow_query=True) == "http://h/c?t=1"


def test_of_a_shard_half_relocated_check_says_how_to_go_on(tmp_path):
    path = embedded(tmp_path, "a.tar")
    move(tmp_path)
    command = (Folder(str(path)), f"{tmp_path}/old", f"{tmp_path}/new")
    (ledger,) = (path / "ledger").glob("*.json")
    kept = ledger.read_bytes()
    relocate(*command)
    ledger.write_bytes(kept)
    found = [str(finding) for finding in check(path).findings]
    assert any("run the chiasm relocate that was killed once more" in one for one in found)
    assert len(relocate(*command).moved) == 1 and check(path).ok


@pytest.mark.parametrize("content", ["{", "[]", '{"shards": 3}', '{"schema": 2, "shards": {}}'])
def test_a_damaged_record_is_one_line(tmp_path, content):
    path = embedded(tmp_path, "a.tar")
    (path / "relocated.json").write_text(content)
    with pytest.raises(CollectionError, match=r"relocated\.json: expected the record of relocated"):
        make_collection(tmp_path / "old", path, "fake")
