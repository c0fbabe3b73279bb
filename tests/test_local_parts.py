"""Large files of this machine are verified block by block: a fault anywhere is found before what it
is in is used, and in the end anyway."""

from __future__ import annotations

import shutil
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tiny_collection import make_collection, unit_rows

from chiasm.index import IndexSettings, build_index, open_collection
from chiasm.index.query import scan
from chiasm.index.segments import blocks as divided
from chiasm.index.segments import catalog, local_parts, partial, verified
from chiasm.index.segments.blocks import Blocks, VectorBlocks
from chiasm.index.segments.checksums import FileSum
from chiasm.index.segments.local_parts import LocalParts
from chiasm.index.segments.partial import fetch
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder

ROWS, DIM = (150, 130), 16
SETTINGS = IndexSettings(tune=False, exact_below=1, segment_rows=150)
FILES = ["image.f16", "rows.arrow", "image.lists"]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Two segments of many small blocks."""
    path = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(divided, "VECTOR_BLOCK", 512)
        patch.setattr(catalog, "BATCH", 16)
        make_collection(path, ROWS, dim=DIM)
        build_index(str(path), columns=["image"], settings=SETTINGS)
    return path


@pytest.fixture
def path(built, tmp_path, monkeypatch) -> Path:
    """A copy of which nothing is remembered, whose files all count as large."""
    monkeypatch.setattr(verified, "verified_folder", lambda: tmp_path / "verified")
    monkeypatch.setattr(local_parts, "WHOLE_BYTES", 0)
    monkeypatch.setattr(partial, "VERIFIED_MORE", 2048)
    monkeypatch.setattr(catalog, "BATCH", 16)
    return Path(shutil.copytree(built, tmp_path / "c"))


def ask(index, seed: int, k: int = 5) -> tuple[np.ndarray, np.ndarray, list[str]]:
    xq = unit_rows(np.random.default_rng(seed), 1, DIM)
    scores, ids = index.search_vectors(xq, k)
    rows = index.rows(ids[0].tolist())
    return scores, ids, [rows[int(one)].id for one in ids[0]]


def same(found, expected) -> bool:
    return all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def files_of(path: Path, name: str) -> list[Path]:
    return sorted(path.glob(f"index/segments/*/{name}"))


def marks() -> int:
    folder = verified.verified_folder()
    return len(list(folder.iterdir())) if folder.exists() else 0


def test_the_first_answer_reads_a_part_and_later_ones_all(path, built):
    index, whole = open_collection(path), open_collection(built)
    parts = [
        segment._files.parts(name)
        for segment in index.segments
        for name in ("image.f16", "rows.arrow")
    ]
    assert all(isinstance(part, LocalParts) for part in parts)
    assert same(ask(index, 0), ask(whole, 0))
    shares = [part._known.mean() for part in parts]
    assert max(shares[0::2]) < 0.8, "most vectors were not read"
    for seed in range(1, 40):
        assert same(ask(index, seed), ask(whole, seed))
    assert all(part.complete for part in parts)
    before = marks()
    again = open_collection(path)
    assert same(ask(again, 0), ask(whole, 0))
    assert marks() == before, "all was remembered"
    assert again.segments[0]._files.parts("image.f16") is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", range(8))
def test_a_fault_is_found_before_what_it_is_in_is_used(path, built, name, part):
    """A bit of each eighth of each file. Answers before are right; the fault is found in the
    end."""
    file = files_of(path, name)[part % 2]
    content = bytearray(file.read_bytes())
    content[len(content) * part // 8 + 3] ^= 0x10
    file.write_bytes(content)
    index, whole = open_collection(path), open_collection(built)
    with pytest.raises(CollectionError, match=rf"{name}: expected checksum .*; run chiasm index"):
        for seed in range(60):
            assert same(ask(index, seed), ask(whole, seed))
    for _ in range(2):  # it stays one
        with pytest.raises(CollectionError, match="expected checksum"):
            for seed in range(60):
                ask(index, seed)


@pytest.mark.parametrize("name", ["image.f16.blocks", "rows.arrow.blocks", "image.sizes"])
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_a_fault_in_the_checksums_is_found_at_once(path, name, place):
    file = files_of(path, name)[1]
    content = bytearray(file.read_bytes())
    content[int(place * len(content)) if place >= 0 else -1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CollectionError, match=rf"{name}: expected checksum .*; run chiasm index"):
        ask(open_collection(path), 0, k=200)


def test_what_needs_a_whole_file_verifies_it(path, built):
    index, whole = open_collection(path), open_collection(built)
    for segment, expected in zip(index.segments, whole.segments, strict=True):
        ours, theirs = (one.raw("image").take(slice(None)) for one in (segment, expected))
        np.testing.assert_array_equal(ours, theirs)
        assert segment.catalog.table().equals(expected.catalog.table())
        assert all(segment._files.parts(name).complete for name in ("image.f16", "rows.arrow"))
    file = files_of(path, "image.f16")[0]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    again = open_collection(path)
    with pytest.raises(CollectionError, match=r"image\.f16: expected checksum"):
        again.segments[0].raw("image")


def test_lists_that_are_not_read_into_memory_are_verified_as_they_are_scanned(
    path, built, monkeypatch
):
    monkeypatch.setattr(scan, "RESIDENT_BYTES", 0)
    index, whole = open_collection(path), open_collection(built)
    assert same(ask(index, 0), ask(whole, 0))
    for segment, copy in zip(index.segments, files_of(path, "image.lists"), strict=True):
        trained = index.column("image").trained
        ends = segment.list_sizes("image", trained).offsets
        content = bytearray(copy.read_bytes())
        for start, end in pairwise(ends):
            content[int(start) : int(end)] = bytes(int(end - start))
        copy.write_bytes(content)
    with pytest.raises(CollectionError, match=r"image\.lists: expected checksum"):
        ask(open_collection(path), 1)


def test_a_file_of_another_size_is_refused(path):
    index = open_collection(path)
    file = files_of(path, "image.f16")[0]
    file.write_bytes(file.read_bytes()[:-32])
    with pytest.raises(CollectionError, match=r"image\.f16: expected \d+ bytes, found \d+;"):
        ask(index, 0, k=200)


def test_threads_verify_one_file_together(tmp_path, monkeypatch):
    monkeypatch.setattr(verified, "verified_folder", lambda: tmp_path / "verified")
    monkeypatch.setattr(divided, "VECTOR_BLOCK", 64)
    data = np.random.default_rng(0).bytes(64 * 200 + 16)
    (tmp_path / "f").write_bytes(data)
    writer = VectorBlocks(8)
    writer.add(data)
    with open(tmp_path / "f", "rb") as file:
        blocks = Blocks.of_vectors(writer.to_bytes(), len(data))
        parts = LocalParts(Folder(str(tmp_path)), "f", FileSum.of(data), blocks, file)

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            while not parts.complete:
                fetch([(parts, rng.integers(0, 201, 5))])
                parts.verify_more(300)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert parts._known.all() and parts.complete
        assert b"".join(parts.in_order()) == data
