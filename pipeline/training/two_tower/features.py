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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import webdataset

from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.collection import Tally
from chiasm.pipeline.encoders import ENCODE_REASONS, BaseEncoder, Fault, Input
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.lanes import work_on_batches
from chiasm.pipeline.model.checkpoint import write_file
from chiasm.pipeline.records import DAMAGES, IMAGE, TEXT, Batch, Dropped, Shard
from chiasm.pipeline.shards import RULES, ReadSettings, every_caption, read_samples
from chiasm.pipeline.storage import Folder, display_name, remove_abandoned
from chiasm.pipeline.training.log import Report
from chiasm.pipeline.training.two_tower.held_out import fold_of, held_out, picture_number
from chiasm.pipeline.training.two_tower.stream import Pair, pack
from chiasm.pipeline.two_tower.frozen_towers import ImageTower, TextTower

MAX_CAPTIONS = 16  # of one picture
FORMAT = "features 5"
# Notes about a sample whose captions, some or all of them, were not read.
UNREAD = ("bad_json", "bad_text", "member_too_large", "no_caption_field")
MAX_FLOAT16 = 65504.0  # the largest number of float16
FLOAT32, NO_TOKENS = "try --precision float32", "train without --fusion, which alone reads tokens"


@dataclass(frozen=True)
class Computed:
    """Feature shards in the order of the shards that they were made of. pairs: pictures with
    captions; captions: of all of them; dropped: samples by reason; unread: texts that
    could not be read, by reason: their captions are missing; damaged: shards that are cut or
    damaged, of which only the part before that is there."""

    paths: list[Path]
    pairs: int
    captions: int
    dropped: dict[str, int]
    unread: dict[str, int]
    damaged: list[str]


class TowerInputs:
    """What `batches` asks of a model, for an image tower and any text tower."""

    cost = BaseEncoder.cost

    def __init__(self, image: ImageTower) -> None:
        self._image = image
        self.name = image.folder.name
        self.modalities = {IMAGE: Input(side=image.side), TEXT: Input()}

    def preprocess(self, modality: str, raw: Any) -> Any:
        return raw if modality == TEXT else self._image.preprocess(raw)


