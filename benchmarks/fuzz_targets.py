"""What is fuzzed: the readers of bytes that others have written, each as a function of one input.

A target passes over the errors that its readers declare, and lets any other exception out; it
asserts what must hold of whatever was read. Stored records are read by the functions that commands
use, from a folder that exists in memory alone.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import io
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import fuzz_inputs as inputs
from chiasm.index.plan import Plan
from chiasm.index.segments import (
    FileSum,
    IndexedShard,
    Manifest,
    SchemaInference,
    SegmentEntry,
    SharedFile,
    open_current,
    open_generation,
)
from chiasm.index.segments.generations import require_whole
from chiasm.index.segments.segment import SegmentRecord
from chiasm.pipeline.collection import (
    THIS_MACHINE,
    Footer,
    Identity,
    LedgerEntry,
    ProcessId,
    Relocations,
    RunObserver,
    RunRecord,
    ShardFiles,
    ShardSummary,
    Survey,
    read_entry,
    read_footer,
    read_identity,
    read_relocations,
)
from chiasm.pipeline.collection.parquet_schema import FOOTER_KEY
from chiasm.pipeline.collection.relocations import Relocated
from chiasm.pipeline.collection.run_record import KILLED, marked_killed
from chiasm.pipeline.errors import (
    ChiasmError,
    CollectionError,
    SourceError,
    StorageError,
    UsageError,
)
from chiasm.pipeline.records import Dropped, Note, Sample, Shard
from chiasm.pipeline.shards import (
    DROP_REASONS,
    NOTE_REASONS,
    ReadSettings,
    read_samples,
    shard_id,
    split_member_name,
)
from chiasm.pipeline.storage import (
    Stat,
    base_name,
    canonical_url,
    display_name,
    glob,
    is_remote,
    stat,
)
from chiasm.pipeline.storage.folder import Folder
from chiasm.pipeline.storage.object_store import Listing
from chiasm.pipeline.storage.remote import ObjectFiles
from chiasm.pipeline.storage.schemes import GS_STORE, HF_STORE, S3_STORE
from chiasm.pipeline.timing import SYSTEM_CLOCK


@dataclass(frozen=True)
class Target:
    """run: reads one input. seeds: inputs to begin with. mutate: an input changed in its structure.
    longest: bytes of an input."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    mutate: Callable[[Random, bytes, inputs.MutateBytes], bytes]
    longest: int


# --- tars -----------------------------------------------------------------------------------------

# What the settings allow is no fault, so they allow less than the limit of memory.
READ = ReadSettings(max_member_bytes=4 << 20)
MODALITIES: Mapping[str, tuple[str, ...]] = {"image": (), "text": (), "array": ("npy", "npz")}


class _Shard:
    """A file in memory with a path, whose content each input is: a disk would take longer than the
    reader."""

    @functools.cached_property
    def _file(self) -> int:
        return os.memfd_create("shard")

    def write(self, data: bytes) -> Shard:
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, data, 0)
        url = f"file:///proc/self/fd/{self._file}"
        found = stat(url)
        return Shard(url, "a", found.size, found.version)


_SHARD = _Shard()


def read_tar(data: bytes) -> None:
    """All samples of a shard with these bytes: each group of members is one row or one drop."""
    shard = _SHARD.write(data)
    keys: list[str] = []
    with suppress(SourceError):
        for item in read_samples(shard, READ, MODALITIES):
            if isinstance(item, Sample):
                keys.append(item.key)
                _check_sample(item, data)
            else:
                _check_reason(item)
    assert len(keys) == len(set(keys)), "a key twice"


def _check_sample(sample: Sample, data: bytes) -> None:
    for modality, source in sample.sources.items():
        place = source.place
        assert modality in MODALITIES and len(source.data) == place.size
        if place.offset is not None:
            assert data[place.offset :][: place.size] == source.data, "another place"
        assert split_member_name(place.member) is not None
        place.member.encode()
    assert sample.sources or sample.captions, "an empty row"
    for text in (sample.key, sample.json or "", *sample.captions):
        text.encode()  # Parquet holds no lone surrogates


