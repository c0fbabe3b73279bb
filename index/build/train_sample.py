"""The vectors that an index learns from, drawn evenly over the whole collection."""

from __future__ import annotations

import math

import numpy as np

from chiasm.index.build.covered import CoveredShards, ShardReplaced
from chiasm.pipeline.collection import EmbeddingFile, vectors_of
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import display_name

TRAIN_GROUPS = 512  # row groups that training vectors are sampled from: varied, quick to read


def training_vectors(covered: CoveredShards, column: str, wanted: int) -> np.ndarray:
    """About `wanted` vectors of a column, sampled from the whole collection: (n, D) float32.

    The same files give the same vectors. About TRAIN_GROUPS row groups are read, more where rows
    lack the column.
    """
    groups = [(file, number) for file in covered.files for number in _group_numbers(covered, file)]
    rng = np.random.default_rng(0)
    rng.shuffle(groups)
    per_group = math.ceil(wanted / max(1, min(len(groups), TRAIN_GROUPS)))
    samples: list[np.ndarray] = []
    rows = 0
    for file, number in groups:
        try:
            with covered.replaced_errors(file):
                (group,) = file.groups([column], [number])
        except ShardReplaced:
            continue
        vectors, has = vectors_of(group[column])
        sampled = rng.permutation(np.flatnonzero(has))[:per_group]
        samples.append(vectors[sampled].astype(np.float32))
        rows += len(sampled)
        if rows >= wanted:
            break
    if not samples:
        raise all_replaced(covered)
    return np.concatenate(samples)


def _group_numbers(covered: CoveredShards, file: EmbeddingFile) -> range:
    try:
        with covered.replaced_errors(file):
            return range(file.group_count())
    except ShardReplaced:
        return range(0)


def all_replaced(covered: CoveredShards) -> CollectionError:
    return CollectionError(
        display_name(covered.folder.url),
        expected="embedded rows",
        found="only shards that are embedded anew at this moment",
        do="run the same command again",
    )
