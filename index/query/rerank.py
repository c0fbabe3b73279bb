"""Hits -> better hits: the first of them scored again by something slower and more exact.

    vectors:N   by the stored joint vectors, which know the caption as well as the picture
    match:N     by the encoder's matching of texts with pictures, read from the shards by range:
                logit + the score before, as ALBEF and BLIP do (Li et al., 2021 and 2022)
    st:MODEL:N  by a CrossEncoder of sentence-transformers that takes pictures

Stages follow one another, each on the first N hits of the stage before. Hits beyond N, and hits
that a stage cannot score because they have no picture, keep their order behind those it scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from chiasm.index.queries import Query, RerankStage
from chiasm.index.query.encode import pixels_of, query_refused, text_of
from chiasm.index.query.open_index import OpenIndex
from chiasm.index.results import CatalogRow, Hit
from chiasm.pipeline.encoders import (
    Fault,
    Matcher,
    load_matcher,
    match_each,
    probe_matcher,
    require_matcher,
    require_modality,
)
from chiasm.pipeline.errors import ChiasmError, UsageError
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.records import IMAGE, TEXT
from chiasm.pipeline.shards import read_checked

READERS = 8  # pictures fetched at once: reads of an object store mostly wait
BATCH = 32  # pairs matched at once

Scorer = Callable[[Query, np.ndarray, Sequence[Hit], OpenIndex, RerankStage], list[float | None]]


@dataclass(frozen=True, slots=True)
class Reranker:
    """score: one score for each hit, None for a hit that it cannot score. takes_model: written
    `NAME:MODEL:N`, else `NAME:N`."""

    score: Scorer
    takes_model: bool = False


def check_stages(stages: Iterable[RerankStage]) -> None:
    """Raises UsageError for a stage of an unknown reranker, or with a model too many or too few."""
    for stage in stages:
        reranker = RERANKERS.get(stage.reranker)
        if reranker is None or bool(stage.model) != reranker.takes_model:
            raise UsageError(
                f"rerank {str(stage)!r}",
                expected="one of " + ", ".join(map(_syntax, RERANKERS)),
                found="none of them",
            )


def _syntax(name: str) -> str:
    return f"{name}:MODEL:N" if RERANKERS[name].takes_model else f"{name}:N"


def rerank(query: Query, xq: np.ndarray, hits: list[Hit], collection: OpenIndex) -> list[Hit]:
    """The hits of one query through all of its stages; xq (D,) float32 is its vector.

    Raises UsageError for a stage that the query or the encoder cannot serve, SourceError for
    pictures that are gone.
    """
    for stage in query.stages:
        first, rest = hits[: stage.depth], hits[stage.depth :]
        scores = RERANKERS[stage.reranker].score(query, xq, first, collection, stage)
        scored = [
            hit.scored(stage.name, score)
            for hit, score in zip(first, scores, strict=True)
            if score is not None
        ]
        scored.sort(key=lambda hit: (-hit.score, hit.position))
        unscored = [hit for hit, score in zip(first, scores, strict=True) if score is None]
        hits = scored + unscored + rest
    return hits


def by_vectors(
    query: Query,
    xq: np.ndarray,
    hits: Sequence[Hit],
    collection: OpenIndex,
    stage: RerankStage,
) -> list[float | None]:
    """Inner products with the stored joint vectors, in float32; None for rows without one."""
    joint = collection.vectors("joint", [hit.position for hit in hits])
    return [float(vector @ xq) if vector.any() else None for vector in joint]


def by_matching(
    query: Query,
    xq: np.ndarray,
    hits: Sequence[Hit],
    collection: OpenIndex,
    stage: RerankStage,
) -> list[float | None]:
    """Matching logit of the query's words with each picture, or of the query's picture with each
    caption, plus the score before; None for rows without.
    """
    logits = _by_pairs(query, hits, collection, stage, require_matcher(collection.encoder))
    return [
        None if logit is None else logit + hit.score
        for logit, hit in zip(logits, hits, strict=True)
    ]


def by_cross_encoder(
    query: Query,
    xq: np.ndarray,
    hits: Sequence[Hit],
    collection: OpenIndex,
    stage: RerankStage,
) -> list[float | None]:
    """Scores of a CrossEncoder for words and pictures, paired as in `by_matching`; None for rows
    without.
    """
    matcher = load_matcher(f"st:{stage.model}", collection.encoding)
    return _by_pairs(query, hits, collection, stage, matcher)


RERANKERS: dict[str, Reranker] = {
    "vectors": Reranker(by_vectors),
    "match": Reranker(by_matching),
    "st": Reranker(by_cross_encoder, takes_model=True),
}


def _by_pairs(
    query: Query,
    hits: Sequence[Hit],
    collection: OpenIndex,
    stage: RerankStage,
    matcher: Matcher,
) -> list[float | None]:
    """Scores of the query's text with each hit's picture, or of the query's picture with each hit's
    caption, BATCH pairs at a time; None for hits without, and for those that the matcher does not
    take. UsageError where it takes none: then it is the query that it refuses.
    """
    if not query.words and query.image is None:
        raise UsageError(f"rerank {stage}", expected="words or a picture", found="a vector")
    catalog = collection.rows({hit.position for hit in hits})
    rows = [catalog[hit.position] for hit in hits]
    for modality in (IMAGE, TEXT):
        require_modality(matcher, modality)
    if query.words:
        usable = [i for i, row in enumerate(rows) if row.place is not None]
        query_side = (TEXT, [text_of(query.words, matcher)])
    else:
        assert query.image is not None
        usable = [i for i, row in enumerate(rows) if row.caption]
        query_side = (IMAGE, [pixels_of(query.image, matcher)])

    def row_side(i: int) -> Any:
        try:
            if query.words:
                return _pixels(_picture(rows[i]), matcher)
            return matcher.preprocess(TEXT, rows[i].caption or "")
        except ChiasmError:  # the row's shard is gone, or holds another picture
            raise
        except Exception:  # noqa: BLE001  embedded under other limits, or by a model that takes it
            return None  # it is not scored

    scores, faults = _match(query_side, row_side, usable, matcher)
    if faults and not scores:
        probe_matcher(matcher)
        raise query_refused(str(query), matcher, faults[0])
    return [scores.get(i) for i in range(len(hits))]


def _match(
    query_side: tuple[str, list[Any]],
    row_side: Callable[[int], Any],
    usable: Sequence[int],
    matcher: Matcher,
) -> tuple[dict[int, float], list[Fault]]:
    """The scores of those of the `usable` hits that the matcher takes, and the faults of others;
    row_side: a hit's item, None for one that has none."""
    modality = IMAGE if query_side[0] == TEXT else TEXT
    scores: dict[int, float] = {}
    faults: list[Fault] = []
    with ThreadPoolExecutor(READERS) as readers:
        for start in range(0, len(usable), BATCH):
            batch = usable[start : start + BATCH]
            sides = dict(zip(batch, readers.map(row_side, batch), strict=True))
            items = {i: side for i, side in sides.items() if side is not None}
            pairs = np.array([(0, number) for number in range(len(items))])
            other_side = (modality, list(items.values()))
            matched, refused = match_each(matcher, query_side, other_side, pairs)
            faults += refused.values()
            scores |= {
                i: score
                for number, (i, score) in enumerate(zip(items, matched.tolist(), strict=True))
                if number not in refused
            }
    return scores, faults


def _pixels(data: bytes, matcher: Matcher) -> Any:
    """An encoded picture as the matcher takes it. Raises Undecodable."""
    image = decode(data, DecodeSettings(), matcher.modalities[IMAGE].side).image
    return matcher.preprocess(IMAGE, np.asarray(image))


def _picture(row: CatalogRow) -> bytes:
    assert row.place is not None
    return read_checked(row.url, row.place, row.sha256)
