"""Features of photographs and their captions by two frozen towers, computed once, by shard.

A shard gives one safetensors file: pooled features of N pictures and the mean over test-time
augmentation (N, D), of their captions (C, D'), float16; token ids of the captions; the first four
bytes of each picture's sha256; the captions themselves. A file that is there is not made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.model.checkpoint import write_file
from chiasm.pipeline.records import Sample, Shard
from chiasm.pipeline.shards import ReadSettings, read_samples
from chiasm.pipeline.two_tower.frozen_towers import ImageTower, TextTower

BLOCK = 64  # pictures of one call of a tower


@dataclass(frozen=True)
class Photo:
    """image, augmented (D,) and text (C, D') float16; ids and captions: of each caption."""

    digest: int
    image: Tensor
    augmented: Tensor
    text: Tensor
    ids: list[list[int]]
    captions: list[str]


def compute(shards: Sequence[Shard], image: ImageTower, text: TextTower, folder: Path) -> None:
    """Write the file of every shard that has none yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        path = folder / f"{shard.id}.safetensors"
        if not path.exists():
            write_file(path, _of_shard(shard, image, text))
            print(f"{path.name}: computed", flush=True)


def photos(shards: Sequence[Shard], folder: Path) -> Iterator[Photo]:
    """What `compute` wrote, in order."""
    for shard in shards:
        made = load_file(folder / f"{shard.id}.safetensors")
        captions = json.loads(bytes(made["captions"].tolist()))
        text = made["text"].split([len(own) for own in captions])
        ids = iter(made["ids"].split(made["lengths"].tolist()))
        for row, own in enumerate(captions):
            yield Photo(
                int(made["digest"][row]),
                made["image"][row],
                made["augmented"][row],
                text[row],
                [next(ids).tolist() for _ in own],
                own,
            )


def _of_shard(shard: Shard, image: ImageTower, text: TextTower) -> bytes:
    samples = [
        sample
        for sample in read_samples(shard, ReadSettings(caption_field="captions"))
        if isinstance(sample, Sample) and sample.picture and sample.captions
    ]
    pooled, augmented, texts, ids = [], [], [], []
    for at in range(0, len(samples), BLOCK):
        some = samples[at : at + BLOCK]
        pixels = [
            image.preprocess(decode(sample.picture, DecodeSettings(), image.side).image)
            for sample in some
            if sample.picture
        ]
        pooled.append(image(pixels).pooled)
        augmented.append(image.augmented(pixels, pooled[-1]))
        encoded = text([caption for sample in some for caption in sample.captions])
        texts.append(encoded.pooled)
        ids += encoded.ids
    digests = [int.from_bytes(hashlib.sha256(s.picture).digest()[:4]) for s in samples if s.picture]
    captions = json.dumps([list(sample.captions) for sample in samples]).encode()
    return save(
        {
            "image": torch.cat(pooled).half(),
            "augmented": torch.cat(augmented).half(),
            "text": torch.cat(texts).half(),
            "digest": torch.tensor(digests, dtype=torch.int64),
            "ids": torch.tensor([i for own in ids for i in own], dtype=torch.int64),
            "lengths": torch.tensor([len(own) for own in ids]),
            "captions": torch.frombuffer(bytearray(captions), dtype=torch.uint8),
        }
    )
