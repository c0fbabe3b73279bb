"""One shard to embed, and whether that is done already."""

from __future__ import annotations

from dataclasses import dataclass, field

from chiasm.pipeline.collection import EmbeddingFile, Run, find_embedding
from chiasm.pipeline.editions import EmbedSettings, accepted_editions
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.records import Shard
from chiasm.pipeline.storage import Stat

Files = tuple[Stat | None, Stat | None]  # a shard's ledger entry and its Parquet file


@dataclass(slots=True)
class Task:
    """One shard to embed. limit: the most samples to read, None for all. failures: the reason of
    every failed attempt so far. returned: whether it was handed out before. lapses: those of the
    run when it was handed out."""

    shard: Shard
    limit: int | None = None
    failures: list[str] = field(default_factory=list)
    returned: bool = False
    lapses: int = 0


def find_done(task: Task, run: Run, editions: set[str]) -> EmbeddingFile | None:
    """The shard's file, if it exists, is whole, and has one of these editions."""
    file = find_whole(run, task)
    return file if file is not None and file.edition in editions else None


def find_whole(run: Run, task: Task) -> EmbeddingFile | None:
    """The shard's file, if it exists and is whole, of whatever edition."""
    try:
        return find_embedding(run.folder, task.shard.id)
    except CollectionError:
        return None  # damaged: written again under the same name


def editions_of(
    task: Task, settings: EmbedSettings, fingerprint: str, *, reembed: bool
) -> set[str]:
    """The editions that count as this task's."""
    return accepted_editions(task.shard, fingerprint, settings, task.limit, reembed=reembed)