def _check_reason(item: Dropped | Note) -> None:
    reasons = DROP_REASONS if isinstance(item, Dropped) else NOTE_REASONS
    assert item.reason in reasons, item.reason
    item.key.encode()


# --- json columns ---------------------------------------------------------------------------------


def survey_json(data: bytes) -> None:
    """Every line is a json cell; all cells become one column, as those of shards do."""
    cells: list[str | None] = [line or None for line in data.decode("utf-8", "replace").split("\n")]
    schema = SchemaInference()
    schema.add(cells)
    schema.finish()
    column = schema.column(cells)
    assert column.type == schema.arrow_type() and len(column) == len(cells)
    column.validate(full=True)
    json.dumps(schema.report())
    if zlib.crc32(data) % 4:  # what follows takes longer than all before
        return
    backwards = SchemaInference()
    backwards.add(reversed(cells))
    backwards.finish()
    assert backwards.arrow_type() == schema.arrow_type(), "the order of rows decides the type"
    assert backwards.report() == schema.report()
    assert schema.covers(cells)


def json_cells() -> list[bytes]:
    rows: list[list[Any]] = [
        [{"a": 1, "b": "x", "c": [1, 2], "d": {"e": None, "f": True}}, {"a": 1.5, "b": None}],
        [{"a": 1 << 53}, {"a": (1 << 53) + 1}, {"a": 0.5}],
        [{"a": 1 << 63}, {"a": -1}],
        [{"a": []}, {"a": [[1], [2.5]]}, {"a": [None]}],
        [{"a": {}}, {"a": {"b": {"c": {"d": 1}}}}, {"a": "text"}],
        [{f"x{number}": number for number in range(300)}, {"x0": "text"}],
        [{"\ud800": "\udc00", "": "\0"}, [], "text", 1, None, True],
    ]
    return [b"", b"\n", *(b"\n".join(json.dumps(row).encode() for row in each) for each in rows)]


# --- stored records -------------------------------------------------------------------------------


class _InMemory(ObjectFiles):
    """A store that holds `files`, name below the collection -> content, and answers at once."""

    concurrency = 1

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__("s3", S3_STORE)
        self._files = files

    def stat_or_none(self, url: str) -> Stat | None:
        data = self._files.get(self._name(url))
        return None if data is None else Stat(len(data), "1")

    def read_bytes(self, url: str) -> bytes:
        data = self._files.get(self._name(url))
        if data is None:
            raise StorageError(url, found="nothing there")
        return data

    def list_stats(self, url: str) -> dict[str, Stat]:
        names = {name: f"{self._name(url)}/{name}" for name in self.list(url)}
        return {name: Stat(len(self._files[path]), "1") for name, path in names.items()}

    def open_seekable(self, url: str) -> Any:
        return io.BytesIO(self.read_bytes(url))

    def list(self, url: str) -> list[str]:
        folder = f"{self._name(url)}/"
        names = [name.removeprefix(folder) for name in self._files if name.startswith(folder)]
        return sorted(name for name in names if "/" not in name)

    def _name(self, url: str) -> str:
        return self.path(url).removeprefix("bucket/collection/")


def _folder_of(files: Mapping[str, bytes]) -> Folder:
    """A collection in memory."""
    return Folder("s3://bucket/collection", _InMemory(files))


def _read_again(read: Callable[[Folder], Any], name: str, record: Any) -> None:
    """A record that is written and read again is the same."""
    data = record.to_json()  # compared as bytes, since NaN, which settings may have, is no NaN
    assert read(_folder_of({name: data})).to_json() == data, "read again it is another"


def _alive(process: ProcessId) -> bool | None:
    """Whether a process with that id and those ticks runs here, whatever machine it is of."""
    here = THIS_MACHINE.this_process()
    where = {"boot_id": here.boot_id, "pid_namespace": here.pid_namespace}
    return THIS_MACHINE.alive(dataclasses.replace(process, **where))


