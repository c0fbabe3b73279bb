"""An index in a store, searched by parts: few rounds, few bytes, the answers of a local one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from counting_store import CountingStore
from hypothesis import given
from hypothesis import strategies as st
from tiny_collection import make_collection, unit_rows

from chiasm.index import IndexSettings, Query, Searcher, build_index, open_collection
from chiasm.index.query import scan
from chiasm.index.segments import SegmentGone, SegmentWriter, catalog, partial
from chiasm.index.segments.blocks import Blocks, CatalogBlocks, VectorBlocks
from chiasm.index.segments.cache import cache_folder
from chiasm.index.segments.checksums import FileSum
from chiasm.index.segments.partial import PartialCopy, fetch
from chiasm.index.verify import check
from chiasm.pipeline.errors import CollectionError, StaleIndexError, StorageError
from chiasm.pipeline.storage.object_store import ByteRange
from chiasm.pipeline.storage.schemes import S3_STORE

ROWS, DIM, URL = (700, 600, 500), 32, "s3://bucket/c"
SETTINGS = IndexSettings(tune=False, exact_below=100, segment_rows=700)


class RangeStore(CountingStore):
    """One that also counts bytes, and knows what was read of which object."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[tuple[str, int, int]] = []  # object, start, bytes

    def get(self, path: str, start: int, size: int) -> ByteRange:
        found = super().get(path, start, size)
        self.read.append((path.rpartition("/")[2], found.start, len(found.data)))
        return found


@dataclass
class Both:
    """One index here and in a store."""

    here: Path
    store: RangeStore

    def open(self) -> tuple[Searcher, Searcher]:
        there = open_collection(URL, allow_stale=True)
        self.store.reset()
        self.store.read.clear()
        return open_collection(self.here), there

    def object(self, ending: str, number: int = 0) -> str:
        return sorted(path for path in self.store.objects if path.endswith(ending))[number]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("built")
    make_collection(path, ROWS, dim=DIM, holes=0.1)
    build_index(str(path), settings=SETTINGS)
    return path


@pytest.fixture
def both(built, tmp_path, monkeypatch) -> Iterator[Both]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = RangeStore()
    for path in built.rglob("*"):
        if path.is_file():
            store.keep(f"bucket/c/{path.relative_to(built)}", path.read_bytes())
    S3_STORE.replace(store)
    yield Both(built, store)
    S3_STORE.replace(None)


def ask(index: Searcher, seed: int, column: str = "image", k: int = 10) -> object:
    vector = unit_rows(np.random.default_rng(seed), 1, DIM)[0]
    return index.search_many([Query(vector=vector, column=column, k=k)])[0].as_json()["results"]


def test_answers_equal_those_of_the_local_index(both):
    here, there = both.open()
    xq = unit_rows(np.random.default_rng(0), 30, DIM)
    for column in ("image", "text", "joint"):
        for nprobe in (1, 3, None):
            expected = here.search_vectors(xq, 7, column=column, nprobe=nprobe)
            found = there.search_vectors(xq, 7, column=column, nprobe=nprobe)
            np.testing.assert_array_equal(found, expected)
        assert ask(there, 1, column) == ask(here, 1, column)
    positions = [1799, 3, 705, 4]
    np.testing.assert_array_equal(
        there.vectors("joint", positions), here.vectors("joint", positions)
    )
    assert there.rows(positions) == here.rows(positions)
    assert there.segments[0].catalog.table().equals(here.segments[0].catalog.table())


def test_the_first_answer_takes_five_dependent_reads(both, monkeypatch):
    rounds: list[int] = []

    def counted(wanted: list) -> None:
        before = both.store.total
        fetch(wanted)
        rounds.append(both.store.total - before)

    monkeypatch.setattr(scan, "fetch", counted)
    there = open_collection(URL, allow_stale=True)
    # collection.json, CURRENT and whether shards were relocated; then records, listings and
    # whether the manifest is there.
    assert there.generation.number == 1
    assert both.store.requests == {"get": 2 + 3, "head": 2, "list": 3}
    both.store.reset()
    there.column("image")
    # Trained, and of each segment the sizes of the lists and the checksums of two files' blocks.
    assert both.store.requests == {"get": 1 + 3 * 3}
    both.store.reset()
    ask(there, 0)
    lists, candidates = rounds
    assert lists and candidates and both.store.total == lists + candidates, "nothing else is read"
    rounds.clear()
    ask(there, 0)
    assert rounds == [0, 0], "all of it is here"


