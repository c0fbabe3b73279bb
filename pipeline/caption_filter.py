"""Which captions do not tell of their pictures? Scores by matching, and shards without those.

As BLIP's filter has it (Li et al., 2022): a model that matches scores every pair of a shard, and
what falls below a threshold is left out, or only flagged. Everything else of a sample is kept as it
is, byte by byte; what was scored, and how, is told caption by caption in a file beside the shard.

    read_samples -> batches -> match -> <shard id>.scores.jsonl
    the shard's members again, with those scores -> <shard id>.tar
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from chiasm.pipeline.batches import BatchSettings, batches
from chiasm.pipeline.encoders import Matcher
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.records import IMAGE, TEXT, Batch, Shard
from chiasm.pipeline.shards import (
    Damaged,
    ReadSettings,
    Tar,
    captions_of,
    read_samples,
    split_member_name,
)
from chiasm.pipeline.storage import Folder


@dataclass(frozen=True)
class Scored:
    """One sample's captions with the log odds that each tells of the picture."""

    key: str
    captions: tuple[str, ...]
    logits: tuple[float, ...]


@dataclass(frozen=True)
class FilterSettings:
    """threshold: log odds that a caption must reach. flag: keep all, and say in json which did
    not."""

    threshold: float = 0.0
    flag: bool = False
    read: ReadSettings = field(default_factory=ReadSettings)


@dataclass(frozen=True)
class Filtered:
    """Counts of one shard or of several: samples; those without a score, which pass; captions with
    one, of which `noisy` fell short; samples left out because all of theirs did; shards that are
    cut or damaged, of which only what came before is there."""

    samples: int = 0
    unscored: int = 0
    captions: int = 0
    noisy: int = 0
    left_out: int = 0
    damaged: int = 0

    def __add__(self, other: Filtered) -> Filtered:
        mine, theirs = asdict(self), asdict(other)
        return Filtered(**{name: mine[name] + theirs[name] for name in mine})


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
    read from there where this shard was scored so before.
    """
    name = f"{shard.id}.scores.jsonl"
    head = {
        "size": shard.size, "version": shard.version, "encoder": encoder.name,
        "fingerprint": encoder.fingerprint, "read": asdict(read),
    }  # fmt: skip
    if folder.exists(name):
        first, *lines = folder.read_bytes(name).decode().splitlines()
        if json.loads(first) == head:
            told = map(json.loads, lines)
            return [Scored(t["key"], tuple(t["captions"]), tuple(t["logits"])) for t in told]
    scored = list(
        _scored(shard, encoder, read, decode or DecodeSettings(), batch or BatchSettings())
    )
    lines = [json.dumps(each) for each in (head, *map(asdict, scored))]
    folder.write_whole(name, ("\n".join(lines) + "\n").encode(), run_id)
    return scored


def _scored(
    shard: Shard, encoder: Matcher, read: ReadSettings, decode: DecodeSettings, batch: BatchSettings
) -> Iterator[Scored]:
    for rows in batches(read_samples(shard, read), encoder, decode, batch):
        yield from _score(rows, encoder)


def _score(batch: Batch, encoder: Matcher) -> Iterator[Scored]:
    rows = [row for row in batch.rows if IMAGE in row.inputs and row.captions]
    pixels = [row.inputs[IMAGE] for row in rows]
    texts = [encoder.preprocess(TEXT, caption) for row in rows for caption in row.captions]
    counts = [len(row.captions) for row in rows]
    pairs = np.stack([np.repeat(np.arange(len(rows)), counts), np.arange(len(texts))], axis=1)
    logits = encoder.match((IMAGE, pixels), (TEXT, texts), pairs).round(4).tolist()
    at = 0
    for row, count in zip(rows, counts, strict=True):
        yield Scored(row.key, row.captions, tuple(logits[at : at + count]))
        at += count


def threshold_of(scores: Sequence[Scored], share: float) -> float:
    """The log odds below which `share` of all captions fall."""
    logits = np.array([logit for each in scores for logit in each.logits])
    return float(np.quantile(logits, share)) if len(logits) else 0.0


def write_filtered(
    shard: Shard, scores: Sequence[Scored], settings: FilterSettings, folder: Folder, run_id: str
) -> Filtered:
    """Write `<shard id>.tar` without the captions that fell short; -> what became of the samples.

    A sample none of whose captions is left is left out whole. A shard that is cut or damaged gives
    what was read of it, and is counted as damaged."""
    by_key = {each.key: each for each in scores}
    counts, damage = Filtered(), list[Damaged]()
    with folder.create(f"{shard.id}.tar", run_id) as file:
        target: Any = file
        with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as out:
            for key, members in _grouped(shard, damage):
                scored = by_key.pop(key, None) if key is not None else None
                kept, told = _judged(members, scored, settings)
                counts += told if key is not None else Filtered()
                for name, data in kept:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    out.addfile(info, io.BytesIO(data))
        file.commit()
    return replace(counts, damaged=len(damage))


def _grouped(
    shard: Shard, damage: list[Damaged]
) -> Iterator[tuple[str | None, list[tuple[str, bytes]]]]:
    """Neighbouring members of one key, as `read_samples` groups them; None for other files. What
    ends the tar before its end goes to `damage`."""
    key: str | None = None
    members: list[tuple[str, bytes]] = []
    with Tar(shard.url) as tar:
        try:
            for member in tar:
                if member.kind:
                    continue
                named = split_member_name(member.name)
                of = named[0] if named else None
                if members and of != key:
                    yield key, members
                    members = []
                key = of
                members.append((member.name, member.read()))
        except Damaged as error:
            damage.append(error)  # what came before it is whole
    if members:
        yield key, members


def _judged(
    members: list[tuple[str, bytes]], scored: Scored | None, settings: FilterSettings
) -> tuple[list[tuple[str, bytes]], Filtered]:
    """The members as they go on, and the sample's counts."""
    if scored is None:
        return members, Filtered(samples=1, unscored=1)
    noisy = [logit < settings.threshold for logit in scored.logits]
    counts = Filtered(samples=1, captions=len(noisy), noisy=sum(noisy))
    if settings.flag:
        return _flagged(members, scored, noisy), counts
    if all(noisy):
        return [], replace(counts, left_out=1)
    if not any(noisy):
        return members, counts
    dropped = {caption for caption, bad in zip(scored.captions, noisy, strict=True) if bad}
    first = next(c for c, bad in zip(scored.captions, noisy, strict=True) if not bad)
    fields = {settings.read.caption_field, "caption", "captions"}
    left = [(name, _without(name, data, dropped, first, fields)) for name, data in members]
    return left, counts


