"""Shards -> what a training reads of them, computed once: one file a shard.

With towers of its own a training reads pixels and texts; on top of a frozen encoder, the vectors of
pictures and captions, as float16. A file's name has a digest of everything that decides its
content, and it is renamed into place when it is whole, so that a killed run goes on with the next
shard. Tensors are mapped into memory, so that what is read of them is what a batch needs; texts are
in memory as a whole.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.collection import Tally
from chiasm.pipeline.encoders import (
    JOINT,
    BaseEncoder,
    Encoder,
    Fault,
    Input,
    Preprocessor,
    require_unit_vectors,
)
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.lanes import work_on_batches
from chiasm.pipeline.model.checkpoint import load_state, save_state
from chiasm.pipeline.model.preprocess import RULE, to_pixels
from chiasm.pipeline.model.tokenizer import normalise
from chiasm.pipeline.records import DAMAGES, IMAGE, TEXT, Decoded, Dropped, Shard
from chiasm.pipeline.shards import RULES, ReadSettings, every_caption, read_samples
from chiasm.pipeline.storage import display_name, remove_abandoned
from chiasm.pipeline.training.joint.json_tasks import read_examples
from chiasm.pipeline.training.log import Report
from chiasm.pipeline.training.two_tower.held_out import picture_number, tenth_of

FORMAT = "joint samples 3"
MAX_CAPTIONS = 16  # of one picture, as two-tower takes
MAX_LINES = 5  # of bad entries of one shard that are said one by one; all are counted
# Notes about a sample whose texts, some or all of them, were not read.
UNREAD = ("bad_json", "bad_text", "member_too_large", "no_caption_field")


@dataclass(frozen=True)
class SampleSettings:
    """How samples are read, decoded and batched."""

    read: ReadSettings = field(default_factory=ReadSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)


class Reader(Protocol):
    """Makes the tensors of samples. inputs: what decoding asks; identity: what decides them;
    device: where."""

    device: str

    @property
    def inputs(self) -> Preprocessor: ...
    @property
    def identity(self) -> dict[str, Any]: ...
    def tensors(
        self, rows: Sequence[Decoded], captions: Sequence[Sequence[str]]
    ) -> dict[str, Tensor]: ...


class PixelReader:
    """`image` uint8 (B, 3, S, S), for towers that are trained; it is its own `inputs`."""

    cost = BaseEncoder.cost
    name, device = "pixels", "cpu"

    def __init__(self, side: int) -> None:
        self.side, self.inputs = side, self
        self.modalities = {IMAGE: Input(side=side), TEXT: Input()}
        self.identity: dict[str, Any] = {"pixels": RULE, "side": side}

    def preprocess(self, modality: str, raw: Any) -> Any:
        return raw if modality == TEXT else to_pixels(raw, self.side)

    def tensors(
        self, rows: Sequence[Decoded], captions: Sequence[Sequence[str]]
    ) -> dict[str, Tensor]:
        return {"image": torch.from_numpy(np.stack([row.inputs[IMAGE] for row in rows]))}


class VectorReader:
    """Of a frozen encoder, float16: `image` (B, E), `text` (all captions, E), and `joint` (B, E),
    its own joint vector of the picture with its first caption."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.inputs, self.device = encoder, encoder, encoder.device
        self.identity = {"encoder": encoder.fingerprint, "precision": encoder.precision}

    def tensors(
        self, rows: Sequence[Decoded], captions: Sequence[Sequence[str]]
    ) -> dict[str, Tensor]:
        encoder = self.encoder
        texts = [encoder.preprocess(TEXT, text) for item in captions for text in item]
        counts = np.array([len(item) for item in captions])
        image = encoder.encode(IMAGE, [row.inputs[IMAGE] for row in rows])
        text = encoder.encode(TEXT, texts)
        joint = encoder.encode_joint({IMAGE: image, TEXT: text.take(counts.cumsum() - counts)})
        found = {IMAGE: image.vectors, TEXT: text.vectors, JOINT: joint}
        sizes = {IMAGE: len(rows), TEXT: len(texts), JOINT: len(rows)}
        return {
            name: torch.from_numpy(
                require_unit_vectors(vectors, sizes[name], encoder.dims[name], name)
            ).half()
            for name, vectors in found.items()
        }


