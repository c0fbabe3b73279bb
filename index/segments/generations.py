"""Generations: which segments are live. One manifest file each, swapped whole.

    index/CURRENT                   "000007": the live generation
    index/generations/000007.json   its segments in order: checksums, and what is deleted in each

CURRENT carries the manifest as well, so that a reader of a distant store needs one request less. It
is taken there where it is whole; else, and on this machine, the file in `generations/` is.

Where the generation that CURRENT names cannot be opened, the newest whole one answers, and says so.
`publish.py` makes a generation live.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from chiasm.index.segments.advice import build_command
from chiasm.index.segments.catalog import IndexedShard
from chiasm.index.segments.checksums import FileSum
from chiasm.index.segments.manifest import Manifest, SegmentEntry
from chiasm.index.segments.names import (
    CURRENT,
    GENERATIONS,
    RECORD,
    SEGMENTS,
    manifest_name,
    numbers_in,
    segment_file,
)
from chiasm.index.segments.partial import SegmentGone
from chiasm.index.segments.proposals import Proposals, proposal_column
from chiasm.index.segments.record import SegmentRecord
from chiasm.index.segments.segment import Segment
from chiasm.index.segments.trained import Trained
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.storage import Folder, Stat, display_name

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generation:
    """A manifest with its number and its opened segments. instead_of: why it answers though CURRENT
    does not name it, "" where it does. calibrations: those read or made so
    far, by column and filter."""

    number: int
    manifest: Manifest
    segments: tuple[Segment, ...]
    folder: Folder
    instead_of: str = ""
    calibrations: dict[Any, Any] = field(default_factory=dict, compare=False)
    opened: dict[str, Any] = field(default_factory=dict, compare=False)  # by column, for searches

    def trained(self, column: str) -> Trained | None:
        """What the segments of a column share; None where it is exact."""
        if self.manifest.columns[column].exact:
            return None
        return read_trained(self.folder, self.manifest, column)

    def proposals(self, column: str) -> Proposals:
        """What proposes rows of a column by their tokens."""
        return read_proposals(self.folder, self.manifest, column)

    def load(self, column: str) -> Trained | None:
        """The same; what else searches of the column need of segments in a store is requested
        together with it."""
        exact = self.manifest.columns[column].exact
        calls = [call for one in self.segments for call in one.loading(column, exact)]
        return _concurrent(self.folder, [*calls, lambda: self.trained(column)])[-1]

    def by_record(self) -> dict[tuple[str, FileSum], Segment]:
        """The segments by id and checksum of their records: the same ones in any generation."""
        entries = self.manifest.segments
        return {(e.id, e.checksum): s for e, s in zip(entries, self.segments, strict=True)}

    def indexed_shards(self) -> dict[str, IndexedShard]:
        """By shard id, what the segments were built from, without what is retired."""
        return {shard.shard: shard for shard in self.manifest.without_rows} | {
            shard.shard: shard
            for entry, segment in zip(self.manifest.segments, self.segments, strict=True)
            for shard in segment.record.shards
            if shard.shard not in entry.retired
        }


def current_number(folder: Folder) -> int | None:
    """The live generation's number, None before the first; CollectionError for a damaged
    CURRENT."""
    return _parse_current(folder)[0]


def read_current(folder: Folder) -> bytes | None:
    """What CURRENT holds; None before the first generation."""
    return read_if_there(folder, CURRENT)


def _parse_current(folder: Folder) -> tuple[int | None, bytes]:
    """The live generation's number, and the manifest that CURRENT carries, b"" where it has
    none."""
    content = read_current(folder)
    if content is None:
        return None, b""
    number, _, manifest = content.partition(b"\n")
    if not re.fullmatch(rb"[0-9]{1,18}\s*", number):
        raise CollectionError(
            display_name(folder.url_of(CURRENT)),
            expected="a generation's number",
            found=repr(content[:40].decode(errors="replace")),
            do=f"run {build_command(folder)}",
        )
    return int(number), manifest


def open_current(folder: Folder, known: Generation | None = None) -> Generation | None:
    """The generation that answers: the live one, or the newest whole one where that cannot be
    opened. None before the first; CollectionError where there are only damaged ones. known: one
    that is open, whose segments are not opened again."""
    number, damage = None, None
    try:
        number, carried = _parse_current(folder)
        if number is not None:
            return open_whole(folder, number, known, carried if folder.local is None else b"")
    except CollectionError as error:
        damage = error
    generation = newest_whole(folder, _without_advice(damage), number)
    if generation is None and damage is not None:
        raise damage
    return generation


def _without_advice(error: CollectionError | None) -> str:
    if error is None:
        return f"{CURRENT} is missing"
    return str(CollectionError(error.what, expected=error.expected, found=error.found))


def newest_whole(folder: Folder, why: str, damaged: int | None = None) -> Generation | None:
    """The newest generation that is whole, None where there is none. why: it answers though CURRENT
    does not name it. damaged: a number that is known not to be."""
    for number in reversed(numbers(folder)):
        if number == damaged:
            continue
        try:
            generation = open_whole(folder, number)
        except CollectionError:
            continue
        LOG.warning("%s; generation %06d answers instead", why, number)
        return replace(generation, instead_of=why)
    return None


def open_whole(
    folder: Folder, number: int, known: Generation | None = None, carried: bytes = b""
) -> Generation:
    """A generation all of whose files are there; CollectionError where one is missing. known: one
    that is open, whose segments are not opened again. carried: its manifest as CURRENT has it."""
    if carried:
        try:
            manifest = Manifest.from_json(carried, folder, CURRENT)
            exists = partial(_require_manifest, folder, number)
            return _open_whole(folder, number, manifest, known, [exists])
        except CollectionError as error:
            # It is cut, or its file was lost and a build has used the number again.
            LOG.debug("the manifest in %s is of no use: %s", CURRENT, error)
    return _open_whole(folder, number, read_manifest(folder, number), known, [])


def _open_whole(
    folder: Folder,
    number: int,
    manifest: Manifest,
    known: Generation | None,
    calls: list[Callable[[], Any]],
) -> Generation:
    """calls: what is to be done at the same time."""
    calls.append(partial(open_segments, folder, manifest, known))
    calls += [partial(_stats_of, folder, entry.id) for entry in manifest.segments]
    segments, *stats = _concurrent(folder, calls)[-1 - len(manifest.segments) :]
    _require_files(folder, segments, stats)
    return Generation(number, manifest, segments, folder)


def open_generation(folder: Folder, number: int, known: Generation | None = None) -> Generation:
    """A generation by its number; CollectionError where it is missing or damaged."""
    manifest = read_manifest(folder, number)
    segments = open_segments(folder, manifest, known)
    return Generation(number, manifest, segments, folder)


def open_segments(
    folder: Folder, manifest: Manifest, known: Generation | None = None
) -> tuple[Segment, ...]:
    """Raises CollectionError where a record is missing, damaged, or of another index."""
    opened = {} if known is None else known.by_record()

    def open_one(entry: SegmentEntry) -> Segment:
        segment = opened.get((entry.id, entry.checksum))
        return segment.with_deletions(entry.deletions) if segment else _open_segment(folder, entry)

    segments = tuple(folder.map_concurrent(open_one, manifest.segments))
    for segment in segments:
        record = segment.record
        if record.dim != manifest.dim or not manifest.columns.keys() <= record.vectors.keys():
            raise CollectionError(
                display_name(folder.url_of(segment_file(record.id, RECORD))),
                expected=f"columns {', '.join(manifest.columns)} of width {manifest.dim}",
                found=f"{', '.join(record.vectors)} of width {record.dim}",
                do=f"run {build_command(folder)}",
            )
    return segments


def require_whole(folder: Folder, segments: tuple[Segment, ...]) -> None:
    """Raises CollectionError where a file of a segment is missing."""
    listing = [partial(_stats_of, folder, segment.record.id) for segment in segments]
    _require_files(folder, segments, _concurrent(folder, listing))


def _stats_of(folder: Folder, segment_id: str) -> dict[str, Stat]:
    return folder.list_stats(f"{SEGMENTS}/{segment_id}")


def _concurrent(folder: Folder, calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each call returns; in a store they run at the same time."""
    return list(folder.map_concurrent(lambda call: call(), calls))


