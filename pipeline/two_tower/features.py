"""Features of shards, computed once: pairs in, WebDataset shards of tensors out, streamed back.

One shard of pairs gives one shard of features, whose name tells of everything that decides what is
in it; it is renamed into place when it is whole, so that what was killed goes on with the next. A
sample is one safetensors member: float16, but for counts. The order of a stream is that of its
seed: shards are shuffled, and samples in a buffer, so memory is bounded whatever there is to learn.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from safetensors.torch import load, save
from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.batches import BatchSettings, batches
from pipeline.errors import UsageError
from pipeline.images import DecodeSettings
from pipeline.ledger import Stopwatch, Tally
from pipeline.records import Batch, Shard
from pipeline.samples import ReadSettings, read_samples
from pipeline.two_tower.frozen import WORDS, ImageTower, TextTower

BUFFER = 2048  # samples of a shuffled stream that wait in memory, 0.1 MB each
MOST_CAPTIONS = 16  # of one picture
FORMAT = "features 1"
HELD_OUT = 10  # one sample in so many is kept from learning while choices are made


@dataclass(frozen=True)
class Pair:
    """One picture and its C captions, as the frozen towers see them.

    image (D,), patches (N, D'), text (C, D), words (C, T, D') all float16; lengths (C,) int64, the
    words of each caption that are there; ids: token ids of each whole caption; held_out: kept for
    choosing.
    """

    image: Tensor
    patches: Tensor
    text: Tensor
    words: Tensor
    lengths: Tensor
    ids: list[list[int]]
    held_out: bool


@dataclass(frozen=True)
class Computed:
    """Feature shards in the order of what they were made of, and how it went."""

    paths: list[Path]
    pairs: int
    lost: int


def compute(
    shards: Sequence[Shard],
    image: ImageTower,
    text: TextTower,
    folder: Path,
    read: ReadSettings,
    told: Callable[[str], None],
) -> Computed:
    """Features of every sample with picture and caption, each shard once. Samples without either,
    and pictures that cannot be decoded, are counted as lost. UsageError where no pair is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    computed = [_shard(shard, image, text, folder, read, told) for shard in shards]
    paths = [path for path, _ in computed]
    pairs = sum(account["pairs"] for _, account in computed)
    if not pairs:
        raise UsageError(
            "SHARDS", expected="samples with a picture and a caption", found="none in all of them"
        )
    return Computed(paths, pairs, sum(account["lost"] for _, account in computed))


def _shard(
    shard: Shard,
    image: ImageTower,
    text: TextTower,
    folder: Path,
    read: ReadSettings,
    told: Callable[[str], None],
) -> tuple[Path, dict[str, int]]:
    """The feature shard of one shard, and its account: pairs, lost."""
    name = f"{shard.id}-{_digest(shard, image, text, read)}"
    path, account_path = folder / f"{name}.tar", folder / f"{name}.json"
    if path.exists() and account_path.exists():
        return path, json.loads(account_path.read_text())
    tally, pairs = Tally(), 0
    partial = folder / f".{name}.{os.getpid()}.tmp"
    with webdataset.TarWriter(str(partial)) as writer:
        samples = read_samples(shard, read)
        for batch in batches(
            samples, image.preprocess, image.side, BatchSettings(), DecodeSettings(), tally,
            Stopwatch(),
        ):  # fmt: skip
            tally.keep(len(batch))
            for member in _members(batch, image, text):
                writer.write({"__key__": f"{pairs:08d}", "safetensors": member})
                pairs += 1
    account = {"pairs": pairs, "lost": tally.rows + len(tally.dropped) - pairs}
    os.replace(partial, path)
    account_path.write_text(json.dumps(account))
    told(f"{shard.id}: features of {pairs:,} pairs")
    return path, account


def _members(batch: Batch, image: ImageTower, text: TextTower) -> Iterator[bytes]:
    """The samples of a batch that have both, each as the bytes of a safetensors file."""
    rows = [row for row in batch.rows if row.pixels is not None and row.sample.captions]
    if not rows:
        return
    pictures = image([row.pixels for row in rows if row.pixels is not None])
    captions = [row.sample.captions[:MOST_CAPTIONS] for row in rows]
    texts = text([caption for each in captions for caption in each])
    at = 0
    for i, (row, mine) in enumerate(zip(rows, captions, strict=True)):
        span = slice(at, at + len(mine))
        ids = texts.ids[span]
        lengths = texts.mask[span].sum(1).cpu()
        yield save(
            {
                "image": pictures.pooled[i].half().cpu().contiguous(),
                "patches": pictures.tokens[i].half().cpu().contiguous(),
                "text": texts.pooled[span].half().cpu().contiguous(),
                "words": texts.tokens[span, : int(lengths.max())].half().cpu().contiguous(),
                "lengths": lengths.contiguous(),
                "ids": torch.tensor([i for each in ids for i in each], dtype=torch.int32),
                "counts": torch.tensor([len(each) for each in ids], dtype=torch.int32),
                "held_out": torch.tensor(held_out(row.sample.key)),
            }
        )
        at += len(mine)


def held_out(key: str) -> bool:
    """Is the sample of this key kept from learning while choices are made? By its name alone."""
    return hashlib.blake2b(key.encode(), digest_size=2).digest()[0] % HELD_OUT == 0


def _digest(shard: Shard, image: ImageTower, text: TextTower, read: ReadSettings) -> str:
    told = {
        "format": FORMAT, "size": shard.size, "version": shard.version,
        "image": image.fingerprint, "text": text.fingerprint, "read": asdict(read),
    }  # fmt: skip
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=6).hexdigest()


def _sweep(folder: Path) -> None:
    """Remove what killed runs left; another run's file in progress bears its living process."""
    for path in folder.glob(".*.tmp"):
        pid = path.name.split(".")[-2]
        if not pid.isdecimal() or not Path(f"/proc/{pid}").exists():
            with suppress(FileNotFoundError):
                path.unlink()


def stream(paths: Sequence[Path], seed: int | None = None) -> Iterator[Pair]:
    """Every pair once: in order, or, with a seed, shuffled by it."""
    order = list(paths)
    if seed is not None:
        random.Random(seed).shuffle(order)
    samples = group_by_keys(tar_file_expander(_opened(order)))
    if seed is not None:
        mixed = webdataset.shuffle(BUFFER, initial=BUFFER, rng=random.Random(seed))
        samples = mixed(samples)
    for sample in samples:
        yield _pair(sample["safetensors"])


def _opened(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Files as webdataset takes them; its own opener leaves them open."""
    for path in paths:
        with path.open("rb") as stream:
            yield {"url": str(path), "stream": stream}


def endless(paths: Sequence[Path], seed: int) -> Iterator[Pair]:
    """One shuffled pass after another, for ever."""
    epoch = 0
    while True:
        yield from stream(paths, seed * 1_000_003 + epoch)
        epoch += 1


def _pair(member: bytes) -> Pair:
    told = load(member)
    ends = np.cumsum(told["counts"].numpy())
    ids = told["ids"].tolist()
    return Pair(
        image=told["image"],
        patches=told["patches"],
        text=told["text"],
        words=told["words"],
        lengths=told["lengths"],
        ids=[ids[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)],
        held_out=bool(told["held_out"]),
    )


def images_of(pairs: Sequence[Pair]) -> Tensor:
    """Pooled image features (B, D) float32."""
    return torch.stack([pair.image for pair in pairs]).float()


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