@dataclass(frozen=True)
class Computed:
    """Files in the order of the shards that they were made of, and counts over all of them.
    dropped: samples by reason; unread: texts that could not be read, by reason; bad_entries: of
    json, left out; damaged: shards of which only a part is there."""

    paths: list[Path]
    pairs: int
    captions: int
    dropped: dict[str, int]
    unread: dict[str, int]
    bad_entries: int
    damaged: list[str]


def compute(
    shards: Sequence[Shard],
    reader: Reader,
    folder: Path,
    settings: SampleSettings,
    report: Report,
) -> Computed:
    """A file for each shard, those that are there already left as they are. Samples without picture
    or caption, undecodable pictures and samples that the encoder does not take are counted as
    dropped. UsageError where no pair is left, EncoderError where the encoder refuses most."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    made = [_shard(shard, reader, folder, settings, report) for shard in shards]
    counts = [item for _, item in made]
    dropped, unread = Counter[str](), Counter[str]()
    for item in counts:
        dropped.update(item["dropped"])
        unread.update(item["unread"])
    pairs, refused = sum(item["pairs"] for item in counts), sum(item["refused"] for item in counts)
    if refused > pairs:
        last = next(item["last"] for item in reversed(counts) if item["last"])
        raise EncoderError(
            f"encoder {reader.inputs.name}",
            expected="vectors for most samples",
            found=f"vectors for {pairs:,}, none for {refused:,}, the last one {last}",
            do="take another encoder",
        )
    if not pairs:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.most_common())
        raise UsageError(
            "SHARDS",
            expected="samples with a picture and a caption",
            found=f"none; dropped were {reasons}",
        )
    return Computed(
        [path for path, _ in made],
        pairs,
        sum(item["captions"] for item in counts),
        dict(dropped.most_common()),
        dict(unread.most_common()),
        sum(item["bad_entries"] for item in counts),
        [shard.id for shard, item in zip(shards, counts, strict=True) if item["damaged"]],
    )


@dataclass(frozen=True)
class _Encoded:
    """What became of a batch: keys of samples without a pair; tensors, rows and captions of its
    parts; the keys that were refused."""

    without_pair: list[str]
    parts: list[tuple[dict[str, Tensor], Sequence[Decoded], Sequence[tuple[str, ...]]]] = field(
        default_factory=list
    )
    refused: list[tuple[str, Fault]] = field(default_factory=list)


class _Rows:
    """What a shard's file will hold, gathered batch by batch."""

    def __init__(self, reader: Reader, caption_field: str, tally: Tally) -> None:
        self.reader, self.caption_field, self.tally = reader, caption_field, tally
        self.parts: list[dict[str, Tensor]] = []
        self.digests: list[str] = []
        self.texts: list[tuple[str, ...]] = []
        self.examples: list[list[dict[str, Any]]] = []
        self.bad: list[str] = []
        self.refused, self.last = 0, ""

    def encode(self, rows: Sequence[Decoded]) -> _Encoded:
        """Those of a batch that have a picture and a caption, encoded; in any thread."""
        made = _Encoded([row.key for row in rows if not (IMAGE in row.inputs and row.captions)])
        pairs = [row for row in rows if IMAGE in row.inputs and row.captions]
        captions = [every_caption(row, self.caption_field)[:MAX_CAPTIONS] for row in pairs]
        spans = [(0, len(pairs))] if pairs else []
        while spans:  # halved where it fails, until the samples are found that fail alone
            start, end = spans.pop()
            try:
                tensors = self.reader.tensors(pairs[start:end], captions[start:end])
            except Exception as error:  # noqa: BLE001  models raise anything
                fault = Fault.of(error)
            else:
                made.parts.append((tensors, pairs[start:end], captions[start:end]))
                continue
            if end - start == 1:
                made.refused.append((pairs[start].key, fault))
            else:
                middle = (start + end) // 2
                spans += [(middle, end), (start, middle)]
        return made

    def add(self, made: _Encoded) -> None:
        """Take what `encode` made of a batch, in the order of the shard."""
        for key in made.without_pair:
            self.tally.drop(Dropped(key, "read", "no_pair"))
        for part in made.parts:
            self._keep(*part)
        for key, fault in made.refused:
            self.refused, self.last = self.refused + 1, f"{key}: {fault}"
            self.tally.drop(Dropped(key, "encode", fault.reason, fault.detail))

    def _keep(
        self,
        tensors: dict[str, Tensor],
        rows: Sequence[Decoded],
        captions: Sequence[tuple[str, ...]],
    ) -> None:
        self.parts.append(tensors)
        self.texts += captions
        for row in rows:
            self.digests.append(row.origins[IMAGE].sha256)
            examples, bad = read_examples(row.json)
            self.examples.append([{k: v for k, v in asdict(e).items() if v} for e in examples])
            self.bad += [f"{row.key}: {line}" for line in bad]

    def tensors(self) -> dict[str, Tensor]:
        """By name; those of `Reader.tensors` only where there is a row."""
        names = self.parts[0] if self.parts else ()
        return {
            **{name: torch.cat([part[name] for part in self.parts]) for name in names},
            "counts": torch.tensor([len(item) for item in self.texts], dtype=torch.int64),
            "caption": torch.tensor(
                [caption_number(text) for item in self.texts for text in item], dtype=torch.int64
            ),
            "picture": torch.tensor([picture_number(d) for d in self.digests], dtype=torch.int64),
            "fold": torch.tensor([tenth_of(d) for d in self.digests], dtype=torch.uint8),
        }


