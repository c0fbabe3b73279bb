"""Hits -> better hits: the first of them scored again by something slower and sharper.

    vectors:N   by the stored joint vectors, a caption's words counting beside its picture
    match:N     by the encoder's matching of words with pictures, fetched from the shards by range:
                logit + the score before, as ALBEF and BLIP do (Li et al., 2021 and 2022)
    st:NAME:N   by a CrossEncoder of sentence-transformers that takes pictures

Stages follow one another, each on the first N of what the one before left. What lies behind them,
and what a stage cannot score for want of a picture, keeps its order behind those it can.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from index.opened import Opened
from index.queries import encoded_picture
from index.results import Query, Rerank
from index.segments import Segment
from pipeline.encoders import Matcher
from pipeline.errors import UsageError
from pipeline.images import DecodeSettings, decode
from pipeline.shards import read_checked

# By its name, as encoders are: it loads torch, which no other stage and no other command needs.
CROSS_ENCODER = "pipeline.encoders.cross_encoder"
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


Scorer = Callable[[Query, np.ndarray, Sequence[Candidate], Opened, Rerank], list[float | None]]


def rerank(
    query: Query, xq: np.ndarray, candidates: list[Candidate], collection: Opened
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
    collection: Opened,
    stage: Rerank,
) -> list[float | None]:
    """Inner products with the stored joint vectors, in float32; None for rows without one."""
    collection.require_column("joint")
    found: list[float | None] = []
    for candidate in candidates:
        segment, row = _place(collection.segments, candidate.position)
        vector = segment.raw("joint")[row].astype(np.float32)
        found.append(float(vector @ xq) if vector.any() else None)
    return found


def by_matching(
    query: Query,
    xq: np.ndarray,
    candidates: Sequence[Candidate],
    collection: Opened,
    stage: Rerank,
) -> list[float | None]:
    """Matching logit of the query's words with each picture, or of the query's picture with each
    caption, plus the score before; None for rows without.
    """
    encoder = collection.encoder
    if not isinstance(encoder, Matcher):
        raise UsageError(
            f"rerank {stage}",
            expected="an encoder that matches words with pictures",
            found=f"{encoder.name}, which makes vectors only",
            do="take vectors:N or st:NAME:N",
        )
    pairs = _pairs(query, candidates, collection, stage)
    ready = [(i, pair) for i, pair in enumerate(pairs) if pair is not None]
    found: list[float | None] = [None] * len(candidates)
    for start in range(0, len(ready), BATCH):
        some = ready[start : start + BATCH]
        pixels = [
            encoder.preprocess(decode(data, DecodeSettings(), encoder.image_size).image)
            for _, (_, data) in some
        ]
        logits = encoder.match_pairs(pixels, [text for _, (text, _) in some])
        for (i, _), logit in zip(some, logits.tolist(), strict=True):
            found[i] = logit + candidates[i].score
    return found


def by_cross_encoder(
    query: Query,
    xq: np.ndarray,
    candidates: Sequence[Candidate],
    collection: Opened,
    stage: Rerank,
) -> list[float | None]:
    """Scores of a CrossEncoder for the query's words and each picture; None for rows without."""
    encoder = importlib.import_module(CROSS_ENCODER).load_cross_encoder(stage.model)
    pairs = _pairs(query, candidates, collection, stage)
    ready = [(i, pair) for i, pair in enumerate(pairs) if pair is not None]
    found: list[float | None] = [None] * len(candidates)
    pictures = [decode(data, DecodeSettings(), None).image for _, (_, data) in ready]
    scores = encoder.score([text for _, (text, _) in ready], pictures)
    for (i, _), score in zip(ready, scores.tolist(), strict=True):
        found[i] = score
    return found


SCORERS: dict[str, Scorer] = {
    "vectors": by_vectors,
    "match": by_matching,
    "st": by_cross_encoder,
}


def _pairs(
    query: Query, candidates: Sequence[Candidate], collection: Opened, stage: Rerank
) -> list[tuple[str, bytes] | None]:
    """A text and an encoded picture for each candidate: the query's words with its picture, or
    the query's picture with its caption; None where it lacks that.
    """
    if not query.words and query.image is None:
        raise UsageError(f"rerank {stage}", expected="words or a picture", found="a vector")
    rows = collection.rows({candidate.position for candidate in candidates})
    if not query.words:
        assert query.image is not None
        picture = encoded_picture(query.image)
        captions = [rows[candidate.position].caption for candidate in candidates]
        return [(caption, picture) if caption else None for caption in captions]
    with ThreadPoolExecutor(READERS) as readers:
        told = [rows[candidate.position] for candidate in candidates]
        pictures = list(
            readers.map(
                lambda row: read_checked(row.url, row.place, row.sha256) if row.place else None,
                told,
            )
        )
    return [(query.words, data) if data is not None else None for data in pictures]


def _place(segments: Sequence[Segment], position: int) -> tuple[Segment, int]:
    """The segment of a position, and its row there."""
    first = 0
    for segment in segments:
        if position < first + len(segment):
            return segment, position - first
        first += len(segment)
    raise AssertionError(f"position {position} of {first}")
