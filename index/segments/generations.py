"""Generations: which segments are live. One manifest file each, swapped whole.

    index/CURRENT                   "000007": the live generation
    index/generations/000007.json   its segments in order: checksums, and what is deleted in each

A build writes its segments under names of its own, then puts the manifest under the next free
number (an atomic put-if-absent), then points CURRENT at it by a rename. Killed anywhere before the
last step, the old generation stays live. Two builds at once get two numbers; CURRENT ends at the
higher one. The cost: a build that loses such a race has worked for nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from chiasm.index.plan import Plan
from chiasm.index.segments.catalog import IndexedShard
from chiasm.index.segments.checksums import FileSum
from chiasm.index.segments.segment import Segment, SegmentRecord, segment_file
from chiasm.pipeline.collection import embedded_shard_ids, file_version, find_embedding
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder, is_temporary

SCHEMA = 1
CURRENT = "index/CURRENT"
GENERATIONS = "index/generations"


@dataclass(frozen=True)
class SegmentEntry:
    """A live segment: `checksum` is that of its segment.json, `deleted` the positions not shown."""

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
    column. trained: the trained, empty indexes that segments of inexact columns share, as files
    below `index/trained/`. meta: what the survey of the json reports.
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
    def from_json(cls, data: bytes, where: str) -> Manifest:
        try:
            told = json.loads(data)
            if told["schema"] != SCHEMA:
                raise ValueError(f"schema version {told['schema']}")
            told["columns"] = {name: Plan(**made) for name, made in told["columns"].items()}
            told["trained"] = {
                name: TrainedEntry(entry["file"], FileSum(**entry["checksum"]))
                for name, entry in told["trained"].items()
            }
            told["segments"] = tuple(
                SegmentEntry(
                    entry["id"],
                    entry["rows"],
                    FileSum(**entry["checksum"]),
                    tuple(entry["deleted"]),
                )
                for entry in told["segments"]
            )
            return cls(**told)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CollectionError(
                where,
                expected=f"a generation of schema version {SCHEMA}",
                found=f"{error}",
                do="run chiasm index build",
            ) from error


@dataclass(frozen=True)
class Generation:
    """A manifest with its number and its opened segments."""

    number: int
    manifest: Manifest
    segments: tuple[Segment, ...]

    def covered(self) -> dict[str, IndexedShard]:
        """By shard id, what the segments were made from."""
        return {shard.shard: shard for segment in self.segments for shard in segment.record.shards}


def current_number(folder: Folder) -> int | None:
    """The live generation's number, None before the first; CollectionError for a damaged
    CURRENT."""
    if not folder.exists(CURRENT):
        return None
    told = folder.read_bytes(CURRENT)
    try:
        return int(told)
    except ValueError as error:
        raise CollectionError(
            f"{folder.url}/{CURRENT}",
            expected="a generation's number",
            found=repr(told[:40].decode(errors="replace")),
            do="run chiasm index build",
        ) from error


def open_current(folder: Folder) -> Generation | None:
    """The live generation, None before the first; CollectionError where it is damaged."""
    number = current_number(folder)
    return None if number is None else open_generation(folder, number)


def open_generation(folder: Folder, number: int) -> Generation:
    manifest = read_manifest(folder, number)
    return Generation(number, manifest, tuple(_open(folder, entry) for entry in manifest.segments))


def read_manifest(folder: Folder, number: int) -> Manifest:
    name = manifest_name(number)
    if not folder.exists(name):
        raise CollectionError(
            f"{folder.url}/{name}",
            expected="the generation that index/CURRENT names",
            found="no such file",
            do="run chiasm index build",
        )
    return Manifest.from_json(folder.read_bytes(name), f"{folder.url}/{name}")


def _open(folder: Folder, entry: SegmentEntry) -> Segment:
    name = segment_file(entry.id, "segment.json")
    where = f"{folder.url}/{name}"
    told = folder.read_bytes(name) if folder.exists(name) else None
    if told is None or FileSum.of(told) != entry.checksum:
        raise CollectionError(
            where,
            expected=f"the segment that was built (blake2b {entry.checksum.blake2b[:12]})",
            found="no such file" if told is None else "another content",
            do="run chiasm index build",
        )
    return Segment(folder, SegmentRecord.from_json(told, where))


def manifest_name(number: int) -> str:
    return f"{GENERATIONS}/{number:06d}.json"


def numbers(folder: Folder) -> list[int]:
    """The generations that lie there, oldest first."""
    bases = [name.rpartition("/")[2] for name in folder.list(GENERATIONS) if not is_temporary(name)]
    return sorted(
        int(base[:-5]) for base in bases if base.endswith(".json") and base[:-5].isdigit()
    )


def publish(folder: Folder, manifest: Manifest) -> int:
    """Make the manifest the live generation and return its number.

    Where a build that ended meanwhile has left one over the same columns that covers more of what
    lies in the collection now, that one stays live and its number is returned.
    """
    mine = Generation(0, manifest, tuple(_open(folder, entry) for entry in manifest.segments))
    better = _better(folder, mine)
    if better is not None:
        return better
    number = max(numbers(folder), default=0) + 1
    while not folder.write_new(manifest_name(number), manifest.to_json(), manifest.run):
        number += 1
    # Whoever points CURRENT looks again afterwards: of two at once, the lower cannot stay.
    pointed = 0
    while pointed < (highest := max(numbers(folder))):
        folder.write_whole(CURRENT, f"{highest:06d}\n".encode(), manifest.run)
        pointed = highest
    return number


def _better(folder: Folder, mine: Generation) -> int | None:
    try:
        live = open_current(folder)
    except CollectionError:  # damaged: whatever was just built is better
        return None
    if live is None or live.manifest.fingerprint != mine.manifest.fingerprint:
        return None
    if live.manifest.columns.keys() != mine.manifest.columns.keys():
        return None
    ahead = len(stale_shards(folder, live.covered())) < len(stale_shards(folder, mine.covered()))
    return live.number if ahead else None


def stale_shards(folder: Folder, covered: dict[str, IndexedShard]) -> dict[str, str]:
    """What lies in `embeddings/` otherwise than it was indexed: shard id -> new, changed,
    damaged or gone.

    One listing and a stat a shard; only files that are not as they were have their footers read.
    """
    found: dict[str, str] = {}
    there = embedded_shard_ids(folder)
    versions = folder.map_concurrent(lambda shard_id: file_version(folder, shard_id), there)
    for shard_id, version in zip(there, versions, strict=True):
        known = covered.get(shard_id)
        if known is not None and version == known.file:
            continue
        try:
            done = find_embedding(folder, shard_id)
        except CollectionError:
            found[shard_id] = "damaged"
            continue
        if done is None and known is None:
            continue  # a shard that is not done yet
        if known is None:
            found[shard_id] = "new"
        elif done is None or (done.edition, done.rows) != (known.edition, known.rows):
            found[shard_id] = "changed"
    found.update(dict.fromkeys(covered.keys() - set(there), "gone"))
    return found
