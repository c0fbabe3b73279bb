"""Hits -> better hits: the first of them scored again by something slower and more exact.

    vectors:N   by the stored joint vectors, which know the caption as well as the picture
    match:N     by the encoder's matching of texts with pictures, read from the shards by range:
                logit + the score before, as ALBEF and BLIP do (Li et al., 2021 and 2022)
    hf:MODEL:N  the same by another model: a BLIP or BLIP-2 of transformers, for retrieval
    st:MODEL:N  by a CrossEncoder of sentence-transformers that takes pictures

Stages follow one another, each on the first N hits of the stage before. Hits beyond N, and hits
that a stage cannot score because they have no picture, keep their order behind those it scored.

The queries of a batch take a stage together: their pairs are matched in one order, by picture, so
that each picture is fetched and decoded once, whichever queries have it among their hits
(index/query/pairs.py). A hit's score depends on its query alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from chiasm.index.hits import Hit
from chiasm.index.queries import Query, RerankStage, Term
from chiasm.index.query.encode import query_refused
from chiasm.index.query.open_index import OpenIndex
from chiasm.index.query.pairs import (
    Outcome,
    Pair,
    match_pairs,
    side_of_query,
    side_of_row,
)
from chiasm.pipeline.encoders import (
    Fault,
    Matcher,
    load_matcher,
    probe_matcher,
    require_matcher,
    require_modality,
)
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.records import IMAGE, TEXT

MAX_ROWS = 1 << 14  # rows of the catalog in memory at once, beyond those of one query

Scores = list[float | None]  # of the hits of one query, None for a hit that cannot be scored


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Hits of one query that a stage scores; xq (D,) float32 is the query's vector."""

    query: Query
    xq: np.ndarray
    hits: Sequence[Hit]
    stage: RerankStage

    @classmethod
    def of(cls, query: Query, xq: np.ndarray, ranked: Sequence[Hit], step: int) -> Candidates:
        """Those of one of the query's stages, by its number."""
        stage = query.stages[step]
        return cls(query, xq, ranked[: stage.depth], stage)


Scorer = Callable[[Sequence[Candidates], OpenIndex], list[Scores]]


@dataclass(frozen=True, slots=True)
class Reranker:
    """score: the scores of the hits of several queries, whose stages differ in depth alone.
    takes_model: written `NAME:MODEL:N`, else `NAME:N`. matcher: what it scores by, None for one
    without a model."""

    score: Scorer
    takes_model: bool = False
    matcher: Callable[[RerankStage, OpenIndex], Matcher] | None = None


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


def rerank(
    queries: Sequence[Query], xq: np.ndarray, hits: Sequence[list[Hit]], collection: OpenIndex
) -> list[list[Hit]]:
    """The hits of each query through all of its stages; xq (Q, D) float32 are their vectors.

    Raises UsageError for a stage that a query or the encoder cannot serve, SourceError for
    pictures that are gone.
    """
    ranked = list(hits)
    for step in range(max((len(query.stages) for query in queries), default=0)):
        together: dict[str, list[int]] = defaultdict(list)  # queries by the name of the stage
        for number, query in enumerate(queries):
            if step < len(query.stages):
                together[query.stages[step].name].append(number)
        for numbers in chain.from_iterable(
            _blocks(group, [queries[number].stages[step].depth for number in group])
            for group in together.values()
        ):
            batch = [Candidates.of(queries[n], xq[n], ranked[n], step) for n in numbers]
            scores = RERANKERS[batch[0].stage.reranker].score(batch, collection)
            for number, candidates, scored in zip(numbers, batch, scores, strict=True):
                rest = ranked[number][candidates.stage.depth :]
                ranked[number] = _in_order(candidates, scored, step) + rest
    return ranked


def _blocks(numbers: Sequence[int], depths: Sequence[int]) -> Iterator[list[int]]:
    """The numbers in their order, cut where the depths exceed MAX_ROWS."""
    block: list[int] = []
    rows = 0
    for number, depth in zip(numbers, depths, strict=True):
        if block and rows + depth > MAX_ROWS:
            yield block
            block, rows = [], 0
        block.append(number)
        rows += depth
    if block:
        yield block


def _in_order(candidates: Candidates, scores: Scores, step: int) -> list[Hit]:
    """The hits that were scored, best first, then the others as they were."""
    pairs = list(zip(candidates.hits, scores, strict=True))
    scored = [
        hit.scored(candidates.stage.name, score, step) for hit, score in pairs if score is not None
    ]
    scored.sort(key=lambda hit: (-hit.score, hit.position))
    return scored + [hit for hit, score in pairs if score is None]


def by_vectors(batch: Sequence[Candidates], collection: OpenIndex) -> list[Scores]:
    """Inner products with the stored joint vectors, in float32; None for rows without one. Those of
    all queries are read together, each row once."""
    positions = sorted({hit.position for one in batch for hit in one.hits})
    joint = dict(zip(positions, collection.vectors("joint", positions), strict=True))
    scores = []
    for one in batch:
        vectors = [joint[hit.position] for hit in one.hits]
        scores.append([float(vector @ one.xq) if vector.any() else None for vector in vectors])
    return scores


