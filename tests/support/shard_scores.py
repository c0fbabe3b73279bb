"""Shards scored and filtered, by captions that say how true they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fake_encoder import FakeEncoder
from tars import read_tar

from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.caption_filter import (
    Filtered,
    FilterSettings,
    Scored,
    read_scores,
    store_scores,
    write_filtered,
)
from chiasm.pipeline.encoders import Matcher
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards import ReadSettings
from chiasm.pipeline.storage import Folder


def score_shard(
    shard: Shard,
    encoder: Matcher,
    read: ReadSettings,
    folder: Folder,
    run_id: str,
    *,
    decode: DecodeSettings | None = None,
    batch: BatchSettings | None = None,
) -> list[Scored]:
    """Scores of every sample with picture and caption: worked out and written to the folder, or
    read from there where this shard was scored so before."""
    store_scores(shard, encoder, read, folder, run_id, batch=batch, decode=decode)
    return list(read_scores(shard, folder))


class Judge(FakeEncoder):
    """Log odds by what a caption says of itself: "odds 1.5"."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs_scored, self.most_pairs = 0, 0

    def match(self, a, b, pairs) -> np.ndarray:
        (_, texts) = b
        self.pairs_scored += len(pairs)
        self.most_pairs = max(self.most_pairs, len(pairs))
        return np.array([odds(texts[j]) for _, j in pairs], np.float32)


def odds(caption: str) -> float:
    return float(caption.split()[-1])


def filter_by_judge(
    shard: Shard, folder: Path, caption_field: str = "captions", **options: Any
) -> tuple[dict[str, dict[str, bytes]], Filtered]:
    """What a shard has left, as `read_tar` gives it, and the counts. options: of FilterSettings."""
    settings = FilterSettings(read=ReadSettings(caption_field=caption_field), **options)
    to = Folder(str(folder))
    scores = score_shard(shard, Judge(), settings.read, to, "run")
    counts = write_filtered(shard, scores, settings, to, "run")
    return read_tar(folder / f"{shard.id}.tar"), counts