def test_only_lists_and_blocks_that_are_needed_are_read(both):
    there = both.open()[1]
    index = there.column("image")
    both.store.read.clear()
    xq = unit_rows(np.random.default_rng(5), 1, DIM)
    found = there.search_vectors(xq, 10, nprobe=2)[1][0]
    assert {name for name, _, _ in both.store.read} == {"image.lists", "image.f16", "rows.arrow"}
    assert index.trained is not None
    lists = index.trained.rank(xq, index.trained.queries(xq), 2)[0]
    sizes = [segment.list_sizes("image", index.trained).offsets for segment in there.segments]
    expected = sum(int((offsets[lists + 1] - offsets[lists]).sum()) for offsets in sizes)
    assert sum(size for name, _, size in both.store.read if name == "image.lists") == expected
    whole = sum(segment.record.files["rows.arrow"].size for segment in there.segments)
    rows = sum(size for name, _, size in both.store.read if name == "rows.arrow")
    assert 0 < rows < whole
    both.store.read.clear()
    there.rows(found.tolist())
    assert both.store.read == [], "rows came with the vectors"


def test_another_process_reads_nothing_twice_and_believes_nothing_unseen(both):
    there = both.open()[1]
    answer = ask(there, 3)
    again = both.open()[1]
    again.column("image")
    both.store.read.clear()
    assert ask(again, 3) == answer and both.store.read == []
    for path in cache_folder().glob("*.part"):  # as a loss of power may leave them
        size = path.stat().st_size
        path.write_bytes(b"")
        os.truncate(path, size)
    third = both.open()[1]
    assert ask(third, 3) == answer
    assert {name for name, _, _ in both.store.read} >= {"image.lists", "image.f16", "rows.arrow"}


@pytest.mark.parametrize("name", ["image.lists", "image.f16", "rows.arrow"])
def test_a_damaged_part_is_one_line_and_no_answer(both, name):
    there = both.open()[1]
    for number in range(3):
        path = both.object(f"/{name}", number)
        both.store.objects[path] = bytes(byte ^ 1 for byte in both.store.objects[path])
    with pytest.raises(CollectionError) as error:
        ask(there, 0)
    assert "\n" not in str(error.value)
    for part in (f"/{name}: expected checksum", "from byte", "found another; run chiasm index"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["image.sizes", "image.f16.blocks", "rows.arrow.blocks"])
@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_directory_is_one_line_and_no_answer(both, name, cut):
    there = both.open()[1]
    path = both.object(f"/{name}")
    data = both.store.objects[path]
    both.store.objects[path] = data[:-1] if cut else data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(CollectionError, match=f"{name}: expected checksum [0-9a-f]+, {len(data)} "):
        ask(there, 0)


def test_a_shorter_file_is_one_line(both):
    there = both.open()[1]
    for number in range(3):
        path = both.object("/image.lists", number)
        both.store.objects[path] = both.store.objects[path][:10]
    with pytest.raises(CollectionError, match=r"image.lists: expected \d+ bytes, found 10; run"):
        ask(there, 0)


def test_a_segment_that_is_swept_meanwhile_leads_to_the_live_generation(both, tmp_path):
    there = both.open()[1]
    answer = ask(there, 0)
    rebuilt = build_index(URL, settings=SETTINGS).generation
    for path in list(both.store.objects):
        if there.segments[0].record.id.rpartition("-")[0] in path:
            del both.store.objects[path]
    with pytest.raises(SegmentGone, match="expected a file of the index, found no such file"):
        there.view().search_vectors(unit_rows(np.random.default_rng(9), 1, DIM), 10)
    assert ask(there, 7) == ask(both.open()[0], 7)
    assert there.generation.number == rebuilt and ask(there, 0) == answer


def test_a_segment_without_checksums_of_blocks_is_read_whole(both):
    class Unaware(SegmentWriter):
        def _create(self, name: str):
            digest = super()._create(name)
            if name.endswith(".blocks"):
                self._files.pop(name)
            return digest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chiasm.index.build.fill.SegmentWriter", Unaware)
        build_index(URL, settings=SETTINGS)
    here, there = both.open()
    assert there.generation.number == 2 and ask(there, 1) == ask(here, 1)
    for name in ("rows.arrow", "image.f16"):
        sizes = {segment.record.files[name].size for segment in there.segments}
        read = {size for found, _, size in both.store.read if found == name}
        assert read and read <= sizes, "files, not parts"


