"""Rows of some shards taken out of a collection: each shard's Parquet file, then its ledger entry.

The Parquet file goes first: from then on nobody reads its rows, neither `index build` nor a program
that reads the folder, and the entry still says whose they were, so that the same command, run again
after a kill, finds the shard by any of its names. Removed the other way round, a kill would leave
rows that no entry names. The shards themselves are not touched; embedded again, they come back.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase

from chiasm.pipeline.collection import (
    FOLDERS,
    Run,
    earlier_parquet_name,
    embedded_shard_ids,
    failure_name,
    ledger_name,
    parquet_name,
    read_entry,
    read_footer,
    require_no_relocation,
    runs,
    shard_of_entry,
    shard_of_failure,
)
from chiasm.pipeline.errors import ChiasmError, CollectionError, UsageError
from chiasm.pipeline.storage import (
    Folder,
    below,
    display_name,
    folder_urls,
    has_wildcard,
    url_matcher,
)

FORGET = "forget"  # the command of a run that takes shards out


@dataclass(frozen=True)
class Forgotten:
    """A shard that was taken out, or would be: its id, its URL ("" where no file names it), and how
    many rows it had."""

    id: str
    url: str
    rows: int


@dataclass(frozen=True)
class ForgetSummary:
    """shards: what was taken out, or would be where `written` is False. already: those SHARDs that
    an earlier run of the command took out. indexed: whether there is an index, which is stale
    now."""

    shards: list[Forgotten]
    already: list[str] = field(default_factory=list)
    indexed: bool = False
    written: bool = True

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


def forget(folder: Folder, specs: Sequence[str], *, dry_run: bool = False) -> ForgetSummary:
    """Take the rows of shards out of a collection.

    specs: each a shard's id, path or URL, or a glob of ids, paths or URLs. Raises UsageError,
    before anything is removed, for one that names no shard, CollectionError for a shard that
    another run is embedding.
    """
    shards, already = select(folder, specs)
    summary = ForgetSummary(shards, already, folder.exists("index/CURRENT"), written=not dry_run)
    if dry_run or not shards:
        return summary
    settings = {"shards": {shard.id: shard.url for shard in shards}}
    with Run(folder, FORGET, settings) as run:
        require_no_relocation(run)
        run.sweep(FOLDERS)
        run.claim(shard.id for shard in shards)
        _require_unclaimed(run)
        for shard in shards:
            _remove(folder, shard.id)
        run.finish("done", asdict(summary))
    return summary


def _remove(folder: Folder, shard_id: str) -> None:
    earlier = earlier_parquet_name(shard_id)
    for name in (
        parquet_name(shard_id),
        earlier,
        failure_name(shard_id),
        ledger_name(shard_id),
    ):
        if name is not None:
            folder.remove(name)


def _require_unclaimed(run: Run) -> None:
    mine = set(run.record.claimed)
    # A record that cannot be read may claim anything.
    holders = {seen.id for seen in run.others() if seen.record is None or mine & {*seen.claimed}}
    for run_id in run.wait_for_verdicts(holders):
        raise CollectionError(
            display_name(run.folder.url),
            expected="no other run at work on these shards",
            found=f"run {run_id}",
            do="run the same command again when it has ended",
        )


def select(folder: Folder, specs: Sequence[str]) -> tuple[list[Forgotten], list[str]]:
    """The shards that the specs name, by id, and those specs of which an earlier run has taken out
    all. Raises UsageError for a spec that names none."""
    names = folder.list("ledger")
    found = [*map(shard_of_entry, names), *map(shard_of_failure, names)]
    ids = {*embedded_shard_ids(folder), *filter(None, found)}
    urls: dict[str, str] = {}
    if not ids.issuperset(specs):  # only then a shard's URL has to be known
        ordered = sorted(ids)
        found = folder.map_concurrent(lambda shard_id: _url_of(folder, shard_id), ordered)
        urls = dict(zip(ordered, found, strict=True))
    selected: set[str] = set()
    already: list[str] = []
    for spec in specs:
        matching = [spec] if spec in ids else match(spec, urls)
        selected |= set(matching)
        if not matching:
            if not any(match(spec, before) for before in _forgotten_before(folder)):
                raise _matches_nothing(folder, spec, urls)
            already.append(spec)
    ordered = sorted(selected)
    rows = folder.map_concurrent(lambda shard_id: _rows_of(folder, shard_id), ordered)
    known = (urls.get(shard_id) or _url_of(folder, shard_id) for shard_id in ordered)
    return [Forgotten(*fields) for fields in zip(ordered, known, rows, strict=True)], already


def match(spec: str, urls: Mapping[str, str]) -> list[str]:
    """The ids that a spec names, of shards with these URLs: by id, by URL, then as a glob."""
    if spec in urls:
        return [spec]
    exact = set(folder_urls(spec))
    found = [shard_id for shard_id, url in urls.items() if url in exact]
    if not found and has_wildcard(spec):
        matches = url_matcher(spec)
        found = [
            shard_id
            for shard_id, url in urls.items()
            if fnmatchcase(shard_id, spec) or (url and matches(url))
        ]
    return found


def _forgotten_before(folder: Folder) -> Iterator[Mapping[str, str]]:
    """What earlier runs of this command took out, killed ones included: shard id -> URL."""
    for run in runs(folder):
        shards = run.settings.get("shards") if run.command == FORGET else None
        if isinstance(shards, dict):
            yield {str(shard_id): str(url) for shard_id, url in shards.items()}


def _url_of(folder: Folder, shard_id: str) -> str:
    """A shard's URL by its entry, else by its footer; "" for a copy of another shard's files, and
    where neither can be read."""
    for read in (read_entry, read_footer):
        try:
            found = read(folder, shard_id)
        except ChiasmError:
            continue
        if found is not None:
            return found.source.url if found.source.id == shard_id else ""
    return ""


def _rows_of(folder: Folder, shard_id: str) -> int:
    """The rows in a shard's file, 0 where there is none or it is damaged."""
    try:
        return read_footer(folder, shard_id).rows
    except ChiasmError:
        return 0


def _matches_nothing(folder: Folder, spec: str, urls: Mapping[str, str]) -> UsageError:
    some = next((url for url in urls.values() if url), "")
    places = folder_urls(spec)
    inside = [
        url[len(place) + 1 :] for place in places for url in urls.values() if below(url, place)
    ]
    glob = f"{spec.rstrip('/')}/{'**' if any('/' in rest for rest in inside) else '*'}"
    do = f"name its shards: {shlex.quote(glob)}" if inside else ""
    if some and not do:
        do = f"give an id, a path or a URL, such as {shlex.quote(display_name(some))}, or a glob"
    return UsageError(
        f"shard {spec}",
        expected=f"a shard of {display_name(folder.url)}",
        found="a folder of shards" if inside else "none of that name",
        do=do,
    )
