"""Copies of index files: pulled by checksum, sealed, within a bound."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import environment, noise

from chiasm.index.segments import FileSum, cache
from chiasm.index.segments.cache import cache_folder, fetch_to_cache
from chiasm.pipeline.errors import CollectionError, StorageError, UsageError
from chiasm.pipeline.storage import Folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A collection's folder; the cache is a folder beside it, and nothing is open yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_open", set())
    return Folder(str(tmp_path / "c"))


def put(folder, name: str, data: bytes) -> FileSum:
    folder.write_whole(name, data)
    return FileSum.of(data)


def names() -> set[str]:
    return {path.name for path in cache_folder().iterdir()}


def test_a_file_is_pulled_once_and_serves_whatever_becomes_of_the_bucket(folder):
    checksum = put(folder, "a", b"hello")
    copy = fetch_to_cache(folder, "a", checksum)
    assert (copy.name, copy.read_bytes()) == (checksum.blake2b, b"hello")
    folder.remove("a")
    assert fetch_to_cache(folder, "a", checksum) == copy


def test_a_copy_has_reached_the_disk_before_it_gets_its_name(folder, monkeypatch):
    checksum, there = put(folder, "a", b"hello"), []

    def note(number: int) -> None:
        there.extend((path.name, path.read_bytes()) for path in cache_folder().iterdir())

    monkeypatch.setattr(cache.os, "fsync", note)
    copy = fetch_to_cache(folder, "a", checksum)
    [(name, content)] = there
    assert name != copy.name and content == b"hello"


@pytest.mark.parametrize("damage", [b"hell", b"hellO", b"hello, world", b""])
def test_a_damaged_copy_is_pulled_again(folder, damage):
    checksum = put(folder, "a", b"hello")
    fetch_to_cache(folder, "a", checksum).write_bytes(damage)
    assert fetch_to_cache(folder, "a", checksum).read_bytes() == b"hello"
    assert names() == {checksum.blake2b}


@pytest.mark.parametrize("found", [b"hellO", b"hell", b"hello, world"])
def test_another_file_in_the_bucket_is_told_and_not_kept(folder, found):
    checksum = put(folder, "a", b"hello")
    folder.write_whole("a", found)
    with pytest.raises(CollectionError, match=f"expected checksum {checksum.blake2b}, 5 bytes"):
        fetch_to_cache(folder, "a", checksum)
    assert names() == set()


def test_what_was_used_longest_ago_makes_room_but_never_what_is_open(folder, monkeypatch):
    monkeypatch.setenv("CHIASM_CACHE_GB", "0.0000035")  # three files of 1,000 bytes
    sums = [put(folder, str(n), bytes([n]) * 1000) for n in range(5)]
    for number in (0, 1, 2):
        fetch_to_cache(folder, str(number), sums[number])
    monkeypatch.setattr(cache, "_open", {sums[0].blake2b})
    times = [path.stat().st_atime_ns for path in (cache_folder() / s.blake2b for s in sums[:3])]
    assert times == sorted(times)
    fetch_to_cache(folder, "1", sums[1])
    fetch_to_cache(folder, "3", sums[3])
    assert names() == {sums[number].blake2b for number in (0, 1, 3)}
    fetch_to_cache(folder, "4", sums[4])
    assert names() == {sums[number].blake2b for number in (0, 1, 3, 4)}, "all of them open"


def test_threads_and_processes_pull_side_by_side(folder, tmp_path):
    checksum = put(folder, "a", noise(3_000_000))
    told = (
        "import sys; from chiasm.index.segments.cache import *;"
        "from chiasm.pipeline.storage.folder import Folder;"
        f"print(pulled(Folder(sys.argv[1]), 'a', {checksum!r}))"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", told, str(tmp_path / "c")],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with ThreadPoolExecutor(8) as pulling:
        copies = set(pulling.map(lambda _: fetch_to_cache(folder, "a", checksum), range(8)))
    out, _ = other.communicate(timeout=120)
    assert {out.strip()} == {str(copy) for copy in copies}
    assert names() == {checksum.blake2b}
    assert FileSum.of(copies.pop().read_bytes()) == checksum


def test_a_full_disk_is_one_line_and_leaves_nothing(folder):
    checksum = put(folder, "a", bytes(3_000_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageError) as told:
            fetch_to_cache(folder, "a", checksum)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(told.value) == (
        f"{cache_folder()}: expected room for copies of index files, found no space left; free"
        " some, set CHIASM_CACHE_GB lower or XDG_CACHE_HOME elsewhere"
    )
    assert names() == set()


def test_a_bound_that_is_no_number_is_refused(folder, monkeypatch):
    checksum = put(folder, "a", b"hello")
    for told in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("CHIASM_CACHE_GB", told)
        with pytest.raises(UsageError, match=rf"expected a number of gigabytes, found '{told}'"):
            fetch_to_cache(folder, "a", checksum)


def test_pulls_that_died_are_forgotten(folder):
    sums = [put(folder, name, name.encode()) for name in "ab"]
    fetch_to_cache(folder, "a", sums[0])
    old, young = (cache_folder() / f".{name}.tmp" for name in ("old", "young"))
    old.touch()
    young.touch()
    os.utime(old, (0, time.time() - 2 * cache.FORGOTTEN_SECONDS))
    fetch_to_cache(folder, "b", sums[1])
    assert names() == {sums[0].blake2b, sums[1].blake2b, ".young.tmp"}
