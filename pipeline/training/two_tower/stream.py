"""Computed features as a stream of pairs: shuffled, in blocks, with or without what is held out."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from safetensors.torch import load, load_file, save
from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_expander

from chiasm.pipeline.model.checkpoint import write_whole
from chiasm.pipeline.two_tower.frozen import WORDS

BUFFER = 2048  # samples of a shuffled stream that wait in memory, 0.1 MB each


HELD_OUT = 10  # one sample in so many is kept from learning while choices are made


PARTS = 4  # of the samples, by their names: what is solved without one is tried on it


PAIRS = 512  # of a block


@dataclass(frozen=True)
class Pair:
    """One picture and its C captions, as the frozen towers see them.

    image (D,), patches (N, D'), text (C, D), words (C, T, D') float16, text as the tower gave it or
    expanded; closely (D,) float16: image as `ImageTower.closely` has it, of samples held out alone;
    lengths (C,) int64, the words of each caption that are there; ids: token ids of each whole
    caption; part: in [0, PARTS); held_out: kept for choosing.
    """

    image: Tensor
    patches: Tensor
    text: Tensor
    words: Tensor
    lengths: Tensor
    ids: list[list[int]]
    part: int
    closely: Tensor | None

    @property
    def held_out(self) -> bool:
        return self.closely is not None


def held_out(key: str) -> bool:
    """Is the sample of this key kept from learning while choices are made? By its name alone."""
    return _chance(key)[0] % HELD_OUT == 0


def part(key: str) -> int:
    """Which of the PARTS the sample of this key is of, by its name alone."""
    return _chance(key)[1] % PARTS


def _chance(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=2).digest()


def stream(
    paths: Sequence[Path], seed: int | None = None, expanded: Path | None = None
) -> Iterator[Pair]:
    """Every pair once: in order, or, with a seed, shuffled by it. expanded: the folder of
    `save_expanded`, whose captions take the place of the tower's."""
    order = list(paths)
    if seed is not None:
        random.Random(seed).shuffle(order)
    samples = _samples(order, expanded)
    if seed is not None:
        mixed = webdataset.shuffle(BUFFER, initial=BUFFER, rng=random.Random(seed))
        samples = mixed(samples)
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
    folder.mkdir(parents=True, exist_ok=True)
    counts = torch.tensor([len(text) for text in texts], dtype=torch.int64)
    rows = torch.cat(list(texts)) if texts else torch.zeros(0, 0)  # a shard may be without a pair
    kept = {"text": rows.half().cpu().contiguous(), "counts": counts}
    write_whole(folder / f"{path.stem}.safetensors", save(kept))


def _opened(path: Path) -> Iterator[dict[str, Any]]:
    """A file as webdataset takes it; its own opener leaves it open."""
    with path.open("rb") as stream:
        yield {"url": str(path), "stream": stream}


def endless(paths: Sequence[Path], seed: int, expanded: Path) -> Iterator[Pair]:
    """One shuffled pass after another, for ever."""
    epoch = 0
    while True:
        yield from stream(paths, seed * 1_000_003 + epoch, expanded)
        epoch += 1


def blocks(pairs: Iterator[Pair], size: int = PAIRS) -> Iterator[list[Pair]]:
    """The stream, `size` pairs at a time."""
    while block := list(islice(pairs, size)):
        yield block


def learnable(pairs: Iterator[Pair], every_sample: bool) -> Iterator[Pair]:
    """Those to learn from: all, or all but those held out."""
    return (pair for pair in pairs if every_sample or not pair.held_out)


def packed(pair: Pair) -> bytes:
    """A pair as a member of a feature shard."""
    numbers = {
        "image": pair.image, "patches": pair.patches, "text": pair.text, "words": pair.words,
        **({} if pair.closely is None else {"closely": pair.closely}),
    }  # fmt: skip
    counts = {
        "lengths": pair.lengths.contiguous(),
        "ids": torch.tensor([i for ids in pair.ids for i in ids], dtype=torch.int32),
        "counts": torch.tensor([len(ids) for ids in pair.ids], dtype=torch.int32),
        "part": torch.tensor(pair.part),
    }
    return save({k: v.half().cpu().contiguous() for k, v in numbers.items()} | counts)


def _pair(member: bytes, expanded: Tensor | None) -> Pair:
    told = load(member)
    ends = np.cumsum(told["counts"].numpy())
    ids = told["ids"].tolist()
    return Pair(
        image=told["image"],
        patches=told["patches"],
        text=told["text"] if expanded is None else expanded,
        words=told["words"],
        lengths=told["lengths"],
        ids=[ids[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)],
        part=int(told["part"]),
        closely=told.get("closely"),
    )


def images_of(pairs: Sequence[Pair]) -> Tensor:
    """Pooled image features (B, D) float32."""
    return torch.stack([pair.image for pair in pairs]).float()


def texts_of(pairs: Sequence[Pair]) -> Tensor:
    """Captions (sum of C, D) float32, pair by pair."""
    return torch.cat([pair.text for pair in pairs]).float()


def ids_of(pairs: Sequence[Pair]) -> list[list[int]]:
    """Token ids of the captions, in the order of `texts_of`."""
    return [ids for pair in pairs for ids in pair.ids]


def meaned(rows: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """Rows (sum of C, E), one a caption -> their mean for each pair (B, E)."""
    counts = torch.tensor([len(pair.text) for pair in pairs], device=rows.device)
    of = torch.arange(len(pairs), device=rows.device).repeat_interleave(counts)
    sums = torch.zeros(len(pairs), rows.shape[1], device=rows.device, dtype=rows.dtype)
    return sums.index_add(0, of, rows) / counts[:, None]


def closely_of(pairs: Sequence[Pair]) -> Tensor:
    """Pooled image features (B, D) float32 as matching takes them; ValueError where a pair is not
    held out: those to learn from are not looked at closely."""
    closely = [pair.closely for pair in pairs if pair.closely is not None]
    if len(closely) < len(pairs):
        raise ValueError(f"pairs held out: expected {len(pairs)}, found {len(closely)}")
    return torch.stack(closely).float()


def patches_of(pairs: Sequence[Pair]) -> Tensor:
    """Picture tokens (B, N, D') float32."""
    return torch.stack([pair.patches for pair in pairs]).float()


def words_of(pairs: Sequence[Pair], captions: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Words (B, T, D') float32 of caption `captions[i]` of pair i, and their mask (B, T) bool."""
    chosen = list(zip(pairs, captions, strict=True))
    lengths = torch.stack([pair.lengths[c] for pair, c in chosen]).clamp(max=WORDS)
    longest = max(1, int(lengths.max()))
    words = torch.zeros(len(pairs), longest, pairs[0].words.shape[-1])
    for row, (pair, c) in enumerate(chosen):
        there = int(lengths[row])
        words[row, :there] = pair.words[c, :there].float()
    return words, torch.arange(longest)[None] < lengths[:, None]
