"""Local copies of index files: downloaded by checksum, verified, within a size limit."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import environment, noise

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.segments import FileSum, cache
from chiasm.index.segments.cache import cache_folder, open_cached
from chiasm.index.segments.lists import open_exact
from chiasm.pipeline.errors import CollectionError, StorageError, UsageError
from chiasm.pipeline.storage import Folder, local
from chiasm.pipeline.storage.local import PendingLocalFile


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A collection's folder; the cache is a folder beside it, and nothing is open yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_owners", {})
    return Folder(str(tmp_path / "c"))


def write_file(folder, name: str, data: bytes) -> FileSum:
    folder.write_whole(name, data)
    return FileSum.of(data)


class Owner:
    """Who maps a copy."""


def fetch_to_cache(folder: Folder, name: str, checksum: FileSum, owner: object = None) -> Path:
    """The path of a copy, let go at once unless `owner` holds it."""
    with open_cached(folder, name, checksum, owner or Owner()) as file:
        assert FileSum.of(file.read()) == checksum
    return cache_folder() / checksum.blake2b


def names() -> set[str]:
    return {path.name for path in cache_folder().iterdir()}


def test_a_file_is_downloaded_once_and_its_copy_outlives_the_original(folder):
    checksum = write_file(folder, "a", b"hello")
    copy = fetch_to_cache(folder, "a", checksum)
    assert (copy.name, copy.read_bytes()) == (checksum.blake2b, b"hello")
    folder.remove("a")
    assert fetch_to_cache(folder, "a", checksum) == copy


def test_a_copy_is_flushed_to_disk_before_it_gets_its_name(folder, monkeypatch):
    checksum, files = write_file(folder, "a", b"hello"), []

    def record_files(descriptor: int) -> None:
        files.extend((path.name, path.read_bytes()) for path in cache_folder().iterdir())

    monkeypatch.setattr(local.os, "fsync", record_files)
    copy = fetch_to_cache(folder, "a", checksum)
    (before_name, content), (after_name, _) = files  # of the file, then of its folder
    assert before_name != copy.name == after_name and content == b"hello"


@pytest.mark.parametrize("damage", [b"hell", b"hellO", b"hello, world", b""])
def test_a_damaged_copy_is_downloaded_again(folder, damage):
    checksum = write_file(folder, "a", b"hello")
    fetch_to_cache(folder, "a", checksum).write_bytes(damage)
    assert fetch_to_cache(folder, "a", checksum).read_bytes() == b"hello"
    assert names() == {checksum.blake2b}


@pytest.mark.parametrize("found", [b"hellO", b"hell", b"hello, world"])
def test_other_content_in_the_store_is_an_error_and_is_not_kept(folder, found):
    checksum = write_file(folder, "a", b"hello")
    folder.write_whole("a", found)
    with pytest.raises(CollectionError, match=f"expected checksum {checksum.blake2b}, 5 bytes"):
        fetch_to_cache(folder, "a", checksum)
    assert names() == set()


def test_the_least_recently_used_copies_make_room_but_never_open_ones(folder, monkeypatch):
    monkeypatch.setenv("CHIASM_CACHE_GB", "0.0000035")  # three files of 1,000 bytes
    sums = [write_file(folder, str(n), bytes([n]) * 1000) for n in range(5)]
    owners = [Owner(), Owner()]
    fetch_to_cache(folder, "0", sums[0], owners[0])
    for number in (1, 2):
        fetch_to_cache(folder, str(number), sums[number])
    times = [path.stat().st_atime_ns for path in (cache_folder() / s.blake2b for s in sums[:3])]
    assert times == sorted(times)
    fetch_to_cache(folder, "1", sums[1])
    fetch_to_cache(folder, "3", sums[3], owners[1])
    assert names() == {sums[number].blake2b for number in (0, 1, 3)}
    big = write_file(folder, "big", noise(3000))
    fetch_to_cache(folder, "big", big, owners[1])
    assert names() == {sums[0].blake2b, sums[3].blake2b, big.blake2b}, "all of them mapped"
    owners.clear()
    fetch_to_cache(folder, "4", sums[4])
    assert names() == {sums[4].blake2b}, "nobody has mapped the others any more"


def test_threads_and_processes_download_side_by_side(folder, tmp_path):
    checksum = write_file(folder, "a", noise(3_000_000))
    program = (
        "import sys; from chiasm.index.segments import FileSum;"
        "from chiasm.index.segments.cache import open_cached;"
        "from chiasm.pipeline.storage import Folder;"
        f"print(open_cached(Folder(sys.argv[1]), 'a', {checksum!r}, Folder).peek(1)[0])"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "c")],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with ThreadPoolExecutor(8) as threads:
        copies = set(threads.map(lambda _: fetch_to_cache(folder, "a", checksum), range(8)))
    out, _ = other.communicate(timeout=120)
    assert len(copies) == 1 and int(out) == noise(3_000_000)[0]
    assert names() == {checksum.blake2b}
    assert FileSum.of(copies.pop().read_bytes()) == checksum


def test_a_full_disk_is_one_line_and_leaves_nothing(folder):
    checksum = write_file(folder, "a", bytes(3_000_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageError) as error:
            fetch_to_cache(folder, "a", checksum)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value) == (
        f"{cache_folder()}: expected room for copies of index files, found the limit of a file's "
        "size reached; free some, set CHIASM_CACHE_GB lower or XDG_CACHE_HOME to another disk"
    )
    assert names() == set()


def test_a_limit_that_is_no_number_is_refused(folder, monkeypatch):
    checksum = write_file(folder, "a", b"hello")
    for value in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("CHIASM_CACHE_GB", value)
        with pytest.raises(UsageError, match=rf"expected a number of gigabytes, found '{value}'"):
            fetch_to_cache(folder, "a", checksum)


def test_temporaries_of_dead_downloads_are_removed(folder):
    sums = [write_file(folder, name, name.encode()) for name in "ab"]
    fetch_to_cache(folder, "a", sums[0])
    old, young = (cache_folder() / f".{name}.~0a0a0a0a.tmp" for name in ("old", "young"))
    old.touch()
    young.touch()
    os.utime(old, (0, time.time() - 61))
    fetch_to_cache(folder, "b", sums[1])
    assert names() == {sums[0].blake2b, sums[1].blake2b, ".young.~0a0a0a0a.tmp"}


def test_the_cache_lies_below_xdg_cache_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere" / "chiasm" / "segments"


def test_a_copy_that_another_process_takes_away_is_still_read_and_mapped(folder, monkeypatch):
    faiss = load_faiss()
    vectors = np.eye(4, dtype="<f2")
    checksum = write_file(folder, "a", vectors.tobytes())
    commit = PendingLocalFile.commit

    def taken_away(pending) -> None:
        commit(pending)
        (cache_folder() / checksum.blake2b).unlink()

    monkeypatch.setattr(PendingLocalFile, "commit", taken_away)
    with open_cached(folder, "a", checksum, Owner()) as file:
        assert names() == set()
        mapped = open_exact(file, 4, 4, "a")
    assert mapped.ntotal == 4
    found = faiss.rev_swig_ptr(mapped.invlists.get_codes(0), 32)
    assert found.tobytes() == vectors.tobytes()


def test_a_temporary_of_a_download_that_lives_stays_however_old_it_seems(folder):
    sums = [write_file(folder, name, name.encode()) for name in "ab"]
    fetch_to_cache(folder, "a", sums[0])
    lives = cache_folder() / ".lives.~0a0a0a0a.tmp"
    with lives.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.utime(lives, (0, 0))
        fetch_to_cache(folder, "b", sums[1])
        assert lives.name in names()
    fetch_to_cache(folder, "a", sums[0])
    assert lives.name not in names()
