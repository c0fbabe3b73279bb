"""Generations: which segments are live. One manifest file each, swapped whole.

    index/CURRENT                   "000007": the live generation
    index/generations/000007.json   its segments in order: checksums, and what is deleted in each

A build writes its segments under names of its own, then puts the manifest under the next free
number (an atomic put-if-absent), then points CURRENT at it by a rename. Killed anywhere before the
last step, the old generation stays live. Two builds at once get two numbers; CURRENT ends at the
higher one. The cost: the work of the build that loses the race.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from chiasm.index.plan import Plan
from chiasm.index.segments.advice import build_command
from chiasm.index.segments.catalog import IndexedShard
from chiasm.index.segments.checksums import FileSum
from chiasm.index.segments.segment import Segment, SegmentRecord, segment_file
from chiasm.index.segments.stale import stale_shards
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder, display_name, is_temporary

SCHEMA = 1
CURRENT = "index/CURRENT"
GENERATIONS = "index/generations"


@dataclass(frozen=True)
class SegmentEntry:
    """A live segment: `checksum` is that of its segment.json, `deleted` the positions that searches
    leave out."""

    id: str
    rows: int
    checksum: FileSum
    deleted: tuple[int, ...] = ()


@dataclass(frozen=True)
class TrainedEntry:
    """A trained, empty index: its file below `index/trained/` and the checksum of that."""

    file: str
    checksum: FileSum


@dataclass(frozen=True)
class Manifest:
    """What `generations/<number>.json` holds.

    run: the build that made it. created: seconds since the epoch. columns: the index of each vector
    column. trained: the trained, empty indexes that segments of IVF columns share, as files below
    `index/trained/`. meta: fields of the samples' json whose types were widened.
    """

    run: str
    created: float
    encoder: str
    fingerprint: str
    dim: int
    columns: dict[str, Plan]
    trained: dict[str, TrainedEntry]
    segments: tuple[SegmentEntry, ...]
    meta: list[dict[str, Any]] = field(default_factory=list)
    schema: int = SCHEMA

    @property
    def rows(self) -> int:
        return sum(entry.rows for entry in self.segments)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, folder: Folder, name: str) -> Manifest:
        try:
            fields = json.loads(data)
            if fields["schema"] != SCHEMA:
                raise ValueError(f"schema version {fields['schema']}")
            fields["columns"] = {column: Plan(**plan) for column, plan in fields["columns"].items()}
            fields["trained"] = {
                column: TrainedEntry(entry["file"], FileSum(**entry["checksum"]))
                for column, entry in fields["trained"].items()
            }
            fields["segments"] = tuple(
                SegmentEntry(
                    entry["id"],
                    entry["rows"],
                    FileSum(**entry["checksum"]),
                    tuple(entry["deleted"]),
                )
                for entry in fields["segments"]
            )
            return cls(**fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CollectionError(
                display_name(folder.url_of(name)),
                expected=f"a generation of schema version {SCHEMA}",
                found=f"{error}",
                do=f"run {build_command(folder)}",
            ) from error


@dataclass(frozen=True)
class Generation:
    """A manifest with its number and its opened segments."""

    number: int
    manifest: Manifest
    segments: tuple[Segment, ...]

    def indexed_shards(self) -> dict[str, IndexedShard]:
        """By shard id, what the segments were built from."""
        return {shard.shard: shard for segment in self.segments for shard in segment.record.shards}


def current_number(folder: Folder) -> int | None:
    """The live generation's number, None before the first; CollectionError for a damaged
    CURRENT."""
    if not folder.exists(CURRENT):
        return None
    content = folder.read_bytes(CURRENT)
    try:
        return int(content)
    except ValueError as error:
        raise CollectionError(
            display_name(folder.url_of(CURRENT)),
            expected="a generation's number",
            found=repr(content[:40].decode(errors="replace")),
            do=f"run {build_command(folder)}",
        ) from error


def open_current(folder: Folder) -> Generation | None:
    """The live generation, None before the first; CollectionError where it is damaged."""
    number = current_number(folder)
    return None if number is None else open_generation(folder, number)


def open_generation(folder: Folder, number: int) -> Generation:
    """A generation by its number; CollectionError where it is missing or damaged."""
    manifest = read_manifest(folder, number)
    segments = tuple(_open_segment(folder, entry) for entry in manifest.segments)
    return Generation(number, manifest, segments)


def read_manifest(folder: Folder, number: int) -> Manifest:
    name = manifest_name(number)
    if not folder.exists(name):
        raise CollectionError(
            display_name(folder.url_of(name)),
            expected="the generation that index/CURRENT names",
            found="no such file",
            do=f"run {build_command(folder)}",
        )
    return Manifest.from_json(folder.read_bytes(name), folder, name)


def _open_segment(folder: Folder, entry: SegmentEntry) -> Segment:
    name = segment_file(entry.id, "segment.json")
    content = folder.read_bytes(name) if folder.exists(name) else None
    if content is None or FileSum.of(content) != entry.checksum:
        raise CollectionError(
            display_name(folder.url_of(name)),
            expected=f"blake2b {entry.checksum.blake2b[:12]}",
            found="no such file" if content is None else FileSum.of(content).blake2b[:12],
            do=f"run {build_command(folder)}",
        )
    return Segment(folder, SegmentRecord.from_json(content, folder, name))


def manifest_name(number: int) -> str:
    return f"{GENERATIONS}/{number:06d}.json"


def numbers(folder: Folder) -> list[int]:
    """The generations in the folder, oldest first."""
    bases = [name.rpartition("/")[2] for name in folder.list(GENERATIONS) if not is_temporary(name)]
    return sorted(
        int(base[:-5]) for base in bases if base.endswith(".json") and base[:-5].isdecimal()
    )


def publish(folder: Folder, manifest: Manifest) -> int:
    """Make the manifest the live generation and return its number.

    Where another build has meanwhile published one over the same columns that covers more of the
    collection's shards, that one stays live and its number is returned.
    """
    segments = tuple(_open_segment(folder, entry) for entry in manifest.segments)
    other = _live_covering_more(folder, Generation(0, manifest, segments))
    if other is not None:
        return other
    number = max(numbers(folder), default=0) + 1
    while not folder.write_new(manifest_name(number), manifest.to_json(), manifest.run):
        number += 1
    # Whoever writes CURRENT lists again afterwards: of two at once, the lower cannot stay.
    written = 0
    while written < (highest := max(numbers(folder))):
        folder.write_whole(CURRENT, f"{highest:06d}\n".encode(), manifest.run)
        written = highest
    return number


def _live_covering_more(folder: Folder, new: Generation) -> int | None:
    """The live generation's number where it has the same columns as `new` and fewer stale
    shards."""
    try:
        live = open_current(folder)
    except CollectionError:  # damaged: any new one is better
        return None
    if live is None or live.manifest.fingerprint != new.manifest.fingerprint:
        return None
    if live.manifest.columns.keys() != new.manifest.columns.keys():
        return None
    live_stale, new_stale = (
        len(stale_shards(folder, generation.indexed_shards())) for generation in (live, new)
    )
    return live.number if live_stale < new_stale else None
