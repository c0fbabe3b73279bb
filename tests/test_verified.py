"""Index files of this machine are compared with their checksums once a copy, and no more."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_collection import add_shard, make_collection

from chiasm.index import IndexSettings, Query, build_index, open_collection
from chiasm.index.segments import FileSum, stale, verified
from chiasm.pipeline.errors import CollectionError, StaleIndexError
from chiasm.pipeline.storage import Folder

QUERY = Query(vector=np.ones(8))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """An index of inverted lists; tests take a copy."""
    path = tmp_path_factory.mktemp("verified")
    make_collection(path, (40,))
    build_index(path, columns=["image"], settings=IndexSettings(tune=False, exact_below=1))
    return path


@pytest.fixture
def path(made, tmp_path, monkeypatch) -> Path:
    """A copy; nothing is remembered yet."""
    monkeypatch.setattr(verified, "verified_folder", lambda: tmp_path / "cache/verified")
    return Path(shutil.copytree(made, tmp_path / "c"))


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """The names of the files that were read whole, as they are."""
    names: list[str] = []
    real = FileSum.of_file

    def of_file(file) -> FileSum:
        names.append(Path(file.name).name)
        return real(file)

    monkeypatch.setattr(FileSum, "of_file", of_file)
    return names


def search(path: Path):
    return open_collection(path).search_many([QUERY])[0].results


def marks() -> int:
    """How many files are remembered."""
    return len(os.listdir(verified.verified_folder()))


def file_of(path: Path, name: str) -> Path:
    (found,) = path.glob(f"index/segments/*/{name}")
    return found


WHOLE = ["image.sizes", "image.f16", "rows.arrow"]
FILES = [*WHOLE, "image.lists"]


def test_a_copy_is_read_whole_once(path, hashed):
    results = search(path)
    assert sorted(hashed) == sorted(WHOLE) and marks() == 4
    assert search(path) == results and len(hashed) == 3, "the second opening costs nothing"
    shutil.copytree(path, path.parent / "copy", copy_function=shutil.copy)
    assert search(path.parent / "copy") == results and len(hashed) == 6, "a copy is another file"
    assert search(path.parent / "copy") == results and len(hashed) == 6


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_flipped_bit_is_an_error_though_size_and_time_stay(path, name, place):
    search(path)
    file = file_of(path, name)
    data, before = bytearray(file.read_bytes()), file.stat()
    data[{"start": 20, "middle": len(data) // 2, "end": len(data) - 5}[place]] ^= 0x40
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(
            CollectionError, match=f"{name}: expected checksum .*; run chiasm index"
        ):
            search(path)


def test_another_index_of_the_same_size_is_an_error(path):
    other = path.parent / "other"
    make_collection(other, (40,), seed=9)
    build_index(other, columns=["image"], settings=IndexSettings(tune=False, exact_below=1))
    for name in ("image.sizes", "image.f16"):
        assert file_of(path, name).stat().st_size == file_of(other, name).stat().st_size
        shutil.copy2(file_of(other, name), file_of(path, name))
    with pytest.raises(CollectionError, match=r"image\..*: expected checksum"):
        search(path)


def test_a_cache_that_cannot_be_written_only_costs_time(path, hashed, monkeypatch):
    blocked = path.parent / "a file"
    blocked.touch()
    monkeypatch.setattr(verified, "verified_folder", lambda: blocked / "verified")
    assert search(path) == search(path) and len(hashed) == 6


def test_the_oldest_are_forgotten(path, hashed, monkeypatch):
    monkeypatch.setattr(verified, "KEPT", 2)
    monkeypatch.setattr(verified, "COUNTED", 1)
    search(path)
    assert marks() == 2
    for file in FILES:
        file_of(path, file).chmod(0o400)  # another file, as far as its times tell
    search(path)
    assert len(hashed) == 6 and marks() <= 2


def test_a_collection_copied_without_its_times_has_its_footers_read_once(path, monkeypatch):
    results = search(path)
    shutil.copytree(path, path.parent / "copy", copy_function=shutil.copy)
    for file in (path.parent / "copy/embeddings").iterdir():
        os.utime(file, (1, 1))
    footers: list[str] = []
    real = stale.find_embedding

    def find_embedding(folder, shard_id):
        footers.append(shard_id)
        return real(folder, shard_id)

    monkeypatch.setattr(stale, "find_embedding", find_embedding)
    assert search(path.parent / "copy") == results and len(footers) == 1
    assert search(path.parent / "copy") == results and len(footers) == 1
    add_shard(Folder(str(path.parent / "copy")), "s0", 40, edition="0000000b")
    for _ in range(2):
        with pytest.raises(StaleIndexError, match="1 changed"):
            open_collection(path.parent / "copy")
