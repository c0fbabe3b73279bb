"""The work list: shards that are neither done nor claimed by another live run.

The list hands out tasks and takes their outcomes. A shard is done where its Parquet file exists,
its ledger entry agrees, and the edition is the one this run would make. Shards claimed by another
run are checked again later, so that two runs share the work and no shard is embedded twice.

Shards are claimed in blocks, since a claim costs a write and a look at the other runs. A block is
what was used up in BLOCK_SECONDS of late, and at most a fourth of what is left, for other runs.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from chiasm.pipeline.collection import (
    Identity,
    LedgerEntry,
    Run,
    ShardFiles,
    ShardSummary,
    SummaryWriter,
    Survey,
    current_entry,
    failure_name,
    parquet_name,
    stat_files,
    write_entry,
    write_failure,
)
from chiasm.pipeline.editions import EmbedSettings, accepted_editions
from chiasm.pipeline.records import Dropped, Shard
from chiasm.pipeline.storage import Stat
from chiasm.pipeline.tasks import Files, Task, find_done, find_whole
from chiasm.pipeline.totals import SkippedTotals, Totals

RECHECK_SECONDS = 1.0  # for shards that another run has claimed, before they are tried again
BLOCK_SECONDS = 2.0
MOST_CLAIMED = 512  # shards of one block: a record that names them is still small


class WorkList:
    """Shards in order, and their outcomes: `done` by this run; `skipped`, because they were done
    before; `quarantined` (shard id -> reason), because they were given up.

    limit: the most samples of all shards together; shards are then embedded one at a time, since
    the limit of each depends on those before it. reembed: shards that were read by earlier rules,
    or decoded in an earlier way, are not done.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        run: Run,
        settings: EmbedSettings,
        limit: int | None = None,
        *,
        reembed: bool = False,
    ) -> None:
        self.run, self.settings, self.limit, self.reembed = run, settings, limit, reembed
        self.fingerprint = ""
        self.done, self.skipped = Totals(), SkippedTotals()
        self.quarantined: dict[str, str] = {}
        self._pending = deque(Task(shard) for shard in shards)
        self._block: deque[Task] = deque()  # claimed, and not yet handed out
        self._claimed_elsewhere: list[Task] = []
        self._in_flight: dict[str, Task] = {}
        self._summaries = SummaryWriter(run.folder, run.id, run.clock)
        self._files: dict[str, Stat] = {}  # Parquet files, as listed, of shards that are not done
        self._failures: set[str] = set()  # shards with a failure beside their entry
        self._activity = -1  # of other runs when files were listed; none yet
        self._lapses = run.lapses
        self._block_size, self._block_claimed = 1, -math.inf
        self._elsewhere: set[str] = set()  # what others had claimed
        self._looked_at = self._rechecked = -math.inf
        self._dice = random.Random(run.id)

    def skip_finished(self, identity: Identity) -> None:
        """Skip shards that are done already. Called once the encoder's fingerprint is known."""
        self.fingerprint = identity.fingerprint
        live = {seen.id for seen in self.run.others()}
        activity = self.run.activity
        files = ShardFiles.list(self.run.folder)
        self._failures = files.failures
        if self.limit is None:
            self._skip(Survey(self.run.folder, files), live)
            left = {task.shard.id for task in self._pending}
            # A file whose entry was not listed is another run's, which has ended the shard since.
            left &= files.ledgers.keys()
            self._files = {k: stat for k, stat in files.embeddings.items() if k in left}
            self._activity = activity

    def _skip(self, survey: Survey, live: set[str]) -> None:
        wanted = {task.shard.id: task for task in self._pending}
        unknown, left = set(wanted), set(wanted)
        for summary in survey.summaries():
            unknown.discard(summary.source.id)
            if summary.source.id in wanted and self._skip_if_wanted(wanted, summary):
                left.discard(summary.source.id)
        self._summaries.put_together(survey, live.__contains__)
        there = [name for name in wanted if name in unknown and name in survey.files.ledgers]
        for summary in survey.read(there, skip_damaged=True):
            if summary is not None and not summary.unfinished:
                self._summaries.add(summary)
                if self._skip_if_wanted(wanted, summary):
                    left.discard(summary.source.id)
        self._pending = deque(task for task in self._pending if task.shard.id in left)

    def _skip_if_wanted(self, wanted: dict[str, Task], summary: ShardSummary) -> bool:
        task = wanted[summary.source.id]
        shard = summary.made_of(task.shard)
        editions = accepted_editions(
            shard, self.fingerprint, self.settings, task.limit, reembed=self.reembed
        )
        if not summary.done or summary.edition not in editions:
            return False
        self._skip_task(task, summary)
        return True

    def _skip_task(self, task: Task, summary: ShardSummary) -> None:
        self.skipped.add(summary)
        self._remove_failure(task)

    @property
    def left(self) -> int:
        """How many shards are neither finished nor in flight."""
        return self.free + len(self._claimed_elsewhere)

    @property
    def free(self) -> int:
        """Those of them that no other run has claimed, as far as was seen."""
        return len(self._pending) + len(self._block)

    @property
    def over(self) -> bool:
        """Whether every shard has an outcome."""
        return not self.left and not self._in_flight

    def samples(self) -> int:
        """Samples of the shards done or skipped so far."""
        return self.done.samples + self.skipped.samples

    def dropped_samples(self) -> list[tuple[str, Dropped]]:
        """The first dropped samples of shards done or skipped, with their shards' URLs."""
        return self.skipped.read_drops(self.done.drops, self._read_entries)

    def note_details(self) -> dict[str, str]:
        """By reason, the detail of a note of a shard done or skipped."""
        return self.skipped.read_note_details(self.done.note_details, self._read_entries)

    def _read_entries(self, shard_ids: Sequence[str]) -> Iterator[LedgerEntry | None]:
        folder = self.run.folder
        return folder.map_concurrent(lambda shard_id: current_entry(folder, shard_id), shard_ids)

    def take(self) -> Task | None:
        """The next shard to embed, claimed for this run; None when there is none just now. Raises
        CollectionError where another run has found this one dead."""
        if not self.claim_next():
            return None
        self.run.confirm()  # that took time too
        if self.run.lapses != self._lapses:
            return self.take()
        task = self._block.popleft()
        task.lapses = self._lapses
        self._in_flight[task.shard.id] = task
        return task

    def claim_next(self) -> bool:
        """Claim shards for `take`, and skip those finished elsewhere; whether there is any."""
        self.run.confirm()
        if self.run.lapses != self._lapses:
            # Others may have taken this run for dead, and its claims for free.
            self._lapses = self.run.lapses
            self._pending.extendleft(reversed(self._block))
            self._block.clear()
        self._recheck_claimed()
        while not self._block:
            if not self._claim_block():
                return False
        return True

    def requeue(self, task: Task, failure: str = "") -> None:
        """Put a shard back after a failed attempt. failure: the reason, which counts as an attempt;
        empty where the shard did not cause it. A shard that is committed though its worker died
        before it answered is done."""
        if failure:
            task.failures.append(failure)
        if (entry := self._committed(task)) is not None:  # by this run: the claim is still ours
            self.finish(task, entry)
            return
        task.returned = True
        self._pending.appendleft(task)
        self._release(task)

    def finish(self, task: Task, entry: LedgerEntry, files: Files | None = None) -> None:
        """A shard is done. files: as they are after the commit; None where they are not known."""
        summary = ShardSummary.of(entry)
        self.done.add(summary)
        self.done.add_details(entry)
        self._remove_failure(task)
        self._summarize(task, summary, files)
        self._release(task)

    def quarantine(self, task: Task, reason: str) -> None:
        """Give a shard up and record why: in its ledger entry, or beside that of whole rows, which
        stay. The rest goes on. After a lapse, in which another run may have begun the shard, it is
        put back instead."""
        self.run.confirm()
        if task.lapses != self.run.lapses:
            self._pending.appendleft(task)
            self._release(task)
            return
        self.quarantined[task.shard.id] = reason
        entry = LedgerEntry(
            source=task.shard,
            edition=next(accepted_editions(task.shard, self.fingerprint, self.settings)),
            rows=0,
            quarantined=reason,
            attempts=len(task.failures),
        )
        if find_whole(self.run, task) is not None:
            write_failure(self.run.folder, entry, self.run.id)
        else:
            write_entry(self.run.folder, entry, self.run.id)
            self._remove_failure(task)
            self._summarize(task, ShardSummary.of(entry), None)
        self._release(task)

    def write_summaries(self) -> None:
        """Write the summaries that wait to be written with others; called when a run ends."""
        self._summaries.write()

    def _claim_block(self) -> bool:
        """Claim the next shards that no other run has claimed; whether there was one to try.

        The other runs' claims are read again after ours are written: of two runs that claim a shard
        at the same moment at least one sees the other and releases it. If both do, both try again
        later, and begin at other places among what is left."""
        block = self._next_block() if self.limit is None else self._next_limited(self.limit)
        if not block:
            return False
        self.run.claim(self._claims(block))
        elsewhere = self._claims_elsewhere(newer_than=math.inf)
        conflicts = [task for task in block if task.shard.id in elsewhere]
        if conflicts:
            self._claimed_elsewhere += conflicts
            block = [task for task in block if task.shard.id not in elsewhere]
            self.run.claim(self._claims(block))  # at once: another run waits for the rest
            if self._pending and self.limit is None:
                self._pending.rotate(self._dice.randrange(len(self._pending)))
        self._block.extend(self._skip_finished_since(block))
        if len(self._block) < len(block):
            self.run.release(self._claims(self._block))  # there may be no next claim
        return True

    def _next_block(self) -> list[Task]:
        if not self._pending:
            return []
        now = self.run.clock.monotonic()
        fast = now - self._block_claimed < BLOCK_SECONDS
        self._block_size = self._block_size * 2 if fast else self._block_size // 2
        self._block_size = min(max(1, self._block_size), MOST_CLAIMED)
        self._block_claimed = now
        size = min(self._block_size, math.ceil(len(self._pending) / 4))
        block: list[Task] = []
        while self._pending and len(block) < size:
            task = self._pending.popleft()
            others = self._claims_elsewhere(now - RECHECK_SECONDS)
            (self._claimed_elsewhere if task.shard.id in others else block).append(task)
        return block

    def _next_limited(self, limit: int) -> list[Task]:
        while self._pending and not self._in_flight and not self._claimed_elsewhere:
            if self.samples() >= limit:
                self._pending.clear()
                break
            task = self._pending.popleft()
            task.limit = limit - self.samples()
            if task.shard.id not in self._claims_elsewhere(newer_than=math.inf):
                return [task]
            self._claimed_elsewhere.append(task)
        return []

    def _claims(self, block: Iterable[Task]) -> list[str]:
        return [*self._in_flight, *(task.shard.id for task in block)]

    def _claims_elsewhere(self, newer_than: float) -> set[str]:
        """What other runs have claimed, as it was seen after that moment."""
        if self._looked_at < newer_than:
            self._looked_at = self.run.clock.monotonic()
            self._elsewhere = {shard for run in self.run.others() for shard in run.claimed}
        return self._elsewhere

    def _skip_finished_since(self, block: list[Task]) -> list[Task]:
        """The shards of a block that no other run has finished since files were listed; from now on
        none can, since we have claimed them."""
        folder = self.run.folder
        if self.limit is not None:
            suspects = block
        elif self.run.activity != self._activity:
            names = (parquet_name(task.shard.id) for task in block)
            stats = zip(block, folder.map_concurrent(folder.stat, names), strict=True)
            suspects = [t for t, stat in stats if t.returned or stat != self._files.get(t.shard.id)]
        else:
            suspects = [task for task in block if task.returned]
        finished: set[str] = set()
        for task in suspects:
            if (entry := self._committed(task)) is not None:
                finished.add(task.shard.id)
                self._skip_task(task, ShardSummary.of(entry))
        return [task for task in block if task.shard.id not in finished]

    def _summarize(self, task: Task, summary: ShardSummary, files: Files | None) -> None:
        found = files or stat_files(self.run.folder, task.shard.id)
        # After a lapse the files may be those that another run has written meanwhile.
        self.run.confirm()
        if task.lapses == self.run.lapses:
            self._summaries.add(summary.with_files(*found))

    def _release(self, task: Task) -> None:
        self._in_flight.pop(task.shard.id)
        self.run.release(self._claims(self._block))

    def _recheck_claimed(self) -> None:
        now = self.run.clock.monotonic()
        if self._claimed_elsewhere and now - self._rechecked >= RECHECK_SECONDS:
            self._rechecked = now
            others = self._claims_elsewhere(now - RECHECK_SECONDS)
            free = [task for task in self._claimed_elsewhere if task.shard.id not in others]
            self._claimed_elsewhere = [t for t in self._claimed_elsewhere if t.shard.id in others]
            self._pending.extendleft(reversed(free))

    def _remove_failure(self, task: Task) -> None:
        if task.shard.id in self._failures:
            self._failures.remove(task.shard.id)
            self.run.folder.remove(failure_name(task.shard.id))

    def _committed(self, task: Task) -> LedgerEntry | None:
        """The ledger entry of a shard that is done, None for another."""
        file = find_done(task, self.run, self.settings, self.fingerprint, reembed=self.reembed)
        return None if file is None else current_entry(self.run.folder, task.shard.id)
