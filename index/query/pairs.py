"""Pairs of a query's text or picture with a row's picture or caption -> scores of a matcher.

Pairs of many queries are matched together, BATCH at a time, in the order of their pictures: a
picture is fetched and decoded once, however many pairs have it, and is in memory only while it is
matched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from chiasm.index.queries import Term
from chiasm.index.query.encode import pixels_of, text_of
from chiasm.index.results import CatalogRow
from chiasm.pipeline.encoders import Fault, Matcher, match_each
from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.records import IMAGE, TEXT
from chiasm.pipeline.shards import read_checked

READERS = 8  # pictures fetched at once: reads of an object store mostly wait
BATCH = 32  # pairs matched at once


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a pair. Sides of one modality and key are one item, which `make` makes for a
    matcher; None: the matcher does not take it. key: (query, term) by their numbers, or
    (-1, position of the row)."""

    modality: str
    key: tuple[int, int]
    make: Callable[[Matcher], Any] = field(compare=False)


Pair = tuple[Side, Side]  # of a query, of a row
Outcome = float | Fault | None  # a score, the matcher's refusal, or None: the row has no item


def side_of_query(term: Term, key: tuple[int, int]) -> Side:
    """A text or a picture of a query; making it raises UsageError where the matcher does not take
    it."""
    if term.image is not None:
        return Side(IMAGE, key, partial(pixels_of, term.image))
    return Side(TEXT, key, partial(text_of, term.words))


def side_of_row(term: Term, position: int, row: CatalogRow) -> Side | None:
    """What a query's text or picture is matched with: a row's picture or its caption, None where it
    has none. Making it raises SourceError where the row's shard is gone or has changed."""
    if term.image is None:
        return Side(IMAGE, (-1, position), partial(_pixels, row)) if row.place else None
    return Side(TEXT, (-1, position), partial(_caption, row)) if row.caption else None


def match_pairs(pairs: Sequence[Pair], matcher: Matcher) -> list[Outcome]:
    """The score of each pair, BATCH of them matched at once."""
    outcomes: list[Outcome] = [None] * len(pairs)
    items: dict[Side, Any] = {}
    with ThreadPoolExecutor(READERS) as readers:
        for batch in _batches(pairs):
            sides = dict.fromkeys(side for number in batch for side in pairs[number])
            items = {side: items[side] for side in sides if side in items}
            missing = [side for side in sides if side not in items]
            # Each in the caller's context, which says how pictures are decoded and resized.
            contexts = [copy_context() for _ in missing]
            made = readers.map(
                lambda context, side: context.run(side.make, matcher), contexts, missing
            )
            items.update(zip(missing, made, strict=True))
            usable = [number for number in batch if items[pairs[number][1]] is not None]
            scored = _match([pairs[number] for number in usable], items, matcher)
            for number, outcome in zip(usable, scored, strict=True):
                outcomes[number] = outcome
    return outcomes


def _batches(pairs: Sequence[Pair]) -> Iterator[list[int]]:
    """Numbers of pairs, BATCH at a time: those of queries' texts and those of their pictures apart,
    either in the order of their pictures."""
    texts = [number for number, (query, _) in enumerate(pairs) if query.modality == TEXT]
    pictures = [number for number, (query, _) in enumerate(pairs) if query.modality == IMAGE]
    texts.sort(key=lambda number: pairs[number][1].key)
    pictures.sort(key=lambda number: pairs[number][0].key)
    for numbers in (texts, pictures):
        for start in range(0, len(numbers), BATCH):
            yield numbers[start : start + BATCH]


def _match(pairs: Sequence[Pair], items: dict[Side, Any], matcher: Matcher) -> list[Outcome]:
    """The outcomes of pairs of the same two modalities; items: what was made of their sides."""
    if not pairs:
        return []
    first = {side: number for number, side in enumerate(dict.fromkeys(a for a, _ in pairs))}
    second = {side: number for number, side in enumerate(dict.fromkeys(b for _, b in pairs))}
    scores, faults = match_each(
        matcher,
        (pairs[0][0].modality, [items[side] for side in first]),
        (pairs[0][1].modality, [items[side] for side in second]),
        np.array([(first[a], second[b]) for a, b in pairs]),
    )
    return [faults.get(number, score) for number, score in enumerate(scores.tolist())]


def _pixels(row: CatalogRow, matcher: Matcher) -> Any:
    """A row's picture as the matcher takes it, None where it does not."""
    assert row.place is not None
    data = read_checked(row.url, row.place, row.sha256)
    side = matcher.modalities[IMAGE].side

    def preprocess() -> Any:
        return matcher.preprocess(IMAGE, decode(data, DecodeSettings(), side).pixels)

    return _or_none(preprocess)


def _caption(row: CatalogRow, matcher: Matcher) -> Any:
    """A row's caption as the matcher takes it, None where it does not."""
    return _or_none(partial(matcher.preprocess, TEXT, row.caption))


def _or_none(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except ChiasmError:
        raise
    except Exception:  # noqa: BLE001  embedded under other limits, or by a model that takes it
        return None  # it is not scored
