"""Which captions do not describe their pictures? Scores by matching, and shards without those.

As BLIP's filter has it (Li et al., 2022): a model that matches scores every caption that a training
would take, and what falls below a threshold is left out, or only flagged. Everything else of a
sample is kept as it is, byte by byte; the scores are recorded caption by caption in a file beside
the shard.

    read_samples -> batches -> match -> <shard id>.scores.jsonl
    the shard's members again, with those scores -> <shard id>.tar
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import FiniteFloat

from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.encoders import Fault, Matcher, match_each, probe_matcher
from chiasm.pipeline.errors import ChiasmError, CollectionError
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.lanes import work_on_batches
from chiasm.pipeline.records import IMAGE, TEXT, Batch, Decoded, Dropped, Shard
from chiasm.pipeline.shards import (
    RULES,
    ReadSettings,
    every_caption,
    json_bytes,
    json_object,
    member_groups,
    read_samples,
    split_member_name,
    with_values,
    without_captions,
    writing_copy,
)
from chiasm.pipeline.storage import Folder, display_name
from chiasm.pipeline.stored_records import read_record

LOG = logging.getLogger(__name__)
DECIMALS = 4  # of stored log odds
# scores 2: every caption; files without a format scored only those that `embed` reads.
FORMAT = "scores 2"
PAIRS = 512  # matched at once


@dataclass(frozen=True)
class Scored:
    """One sample's captions with the log odds that each describes the picture."""

    key: str
    captions: tuple[str, ...]
    logits: tuple[FiniteFloat, ...]


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
    cut or damaged, of which only what came before is there; members larger than
    `read.max_member_bytes`, which are left out."""

    samples: int = 0
    unscored: int = 0
    captions: int = 0
    noisy: int = 0
    left_out: int = 0
    damaged: int = 0
    oversized: int = 0

    def __add__(self, other: Filtered) -> Filtered:
        mine, theirs = asdict(self), asdict(other)
        return Filtered(**{name: mine[name] + theirs[name] for name in mine})


def store_scores(
    shard: Shard,
    encoder: Matcher,
    read: ReadSettings,
    folder: Folder,
    run_id: str,
    *,
    batch: BatchSettings | None = None,
    decode: DecodeSettings | None = None,
) -> bool:
    """Write `<shard id>.scores.jsonl`, sample by sample, unless the same scores are there; returns
    whether it was written. In memory is one batch."""
    batch, decode = batch or BatchSettings(), decode or DecodeSettings()
    name = f"{shard.id}.scores.jsonl"
    head: dict[str, Any] = {
        "format": FORMAT, "size": shard.size, "version": shard.version, "encoder": encoder.name,
        "fingerprint": encoder.fingerprint, "read": asdict(read), "rules": RULES,
    }  # fmt: skip
    if decode != DecodeSettings():
        head["decode"] = asdict(decode)
    # Recorded and not compared, as in a collection: a laptop goes on with what a GPU scored.
    precision = {"precision": getattr(encoder, "precision", None)}
    if folder.exists(name):
        # Where the first line cannot be read, the file is written anew.
        with folder.open_stream(name) as file, contextlib.suppress(ValueError, RecursionError):
            found = json.loads(file.readline())
            if isinstance(found, dict) and found | precision == head | precision:
                return False
    with folder.create(name, run_id) as file:
        file.write(json.dumps(head | precision).encode() + b"\n")
        for scored in _scored(shard, encoder, read, decode, batch):
            file.write(json.dumps(asdict(scored)).encode() + b"\n")
        file.commit()
    return True


def read_scores(shard: Shard, folder: Folder) -> Iterator[Scored]:
    """The scores that `store_scores` wrote, in the order of the tar; CollectionError for a line
    that is damaged."""
    name = f"{shard.id}.scores.jsonl"
    where, what = display_name(folder.url_of(name)), "a score for each caption of a sample"
    do = "remove that file and run the same command again, which scores the shard anew"
    with folder.open_stream(name) as file:
        file.readline()
        for number, line in enumerate(file, 2):
            scored = read_record(line, f"{where}, line {number}", Scored, what=what, do=do)
            if len(scored.captions) != len(scored.logits):
                found = f"{len(scored.captions)} captions, {len(scored.logits)} scores"
                raise CollectionError(f"{where}, line {number}", expected=what, found=found, do=do)
            yield scored


def _scored(
    shard: Shard, encoder: Matcher, read: ReadSettings, decode: DecodeSettings, batch: BatchSettings
) -> Iterator[Scored]:
    where = display_name(shard.url)

    def work(rows: Batch) -> list[Scored]:
        return list(_score(rows, encoder, read.caption_field, where))

    device = getattr(encoder, "device", "")  # which a matcher need not say
    samples = read_samples(shard, read)
    for scored in work_on_batches(samples, encoder, decode, batch, work, device=device):
        yield from scored


def _score(batch: Batch, encoder: Matcher, caption_field: str, where: str) -> Iterator[Scored]:
    """The scores of a batch, PAIRS of them matched at a time. A sample with a caption that the
    matcher refuses has none, and is named in the log; EncoderError for a matcher that is broken.

    A sample's captions are bounded by `read.max_text_bytes` alone, which a hundred thousand short
    ones may fill. The blocks bound what the model takes of them. A limit on their number would let
    those beyond it pass without a score."""
    rows = [row for row in batch.rows if IMAGE in row.inputs and row.captions]
    captions = [every_caption(row, caption_field) for row in rows]
    pairs = [(at, text) for at, texts in enumerate(captions) for text in texts]
    logits: list[float] = []
    refused: dict[int, Fault] = {}  # by row
    for start in range(0, len(pairs), PAIRS):
        block = pairs[start : start + PAIRS]
        first, last = block[0][0], block[-1][0]
        pixels = [row.inputs[IMAGE] for row in rows[first : last + 1]]
        texts: dict[int, Any] = {}  # by number in the block
        for number, (at, text) in enumerate(block):
            try:
                texts[number] = _text_input(rows[at], text, encoder)
            except Exception as error:  # noqa: BLE001  models raise anything
                refused[at] = Fault.of(error, TEXT)
        places = np.array([(block[n][0] - first, place) for place, n in enumerate(texts)])
        sides = (IMAGE, pixels), (TEXT, list(texts.values()))
        found, faults = match_each(encoder, *sides, places)
        refused |= {block[list(texts)[place]][0]: fault for place, fault in faults.items()}
        scores = np.full(len(block), np.nan)
        # In float64: a stored 0.7 is 0.7, and no less than a threshold of 0.7.
        scores[list(texts)] = np.asarray(found, np.float64).round(DECIMALS)
        logits += scores.tolist()
    if rows and len(refused) == len(rows):
        probe_matcher(encoder)
    left = iter(logits)
    for at, (row, texts_of_row) in enumerate(zip(rows, captions, strict=True)):
        own = tuple(itertools.islice(left, len(texts_of_row)))
        if at in refused:
            LOG.warning("not scored: sample %s of %s: %s", row.key, where, refused[at])
        else:
            yield Scored(row.key, texts_of_row, own)


def _text_input(row: Decoded, text: str, encoder: Matcher) -> Any:
    """A caption of a row as the matcher takes it; the first is preprocessed already."""
    return row.inputs[TEXT] if text == row.captions[0] else encoder.preprocess(TEXT, text)


class LogitCounts:
    """How many captions have which log odds. Scores are rounded to DECIMALS, so memory is bounded
    by their range, whatever the number of captions."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, scored: Iterable[Scored]) -> None:
        self.counts.update(round(x * 10**DECIMALS) for item in scored for x in item.logits)

    def update(self, other: LogitCounts) -> None:
        self.counts.update(other.counts)

    @property
    def captions(self) -> int:
        return self.counts.total()

    def below(self, threshold: float) -> int:
        """How many captions fall short of a threshold."""
        return sum(n for value, n in self.counts.items() if value / 10**DECIMALS < threshold)

    def quantile(self, share: float) -> float:
        """The log odds below which `share` of all captions fall, as numpy's linear quantile; 0
        where there is none."""
        if not self.counts:
            return 0.0
        values = np.array(sorted(self.counts))
        last = np.cumsum([self.counts[value] for value in values.tolist()])  # rank after each value
        rank = share * (self.captions - 1)
        low = values[np.searchsorted(last, np.floor(rank), side="right")]
        high = values[np.searchsorted(last, np.ceil(rank), side="right")]
        return float(low + (high - low) * (rank - np.floor(rank))) / 10**DECIMALS


