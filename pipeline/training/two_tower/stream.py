"""Computed features as a stream of pairs: shuffled, in blocks, with or without what is held out."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from safetensors.torch import load, load_file, save
from torch import Tensor
from torch.nn import functional
from webdataset.tariterators import group_by_keys, tar_file_expander

from chiasm.pipeline.model.checkpoint import write_file
from chiasm.pipeline.two_tower.frozen_towers import MAX_TOKENS

BUFFER = 2048  # samples of the shuffle buffer, 0.1 MB each
PAIRS = 512  # of a block


@dataclass(frozen=True)
class Pair:
    """One picture and its C captions, as the frozen towers see them.

    image (D,), patches (N, D'), text (C, D), words (C, T, D') float16, text as the tower gave it or
    expanded, N = T = 0 where no fusion is trained; augmented (D,) float16: `ImageTower.augmented`,
    of held-out samples only; lengths (C,) int64, unmasked words of each caption; ids: token ids of
    each whole caption; picture: its number, that of its copies too; fold: below FOLDS.
    """

    image: Tensor
    patches: Tensor
    text: Tensor
    words: Tensor
    lengths: Tensor
    ids: list[list[int]]
    picture: int
    fold: int
    augmented: Tensor | None

    @property
    def held_out(self) -> bool:
        return self.augmented is not None


def stream(
    paths: Sequence[Path], seed: int | None = None, expanded: Path | None = None
) -> Iterator[Pair]:
    """Every pair once: in order, or, with a seed, shuffled by it. expanded: the folder of
    `save_expanded`, whose captions replace the tower's."""
    order = list(paths)
    if seed is not None:
        random.Random(seed).shuffle(order)
    samples = _samples(order, expanded)
    if seed is not None:
        shuffle = webdataset.shuffle(BUFFER, initial=BUFFER, rng=random.Random(seed))
        samples = shuffle(samples)
    for sample in samples:
        yield _pair(sample["safetensors"], sample.get("text"))


def _samples(paths: Sequence[Path], expanded: Path | None) -> Iterator[dict[str, Any]]:
    """Samples as webdataset groups them, each with its expanded captions if there are any."""
    for path in paths:
        samples = group_by_keys(tar_file_expander(_opened(path)))
        if expanded is None:
            yield from samples
            continue
        kept = load_file(expanded / f"{path.stem}.safetensors")
        texts = kept["text"].split(kept["counts"].tolist())
        for sample, text in zip(samples, texts, strict=True):
            yield sample | {"text": text}


def save_expanded(folder: Path, path: Path, texts: Sequence[Tensor]) -> None:
    """Keep the expanded captions of a feature shard: (C, D) of each of its pairs, in order."""
    counts = torch.tensor([len(text) for text in texts], dtype=torch.int64)
    rows = torch.cat(list(texts)) if texts else torch.zeros(0, 0)  # a shard may be without a pair
    kept = {"text": rows.half().cpu().contiguous(), "counts": counts}
    write_file(folder / f"{path.stem}.safetensors", save(kept))


def _opened(path: Path) -> Iterator[dict[str, Any]]:
    """A file as webdataset's stages take it; its own opener leaves the file open."""
    with path.open("rb") as stream:
        yield {"url": str(path), "stream": stream}


def endless(paths: Sequence[Path], seed: int, expanded: Path) -> Iterator[Pair]:
    """Shuffled epochs without end."""
    epoch = 0
    while True:
        yield from stream(paths, seed * 1_000_003 + epoch, expanded)
        epoch += 1


def blocks(pairs: Iterator[Pair], size: int = PAIRS) -> Iterator[list[Pair]]:
    """The stream, `size` pairs at a time."""
    while block := list(islice(pairs, size)):
        yield block


def learnable(pairs: Iterator[Pair], every_sample: bool) -> Iterator[Pair]:
    """Those to train on: all, or all but those held out."""
    return (pair for pair in pairs if every_sample or not pair.held_out)


