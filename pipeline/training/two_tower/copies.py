"""Copies of a picture under several keys (0001_0 ... 0001_4) as one pair with all their captions.

Apart they would train as pictures of one caption each, count as many, and be each other's
negatives. Pairs are merged in the order of the last copies, so that copies that are neighbours are
not kept for long; of others what is kept is in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import webdataset

from chiasm.pipeline.storage import Folder
from chiasm.pipeline.training.two_tower.features import MAX_CAPTIONS
from chiasm.pipeline.training.two_tower.stream import Pair, merge_copies, pack, stream

FORMAT = "one pair a picture 1"


def one_pair_a_picture(paths: Sequence[Path]) -> list[Path]:
    """Feature shards -> those, where no picture is twice in them; else as many beside them, written
    once, with one pair a picture: its copies' captions, each text once and MAX_CAPTIONS at most."""
    left = Counter(pair.picture for pair in stream(paths))
    if left.total() == len(left):
        return list(paths)
    names = json.dumps([FORMAT, MAX_CAPTIONS, *(path.name for path in paths)])
    digest = hashlib.blake2b(names.encode(), digest_size=6).hexdigest()
    merged = [path.with_name(f"{path.stem}-one-{digest}.tar") for path in paths]
    if not all(path.exists() for path in merged):
        copies: dict[int, list[Pair]] = {}
        for path, to in zip(paths, merged, strict=True):
            _write(to, _merged(path, left, copies))
    return merged


def _merged(path: Path, left: Counter[int], copies: dict[int, list[Pair]]) -> Iterator[Pair]:
    """Pairs of pictures whose last copy is in this shard. left, copies: how many copies of each
    picture are to come, and those that came; both are kept up to date."""
    for pair in stream([path]):
        number = pair.picture
        left[number] -= 1
        known = copies.pop(number, [])
        if known or left[number]:
            (pair,) = merge_copies([*known, pair])
            pair = _distinct(pair)
        if left[number]:
            copies[number] = [pair]
        else:
            yield pair


def _distinct(pair: Pair) -> Pair:
    """Each text once, by its tokens, and MAX_CAPTIONS at most."""
    first = {tuple(ids): row for row, ids in reversed(list(enumerate(pair.ids)))}
    kept = sorted(first.values())[:MAX_CAPTIONS]
    rows = torch.tensor(kept)
    return replace(
        pair,
        text=pair.text[rows],
        words=pair.words[rows],
        lengths=pair.lengths[rows],
        ids=[pair.ids[row] for row in kept],
    )


def _write(to: Path, pairs: Iterator[Pair]) -> None:
    partial = Folder(str(to.parent)).create(to.name, "")
    target: Any = partial  # a file to write, as TarWriter takes one
    with partial, webdataset.TarWriter(target) as writer:
        for number, pair in enumerate(pairs):
            writer.write({"__key__": f"{number:08d}", "safetensors": pack(pair)})
        writer.close()
        partial.commit()
