"""Features of shards, computed once: pairs in, WebDataset shards of tensors out.

One shard of pairs gives one shard of features. Its name has a digest of everything that decides its
content; it is renamed into place when it is whole, so that a killed run goes on with the next. A
sample is one safetensors member: float16, but for counts. `stream.py` reads them back.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import webdataset
from PIL import Image

from chiasm.pipeline.batches import BatchSettings, batches
from chiasm.pipeline.collection import Tally
from chiasm.pipeline.encoders import BaseEncoder, Fault, Input
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.model.checkpoint import write_file
from chiasm.pipeline.records import DAMAGES, IMAGE, TEXT, Batch, Dropped, Shard
from chiasm.pipeline.shards import RULES, ReadSettings, every_caption, read_samples
from chiasm.pipeline.storage import Folder, display_name, remove_abandoned
from chiasm.pipeline.training.log import Report
from chiasm.pipeline.training.two_tower.held_out import fold_of, held_out
from chiasm.pipeline.training.two_tower.stream import Pair, pack
from chiasm.pipeline.two_tower.frozen_towers import ImageTower, TextTower

MAX_CAPTIONS = 16  # of one picture
FORMAT = "features 4"


@dataclass(frozen=True)
class Computed:
    """Feature shards in the order of the shards that they were made of. pairs: pictures with
    captions; captions: of all of them; dropped: samples by reason; damaged: shards that are cut or
    damaged, of which only the part before that is there."""

    paths: list[Path]
    pairs: int
    captions: int
    dropped: dict[str, int]
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


@dataclass(frozen=True)
class FeatureSettings:
    """How samples are read, decoded and batched for the towers."""

    read: ReadSettings
    decode: DecodeSettings
    batch: BatchSettings


def compute(
    shards: Sequence[Shard],
    image: ImageTower,
    text: TextTower,
    folder: Path,
    read: ReadSettings,
    report: Report,
    *,
    decode: DecodeSettings | None = None,
    batch: BatchSettings | None = None,
) -> Computed:
    """Features of every sample with picture and caption, each shard once. Samples that lack either,
    and pictures that cannot be decoded, are counted as dropped. UsageError where no pair is left.
    """
    settings = FeatureSettings(read, decode or DecodeSettings(), batch or BatchSettings())
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    computed = [_shard(shard, image, text, folder, settings, report) for shard in shards]
    pairs, captions = (sum(item[name] for _, item in computed) for name in ("pairs", "captions"))
    dropped = Counter[str]()
    for _, entry in computed:
        dropped.update(entry["lost"])
    damaged = [
        shard.id for shard, (_, item) in zip(shards, computed, strict=True) if item["damaged"]
    ]
    if not pairs:
        raise UsageError(
            "SHARDS", expected="samples with a picture and a caption", found="none in all of them"
        )
    return Computed(
        [path for path, _ in computed], pairs, captions, dict(dropped.most_common()), damaged
    )


def _shard(
    shard: Shard,
    image: ImageTower,
    text: TextTower,
    folder: Path,
    settings: FeatureSettings,
    report: Report,
) -> tuple[Path, dict[str, Any]]:
    """The feature shard of one shard, and its counts: pairs, captions, dropped, damaged."""
    name = f"{shard.id}-{_digest(shard, image, text, settings)}"
    path, counts_path = folder / f"{name}.tar", folder / f"{name}.json"
    if path.exists() and counts_path.exists():
        return path, json.loads(counts_path.read_text())
    tally, pairs, captions = Tally(), 0, 0
    partial = Folder(str(folder)).create(path.name, "")
    target: Any = partial  # a file to write, as TarWriter takes one
    with partial, webdataset.TarWriter(target) as writer:
        samples = read_samples(shard, settings.read)
        inputs = TowerInputs(image)
        for batch in batches(samples, inputs, settings.decode, settings.batch, tally=tally):
            found, refused = _pairs_in_halves(batch, image, text, settings.read)
            if refused and len(refused) == len(batch) > 1 and not pairs:
                raise _takes_nothing(shard, image, text, refused[-1])
            tally.keep(len(batch) - len(refused))
            for drop in refused:
                tally.drop(drop)
            for pair in found:
                writer.write({"__key__": f"{pairs:08d}", "safetensors": pack(pair)})
                pairs, captions = pairs + 1, captions + len(pair.text)
        writer.close()
        partial.commit()
    dropped = tally.drop_counts
    dropped += Counter({"no_pair": tally.rows - pairs})
    damaged = any(item.stage == "read" and item.reason in DAMAGES for item in tally.dropped)
    counts = {"pairs": pairs, "captions": captions, "lost": dropped, "damaged": damaged}
    write_file(counts_path, json.dumps(counts).encode())
    report(
        {
            "message": f"{shard.id}: features of {_format_pictures(pairs)}, "
            f"{dropped.total():,} samples dropped"
        }
    )
    return path, counts


def format_captions(pairs: int, captions: int) -> str:
    """How many pictures, and how many captions each has on average."""
    item = f"{captions / pairs:.1f} captions each" if pairs else "no captions"
    return f"{_format_pictures(pairs)}, {item}"


def _format_pictures(pairs: int) -> str:
    return f"{pairs:,} {'picture' if pairs == 1 else 'pictures'}"


def _pairs_in_halves(
    batch: Batch, image: ImageTower, text: TextTower, read: ReadSettings
) -> tuple[list[Pair], list[Dropped]]:
    """The features of a batch, and the samples that a tower refuses or has NaN for: a batch with
    such a sample is halved until it is alone."""
    try:
        pairs = list(_pairs(batch, image, text, read))
        for pair in pairs:
            if not all(part.isfinite().all() for part in (pair.image, pair.text, pair.words)):
                raise Fault("not_finite", "features: NaN or infinity")
        return pairs, []
    except Exception as error:  # noqa: BLE001  models raise anything
        fault = Fault.of(error, "features")
    if len(batch) == 1:
        return [], [Dropped(batch.rows[0].key, "encode", fault.reason, fault.detail)]
    middle = len(batch) // 2
    halves = [
        _pairs_in_halves(Batch(rows), image, text, read)
        for rows in (batch.rows[:middle], batch.rows[middle:])
    ]
    return halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]


def _takes_nothing(shard: Shard, image: ImageTower, text: TextTower, last: Dropped) -> EncoderError:
    return EncoderError(
        f"towers {image.folder.name} and {text.folder.name}",
        expected=f"features of some samples of {display_name(shard.url)}",
        found=f"none of a whole batch, the last one {last.key}: {last.reason}: {last.detail}",
        do="take other towers, or try --set encoder.precision=float32",
    )


def _pairs(batch: Batch, image: ImageTower, text: TextTower, read: ReadSettings) -> Iterator[Pair]:
    """The features of those samples of a batch that have both picture and caption."""
    rows = [row for row in batch.rows if IMAGE in row.inputs and row.captions]
    if not rows:
        return
    pixels = [row.inputs[IMAGE] for row in rows]
    pictures = image(pixels)
    held_rows = [i for i, row in enumerate(rows) if held_out(row.key)]
    augmented = image.augmented([pixels[i] for i in held_rows], pictures.pooled[held_rows])
    augmented_of = dict(zip(held_rows, augmented, strict=True))
    captions = [every_caption(row, read.caption_field)[:MAX_CAPTIONS] for row in rows]
    texts = text([caption for item in captions for caption in item])
    at = 0
    for i, (row, own) in enumerate(zip(rows, captions, strict=True)):
        span = slice(at, at + len(own))
        lengths = texts.mask[span].sum(1).cpu()
        yield Pair(
            image=pictures.pooled[i],
            patches=pictures.tokens[i],
            text=texts.pooled[span],
            words=texts.tokens[span, : int(lengths.max())],
            lengths=lengths,
            ids=texts.ids[span],
            fold=fold_of(row.key),
            augmented=augmented_of.get(i),
        )
        at += len(own)


def _digest(shard: Shard, image: ImageTower, text: TextTower, settings: FeatureSettings) -> str:
    identity: dict[str, Any] = {
        "format": FORMAT, "size": shard.size, "version": shard.version,
        "image": [image.fingerprint, image.precision], "text": [text.fingerprint, text.precision],
        "read": asdict(settings.read), "rules": RULES,
    }  # fmt: skip
    # Features made before decoding could be set keep their names.
    if settings.decode != DecodeSettings():
        identity["decode"] = asdict(settings.decode)
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=6).hexdigest()