def require_some_left(
    counts: LogitCounts, threshold: float, max_noisy: float, encoder: str
) -> None:
    """ChiasmError where nearly all captions fall short, a share above `max_noisy`: a threshold or
    an encoder that does not fit these shards. encoder: its name, for the message."""
    noisy = counts.below(threshold)
    if not noisy or noisy <= max_noisy * counts.captions:
        return
    raise ChiasmError(
        "filter",
        expected=f"at most {max_noisy:.0%} of captions below {threshold:g}",
        found=f"{noisy:,} of {counts.captions:,}, and wrote no shard",
        do=f"was {encoder} trained on such pictures? --drop 0.3 drops a share, --threshold "
        "another part, --set filter.max_noisy=1 allows all",
    )


def write_filtered(
    shard: Shard, scores: Iterable[Scored], settings: FilterSettings, folder: Folder, run_id: str
) -> Filtered:
    """Write `<shard id>.tar` without the captions that fell short; -> what became of the samples.

    scores: in the order of the tar. A sample none of whose captions is left is left out whole, a
    member larger than `read.max_member_bytes` too. A shard that is cut or damaged gives what was
    read of it, and is counted as damaged. In memory is one sample."""
    ahead = iter(scores)
    following = next(ahead, None)
    counts, damage = Filtered(), list[Dropped]()
    with writing_copy(folder, f"{shard.id}.tar", run_id) as add:
        for sample, members, oversized in member_groups(shard, settings.read, damage):
            scored = None
            if following is not None and sample is not None and sample.key == following.key:
                scored, following = following, next(ahead, None)
            kept, judged = _apply_threshold(members, scored, settings)
            counts += replace(judged if sample is not None else Filtered(), oversized=oversized)
            add(kept)
    return replace(counts, damaged=len(damage))


def _apply_threshold(
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
    left = []
    for name, data in members:
        extension = (split_member_name(name) or ("", ""))[1]
        kept = without_captions(extension, data, dropped, first, settings.read.caption_field)
        left.append((name, kept))
    return left, counts


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
        record: Any = None
        if (split_member_name(name) or ("", ""))[1] == "json" and not found:
            record = json_object(data)
        if record is not None:
            found = True
            data = with_values(data, {"match": match})
        flagged.append((name, data))
    if not found:
        name = members[0][0]
        inside = name.startswith(f"{scored.key}/")  # of a folder that is a sample
        base = f"{scored.key}/scores" if inside else name[: name.index(".", len(scored.key))]
        flagged.append((f"{base}.match.json", json_bytes(match)))
    return flagged
