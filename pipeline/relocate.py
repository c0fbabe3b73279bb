"""Shards that were moved: the collection follows them, without embedding anything again.

    ledgers -> moves -> each proven at its new place -> relocated.json -> footers and ledgers

Everything is proven before anything is written. Then, in this order, each step atomic: the record
of relocated shards, which gives the shard at its new URL its old id; of each shard its Parquet
footer, then its ledger entry. Rows, ids and editions stay as they are. A shard is done at every
moment, since footer and entry agree by what was embedded; one whose entry names the old place yet
is moved when the command runs again.
"""

from __future__ import annotations

import itertools
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from chiasm.pipeline.collection import (
    FOLDERS,
    RELOCATE,
    EmbeddingFile,
    LedgerEntry,
    Run,
    ShardSummary,
    SummaryWriter,
    failure_name,
    find_embedding,
    own_entries,
    read_failure,
    read_relocations,
    rewrite_current_entry,
    rewrite_entry,
    rewrite_footer,
    stat_files,
    write_relocations,
)
from chiasm.pipeline.errors import ChiasmError, CollectionError, UsageError
from chiasm.pipeline.records import Shard
from chiasm.pipeline.storage import (
    Folder,
    below,
    display_name,
    folder_url,
    folder_urls,
    map_concurrent,
    replace_prefix,
    stat_or_none,
)
from chiasm.pipeline.verify import difference

Progress = Callable[[str, int, int], None]  # what, shards done, shards in all


@dataclass(frozen=True)
class Move:
    """A shard on its way: its ledger entry, its rows (None where it has none), the shard as it was
    found at its new place, and the account of a failure beside the entry, where there is one."""

    entry: LedgerEntry
    file: EmbeddingFile | None
    found: Shard
    failure: LedgerEntry | None = None

    @property
    def is_written(self) -> bool:
        """Whether entry and footer name the new place already."""
        return self.entry.source == self.found and (
            self.file is None or self.file.footer.source == self.found
        )

    @property
    def moved(self) -> LedgerEntry:
        """The entry after the move."""
        before = self.entry.as_embedded
        embedded_from = None if before == self.found else before
        return replace(self.entry, source=self.found, embedded_from=embedded_from)

    def write(self, folder: Folder, run_id: str) -> None:
        """Name the new place in the footer, then in the entry. The entry is written last, since it
        is what says that a shard is still to be moved."""
        before = self.moved.embedded_from
        changes = {
            "source": asdict(self.found),
            "embedded_from": None if before is None else asdict(before),
        }
        if self.file is not None and self.file.footer.source != self.found:
            rewrite_footer(folder, self.file, changes, run_id)
        if self.failure is not None:
            source = {**asdict(self.failure.source), "url": self.found.url}
            rewrite_entry(folder, failure_name(self.found.id), {"source": source}, run_id)
        rewrite_current_entry(folder, self.entry, changes, run_id)


@dataclass(frozen=True)
class Refusal:
    """A shard that stays: its URL, where it would be, and why it is not moved."""

    shard: str
    to: str
    reason: str


@dataclass(frozen=True)
class RelocateSummary:
    """What was moved, or would be where `written` is False. moved: URL before -> URL now; rows of
    them. already: how many shards the same command had moved before."""

    moved: dict[str, str]
    rows: int
    already: int
    refused: list[Refusal]
    written: bool