def by_matching(batch: Sequence[Candidates], collection: OpenIndex) -> list[Scores]:
    """Matching logit of the query's words with each picture, or of the query's picture with each
    caption, plus the score before; None for rows without. Of a query of terms the mean logit of
    its texts, or without texts of its pictures, by their weights: sum(w x) / sum(|w|).
    """
    return _logit_plus_score(batch, collection, _own_matcher(batch[0].stage, collection))


def by_other_matching(batch: Sequence[Candidates], collection: OpenIndex) -> list[Scores]:
    """As `by_matching`, by another model than the collection's encoder."""
    return _logit_plus_score(batch, collection, _huggingface(batch[0].stage, collection))


def _logit_plus_score(
    batch: Sequence[Candidates], collection: OpenIndex, matcher: Matcher
) -> list[Scores]:
    logits = _by_pairs(batch, collection, matcher)
    return [
        [
            None if logit is None else logit + hit.score
            for logit, hit in zip(row, one.hits, strict=True)
        ]
        for row, one in zip(logits, batch, strict=True)
    ]


def by_cross_encoder(batch: Sequence[Candidates], collection: OpenIndex) -> list[Scores]:
    """Scores of a CrossEncoder for words and pictures, paired as in `by_matching`; None for rows
    without.
    """
    return _by_pairs(batch, collection, _cross_encoder(batch[0].stage, collection))


def _own_matcher(stage: RerankStage, collection: OpenIndex) -> Matcher:
    return require_matcher(collection.encoder)


def _huggingface(stage: RerankStage, collection: OpenIndex) -> Matcher:
    return load_matcher(f"hf:{stage.model}", collection.encoding)


def _cross_encoder(stage: RerankStage, collection: OpenIndex) -> Matcher:
    return load_matcher(f"st:{stage.model}", collection.encoding)


RERANKERS: dict[str, Reranker] = {
    "vectors": Reranker(by_vectors),
    "match": Reranker(by_matching, matcher=_own_matcher),
    "st": Reranker(by_cross_encoder, takes_model=True, matcher=_cross_encoder),
    "hf": Reranker(by_other_matching, takes_model=True, matcher=_huggingface),
}


def reranker_fingerprints(stages: Iterable[RerankStage], collection: OpenIndex) -> dict[str, str]:
    """The fingerprints of the models that stages score by, by the stages' names; loads those that
    are not loaded yet."""
    return {
        stage.name: matcher(stage, collection).fingerprint
        for stage in stages
        if (matcher := RERANKERS[stage.reranker].matcher) is not None
    }


def _by_pairs(batch: Sequence[Candidates], collection: OpenIndex, matcher: Matcher) -> list[Scores]:
    """Scores of each query's texts with its hits' pictures, or of its pictures with its hits'
    captions; None for hits without, and for those that the matcher does not take. UsageError where
    it takes none of them: then it is the query that it refuses.
    """
    for modality in (IMAGE, TEXT):
        require_modality(matcher, modality)
    catalog = collection.rows({hit.position for one in batch for hit in one.hits})
    terms = [_matched_terms(one) for one in batch]
    pairs: dict[tuple[int, int, int], Pair] = {}  # by query, term of the query, hit of the query
    for number, one in enumerate(batch):
        for at, term in enumerate(terms[number]):
            query_side = side_of_query(term, (number, at))
            for place, hit in enumerate(one.hits):
                row_side = side_of_row(term, hit.position, catalog[hit.position])
                if row_side is not None:
                    pairs[number, at, place] = query_side, row_side
    outcomes = dict(zip(pairs, match_pairs(list(pairs.values()), matcher), strict=True))
    scores = []
    for number, one in enumerate(batch):
        rows = [
            [outcomes.get((number, at, place)) for place in range(len(one.hits))]
            for at in range(len(terms[number]))
        ]
        for term, row in zip(terms[number], rows, strict=True):
            _require_taken(row, str(term if one.query.terms else one.query), matcher)
        scores.append(_mean_scores(rows, [float(term.weight) for term in terms[number]]))
    return scores


def _matched_terms(one: Candidates) -> list[Term]:
    """The query's texts or, where it has none, its pictures; UsageError without either."""
    terms = [term for term in one.query.inputs if term.weight]
    if not terms:
        raise UsageError(f"rerank {one.stage}", expected="words or a picture", found="a vector")
    matched = [term for term in terms if term.words] or [term for term in terms if not term.members]
    if not matched:
        found = f"a {terms[0].modality}"
        raise UsageError(f"rerank {one.stage}", expected="words or a picture", found=found)
    return matched


def _require_taken(outcomes: Sequence[Outcome], name: str, matcher: Matcher) -> None:
    """UsageError where the matcher refuses every pair of a query's text or picture."""
    tried = [outcome for outcome in outcomes if outcome is not None]
    if tried and isinstance(tried[0], Fault) and all(isinstance(x, Fault) for x in tried):
        probe_matcher(matcher)
        raise query_refused(name, matcher, tried[0])


def _mean_scores(rows: Sequence[Sequence[Outcome]], weights: Sequence[float]) -> Scores:
    """For each hit sum(w x) / sum(|w|) over the terms; None where a term has no score for it."""
    total = sum(map(abs, weights))
    return [
        sum(weight * score for weight, score in zip(weights, column, strict=True)) / total
        if all(isinstance(score, float) for score in column)
        else None
        for column in zip(*rows, strict=True)
    ]