def test_CURRENT_carries_the_manifest_and_the_file_answers_where_it_is_cut(both):
    name = both.object("/CURRENT")
    whole = both.store.objects[name]
    answers = []
    for content, manifests in ((whole, 0), (whole[: len(whole) // 2], 1), (whole[:7], 1)):
        both.store.objects[name] = content
        both.store.read.clear()
        there = open_collection(URL, allow_stale=True)
        assert [one for one, _, _ in both.store.read].count("000001.json") == manifests
        answers.append(ask(there, 2))
    assert answers[0] == answers[1] == answers[2]


def test_what_was_embedded_since_is_noticed_before_an_answer(both):
    assert open_collection(URL).generation.number == 1, "the same files, at other times"
    both.store.objects.pop(both.object(".parquet"))
    with pytest.raises(StaleIndexError, match="shards: 1 gone"):
        open_collection(URL)


def test_check_reads_whole_files(both):
    assert [one for one in check(URL).findings if "stale" not in one.what] == []


def copy_of(store: CountingStore, data: bytes, ends: list[int]) -> PartialCopy:
    folder = store.folder()
    folder.write_whole("a", data)
    offsets = np.array([0, *ends])
    digests = [
        partial.hashlib.blake2b(data[start:end], digest_size=8).digest()
        for start, end in zip(offsets, ends, strict=False)
    ]
    blocks = Blocks(offsets, np.array(digests, "V8"))
    return PartialCopy(folder, "a", FileSum.of(data), blocks, folder)


@given(st.data())
def test_any_blocks_are_read_right_in_few_requests(tmp_path_factory, data):
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=30))
    content = np.random.default_rng(sum(lengths)).bytes(sum(lengths))
    store = RangeStore()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "blocks"))
        most, size = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 40))
        patch.setattr(partial, "MOST_READS", most)
        patch.setattr(partial, "READ_BYTES", size)
        copy = copy_of(store, content, np.cumsum(lengths).tolist())
        numbers = st.lists(st.integers(0, len(lengths) - 1), max_size=12)
        for wanted in (data.draw(numbers), data.draw(numbers)):
            store.read.clear()
            fetch([(copy, np.array(wanted, np.int64))])
            for number in wanted:
                start, end = copy.blocks.offsets[number : number + 2]
                assert copy.fetched(number, number) == content[start:end]
            assert len(store.read) <= most + sum(lengths) / size * 2 + 1
            assert sum(length for _, _, length in store.read) <= len(content)
            store.read.clear()
            fetch([(copy, np.array(wanted, np.int64))])
            assert store.read == []


def test_large_batches_soon_have_a_whole_file(both, monkeypatch):
    monkeypatch.setattr(partial, "MOST_READS", 2)
    here, there = both.open()
    xq = unit_rows(np.random.default_rng(0), 60, DIM)
    np.testing.assert_array_equal(here.search_vectors(xq, 10), there.search_vectors(xq, 10))
    reads = [name for name, _, _ in both.store.read]
    assert reads.count("image.lists") <= 2 * 3 and reads.count("image.f16") <= 2 * 3


def test_a_full_disk_is_one_line(both, monkeypatch):
    there = both.open()[1]
    there.column("image")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(partial.os, "pwrite", full)
    with pytest.raises(StorageError, match="room for copies of index files, found no space"):
        ask(there, 0)


@given(st.integers(1, 70), st.lists(st.binary(max_size=900), max_size=5), st.data())
def test_blocks_of_vectors_cover_the_file_however_it_is_written(dim, parts, data):
    rows = [part[: len(part) // (2 * dim) * 2 * dim] for part in parts]
    writer = VectorBlocks(dim)
    for part in rows:
        writer.add(part)
    content, stored = b"".join(rows), writer.to_bytes()
    blocks = Blocks.of_vectors(stored, len(content))
    assert blocks.offsets[-1] == len(content) and len(blocks.digests) == len(blocks.offsets) - 1
    with pytest.raises(ValueError):
        Blocks.of_vectors(stored + b"x", len(content))


def test_a_directory_of_other_lengths_is_refused():
    class Sink(list):
        write = list.append

    writer = CatalogBlocks(Sink())
    writer.write(b"headbatch")
    writer.cut(0, 4)
    writer.cut(3)
    writer.write(b"foot")
    writer.cut(0)
    stored = writer.to_bytes()
    blocks = Blocks.of_catalog(stored, 13)
    assert blocks.offsets.tolist() == [0, 4, 9, 13] and blocks.rows.tolist() == [0, 3, 0]
    for content, size in ((stored, 12), (stored[:-1], 13), (stored[:8], 13), (b"", 0)):
        with pytest.raises(ValueError):
            Blocks.of_catalog(content, size)


def test_a_catalog_of_an_earlier_version_is_read(tmp_path):
    """Batches of another size, as there were 4,096 rows in each."""
    make_collection(tmp_path, (300,), dim=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "BATCH", 100)
        build_index(str(tmp_path))
    rows = open_collection(tmp_path).rows(range(300))
    assert [rows[n].key for n in range(300)] == [f"s0/{n:06d}" for n in range(300)]
    (path,) = tmp_path.glob("index/segments/*/rows.arrow")
    assert pa.ipc.open_file(path).num_record_batches == 3
