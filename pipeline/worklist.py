"""What is left to do: shards that are neither done nor held by another live run.

The list hands out tasks and takes back outcomes; it alone knows what done means: a Parquet file
whose ledger agrees and whose edition is the one this run would make. Shards that another run holds
are put off and looked at again, so that two runs share the work and no shard is embedded twice.
"""

from __future__ import annotations

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
from chiasm.pipeline.editions import EmbedSettings, edition_of
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.records import Shard

LOOK_AGAIN_SECONDS = 1.0


@dataclass
class Task:
    """One shard to embed; `lost` says why each attempt so far failed."""

    shard: Shard
    limit: int | None = None
    lost: list[str] = field(default_factory=list)


class WorkList:
    """Shards in order, their outcomes, and the rules between them.

    limit: the most samples that the first shards may give together; they are then taken one at a
    time, since each one's share depends on those before it.
    """

    def __init__(
        self, shards: Sequence[Shard], run: Run, settings: EmbedSettings, limit: int | None = None
    ) -> None:
        self.run, self.settings, self.limit = run, settings, limit
        self.fingerprint = ""
        self.done: dict[str, LedgerEntry] = {}
        self.skipped: dict[str, LedgerEntry] = {}
        self.quarantined: dict[str, str] = {}
        self._pending = deque(Task(shard) for shard in shards)
        self._held_by_others: list[Task] = []
        self._out: dict[str, Task] = {}
        self._looked = -LOOK_AGAIN_SECONDS

    def skip_finished(self, identity: Identity) -> None:
        """Skip what is done already. Called once the encoder's fingerprint is known."""
        self.fingerprint = identity.fingerprint
        if self.limit is None:
            self._pending = deque(task for task in self._pending if not self._found_done(task))

    @property
    def left(self) -> int:
        """Shards neither finished nor given out."""
        return len(self._pending) + len(self._held_by_others)

    @property
    def over(self) -> bool:
        return not self.left and not self._out

    def samples(self) -> int:
        return sum(entry.samples for entry in self._accounts())

    def take(self) -> Task | None:
        """The next shard to embed, None when there is none just now."""
        self._look_again()
        for task in self._candidates():
            if not self._claimed(task):
                self._held_by_others.append(task)
            elif self._found_done(task):  # looked at once it is ours: nobody can finish it now
                self._let_go(task)
            else:
                return task
        return None

    def requeue(self, task: Task, lost: str = "") -> None:
        """An attempt came to nothing. `lost` says why, and is empty where the shard is not to
        blame."""
        if lost:
            task.lost.append(lost)
        self._pending.appendleft(task)
        self._let_go(task)

    def finish(self, task: Task, entry: LedgerEntry) -> None:
        self.done[task.shard.id] = entry
        self._let_go(task)

    def quarantine(self, task: Task, reason: str) -> None:
        """Write down that this shard was given up, and why, and go on with the rest."""
        self.quarantined[task.shard.id] = reason
        entry = LedgerEntry(
            source=task.shard,
            edition=self._edition(task),
            rows=0,
            set_aside=reason,
            attempts=len(task.lost),
        )
        write_entry(self.run.folder, entry, self.run.id)
        self._let_go(task)

    def _candidates(self) -> Iterator[Task]:
        while self._pending:
            if self.limit is not None:
                if self._out or self._held_by_others:
                    return
                if self.samples() >= self.limit:
                    self._pending.clear()
                    return
                self._pending[0].limit = self.limit - self.samples()
            yield self._pending.popleft()

    def _claimed(self, task: Task) -> bool:
        """Say that the shard is ours, unless another run says so.

        Whoever says it looks again afterwards: of two that say it at once at least one sees the
        other and steps back. If both do, both come back to it, hardly at once again."""
        if task.shard.id in self._elsewhere():
            return False
        self._out[task.shard.id] = task
        self.run.hold(self._out)
        if task.shard.id in self._elsewhere():
            self._let_go(task)
            return False
        return True

    def _let_go(self, task: Task) -> None:
        self._out.pop(task.shard.id)
        self.run.hold(self._out)

    def _elsewhere(self) -> set[str]:
        return {shard for run in self.run.others() for shard in run.holds}

    def _look_again(self) -> None:
        if time.monotonic() - self._looked >= LOOK_AGAIN_SECONDS:
            self._looked = time.monotonic()
            self._pending.extendleft(reversed(self._held_by_others))
            self._held_by_others = []

    def _found_done(self, task: Task) -> bool:
        file = find_done(task, self.run, self.settings, self.fingerprint)
        if file is None:
            return False
        entry = read_entry(self.run.folder, task.shard.id)  # it was read a moment ago
        if entry is not None:
            self.skipped[task.shard.id] = entry
        return entry is not None

    def _edition(self, task: Task) -> str:
        return edition_of(task.shard, self.fingerprint, self.settings)

    def _accounts(self) -> Iterator[LedgerEntry]:
        yield from self.done.values()
        yield from self.skipped.values()


def find_done(
    task: Task, run: Run, settings: EmbedSettings, fingerprint: str
) -> EmbeddingFile | None:
    """The shard's file, if it is there, whole, and the edition that this task would make."""
    try:
        file = find_embedding(run.folder, task.shard.id)
    except CollectionError:
        return None  # damaged: made anew, whole, under the same name
    wanted = {edition_of(task.shard, fingerprint, settings, limit) for limit in {None, task.limit}}
    return file if file is not None and file.edition in wanted else None
