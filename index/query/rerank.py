"""Hits -> better hits: the first of them scored again by something slower and sharper.

    vectors:N   by the stored joint vectors, a caption's words counting beside its picture
    match:N     by the encoder's matching of words with pictures, fetched from the shards by range:
                logit + the score before, as ALBEF and BLIP do (Li et al., 2021 and 2022)
    st:NAME:N   by a CrossEncoder of sentence-transformers that takes pictures

Stages follow one another, each on the first N of what the one before left. What lies behind them,
and what a stage cannot score for want of a picture, keeps its order behind those it can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from chiasm.index.query.encode import encoded_picture
from chiasm.index.query.open_index import OpenIndex
from chiasm.index.results import Query, Rerank
from chiasm.index.segments import CatalogRow
from chiasm.pipeline.encoders import Matcher, load_matcher, require_matcher
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.records import IMAGE, TEXT
from chiasm.pipeline.shards import read_checked

READERS = 8  # pictures fetched at once: reads of an object store mostly wait
BATCH = 32  # pairs matched at once


@dataclass(frozen=True, slots=True)
class Candidate:
    """A position of the generation with its score, higher is better, and the scores of all stages
    so far by their names, the first being `search`.
    """

    position: int
    score: float
    scores: dict[str, float] = field(default_factory=dict)


Scorer = Callable[[Query, np.ndarray, Sequence[Candidate], OpenIndex, Rerank], list[float | None]]


def rerank(
    query: Query, xq: np.ndarray, candidates: list[Candidate], collection: OpenIndex
) -> list[Candidate]:
    """The candidates of one query through all of its stages; xq (D,) float32 is its vector.

    Raises UsageError for a stage that the query or the encoder cannot serve, SourceError for
    pictures that are gone.
    """
    for stage in query.rerank:
        first, rest = candidates[: stage.depth], candidates[stage.depth :]
        scores = SCORERS[stage.how](query, xq, first, collection, stage)
        scored = [
            replace(each, score=score, scores={**each.scores, stage.name: score})
            for each, score in zip(first, scores, strict=True)
            if score is not None
        ]
        scored.sort(key=lambda each: (-each.score, each.position))
        unscored = [each for each, score in zip(first, scores, strict=True) if score is None]
        candidates = scored + unscored + rest
    return candidates


def by_vectors(
    query: Query,
    xq: np.ndarray,
    candidates: Sequence[Candidate],
    collection: OpenIndex,
    stage: Rerank,
) -> list[float | None]:
    """Inner products with the stored joint vectors, in float32; None for rows without one."""
    joint = collection.vectors("joint", [candidate.position for candidate in candidates])
    return [float(vector @ xq) if vector.any() else None for vector in joint]


def by_matching(
    query: Query,
    xq: np.ndarray,
    candidates: Sequence[Candidate],
    collection: OpenIndex,
    stage: Rerank,
) -> list[float | None]:
    """Matching logit of the query's words with each picture, or of the query's picture with each
    caption, plus the score before; None for rows without.
    """
    logits = _by_pairs(query, candidates, collection, stage, require_matcher(collection.encoder))
    return [
        None if logit is None else logit + candidate.score
        for logit, candidate in zip(logits, candidates, strict=True)
    ]


def by_cross_encoder(
    query: Query,
    xq: np.ndarray,
    candidates: Sequence[Candidate],
    collection: OpenIndex,
    stage: Rerank,
) -> list[float | None]:
    """Scores of a CrossEncoder for words and pictures, paired as in `by_matching`; None for rows
    without.
    """
    matcher = load_matcher(f"st:{stage.model}", collection.encoding)
    return _by_pairs(query, candidates, collection, stage, matcher)


SCORERS: dict[str, Scorer] = {
    "vectors": by_vectors,
    "match": by_matching,
    "st": by_cross_encoder,
}


def _by_pairs(
    query: Query,
    candidates: Sequence[Candidate],
    collection: OpenIndex,
    stage: Rerank,
    matcher: Matcher,
) -> list[float | None]:
    """Scores of the query's words with each candidate's picture, or of the query's picture with
    each caption, BATCH pairs at a time; None for candidates that lack it.
    """
    if not query.words and query.image is None:
        raise UsageError(f"rerank {stage}", expected="words or a picture", found="a vector")
    found_rows = collection.rows({candidate.position for candidate in candidates})
    rows = [found_rows[candidate.position] for candidate in candidates]
    side = matcher.modalities[IMAGE].side

    def pixels(data: bytes) -> Any:
        image = decode(data, DecodeSettings(), side).image
        return matcher.preprocess(IMAGE, np.asarray(image))

    if query.words:
        ready = [i for i, row in enumerate(rows) if row.place is not None]
        asked = (TEXT, [matcher.preprocess(TEXT, query.words)])
    else:
        assert query.image is not None
        ready = [i for i, row in enumerate(rows) if row.caption]
        asked = (IMAGE, [pixels(encoded_picture(query.image))])

    def other(i: int) -> Any:
        if query.words:
            return pixels(_picture(rows[i]))
        return matcher.preprocess(TEXT, rows[i].caption or "")

    modality = IMAGE if query.words else TEXT
    found: list[float | None] = [None] * len(candidates)
    with ThreadPoolExecutor(READERS) as readers:
        for start in range(0, len(ready), BATCH):
            some = ready[start : start + BATCH]
            items = list(readers.map(other, some))
            pairs = np.array([(0, number) for number in range(len(items))])
            scores = matcher.match(asked, (modality, items), pairs)
            for i, score in zip(some, scores.tolist(), strict=True):
                found[i] = score
    return found


def _picture(row: CatalogRow) -> bytes:
    assert row.place is not None
    return read_checked(row.url, row.place, row.sha256)
