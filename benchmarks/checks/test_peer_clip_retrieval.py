"""What is counted of clip-retrieval, and how a model is respelled for it; nothing is installed."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.peer_clip_retrieval import counted, moved, run
from chiasm.pipeline.errors import ChiasmError, SourceError, UsageError


def test_finished_partitions_are_summed_and_those_at_work_are_not(tmp_path):
    for name, pairs in ("0", 100), ("1", 28), ("wip_1", 5):
        record = {"sample_count": pairs, "total_duration": pairs / 8, "start_time": 1e9}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    assert counted(tmp_path) == (128, 16.0)


def test_statistics_of_no_pairs_are_an_error(tmp_path):
    (tmp_path / "0.json").write_text("{}")
    with pytest.raises(
        ChiasmError, match="found 1 files, 0 pairs; see whether the shards have jpg"
    ):
        counted(tmp_path)


def test_a_pieces_row_moves_to_its_number_and_unknown_pieces_are_zeros():
    table = torch.arange(6.0).reshape(3, 2)
    own = {"boat</w>": 0, "of our own": 1, "<|endoftext|>": 2}
    theirs = {"!": 0, "<|endoftext|>": 1, "!!": 2, "boat</w>": 3}
    found = moved(table, own, theirs)
    assert found.tolist() == [[0, 0], [4, 5], [0, 0], [0, 1]]
    assert torch.equal(moved(table, own, own), table)


def test_arguments_are_refused_before_anything_is_built(tmp_path):
    shard = tmp_path / "00000.tar"
    shard.touch()
    with pytest.raises(UsageError, match="expected an empty folder, found files"):
        run([shard], tmp_path, tmp_path, cores=1)
    with pytest.raises(UsageError, match="cores: expected 1 or more, found 0"):
        run([shard], tmp_path, tmp_path / "out", cores=0)
    with pytest.raises(UsageError, match="shards: expected 1 or more, found 0"):
        run([], tmp_path, tmp_path / "out", cores=1)
    with pytest.raises(SourceError, match=r"gone\.tar: expected a local tar, found no such file"):
        run([tmp_path / "gone.tar"], tmp_path, tmp_path / "out", cores=1)
    assert list(tmp_path.iterdir()) == [shard]