def _require_files(
    folder: Folder, segments: Sequence[Segment], stats: Sequence[dict[str, Stat]]
) -> None:
    found = folder.map_concurrent(
        lambda pair: pair[0].missing_files(pair[1]), zip(segments, stats, strict=True)
    )
    if missing := [name for names in found for name in names]:
        raise CollectionError(
            display_name(folder.url_of(missing[0])),
            expected="a file of the index",
            found="no such file, or one of another size",
            do=f"run {build_command(folder)}",
        )


def read_manifest(folder: Folder, number: int) -> Manifest:
    """Raises CollectionError where it is missing or damaged."""
    name = manifest_name(number)
    content = read_if_there(folder, name)
    if content is None:
        raise _no_manifest(folder, number)
    return Manifest.from_json(content, folder, name)


def _require_manifest(folder: Folder, number: int) -> None:
    """Raises CollectionError where the file is gone: a sweep does not keep its segments then."""
    if not folder.exists(manifest_name(number)):
        raise _no_manifest(folder, number)


def _no_manifest(folder: Folder, number: int) -> CollectionError:
    return CollectionError(
        display_name(folder.url_of(manifest_name(number))),
        expected="the generation that index/CURRENT names",
        found="no such file",
        do=f"run {build_command(folder)}",
    )


