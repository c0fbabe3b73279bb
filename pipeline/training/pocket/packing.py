"""Examples of like length together, so that little is computed for padding.

Most questions are short and a few are three times as long: of a batch that is padded to its longest
ones, half of what is computed is padding. The loss is a sum over tokens, so it does not matter with
which others an example is computed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from chiasm.pipeline.model.tokenizer import PAD
from chiasm.pipeline.training.pocket.targets import UNKNOWN
from chiasm.pipeline.training.pocket.task_data import TaskRows

# What a token of a target costs, in tokens of a source: it goes through the decoder and back, a
# source through a frozen tower.
TARGET_COST = 3
# Costs up to the first, and from there to RATIO times as much, go together: with finer parts, what
# a pass costs whatever its size outweighs the padding that is saved.
FIRST, RATIO = 16, 1.5


def by_length(rows: TaskRows) -> Iterator[TaskRows]:
    """The examples of a task in parts of nearly equal cost, each padded to its own longest; each
    example once."""
    targets = (rows.targets != UNKNOWN).sum(axis=1)
    sources = np.zeros_like(targets)
    if rows.sources is not None:
        sources = (rows.sources != PAD).sum(axis=1)
    costs = (TARGET_COST * targets + sources) / FIRST
    keys = np.ceil(np.log(costs) / np.log(RATIO)).clip(0)
    for key in np.unique(keys):
        part = np.flatnonzero(keys == key)
        longest, longest_source = targets[part].max(), sources[part].max()
        yield TaskRows(
            pictures=rows.pictures[part],
            sources=None if rows.sources is None else rows.sources[part, :longest_source],
            inputs=rows.inputs[part, :longest],
            targets=rows.targets[part, :longest],
            examples=tuple(rows.examples[row] for row in part),
        )