def _without(name: str, data: bytes, dropped: set[str], first: str, fields: set[str]) -> bytes:
    """A member without the captions that fell short: lists in json's `fields` lose them, a text
    that is one becomes the first caption that stays."""
    extension = (split_member_name(name) or ("", ""))[1]
    if extension == "txt":
        said = captions_of(data.decode("utf-8-sig", "replace"))
        return first.encode() if dropped.intersection(said) else data
    told = _object(data) if extension == "json" else None
    if told is None:
        return data
    for name in fields.intersection(told):
        value = told[name]
        if isinstance(value, list):
            told[name] = [v for v in value if not dropped.intersection(captions_of(v))]
        elif isinstance(value, str) and dropped.intersection(captions_of(value)):
            told[name] = first
    return json.dumps(told, ensure_ascii=False).encode()


def _flagged(
    members: list[tuple[str, bytes]], scored: Scored, noisy: list[bool]
) -> list[tuple[str, bytes]]:
    """The members with a `match` in json: each caption's log odds and whether it is noisy."""
    match = [
        {"caption": caption, "logit": logit, "noisy": bad}
        for caption, logit, bad in zip(scored.captions, scored.logits, noisy, strict=True)
    ]
    flagged, found = [], False
    for name, data in members:
        told: Any = None
        if (split_member_name(name) or ("", ""))[1] == "json" and not found:
            told = _object(data)
        if told is not None:
            found = True
            data = json.dumps({**told, "match": match}, ensure_ascii=False).encode()
        flagged.append((name, data))
    if not found:
        base = members[0][0][: members[0][0].index(scored.key) + len(scored.key)]
        flagged.append((f"{base}.match.json", json.dumps(match, ensure_ascii=False).encode()))
    return flagged


def _object(data: bytes) -> dict[str, Any] | None:
    """The json object in there, None where there is none."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None