def read_shared(folder: Folder, name: str, checksum: FileSum) -> bytes:
    """A file that is no segment's; CollectionError where it is damaged, SegmentGone where it was
    removed."""
    where, do = display_name(folder.url_of(name)), f"run {build_command(folder)}"
    expected = f"blake2b {checksum.blake2b[:12]}"
    content = read_if_there(folder, name)
    if content is None:
        raise SegmentGone(where, expected=expected, found="no such file", do=do)
    if (found := FileSum.of(content)) != checksum:
        raise CollectionError(where, expected=expected, found=found.blake2b[:12], do=do)
    return content


def read_trained(folder: Folder, manifest: Manifest, column: str) -> Trained:
    """What the segments of a column share; CollectionError where it is missing or damaged."""
    entry = manifest.trained[column]
    content = read_shared(folder, entry.file, entry.checksum)
    where, do = display_name(folder.url_of(entry.file)), f"run {build_command(folder)}"
    return Trained.from_bytes(content, manifest.columns[column], manifest.dim, where, do)


def read_proposals(folder: Folder, manifest: Manifest, column: str) -> Proposals:
    """What proposes rows of a column by their tokens; CollectionError where it is missing or
    damaged."""
    entry = manifest.trained[proposal_column(column)]
    content = read_shared(folder, entry.file, entry.checksum)
    where, do = display_name(folder.url_of(entry.file)), f"run {build_command(folder)}"
    return Proposals.from_bytes(content, manifest.dim, where, do)


def keeping_segments(error: CollectionError) -> CollectionError:
    """What is said of a generation that cannot be read beside the live one. error: why."""
    return CollectionError(
        error.what,
        expected=error.expected,
        found=f"{error.found}: all segments are kept, since it may name them",
        do="if no newer chiasm wrote it, remove that file; a build does once it is old",
    )


def read_if_there(folder: Folder, name: str) -> bytes | None:
    """A file's content, None where there is no such file (any more)."""
    try:
        return folder.read_bytes(name)
    except StorageError:
        # Where it is there by now, it was put in between, or it cannot be read this time either.
        return folder.read_bytes(name) if folder.exists(name) else None


def _open_segment(folder: Folder, entry: SegmentEntry) -> Segment:
    name = segment_file(entry.id, RECORD)
    content = read_if_there(folder, name)
    found = "no such file" if content is None else FileSum.of(content).blake2b[:12]
    if content is not None and FileSum.of(content) == entry.checksum:
        record = SegmentRecord.from_json(content, folder, name)
        if (record.id, record.rows) == (entry.id, entry.rows):
            return Segment(folder, record, entry.deletions)
        found = f"segment {record.id} of {record.rows} rows"
    raise CollectionError(
        display_name(folder.url_of(name)),
        expected=f"blake2b {entry.checksum.blake2b[:12]}",
        found=found,
        do=f"run {build_command(folder)}",
    )


def numbers(folder: Folder) -> list[int]:
    """The generations in the folder, oldest first."""
    return numbers_in(folder.list(GENERATIONS), "json")
