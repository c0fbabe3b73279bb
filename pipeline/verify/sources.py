"""The shards behind a collection's rows: are they where they were, and are they the same?

Two shards are the same if they have one size and if members of the first hold, at the same places
of the second, the bytes that were embedded. A few members are compared, spread over the shard: a
tar that was changed in between has its later members elsewhere. Where no member was embedded
(captions alone, no row at all), the keys of the first samples are compared.
"""

from __future__ import annotations

import hashlib
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from chiasm.pipeline.collection import MEMBER_FIELDS, EmbeddingFile, LedgerEntry
from chiasm.pipeline.errors import ChiasmError, StorageError
from chiasm.pipeline.records import Dropped, Place, Sample, Shard
from chiasm.pipeline.shards import Damaged, ReadSettings, Tar, read_member, read_samples
from chiasm.pipeline.storage import (
    Folder,
    Stat,
    base_name,
    display_name,
    map_concurrent,
    stat_or_none,
)
from chiasm.pipeline.verify.findings import Finding

MEMBERS = 4  # compared of each modality of a shard: the first, the last and two between
KEYS = 16  # compared where no member was embedded
MOST_CHECKED = 8  # shards that `look_at_sources` asks for


@dataclass(frozen=True)
class SourcesSeen:
    """What a look at some of a collection's shards found. checked, total: how many were looked at,
    of how many. missing: URLs where nothing is any more. unreachable: how many it could not be
    known of, since their store did not answer or refused."""

    checked: int
    total: int
    missing: tuple[str, ...] = ()
    unreachable: int = 0

    def describe(self, collection: str) -> str:
        """What is missing or out of reach and what to do, in one line; "" where nothing is.
        collection: its path or URL."""
        if self.missing:
            first, fix = display_name(self.missing[0]), missing_fix(collection, self.missing[0])
            one = len(self.missing) == 1
            state = "is not where it was" if one else "are not where they were"
            return f"{self._of_all(len(self.missing))} {state}, such as {first}; {fix}"
        state = "is out of reach" if self.unreachable == 1 else "are out of reach"
        return f"{self._of_all(self.unreachable)} {state}" if self.unreachable else ""

    def _of_all(self, count: int) -> str:
        if self.checked == self.total:
            return f"{count} of its {self.total} shards"
        return f"{self.checked} of its {self.total:,} shards were looked at, {count} of which"


def look_at_sources(urls: Sequence[str], at_most: int = MOST_CHECKED) -> SourcesSeen:
    """Look whether shards are still at their URLs: at no more than `at_most` of them, spread over
    the list, by one request each. Never an error: a store out of reach is a state."""
    some = [urls[i] for i in _evenly(len(urls), at_most)]
    found = map_concurrent(_stat, some)
    missing = tuple(url for url, stat in zip(some, found, strict=True) if stat is None)
    unreachable = sum(isinstance(stat, ChiasmError) for stat in found)
    return SourcesSeen(len(some), len(urls), missing, unreachable)


def missing_fix(collection: str, url: str) -> str:
    """What to do about a shard of a collection that is not at its URL."""
    path = shlex.quote(collection)
    place = shlex.quote(display_name(url.rpartition("/")[0]))
    return (
        f"if they were moved, run chiasm relocate {path} --from {place} --to FOLDER; "
        f"if they are gone for good, chiasm forget {path} SHARD takes out the rows of one"
    )


def check_sources(
    collection: Folder, done: Sequence[tuple[LedgerEntry, EmbeddingFile]], checked: Counter[str]
) -> Iterator[Finding]:
    """Every done shard looked for at its URL. One finding for all that are missing from a folder,
    one for each that is another shard by now. Counts in `checked`: sources, and those of them that
    were out of reach, which are no finding."""
    found = map_concurrent(_stat, [entry.source.url for entry, _ in done])
    missing: defaultdict[str, list[str]] = defaultdict(list)
    folders = Counter(entry.source.url.rpartition("/")[0] for entry, _ in done)
    for (entry, file), stat in zip(done, found, strict=True):
        checked["sources"] += 1
        if isinstance(stat, ChiasmError):
            checked["sources out of reach"] += 1
        elif stat is None:
            missing[entry.source.url.rpartition("/")[0]].append(entry.source.url)
        elif (stat.size, stat.version) != (entry.source.size, entry.source.version):
            yield from _changed(collection, entry, file, stat)
    for folder, urls in missing.items():
        names = ", ".join(map(base_name, urls[:3]))
        more = ", ..." if len(urls) > 3 else ""
        what = f"{len(urls)} of its {folders[folder]} shards are not there any more"
        where = f"shards of {display_name(folder)}"
        yield Finding(
            where, f"{what} ({names}{more})", missing_fix(display_name(collection.url), urls[0])
        )