def read_ledger(data: bytes) -> None:
    """The input as every record that lies beside the rows of a collection."""
    names = ("ledger/a", "collection", "relocated", "runs/a", "summaries/a")
    folder = _folder_of({f"{name}.json": data for name in names})
    with _Allowing(CollectionError):
        entry = read_entry(folder, "a")
        assert entry is not None and sum(entry.reasons().values()) == entry.samples - entry.rows
        ShardSummary.of(entry)
        _read_again(lambda folder: read_entry(folder, "a"), "ledger/a.json", entry)
    with _Allowing(CollectionError):
        identity = read_identity(folder)
        assert identity is not None and identity.columns
        _read_again(read_identity, "collection.json", identity)
    with _Allowing(CollectionError):
        relocations = read_relocations(folder)
        relocations.of(SHARD)
        _read_again(read_relocations, "relocated.json", relocations)
    with _Allowing(CollectionError):
        read_footer(_folder_of({"embeddings/a.parquet": parquet_with(data)}), "a").made_of(SHARD)
    for run in RunObserver(folder, SYSTEM_CLOCK, _alive).observe():
        if run.record is not None:
            assert json.loads(marked_killed(run.record.to_json()))["state"] == KILLED
    list(Survey(folder, ShardFiles.list(folder)).summaries())


def parquet_with(footer: bytes) -> bytes:
    """A Parquet file with this footer of ours."""
    buffer = io.BytesIO()
    schema = pa.schema([("key", pa.string())], {FOOTER_KEY: footer})
    pq.write_table(schema.empty_table(), buffer)
    return buffer.getvalue()


class _Allowing:
    """A context for readers: passes over errors of one kind, each of which is one printable line.

    A class, since making a generator's context would take longer than what it surrounds."""

    def __init__(self, kind: type[ChiasmError]) -> None:
        self._kind = kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, self._kind):
            return False
        message = str(error)
        assert message and "\n" not in message and len(message) < 2000
        return True


SHARD = Shard("file:///a.tar", "a-0123456789", 512, "1")


def stored_records() -> list[bytes]:
    shard = SHARD
    dropped = (Dropped("k", "read", "empty"), Dropped("\u00e9", "decode", "corrupt", "why"))
    entry = LedgerEntry(shard, "0000000a", 3, dropped, (Note("k", "no_caption"),), {"read": 0.5})
    identity = Identity("pocket", "f" * 64, 8, 72, "float32", {"side": 72}, "cpu", {"torch": "2"})
    wide = Identity("e", "f", 16, None, "f", {}, "cpu", {}, 2, {"image": 16, "array": 8})
    process = {"pid": 1, "boot_id": "b", "pid_namespace": "n", "start_ticks": 7}
    run = RunRecord("a", "embed", "host", started=1.0, heartbeat=2.0, claimed=("a",), **process)
    footer = Footer(shard, "0000000a", 3, 2, "pocket", "f", 8)
    moved = Relocations({"a": Relocated("file:///b.tar", (shard,))})
    quarantined = LedgerEntry(shard, "", 0, quarantined="why", span=(1.0, 2.5), attempts=3)
    records = [entry, quarantined, identity, wide, run, moved]
    return [*(record.to_json() for record in records), footer.to_json().encode()]


RUN = "20260101T000000-00000000"
SEGMENT = f"{RUN}-000"
SUM = FileSum(48, "0" * 32)  # 3 rows of 8 numbers of 2 bytes


def _segment() -> bytes:
    shards = (IndexedShard("s0", "0000000a", "file:///a.tar", 3, 100, "1"),)
    names = ("rows.arrow", "image.faiss", "image.f16", "text.faiss", "text.f16")
    vectors = {"image": 3, "text": 2}
    return SegmentRecord(SEGMENT, 3, 8, vectors, shards, dict.fromkeys(names, SUM)).to_json()


