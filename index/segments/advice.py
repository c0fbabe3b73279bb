"""What error messages tell people to run."""

from __future__ import annotations

import shlex
from collections.abc import Collection

from chiasm.pipeline.collection import EmbeddingFile, embeddings
from chiasm.pipeline.storage import Folder, display_name


def build_command(folder: Folder) -> str:
    """The command that builds the index of the collection in `folder`, quoted for a shell."""
    return f"chiasm index build {shlex.quote(display_name(folder.url))}"


def add_command(folder: Folder) -> str:
    """The command that brings the index of the collection in `folder` up to its embeddings."""
    return f"chiasm index add {shlex.quote(display_name(folder.url))}"


def stale_advice(folder: Folder, states: Collection[str]) -> str:
    """What to do about an index that is stale: adding suffices, unless a shard is damaged, which
    adding leaves as it is and a build refuses by name. states: of `EmbeddedShards.stale`."""
    command = build_command(folder) if "damaged" in states else add_command(folder)
    return f"run {command}"


def column_advice(folder: Folder, column: str) -> str:
    """What to do where a column has no index: building one helps only where a row has a vector."""
    if any(_has_vectors(file, column) for file in embeddings(folder)):
        return f"run {build_command(folder)}"  # of all columns: one of this alone has no other
    needs = " with captions" if column in ("text", "joint") else ""
    return f"no row has such a vector: embed samples{needs}, or search another --column"


def _has_vectors(file: EmbeddingFile, column: str) -> bool:
    """Whether any row has one, by the statistics of the file alone."""
    with file.open() as parquet:
        metadata = parquet.metadata
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    return any(
        leaf.path_in_schema.partition(".")[0] == column
        and leaf.statistics.null_count < group.num_rows
        for group in groups
        for leaf in map(group.column, range(group.num_columns))
    )
