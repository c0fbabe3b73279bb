"""The work list: shards that are neither done nor claimed by another live run.

The list hands out tasks and takes their outcomes. A shard is done where its Parquet file exists,
its ledger entry agrees, and the edition is the one this run would make. Shards claimed by another
run are checked again later, so that two runs share the work and no shard is embedded twice.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from chiasm.pipeline.collection import (
    EmbeddingFile,
    Identity,
    LedgerEntry,
    Run,
    find_embedding,
    read_entry,
    write_entry,
)
from chiasm.pipeline.editions import RULES, EmbedSettings, accepted_editions, edition_of
from chiasm.pipeline.errors import ChiasmError, CollectionError, SourceError, UnreachableError
from chiasm.pipeline.records import Shard
from chiasm.pipeline.storage import display_name

LOG = logging.getLogger(__name__)
RECHECK_SECONDS = 1.0  # for shards that another run has claimed


@dataclass
class Task:
    """One shard to embed. limit: the most samples to read, None for all. failures: the reason of
    every failed attempt so far."""

    shard: Shard
    limit: int | None = None
    failures: list[str] = field(default_factory=list)


class WorkList:
    """Shards in order, and their outcomes by shard id: `done` by this run, `skipped` because they
    were done before, `quarantined` (shard id -> reason) because they were given up.

    limit: the most samples of all shards together; shards are then embedded one at a time, since
    the limit of each depends on those before it. reembed: shards that were read by earlier rules
    are not done.
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
        self.done: dict[str, LedgerEntry] = {}
        self.skipped: dict[str, LedgerEntry] = {}
        self.quarantined: dict[str, str] = {}
        self._pending = deque(Task(shard) for shard in shards)
        self._claimed_elsewhere: list[Task] = []
        self._in_flight: dict[str, Task] = {}
        self._rechecked = -RECHECK_SECONDS

    def skip_finished(self, identity: Identity) -> None:
        """Skip shards that are done already. Called once the encoder's fingerprint is known."""
        self.fingerprint = identity.fingerprint
        if self.limit is None:
            self._pending = deque(task for task in self._pending if not self._skip_if_done(task))

    @property
    def left(self) -> int:
        """How many shards are neither finished nor in flight."""
        return len(self._pending) + len(self._claimed_elsewhere)

    @property
    def over(self) -> bool:
        """Whether every shard has an outcome."""
        return not self.left and not self._in_flight

    def samples(self) -> int:
        """Samples of the shards done or skipped so far."""
        entries = (*self.done.values(), *self.skipped.values())
        return sum(entry.samples for entry in entries)

    def take(self) -> Task | None:
        """The next shard to embed, claimed for this run; None when there is none just now."""
        self._recheck_claimed()
        for task in self._candidates():
            if not self._claim(task):
                self._claimed_elsewhere.append(task)
            elif self._skip_if_done(task):  # no other run can finish it once we have claimed it
                self._release(task)
            else:
                return task
        return None

    def requeue(self, task: Task, failure: str = "") -> None:
        """Put a shard back after a failed attempt. failure: the reason, which counts as an attempt;
        empty where the shard did not cause it. A shard that is committed though its worker died
        before it answered is done."""
        if failure:
            task.failures.append(failure)
        entry = self._committed(task)  # by this run: the claim is still ours
        if entry is not None:
            self.done[task.shard.id] = entry
        else:
            self._pending.appendleft(task)
        self._release(task)

    def finish(self, task: Task, entry: LedgerEntry) -> None:
        """A shard is done."""
        self.done[task.shard.id] = entry
        self._release(task)

    def quarantine(self, task: Task, reason: str) -> None:
        """Give a shard up and record why in its ledger entry; the rest goes on."""
        self.quarantined[task.shard.id] = reason
        entry = LedgerEntry(
            source=task.shard,
            edition=self._edition(task),
            rows=0,
            quarantined=reason,
            attempts=len(task.failures),
        )
        write_entry(self.run.folder, entry, self.run.id)
        self._release(task)

    def _candidates(self) -> Iterator[Task]:
        while self._pending:
            if self.limit is not None:
                if self._in_flight or self._claimed_elsewhere:
                    return
                if self.samples() >= self.limit:
                    self._pending.clear()
                    return
                self._pending[0].limit = self.limit - self.samples()
            yield self._pending.popleft()

    def _claim(self, task: Task) -> bool:
        """Claim the shard for this run unless another one has; returns whether it is ours now.

        The other runs' claims are read again after ours is written: of two runs that claim it at
        the same moment at least one sees the other and releases it. If both do, both try again
        later, hardly at the same moment."""
        if task.shard.id in self._claims_elsewhere():
            return False
        self._in_flight[task.shard.id] = task
        self.run.claim(self._in_flight)
        if task.shard.id in self._claims_elsewhere():
            self._release(task)
            return False
        return True

    def _release(self, task: Task) -> None:
        self._in_flight.pop(task.shard.id)
        self.run.claim(self._in_flight)

    def _claims_elsewhere(self) -> set[str]:
        return {shard for run in self.run.others() for shard in run.claimed}

    def _recheck_claimed(self) -> None:
        if time.monotonic() - self._rechecked >= RECHECK_SECONDS:
            self._rechecked = time.monotonic()
            self._pending.extendleft(reversed(self._claimed_elsewhere))
            self._claimed_elsewhere = []

    def _committed(self, task: Task) -> LedgerEntry | None:
        """The ledger entry of a shard that is done, None for another."""
        file = find_done(task, self.run, self.settings, self.fingerprint, reembed=self.reembed)
        return None if file is None else read_entry(self.run.folder, task.shard.id)

    def _skip_if_done(self, task: Task) -> bool:
        entry = self._committed(task)
        if entry is not None:
            self.skipped[task.shard.id] = entry
        return entry is not None

    def _edition(self, task: Task) -> str:
        return edition_of(task.shard, self.fingerprint, self.settings, rules=RULES)


