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


def find_done(
    task: Task, run: Run, settings: EmbedSettings, fingerprint: str, *, reembed: bool = False
) -> EmbeddingFile | None:
    """The shard's file, if it exists, is whole, and has an edition that counts as this task's."""
    file = find_whole(run, task)
    if file is None:
        return None
    shard = file.footer.made_of(task.shard)
    accepted = accepted_editions(shard, fingerprint, settings, task.limit, reembed=reembed)
    return file if file.edition in accepted else None


def find_whole(run: Run, task: Task) -> EmbeddingFile | None:
    """The shard's file, if it exists and is whole, of whatever edition."""
    try:
        return find_embedding(run.folder, task.shard.id)
    except CollectionError:
        return None  # damaged: written again under the same name