def _changed(
    collection: Folder, entry: LedgerEntry, file: EmbeddingFile, stat: Stat
) -> Iterator[Finding]:
    """A finding where the shard at the URL is another by now. Another time alone is none."""
    source = entry.source
    now = Shard(source.url, source.id, stat.size, stat.version)
    try:
        what = difference(entry, file, now)
    except ChiasmError as error:
        what = str(error)
    if what:
        command = f"chiasm embed {shlex.quote(display_name(source.url))}"
        fix = f"run {command} --to {shlex.quote(display_name(collection.url))}"
        yield Finding(f"shard {source.id}", f"it has changed since it was embedded: {what}", fix)


def difference(entry: LedgerEntry, file: EmbeddingFile | None, found: Shard) -> str:
    """What shows that `found` is not the shard that an entry and its rows are of, "" where nothing
    does. file: None for a shard without rows, whose size alone can be compared.

    Raises ChiasmError where the shard or the rows cannot be read."""
    sizes = {entry.source.size, found.size}
    if len(sizes - {-1}) > 1:  # -1: a server that does not report it
        return f"{found.size:,} bytes, embedded were {entry.source.size:,}"
    members = _embedded_members(file) if file is not None else []
    if members:
        return _other_member(found.url, members)
    if -1 in sizes:
        return "neither its size nor a member's digest is known"
    return _other_key(entry, file, found) if file is not None else ""


def _embedded_members(file: EmbeddingFile) -> list[tuple[Place, str]]:
    """Where some members of a shard are, and their SHA-256: MEMBERS of each modality."""
    with file.open() as parquet:
        names = parquet.schema_arrow.names
    prefixes = [name.removesuffix("member") for name in names if f"_{name}".endswith("_member")]
    members: list[tuple[Place, str]] = []
    for prefix in prefixes:
        table = file.read([f"{prefix}{field}" for field in MEMBER_FIELDS])
        rows = np.flatnonzero(table[f"{prefix}member"].is_valid())
        for cells in table.take(rows[_evenly(len(rows), MEMBERS)]).to_pylist():
            name, offset, size, digest = (
                cells[f"{prefix}{field}"] for field in ("member", "offset", "size", "sha256")
            )
            members.append((Place(name, offset, size), digest))
    return members


def _other_member(url: str, members: Iterable[tuple[Place, str]]) -> str:
    packed: dict[tuple[str, int], str] = {}
    for place, digest in members:
        if place.offset is None:
            packed[place.member, place.size] = digest
        elif hashlib.sha256(read_member(url, place)).hexdigest() != digest:
            return f"another {place.member} than was embedded"
    return _other_packed_member(url, packed) if packed else ""


def _other_packed_member(url: str, digests: dict[tuple[str, int], str]) -> str:
    """The same of members of a compressed shard, by name and size: one pass over the shard."""
    left = dict(digests)
    try:
        with Tar(url) as tar:
            for member in tar:
                digest = left.get((member.name, member.size))
                if digest is not None:
                    if hashlib.sha256(member.read()).hexdigest() != digest:
                        return f"another {member.name} than was embedded"
                    del left[member.name, member.size]
                if not left:
                    return ""
    except Damaged as damage:
        return f"a shard that is {damage.reason}"
    return f"no {next(iter(left))[0]} of the size that was embedded"


def _other_key(entry: LedgerEntry, file: EmbeddingFile, found: Shard) -> str:
    """A sample among the first that were embedded, or dropped where none was, that the shard does
    not have; "" where it has all."""
    keys = file.read(["key"])["key"].to_pylist() or [dropped.key for dropped in entry.dropped]
    left = {_normal(key): key for key in keys[:KEYS] if key}
    for item in read_samples(found, ReadSettings(), {}) if left else ():
        if isinstance(item, Sample | Dropped):
            left.pop(_normal(item.key), None)
        if not left:
            return ""
    return f"no sample {next(iter(left.values()))}, which was embedded" if left else ""


def _normal(key: str) -> str:
    """A key as any version of the reader and the writer has it."""
    return unicodedata.normalize("NFC", key.encode("utf-8", "backslashreplace").decode())


def _evenly(total: int, wanted: int) -> list[int]:
    """`wanted` of `total` numbers from 0 on, the first and the last among them; all where there
    are fewer."""
    return sorted({int(i) for i in np.linspace(0, total - 1, min(total, wanted))})


def _stat(url: str) -> Stat | ChiasmError | None:
    try:
        return stat_or_none(url)
    except StorageError as error:
        return error
