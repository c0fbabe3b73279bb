"""Features of shards, computed once: pairs in, WebDataset shards of tensors out, streamed back.

One shard of pairs gives one shard of features, whose name tells of everything that decides what is
in it; it is renamed into place when it is whole, so that what was killed goes on with the next. A
sample is one safetensors member: float16, but for counts. The order of a stream is that of its
seed: shards are shuffled, and samples in a buffer, so memory is bounded whatever there is to learn.
Captions that were expanded lie in a folder of their own, a file of tensors for each shard.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import webdataset
from PIL import Image

from chiasm.pipeline.batches import BatchSettings, batches
from chiasm.pipeline.collection import Tally
from chiasm.pipeline.encoders import BaseEncoder, Input
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.model.checkpoint import write_whole
from chiasm.pipeline.records import IMAGE, TEXT, Batch, Shard
from chiasm.pipeline.shards import DAMAGES, ReadSettings, read_samples
from chiasm.pipeline.training.two_tower.stream import Pair, held_out, packed, part
from chiasm.pipeline.two_tower.frozen import ImageTower, TextTower

MOST_CAPTIONS = 16  # of one picture
FORMAT = "features 3"


@dataclass(frozen=True)
class Computed:
    """Feature shards in the order of what they were made of, and how it went. lost: samples by
    reason; damaged: shards that are cut or damaged, of which only what came before is there."""

    paths: list[Path]
    pairs: int
    lost: dict[str, int]
    damaged: list[str]


class TowerInputs:
    """What `batches` asks of a model, for an image tower and any text tower."""

    cost = BaseEncoder.cost

    def __init__(self, image: ImageTower) -> None:
        self._image = image
        self.name = image.folder.name
        self.modalities = {IMAGE: Input(side=image.side), TEXT: Input()}

    def preprocess(self, modality: str, raw: Any) -> Any:
        return raw if modality == TEXT else self._image.preprocess(Image.fromarray(raw))


def compute(
    shards: Sequence[Shard],
    image: ImageTower,
    text: TextTower,
    folder: Path,
    read: ReadSettings,
    told: Callable[[str], None],
) -> Computed:
    """Features of every sample with picture and caption, each shard once. Samples that lack either,
    and pictures that cannot be decoded, are counted as lost. UsageError where no pair is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    computed = [_shard(shard, image, text, folder, read, told) for shard in shards]
    pairs, lost = sum(account["pairs"] for _, account in computed), Counter[str]()
    for _, account in computed:
        lost.update(account["lost"])
    damaged = [
        shard.id for shard, (_, each) in zip(shards, computed, strict=True) if each["damaged"]
    ]
    if not pairs:
        raise UsageError(
            "SHARDS", expected="samples with a picture and a caption", found="none in all of them"
        )
    return Computed([path for path, _ in computed], pairs, dict(lost.most_common()), damaged)


def _shard(
    shard: Shard,
    image: ImageTower,
    text: TextTower,
    folder: Path,
    read: ReadSettings,
    told: Callable[[str], None],
) -> tuple[Path, dict[str, Any]]:
    """The feature shard of one shard, and its account: pairs, lost, damaged."""
    name = f"{shard.id}-{_digest(shard, image, text, read)}"
    path, account_path = folder / f"{name}.tar", folder / f"{name}.json"
    if path.exists() and account_path.exists():
        return path, json.loads(account_path.read_text())
    tally, pairs = Tally(), 0
    partial = folder / f".{name}.{os.getpid()}.tmp"
    with webdataset.TarWriter(str(partial)) as writer:
        samples = read_samples(shard, read)
        inputs = TowerInputs(image)
        for batch in batches(samples, inputs, DecodeSettings(), BatchSettings(), tally=tally):
            tally.keep(len(batch))
            for member in _members(batch, image, text):
                writer.write({"__key__": f"{pairs:08d}", "safetensors": member})
                pairs += 1
    lost = Counter(each.reason for each in tally.dropped)
    lost += Counter({"no_pair": tally.rows - pairs})
    damaged = any(each.stage == "read" and each.reason in DAMAGES for each in tally.dropped)
    account = {"pairs": pairs, "lost": lost, "damaged": damaged}
    os.replace(partial, path)
    write_whole(account_path, json.dumps(account).encode())
    told(f"{shard.id}: features of {pairs:,} pairs, {lost.total():,} samples lost")
    return path, account


def _members(batch: Batch, image: ImageTower, text: TextTower) -> Iterator[bytes]:
    """The samples of a batch that have both, each as the bytes of a safetensors file."""
    rows = [row for row in batch.rows if IMAGE in row.inputs and row.captions]
    if not rows:
        return
    pixels = [row.inputs[IMAGE] for row in rows]
    pictures = image(pixels)
    held = [i for i, row in enumerate(rows) if held_out(row.key)]
    close = image.closely([pixels[i] for i in held], pictures.pooled[held])
    closely = dict(zip(held, close, strict=True))
    captions = [row.captions[:MOST_CAPTIONS] for row in rows]
    texts = text([caption for each in captions for caption in each])
    at = 0
    for i, (row, mine) in enumerate(zip(rows, captions, strict=True)):
        span = slice(at, at + len(mine))
        ids = texts.ids[span]
        lengths = texts.mask[span].sum(1).cpu()
        yield packed(
            Pair(
                image=pictures.pooled[i],
                patches=pictures.tokens[i],
                text=texts.pooled[span],
                words=texts.tokens[span, : int(lengths.max())],
                lengths=lengths,
                ids=ids,
                part=part(row.key),
                closely=closely.get(i),
            )
        )
        at += len(mine)


def _digest(shard: Shard, image: ImageTower, text: TextTower, read: ReadSettings) -> str:
    told = {
        "format": FORMAT, "size": shard.size, "version": shard.version,
        "image": [image.fingerprint, image.precision], "text": [text.fingerprint, text.precision],
        "read": asdict(read),
    }  # fmt: skip
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=6).hexdigest()


def sweep(folder: Path) -> None:
    """Remove what killed runs left; another run's file in progress bears its living process."""
    for path in folder.glob(".*.tmp"):
        pid = path.name.split(".")[-2]
        if not pid.isdecimal() or not Path(f"/proc/{pid}").exists():
            with suppress(FileNotFoundError):
                path.unlink()
