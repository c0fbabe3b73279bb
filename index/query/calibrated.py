"""An open index and its calibrations: that of a column, stored by a build or made now from its
captions; those of rows that pass a filter, made now; p-values of queries.

What is made now is kept with the open generation: of a column as long as that is open, of filters
the last few.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np

from chiasm.index.hits import Hit
from chiasm.index.queries import CALIBRATED_HITS, Query
from chiasm.index.query.calibrate import Calibration, features
from chiasm.index.query.calibration_hits import BLOCK, Postings
from chiasm.index.query.calibration_sample import calibrate
from chiasm.index.query.encode import encode_queries
from chiasm.index.query.filtered import search_filtered
from chiasm.index.query.open_index import OpenIndex
from chiasm.index.query.scan import Allowed
from chiasm.index.segments import Generation, build_command, read_shared
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.records import TEXT
from chiasm.pipeline.storage import display_name

LOG = logging.getLogger(__name__)
JOINT = "joint"
MOST_FILTERED = 8  # calibrations of filters that are kept, some MB each


def calibrate_index(collection: OpenIndex, column: str, where: str | None = None) -> Calibration:
    """The calibration of a column from the captions of the generation that is open; where: of the
    rows that pass a filter. Raises CollectionError where too few captions can ask: of `text` and
    `joint`, whose vectors hold a row's first caption, only its others can."""
    collection.require_column(column)
    return calibrate(IndexBackground(collection, column, where))


class IndexBackground:
    """The rows of a column that may be found, as `Background` has them."""

    def __init__(self, collection: OpenIndex, column: str, where: str | None) -> None:
        self.collection, self.column = collection, column
        self.indexed_caption = column in (TEXT, JOINT)
        name = f"column {column} of {display_name(collection.collection.folder.url)}"
        self.where = name if where is None else f"{name} where {where}"
        self.allowed: Allowed | None = collection.allowed(where)
        self.firsts = np.cumsum([0, *map(len, collection.segments)]).tolist()
        alive = [self._alive(number) for number in range(len(collection.segments))]
        self.alive = [
            np.flatnonzero(one) + first
            for one, first in zip(alive, self.firsts, strict=False)  # the last is an end
        ]
        self.positions = np.concatenate(self.alive) if alive else np.empty(0, np.int64)

    def _alive(self, number: int) -> np.ndarray:
        segment = self.collection.segments[number]
        deleted, allowed = segment.deleted(), self.allowed[number] if self.allowed else None
        alive = np.ones(len(segment), bool) if allowed is None else allowed.copy()
        return alive if deleted is None else alive & ~deleted

    def captions(self, positions: Sequence[int]) -> dict[int, Sequence[str]]:
        rows = self.collection.rows(positions)
        return {position: rows[position].captions for position in positions}

    def postings(self, stems: Sequence[str]) -> dict[str, Postings]:
        runs = [
            (first + run.first, run)
            for first, segment in zip(self.firsts, self.collection.segments, strict=False)
            for run in segment.keywords.runs
        ]
        firsts = [first for first, _ in runs]
        return {
            stem: Postings(firsts, [run.postings(stem)[0] for _, run in runs]) for stem in stems
        }

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        encoder, dim = self.collection.encoder, self.collection.dim
        try:
            return encode_queries([Query(text) for text in texts], encoder, dim)
        except UsageError:  # of one of them
            if len(texts) == 1:
                return np.zeros((1, dim), np.float32)
        return np.concatenate([self.encode([text]) for text in texts])

    def search(self, xq: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        index, lists = self.collection.column(self.column), self.collection.lists_to_scan
        return search_filtered(index, xq, k, lists(self.column), self.allowed)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        segments = zip(self.firsts, self.alive, self.collection.segments, strict=False)
        for first, alive, segment in segments:
            raw = segment.raw(self.column)
            for start in range(0, len(alive), BLOCK):
                positions = alive[start : start + BLOCK]
                vectors = raw.take(positions - first)
                has = vectors.any(axis=1)
                yield positions[has], vectors[has]


def p_absent(query: Query, hits: Sequence[Hit], collection: OpenIndex) -> float:
    """The p-value that nothing matches a query of words; see `Calibration`. hits: its first ones by
    vectors, before anything is fused, folded or scored again."""
    require_words(query)
    calibration = _calibration(collection, query.column, query.where)
    first = hits[:CALIBRATED_HITS]
    positions = [hit.position for hit in first]
    rows = collection.rows(positions)
    named = calibration.named([text for at in positions for text in rows[at].captions])
    scores = np.array([hit.scores["search"] for hit in first])
    weights = calibration.weights(query.words)
    return calibration.p_value(features(scores, named, weights))


def _calibration(collection: OpenIndex, column: str, where: str | None) -> Calibration:
    """Stored, kept, or made now."""
    made: dict[tuple[str, str | None], Calibration] = collection.generation.calibrations
    found = made.get((column, where))
    if found is None and where is None:
        found = stored_calibration(collection.generation, column)
    if found is None:
        found = calibrate_index(collection, column, where)
    made[column, where] = found
    filtered = [key for key in made.copy() if key[1] is not None]
    for key in filtered[:-MOST_FILTERED]:
        made.pop(key, None)
    return found


def stored_calibration(generation: Generation, column: str) -> Calibration | None:
    """That of a build, None where it has none, or one of an earlier release. CollectionError where
    it is damaged, SegmentGone where it was removed."""
    entry = generation.manifest.calibrations.get(column)
    if entry is None:
        return None
    content = read_shared(generation.folder, entry.file, entry.checksum)
    where = display_name(generation.folder.url_of(entry.file))
    build = build_command(generation.folder)
    found = Calibration.from_json(content, where, f"run {build}")
    if found is None:
        LOG.info(
            "%s was calibrated by an earlier version: calibrated anew; %s keeps it", where, build
        )
    return found


def require_words(query: Query) -> None:
    """UsageError for a query with a picture or a vector: captions are no sample of those."""
    if query.image is not None or query.members or not query.words:
        other = "weighted terms" if query.terms else "a vector"
        other = f"a {next(iter(query.members))}" if query.members else other
        raise UsageError(
            "false alarms",
            expected="a query of words alone, as captions calibrate it",
            found="a picture" if query.image is not None else other,
        )