def _manifest(segment: bytes) -> bytes:
    """A generation of one segment, whose segment.json is these bytes."""
    entry = SegmentEntry(SEGMENT, 3, FileSum.of(segment))
    columns = {"image": Plan(), "text": Plan("ivf", 4, 2, dims=8, codes="SQ8")}
    trained = {"text": SharedFile(f"index/trained/{RUN}/text.safetensors", SUM)}
    return Manifest(RUN, 1.0, "pocket", "f", 8, columns, trained, (entry,)).to_json()


def _index(manifest: bytes, segment: bytes, current: bytes = b"000001\n") -> Folder:
    files = {
        "index/CURRENT": current,
        "index/generations/000001.json": manifest,
        f"index/segments/{SEGMENT}/segment.json": segment,
    }
    return _folder_of(files)


def read_index(data: bytes) -> None:
    """The input as a generation's manifest, as a segment's record and as CURRENT."""
    whole = _segment()
    with _Allowing(CollectionError):
        generation = open_generation(_index(data, whole), 1)
        generation.indexed_shards()
        manifest = generation.manifest.to_json()
        assert open_generation(_index(manifest, whole), 1).manifest.to_json() == manifest
    with _Allowing(CollectionError):
        generation = open_generation(_index(_manifest(data), data), 1)
        assert generation.manifest.rows == 3
        require_whole(_index(b"", b""), generation.segments)
    with _Allowing(CollectionError):
        open_current(_index(_manifest(whole), whole, data))


def index_records() -> list[bytes]:
    return [_segment(), _manifest(_segment()), b"000001\n"]


# --- URLs -----------------------------------------------------------------------------------------

_KEYS = ("bucket/a.tar", "bucket/b/c.tar", "bucket/" + "a" * 40, "bucket/[x", "bucket/é/", "host/a")


@functools.cache
def _empty_folder() -> str:
    made = tempfile.TemporaryDirectory(prefix="chiasm-fuzz-")
    atexit.register(made.cleanup)
    return made.name


class _Keys:
    """The part of a store that globs use."""

    def list(self, folder: str, *, deep: bool = False) -> Listing:
        return Listing(dict.fromkeys(_KEYS, Stat(1, "1")), ["bucket/b"])


def read_url(data: bytes) -> None:
    """The input as a path or URL as a command line may hold it; whatever it is, its canonical form
    is stable and has an id, and it can be globbed."""
    for store in (S3_STORE, GS_STORE, HF_STORE):
        store.replace(_Keys())  # pyrefly: ignore  # globs list, and do nothing else
    text = data.decode("utf-8", "surrogateescape").replace("\0", "")  # no argument holds a null
    with _Allowing(UsageError):
        url = canonical_url(text, allow_query=True)
        assert canonical_url(url, allow_query=True) == url, "not stable"
        assert url.isprintable() or is_remote(url), "not escaped"
        shard_id(url).encode()
        base_name(url)
        hidden = is_remote(url) and "***" in display_name(url) and "***" not in url
        with _Allowing(UsageError):
            assert canonical_url(text) == url
            assert not hidden, "parameters that no message has, but a ledger would"
    with _Allowing(UsageError):
        # A local glob that leaves the folder would walk the whole disk.
        local = f"{_empty_folder()}/{text.replace('..', '')}"
        for found in glob(text if is_remote(text) else local, allow_query=True):
            assert canonical_url(found, allow_query=True) == found


TARGETS = {
    "tar": Target(read_tar, inputs.tars, inputs.mutate_tar, 1 << 14),
    "json": Target(survey_json, json_cells, inputs.mutate_lines, 1 << 12),
    "ledger": Target(read_ledger, stored_records, inputs.mutate_json, 1 << 12),
    "index": Target(read_index, index_records, inputs.mutate_json, 1 << 12),
    "url": Target(read_url, inputs.urls, inputs.mutate_url, 1 << 9),
}