def find_done(
    task: Task, run: Run, settings: EmbedSettings, fingerprint: str, *, reembed: bool = False
) -> EmbeddingFile | None:
    """The shard's file, if it exists, is whole, and has an edition that counts as this task's."""
    try:
        file = find_embedding(run.folder, task.shard.id)
    except CollectionError:
        return None  # damaged: written again under the same name
    wanted = accepted_editions(task.shard, fingerprint, settings, task.limit, reembed=reembed)
    return file if file is not None and file.edition in wanted else None


def record_failure(work: WorkList, task: Task, error: BaseException, attempts: int) -> None:
    """What an error means for its shard: another attempt or quarantine. Raises a ChiasmError that
    would meet every shard."""
    if isinstance(error, UnreachableError):
        requeue_or_quarantine(work, task, str(error), attempts)  # its store may answer later
    elif isinstance(error, SourceError):
        task.failures.append(str(error))
        quarantine(work, task, str(error))  # reading it again would find the same
    elif isinstance(error, ChiasmError):
        raise error
    else:
        requeue_or_quarantine(work, task, f"{type(error).__name__}: {first_line(error)}", attempts)


def requeue_or_quarantine(work: WorkList, task: Task, why: str, attempts: int) -> None:
    """Another attempt, while there is one left."""
    if len(task.failures) + 1 < attempts:
        work.requeue(task, why)
        LOG.warning(
            "retrying %s, attempt %d of %d: %s",
            display_name(task.shard.url), len(task.failures) + 1, attempts, why,
            extra={"shard": task.shard.id},
        )  # fmt: skip
    else:
        task.failures.append(why)
        quarantine(work, task, f"{len(task.failures)} attempts failed, the last one: {why}")


def quarantine(work: WorkList, task: Task, reason: str) -> None:
    """Give the shard up, in its ledger."""
    work.quarantine(task, reason)
    LOG.warning(
        "quarantined %s: %s", display_name(task.shard.url), reason, extra={"shard": task.shard.id}
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
