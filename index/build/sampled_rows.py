"""Some rows of all embeddings, of row groups drawn evenly over the shards."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from chiasm.index.build.covered import CoveredShards, ShardReplaced
from chiasm.pipeline.collection import EmbeddingFile
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import display_name

SAMPLE_GROUPS = 512  # row groups that rows are sampled from: varied, quick to read


def sampled_rows(
    covered: CoveredShards,
    column: str,
    wanted: int,
    columns: list[str],
    seed: int,
    preferred: Callable[[pa.Table], np.ndarray] = lambda rows: np.zeros(len(rows)),
) -> list[pa.Table]:
    """About `wanted` rows that have a vector in `column`, of row groups drawn from all shards.

    preferred: of a row group a number for each row, or a bool; those with greater ones are taken
    before others. The same files and seed give the same rows. About SAMPLE_GROUPS row groups are
    read, more where rows lack the column. CollectionError where every shard is embedded anew now.
    """
    groups = [
        (number, group)
        for number, file in enumerate(covered.files)
        for group in range(_group_count(covered, file))
    ]
    rng = np.random.default_rng(seed)
    rng.shuffle(groups)
    per_group = math.ceil(wanted / max(1, min(len(groups), SAMPLE_GROUPS)))
    samples: list[pa.Table] = []
    rows = 0
    while groups and rows < wanted:
        count = min(SAMPLE_GROUPS, math.ceil((wanted - rows) / per_group))
        drawn, groups = sorted(groups[:count]), groups[count:]  # so that a footer is parsed once
        for number, some in itertools.groupby(drawn, key=lambda one: one[0]):
            file = covered.files[number]
            for group in _read_groups(covered, file, columns, [one for _, one in some]):
                having = np.flatnonzero(group[column].combine_chunks().is_valid())
                having = rng.permutation(having)
                having = having[np.argsort(-np.float64(preferred(group)[having]), kind="stable")]
                samples.append(group.take(np.sort(having[:per_group])))
        rows = sum(map(len, samples))
    if not rows:
        raise all_replaced(covered)
    return samples


def _group_count(covered: CoveredShards, file: EmbeddingFile) -> int:
    try:
        with covered.replaced_errors(file):
            return file.group_count()
    except ShardReplaced:
        return 0


def _read_groups(
    covered: CoveredShards, file: EmbeddingFile, columns: list[str], numbers: list[int]
) -> Iterator[pa.Table]:
    """These row groups, as many as can be read before the file is replaced."""
    groups = file.groups(columns, numbers)
    while True:
        try:
            with covered.replaced_errors(file):
                group = next(groups, None)
        except ShardReplaced:
            return
        if group is None:
            return
        yield group


def all_replaced(covered: CoveredShards) -> CollectionError:
    return CollectionError(
        display_name(covered.folder.url),
        expected="embedded rows",
        found="only shards that are embedded anew at this moment",
        do="run the same command again",
    )
