"""Which shards have been relocated: `relocated.json`, read before shards are embedded or shown.

A shard's id comes from the URL that it was first embedded from, and stays when the shard moves: so
files, ids of rows and the index stay as they are. This record says which URL an id belongs to now.
Ids are only ever added to it, so that a shard listed later always gets the same one:

    where the shard was relocated to                 the relocated shard's id
    where it was before, size and version unchanged  the same: it is a copy left behind, and read
                                                     from the new place
    the same URL, but another shard by now           an id of its own, since the first is taken
    any other URL                                    the id that the URL gives

No ledger has to be read for that. The cost: one more file to look for whenever shards are embedded.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from chiasm.pipeline.collection.ledger import read_or_none
from chiasm.pipeline.collection.run_record import RELOCATE
from chiasm.pipeline.collection.runs import Run
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.records import Shard
from chiasm.pipeline.storage import Folder, Stat, display_name, stat_or_none
from chiasm.pipeline.stored_records import read_record

NAME = "relocated.json"
SCHEMA = 1


@dataclass(frozen=True)
class Relocated:
    """url: where a shard is now. former: the shard as it was at each place before, oldest first."""

    url: str
    former: tuple[Shard, ...] = ()


@dataclass(frozen=True)
class Relocations:
    """The content of `relocated.json`: by shard id, every shard that has ever been relocated."""

    shards: Mapping[str, Relocated] = field(default_factory=dict)
    schema: int = SCHEMA

    def of(self, shard: Shard) -> Shard:
        """A shard as it was listed, with the id that it has in this collection."""
        place = (shard.url, shard.size, shard.version)
        shard_id = self._ids.get(shard.url) or self._former_ids.get(place) or shard.id
        stem, taken = shard.id.rpartition("-")[0], 0
        while shard_id in self.shards and not self._is_at(shard_id, place):
            taken += 1
            digest = hashlib.blake2b(f"{shard.url}\n{taken}".encode(), digest_size=5)
            shard_id = f"{stem}-{digest.hexdigest()}"
        return replace(shard, id=shard_id)

    def url_of(self, shard_id: str, url: str) -> str:
        """Where a shard is now; `url`, which was recorded of it once, where it never moved."""
        relocated = self.shards.get(shard_id)
        return url if relocated is None else relocated.url

    def with_moves(self, moves: Mapping[str, tuple[Shard, str]]) -> Relocations:
        """The record after more moves: shard id -> the shard until now, and its new URL."""
        urls = {url for _, url in moves.values()}
        # A shard that was at such a URL has been forgotten since. Its id stays taken.
        moved = {
            shard_id: replace(moved, url="") if moved.url in urls else moved
            for shard_id, moved in self.shards.items()
        }
        for shard_id, (before, url) in moves.items():
            former = moved[shard_id].former if shard_id in moved else ()
            moved[shard_id] = Relocated(url, tuple(dict.fromkeys((*former, before))))
        return Relocations(moved)

    def to_json(self) -> bytes:
        """The file's content."""
        fields = {"schema": self.schema, "shards": {k: asdict(v) for k, v in self.shards.items()}}
        return json.dumps(fields, indent=1).encode() + b"\n"

    def _is_at(self, shard_id: str, place: tuple[str, int, str]) -> bool:
        return self.shards[shard_id].url == place[0] or self._former_ids.get(place) == shard_id

    @functools.cached_property
    def _ids(self) -> dict[str, str]:
        return {moved.url: shard_id for shard_id, moved in self.shards.items()}

    @functools.cached_property
    def _former_ids(self) -> dict[tuple[str, int, str], str]:
        return {
            (before.url, before.size, before.version): shard_id
            for shard_id, moved in self.shards.items()
            for before in moved.former
            if moved.url
        }


def read_relocations(folder: Folder) -> Relocations:
    """The record, an empty one where no shard was ever relocated; CollectionError for a damaged
    one."""
    content = read_or_none(folder, NAME)
    if content is None:
        return Relocations()
    where = display_name(folder.url_of(NAME))
    what, do = "the record of relocated shards", "restore it from a copy of the collection"
    return read_record(content, where, Relocations, what=what, do=do, schema=SCHEMA)


def stat_relocations(folder: Folder) -> Stat | None:
    """What tells whether the record has changed; None where there is none."""
    return folder.stat(NAME)


def write_relocations(folder: Folder, relocations: Relocations, run_id: str) -> None:
    """Write the record atomically."""
    folder.write_whole(NAME, relocations.to_json(), run_id)


def known_shards(run: Run, shards: Sequence[Shard]) -> list[Shard]:
    """Listed shards with their ids in the run's collection, each once.

    The run is registered by now, and `relocate` refuses to begin while another run is alive: so
    what is read here holds until this run ends. Raises CollectionError while shards are being
    relocated."""
    require_no_relocation(run)
    relocations = read_relocations(run.folder)
    if not relocations.shards:
        return list(shards)
    known: dict[str, Shard] = {}
    for shard in shards:
        found = _where_it_is(run.folder, relocations, shard)
        known.setdefault(found.id, found)
    return list(known.values())


def _where_it_is(folder: Folder, relocations: Relocations, shard: Shard) -> Shard:
    """A listed shard with its id; in place of a copy left behind, the shard that was relocated,
    since the collection can say of one place alone that its rows are from there."""
    known = relocations.of(shard)
    relocated = relocations.shards.get(known.id)
    if relocated is None or relocated.url == shard.url:
        return known
    found = stat_or_none(relocated.url)
    if found is not None:
        return Shard(relocated.url, known.id, found.size, found.version)
    urls = (folder.url, relocated.url, shard.url)
    collection, there, here = (shlex.quote(display_name(url)) for url in urls)
    raise CollectionError(
        display_name(shard.url),
        expected=f"it at {display_name(relocated.url)}, where it was relocated to",
        found="nothing there",
        do=f"run chiasm relocate {collection} --from {there} --to {here}, or that of their folders",
    )


def require_no_relocation(run: Run) -> None:
    """Raises CollectionError while another run relocates shards of the collection."""
    # A record that cannot be read, or that a newer version wrote, may be of any command.
    relocating = {
        seen.id for seen in run.others() if seen.record is None or seen.record.command == RELOCATE
    }
    for run_id in run.wait_for_verdicts(relocating):
        raise CollectionError(
            display_name(run.folder.url),
            expected="no shards being relocated",
            found=f"run {run_id}, which does that",
            do="run the same command again when it has ended",
        )