def _shard(
    shard: Shard, reader: Reader, folder: Path, settings: SampleSettings, report: Report
) -> tuple[Path, dict[str, Any]]:
    """The file of one shard, and its counts."""
    path = folder / f"{shard.id}-{_digest(shard, reader, settings)}.safetensors"
    if path.exists():
        return path, load_state(path)[1]["counts"]
    tally = Tally()
    rows = _Rows(reader, settings.read.caption_field, tally)
    samples = read_samples(shard, settings.read)
    encoded = work_on_batches(
        samples, reader.inputs, settings.decode, settings.batch,
        lambda batch: rows.encode(batch.rows), device=reader.device, tally=tally,
    )  # fmt: skip
    for made in encoded:
        rows.add(made)
    where = display_name(shard.url)
    for line in rows.bad[:MAX_LINES]:
        report({"message": f"{where}, {line}; left out"})
    if len(rows.bad) > MAX_LINES:
        report({"message": f"{where}: {len(rows.bad) - MAX_LINES:,} more such entries left out"})
    counts = {
        "pairs": len(rows.texts),
        "captions": sum(map(len, rows.texts)),
        "dropped": tally.drop_counts,
        "unread": +Counter({reason: tally.note_counts[reason] for reason in UNREAD}),
        "refused": rows.refused,
        "last": rows.last,
        "bad_entries": len(rows.bad),
        "damaged": any(x.stage == "read" and x.reason in DAMAGES for x in tally.dropped),
    }
    # A frozen encoder has read the texts already.
    own = isinstance(reader, PixelReader)
    texts = {"texts": rows.texts, "examples": rows.examples} if own else {}
    written = {name: json_tensor(value) for name, value in texts.items()}
    save_state(path, {**rows.tensors(), **written}, {"counts": counts})
    report(
        {
            "message": f"{shard.id}: {len(rows.texts):,} pictures with captions, "
            f"{tally.dropped_count:,} samples dropped"
        }
    )
    return path, counts


def caption_number(text: str) -> int:
    """An int64 of what a model reads of a text: captions that say the same in the same words have
    one number, as copies of a picture have."""
    return picture_number(hashlib.sha256(normalise(text).encode("utf-8", "replace")).hexdigest())


def json_tensor(value: Any) -> Tensor:
    """Plain values as the UTF-8 bytes of their JSON, uint8 (N,): the header of a safetensors file,
    which has its metadata, holds 100 MB at most, and captions may be more."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def from_json_tensor(tensor: Tensor) -> Any:
    """Inverse of `json_tensor`."""
    return json.loads(tensor.numpy().tobytes())


def _digest(shard: Shard, reader: Reader, settings: SampleSettings) -> str:
    identity: dict[str, Any] = {
        "format": FORMAT, "size": shard.size, "version": shard.version, **reader.identity,
        "read": asdict(settings.read), "decode": settings.decode.as_stored(), "rules": RULES,
    }  # fmt: skip
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=6).hexdigest()