@dataclass(frozen=True)
class FeatureSettings:
    """How samples are read, decoded and batched for the towers; tokens: are features of tokens
    stored, which a fusion reads."""

    read: ReadSettings = field(default_factory=ReadSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    tokens: bool = False


def compute(
    shards: Sequence[Shard],
    image: ImageTower,
    text: TextTower,
    folder: Path,
    settings: FeatureSettings,
    report: Report,
) -> Computed:
    """Features of every sample with picture and caption, each shard once. Samples that lack either,
    pictures that cannot be decoded, and samples whose features are not finite numbers of float16 or
    are all zero, are counted as dropped. UsageError where no pair is left, EncoderError where the
    towers have features for less than half of the pairs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    computed = [_shard(shard, image, text, folder, settings, report) for shard in shards]
    pairs, captions = (sum(item[name] for _, item in computed) for name in ("pairs", "captions"))
    dropped, unread = Counter[str](), Counter[str]()
    for _, entry in computed:
        dropped.update(entry["lost"])
        unread.update(entry["unread"])
    refused = sum(dropped[reason] for reason in ENCODE_REASONS)
    if refused > pairs:
        last = next(entry for _, entry in reversed(computed) if entry["refused"])
        found = f"features of {pairs:,}, none of {refused:,}, the last one {last['refused']}"
        raise _no_features(image, text, "features of most samples", found, last.get("do"))
    damaged = [
        shard.id for shard, (_, item) in zip(shards, computed, strict=True) if item["damaged"]
    ]
    if not pairs:
        raise UsageError(
            "SHARDS", expected="samples with a picture and a caption", found="none in all of them"
        )
    return Computed(
        [path for path, _ in computed],
        pairs,
        captions,
        dict(dropped.most_common()),
        dict(unread.most_common()),
        damaged,
    )


def _shard(
    shard: Shard,
    image: ImageTower,
    text: TextTower,
    folder: Path,
    settings: FeatureSettings,
    report: Report,
) -> tuple[Path, dict[str, Any]]:
    """The feature shard of one shard, and its counts."""
    name = f"{shard.id}-{_digest(shard, image, text, settings)}"
    path, counts_path = folder / f"{name}.tar", folder / f"{name}.json"
    if path.exists() and counts_path.exists():
        return path, json.loads(counts_path.read_text())
    tally, pairs, captions = Tally(), 0, 0
    last: Refused | None = None
    partial = Folder(str(folder)).create(path.name, "")
    target: Any = partial  # a file to write, as TarWriter takes one
    with partial, webdataset.TarWriter(target) as writer:
        samples = read_samples(shard, settings.read)
        encoded = work_on_batches(
            samples, TowerInputs(image), settings.decode, settings.batch,
            lambda batch: (len(batch), *_pairs_in_halves(batch, image, text, settings)),
            device=str(image.device), tally=tally,
        )  # fmt: skip
        for rows, made, refused in encoded:
            if refused and len(refused) == rows > 1 and not pairs:
                expected = f"features of some samples of {display_name(shard.url)}"
                found = f"none of a whole batch, the last one {_format_drop(refused[-1].drop)}"
                raise _no_features(image, text, expected, found, refused[-1].do)
            last = refused[-1] if refused else last
            tally.keep(rows - len(refused))
            for one in refused:
                tally.drop(one.drop)
            for pair in made:
                writer.write({"__key__": f"{pairs:08d}", "safetensors": pack(pair)})
                pairs, captions = pairs + 1, captions + len(pair.text)
        writer.close()
        partial.commit()
    dropped = tally.drop_counts + Counter({"no_pair": tally.rows - pairs})
    unread = +Counter({reason: tally.note_counts[reason] for reason in UNREAD})
    counts = {
        "pairs": pairs, "captions": captions, "lost": dropped, "unread": unread,
        "refused": last and _format_drop(last.drop), "do": last and last.do,
        "damaged": any(x.stage == "read" and x.reason in DAMAGES for x in tally.dropped),
    }  # fmt: skip
    write_file(counts_path, json.dumps(counts).encode())
    dropped_count = f"{dropped.total():,} samples dropped"
    report({"message": f"{shard.id}: features of {_format_pictures(pairs)}, {dropped_count}"})
    return path, counts


def format_captions(pairs: int, captions: int) -> str:
    """How many pictures, and how many captions each has on average."""
    item = f"{captions / pairs:.1f} captions each" if pairs else "no captions"
    return f"{_format_pictures(pairs)}, {item}"


def _format_pictures(pairs: int) -> str:
    return f"{pairs:,} {'picture' if pairs == 1 else 'pictures'}"


def _pairs_in_halves(
    batch: Batch, image: ImageTower, text: TextTower, settings: FeatureSettings
) -> tuple[list[Pair], list[Refused]]:
    """The features of a batch, and the samples that a tower refuses or has no usable features for:
    a batch with such a sample is halved until it is alone."""
    try:
        pairs = list(_pairs(batch, image, text, settings))
        for pair in pairs:
            _require_usable(pair, image, text)
        return pairs, []
    except Exception as error:  # noqa: BLE001  models raise anything
        fault = Fault.of(error, "features")
        do = error.do if isinstance(error, Unusable) else ""
    if len(batch) == 1:
        drop = Dropped(batch.rows[0].key, "encode", fault.reason, fault.detail)
        return [], [Refused(drop, do)]
    middle = len(batch) // 2
    halves = [
        _pairs_in_halves(Batch(rows), image, text, settings)
        for rows in (batch.rows[:middle], batch.rows[middle:])
    ]
    return halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]


class Unusable(Fault):
    """A fault of features themselves. do: what helps against it, "" where only other towers do."""

    def __init__(self, reason: str, detail: str, do: str = "") -> None:
        super().__init__(reason, detail)
        self.do = do


@dataclass(frozen=True, slots=True)
class Refused:
    """A sample without usable features, and what helps against that, as `Unusable` says."""

    drop: Dropped
    do: str


def _require_usable(pair: Pair, image: ImageTower, text: TextTower) -> None:
    """Raise Unusable for features that are no finite numbers of float16, and for a pooled vector
    that is zero: what is computed from them is not a number, or says nothing."""
    pictures = {"pooled": pair.image, "augmented": pair.augmented, "token": pair.patches}
    for tower, what, parts in (
        (image, "image", pictures),
        (text, "text", {"pooled": pair.text, "token": pair.words}),
    ):
        for name, part in parts.items():
            if part is None or not part.numel():
                continue
            detail = f"{name} features of the {what} tower {tower.folder.name}"
            without = NO_TOKENS if name == "token" else ""
            if not part.isfinite().all():
                # Numbers that a larger type holds; too large for float16 they are in any type.
                do = FLOAT32 if tower.precision != "float32" else without
                raise Unusable("not_finite", f"{detail}: NaN or infinity", do)
            largest = float(part.abs().max())
            if largest > MAX_FLOAT16:
                found = f"{detail}: {largest:.3g} is too large for float16"
                raise Unusable("not_finite", found, without)
            if name == "pooled" and not part.half().any(dim=-1).all():
                raise Unusable("not_unit", f"{detail}: all zero")


def _format_drop(drop: Dropped) -> str:
    return f"{drop.key}: {drop.reason}: {drop.detail}"


def _no_features(
    image: ImageTower, text: TextTower, expected: str, found: str, do: str | None
) -> EncoderError:
    towers = f"towers {image.folder.name} and {text.folder.name}"
    return EncoderError(towers, expected=expected, found=found, do=do or "take other towers")


def _pairs(
    batch: Batch, image: ImageTower, text: TextTower, settings: FeatureSettings
) -> Iterator[Pair]:
    """The features of those samples of a batch that have both picture and caption."""
    rows = [row for row in batch.rows if IMAGE in row.inputs and row.captions]
    if not rows:
        return
    pixels = [row.inputs[IMAGE] for row in rows]
    digests = [row.origins[IMAGE].sha256 for row in rows]
    pictures = image(pixels)
    held_rows = [i for i, digest in enumerate(digests) if held_out(digest)]
    augmented = image.augmented([pixels[i] for i in held_rows], pictures.pooled[held_rows])
    augmented_of = dict(zip(held_rows, augmented, strict=True))
    captions = [every_caption(row, settings.read.caption_field)[:MAX_CAPTIONS] for row in rows]
    texts = text([caption for item in captions for caption in item])
    at = 0
    for i, (digest, own) in enumerate(zip(digests, captions, strict=True)):
        span = slice(at, at + len(own))
        lengths = texts.mask[span].sum(1).cpu()
        longest = int(lengths.max()) if settings.tokens else 0
        yield Pair(
            image=pictures.pooled[i],
            patches=pictures.tokens[i] if settings.tokens else pictures.tokens[i, :0],
            text=texts.pooled[span],
            words=texts.tokens[span, :longest],
            lengths=lengths,
            ids=texts.ids[span],
            picture=picture_number(digest),
            fold=fold_of(digest),
            augmented=augmented_of.get(i),
        )
        at += len(own)


def _digest(shard: Shard, image: ImageTower, text: TextTower, settings: FeatureSettings) -> str:
    identity: dict[str, Any] = {
        "format": FORMAT, "size": shard.size, "version": shard.version,
        "image": [image.fingerprint, image.precision], "text": [text.fingerprint, text.precision],
        "read": asdict(settings.read), "rules": RULES, "tokens": settings.tokens,
    }  # fmt: skip
    # Features made before decoding could be set keep their names.
    if settings.decode != DecodeSettings():
        identity["decode"] = settings.decode.as_stored()
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=6).hexdigest()
