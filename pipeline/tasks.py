"""One shard to embed, and whether that is done already."""

from __future__ import annotations

from dataclasses import dataclass, field

from chiasm.pipeline.collection import EmbeddingFile, Run, find_embedding
from chiasm.pipeline.editions import EmbedSettings, edition_of
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


def find_done(
    task: Task, run: Run, settings: EmbedSettings, fingerprint: str
) -> EmbeddingFile | None:
    """The shard's file, if it exists, is whole, and has the edition that this task would make."""
    file = find_whole(run, task)
    if file is None:
        return None
    editions = editions_of(task, file.footer.made_of(task.shard), settings, fingerprint)
    return file if file.edition in editions else None


def find_whole(run: Run, task: Task) -> EmbeddingFile | None:
    """The shard's file, if it exists and is whole, of whatever edition."""
    try:
        return find_embedding(run.folder, task.shard.id)
    except CollectionError:
        return None  # damaged: written again under the same name


def editions_of(task: Task, shard: Shard, settings: EmbedSettings, fingerprint: str) -> set[str]:
    """The editions that this task would make of a shard."""
    return {edition_of(shard, fingerprint, settings, limit) for limit in {None, task.limit}}