def pack(pair: Pair) -> bytes:
    """A pair as a member of a feature shard."""
    numbers = {
        "image": pair.image, "patches": pair.patches, "text": pair.text, "words": pair.words,
        **({} if pair.augmented is None else {"closely": pair.augmented}),
    }  # fmt: skip
    counts = {
        "lengths": pair.lengths.contiguous(),
        "ids": torch.tensor([i for ids in pair.ids for i in ids], dtype=torch.int32),
        "counts": torch.tensor([len(ids) for ids in pair.ids], dtype=torch.int32),
        "part": torch.tensor(pair.fold),
        "picture": torch.tensor(pair.picture),
    }
    return save({k: v.half().cpu().contiguous() for k, v in numbers.items()} | counts)


def _pair(member: bytes, expanded: Tensor | None) -> Pair:
    tensors = load(member)
    ends = np.cumsum(tensors["counts"].numpy())
    ids = tensors["ids"].tolist()
    return Pair(
        image=tensors["image"],
        patches=tensors["patches"],
        text=tensors["text"] if expanded is None else expanded,
        words=tensors["words"],
        lengths=tensors["lengths"],
        ids=[ids[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)],
        picture=int(tensors["picture"]),
        fold=int(tensors["part"]),
        augmented=tensors.get("closely"),
    )


def merge_copies(pairs: Iterable[Pair]) -> list[Pair]:
    """Pairs of one picture as one, with the captions of all of them."""
    groups: dict[int, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.picture, []).append(pair)
    return [_merged(group) if len(group) > 1 else group[0] for group in groups.values()]


def _merged(copies: list[Pair]) -> Pair:
    longest = max(pair.words.shape[1] for pair in copies)
    words = [
        functional.pad(pair.words, (0, 0, 0, longest - pair.words.shape[1])) for pair in copies
    ]
    return replace(
        copies[0],
        text=torch.cat([pair.text for pair in copies]),
        words=torch.cat(words),
        lengths=torch.cat([pair.lengths for pair in copies]),
        ids=ids_of(copies),
    )


def same_picture(pairs: Sequence[Pair]) -> Tensor:
    """(B, B) bool: is the picture of pair i that of pair j?"""
    numbers = torch.tensor([pair.picture for pair in pairs])
    return numbers[:, None] == numbers


def images_of(pairs: Sequence[Pair]) -> Tensor:
    """Pooled image features (B, D) float32."""
    return torch.stack([pair.image for pair in pairs]).float()


def texts_of(pairs: Sequence[Pair]) -> Tensor:
    """Captions (sum of C, D) float32, pair by pair."""
    return torch.cat([pair.text for pair in pairs]).float()


def ids_of(pairs: Sequence[Pair]) -> list[list[int]]:
    """Token ids of the captions, in the order of `texts_of`."""
    return [ids for pair in pairs for ids in pair.ids]


def mean_by_picture(rows: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """Rows (sum of C, E), one a caption -> their mean for each pair (B, E)."""
    counts = torch.tensor([len(pair.text) for pair in pairs], device=rows.device)
    of = torch.arange(len(pairs), device=rows.device).repeat_interleave(counts)
    sums = torch.zeros(len(pairs), rows.shape[1], device=rows.device, dtype=rows.dtype)
    return sums.index_add(0, of, rows) / counts[:, None]


def augmented_of(pairs: Sequence[Pair]) -> Tensor:
    """Pooled image features (B, D) float32 after test-time augmentation, the input of matching;
    ValueError where a pair is not held out: the others have none."""
    found = [pair.augmented for pair in pairs if pair.augmented is not None]
    if len(found) < len(pairs):
        raise ValueError(f"pairs held out: expected {len(pairs)}, found {len(found)}")
    return torch.stack(found).float()


def patches_of(pairs: Sequence[Pair]) -> Tensor:
    """Picture tokens (B, N, D') float32."""
    return torch.stack([pair.patches for pair in pairs]).float()


def words_of(pairs: Sequence[Pair], captions: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Words (B, T, D') float32 of caption `captions[i]` of pair i, and their mask (B, T) bool."""
    selected = list(zip(pairs, captions, strict=True))
    lengths = torch.stack([pair.lengths[c] for pair, c in selected]).clamp(max=MAX_TOKENS)
    longest = max(1, int(lengths.max()))
    words = torch.zeros(len(pairs), longest, pairs[0].words.shape[-1])
    for row, (pair, c) in enumerate(selected):
        length = int(lengths[row])
        words[row, :length] = pair.words[c, :length].float()
    return words, torch.arange(longest)[None] < lengths[:, None]
