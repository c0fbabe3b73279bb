"""What the failure of an attempt means for its shard: another attempt, or quarantine."""

from __future__ import annotations

import logging

from chiasm.pipeline.errors import ChiasmError, SourceError, UnreachableError
from chiasm.pipeline.storage import display_name
from chiasm.pipeline.tasks import Task
from chiasm.pipeline.worklist import WorkList

LOG = logging.getLogger(__name__)


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