def relocate(
    folder: Folder,
    source: str,
    target: str,
    *,
    partial: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> RelocateSummary:
    """Make a collection's shards below `source` those of the same names below `target`.

    source, target: folders, buckets or single shards, as paths or URLs. The new place has to hold
    the same shards, by size and by the digests of some members. partial: move those that are proven
    though others are not; else nothing is written. Raises UsageError where no shard is below
    `source`, CollectionError while another run is at work in the collection.
    """
    if dry_run:
        plan = Plan(folder, folder_urls(source), folder_url(target))
        plan.prove(progress)
        return plan.summary(written=False)
    settings = {"from": source, "to": target, "partial": partial}
    with Run(folder, RELOCATE, settings) as run:
        _require_alone(run)
        run.sweep(FOLDERS)
        plan = Plan(folder, folder_urls(source), folder_url(target))
        plan.prove(progress)
        written = bool(plan.moves) and (partial or not plan.refused)
        if written:
            plan.write(run, progress)
        summary = plan.summary(written=written)
        run.finish("failed" if summary.refused else "done", asdict(summary))
    return summary


def _require_alone(run: Run) -> None:
    """Raises CollectionError while another run is alive: it may have listed shards by their old
    URLs. One that begins later sees this run, and waits or refuses."""
    for run_id in run.wait_for_verdicts(seen.id for seen in run.others()):
        raise CollectionError(
            display_name(run.folder.url),
            expected="no other run at work",
            found=f"run {run_id}",
            do="run the same command again when it has ended",
        )


class Plan:
    """The moves of one command, and what stands against them. All by shard id."""

    def __init__(self, folder: Folder, sources: Sequence[str], target: str) -> None:
        self.folder, self.sources, self.target = folder, sources, target
        self.relocations = read_relocations(folder)
        self.entries = own_entries(folder)
        self.already = {shard_id for shard_id in self.entries if self._was_moved(shard_id)}
        urls = {k: self._new_url(entry.source.url) for k, entry in self.entries.items()}
        self.urls = {k: url for k, url in urls.items() if url and k not in self.already}
        self.moves: dict[str, Move] = {}
        self.refused: list[Refusal] = []
        if not self.urls and not self.already:
            raise self._nothing_below()

    def prove(self, progress: Progress) -> None:
        """Look at every shard's new place; fills `moves` and `refused`."""
        against = self._conflicts()
        shard_ids = {url: shard_id for shard_id, url in self.urls.items()}
        numbers = itertools.count(1)

        def prove_one(url: str) -> Move | str:
            progress("compared", next(numbers), len(shard_ids))
            shard_id = shard_ids[url]
            if shard_id in against:
                return against[shard_id]
            try:
                return proven(self.folder, self.entries[shard_id], url)
            except ChiasmError as error:
                return str(error)

        urls = sorted(shard_ids)
        for url, found in zip(urls, map_concurrent(prove_one, urls), strict=True):
            shard_id = shard_ids[url]
            if not isinstance(found, Move):
                self.refused.append(Refusal(self.entries[shard_id].source.url, url, found))
            elif found.is_written:
                self.already.add(shard_id)
            else:
                self.moves[shard_id] = found

    def write(self, run: Run, progress: Progress) -> None:
        """Carry the moves out; killed anywhere, the same command does the rest."""
        moved = {k: (move.entry.source, move.found.url) for k, move in self.moves.items()}
        write_relocations(self.folder, self.relocations.with_moves(moved), run.id)
        summaries = SummaryWriter(self.folder, run.id, run.clock)
        written = itertools.count(1)

        def write_one(shard_id: str) -> ShardSummary | None:
            move = self.moves[shard_id]
            move.write(self.folder, run.id)
            progress("moved", next(written), len(self.moves))
            if move.file is None and move.entry.quarantined is None:
                return None  # it is not done, which no summary says
            return ShardSummary.of(move.moved).with_files(*stat_files(self.folder, shard_id))

        for summary in self.folder.map_concurrent(write_one, sorted(self.moves)):
            if summary is not None:
                summaries.add(summary)
        summaries.write()

    def summary(self, *, written: bool) -> RelocateSummary:
        moves = self.moves.values()
        return RelocateSummary(
            moved={move.entry.source.url: move.found.url for move in moves},
            rows=sum(move.entry.rows for move in moves),
            already=len(self.already),
            refused=self.refused,
            written=written,
        )

    def _new_url(self, url: str) -> str | None:
        folder = next((source for source in self.sources if below(url, source)), None)
        return None if folder is None else replace_prefix(url, folder, self.target)

    def _was_moved(self, shard_id: str) -> bool:
        """Whether this command moved the shard before. One folder may be inside the other, so
        where the shard is does not tell."""
        url = self.entries[shard_id].source.url
        if shard_id not in self.relocations.shards or self._new_url(url) == url:
            return False
        former = self.relocations.shards[shard_id].former
        return url in {self._new_url(before.url) for before in former}

    def _conflicts(self) -> dict[str, str]:
        """The shards that would be at the URL of another one, and what is said of each."""
        counts = Counter(self.urls.values())
        holders = {
            entry.source.url: shard_id
            for shard_id, entry in self.entries.items()
            if shard_id not in self.urls
        }
        against: dict[str, str] = {}
        for shard_id, url in self.urls.items():
            if counts[url] > 1:
                against[shard_id] = "several shards of the collection would be this one"
            if url in holders:
                command = f"chiasm forget {shlex.quote(display_name(self.folder.url))}"
                against[shard_id] = (
                    f"the collection holds that shard already, as {holders[url]}; "
                    f"take out one of the two: {command} -- {shard_id}"
                )
        return against

    def _nothing_below(self) -> UsageError:
        places = Counter(entry.source.url.rpartition("/")[0] for entry in self.entries.values())
        some = ", ".join(f"{display_name(url)} ({n:,})" for url, n in places.most_common(3))
        return UsageError(
            f"--from {display_name(self.sources[0])}",
            expected="a folder that shards of the collection are in",
            found="none of them there",
            do=f"they are in {some}" if some else "the collection has no shards",
        )


def proven(folder: Folder, entry: LedgerEntry, url: str) -> Move | str:
    """The move of a shard to `url`, or why that is not the same shard. Raises ChiasmError where
    that cannot be known."""
    file = None if entry.quarantined else find_embedding(folder, entry.source.id)
    stat = stat_or_none(url)
    if stat is None:
        return "nothing there"
    found = Shard(url, entry.source.id, stat.size, stat.version)
    what = difference(entry, file, found)
    if what:
        return f"another shard: {what}"
    return Move(entry, file, found, read_failure(folder, found.id))
