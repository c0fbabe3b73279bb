"""Draws the sample that `chiasm.index.query.calibrate` is fitted on, from a collection's captions.

SAMPLE captions are encoded as queries. Each asks three times: as it is; without the rows whose
captions name one of its words; and without those that name two of its words. The words are drawn
among those that some rows have and most have not. Every caption is read three times and every row
is scored once for each sampled caption, exactly: 2,000 x rows x width multiplications, as much as
the truth that 2,000 queries are tuned on. Memory: the rows left out, 8 bytes each, and a block of
scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from chiasm.index.queries import CALIBRATED_HITS
from chiasm.index.query.calibrate import (
    MIN_SAMPLE,
    Calibration,
    features,
    fit,
    word_weight,
    words_of,
)
from chiasm.pipeline.errors import CollectionError

SAMPLE = 2000  # captions: half are compared with, so a rate of 5 % is off by 0.7 points
# Share of rows whose captions name a word. Rarer ones are names and slips; with commoner ones too
# much of the collection goes, and what is left is no longer like it.
RAREST, COMMONEST = 0.003, 0.25
BLOCK = 4096  # rows scored at once: 32 MiB of scores
MOST_WORDS = 100_000  # stored with their counts; some 1.5 MB

Captions = Callable[[], Iterable[Sequence[str]]]  # of every row, in order of positions
Vectors = Callable[[], Iterable[tuple[int, np.ndarray]]]  # first position, (n, D); zeros: no vector


@dataclass(frozen=True)
class Sampled:
    """A caption that asks. others: words of the row's other captions. left_out: the positions whose
    captions name its word, and those that name its pair, in rising order, itself among them."""

    row: int
    text: str
    others: frozenset[str]
    left_out: tuple[np.ndarray, np.ndarray]
    word: str


def calibrate(
    captions: Captions,
    vectors: Vectors,
    encode: Callable[[list[str]], np.ndarray],
    joint: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    indexed_caption: bool = False,
    where: str = "calibration",
) -> Calibration:
    """The calibration of one column.

    captions: the captions of every row. vectors: the column's, in blocks. encode: texts as queries,
    (n, D) float32. joint: vectors (n, D) of the joint column at positions; None where there is
    none. indexed_caption: whether a row's first caption is in its vector, as in `text` and `joint`:
    then it does not ask. where: for messages. Raises CollectionError where too few captions can
    ask.
    """
    counts, rows = _count_words(captions)
    sample = draw(captions, counts, rows, 1 if indexed_caption else 0)
    if len(sample) < MIN_SAMPLE:
        others = ", beside the first of a row, which is in its vector" if indexed_caption else ""
        raise CollectionError(
            where,
            expected=f"at least {MIN_SAMPLE} captions to calibrate by{others}",
            found=str(len(sample)),
            do="search without a false-alarm rate",
        )
    xq = encode([one.text for one in sample])
    own, word, pair = exact_hits(vectors, xq, sample)
    wanted = {int(p) for _, positions in (own, word, pair) for p in positions.ravel() if p >= 0}
    hit_words = {
        position: _words(texts) for position, texts in enumerate(captions()) if position in wanted
    }
    table = dict(counts.most_common(MOST_WORDS))
    stored = {name: count for name, count in table.items() if count > 1}

    def features_of(hits: tuple[np.ndarray, np.ndarray], gone: bool) -> np.ndarray:
        return np.array(
            [
                _features(one, xq[i], hits[0][i], hits[1][i], hit_words, stored, rows, joint, gone)
                for i, one in enumerate(sample)
            ]
        ).reshape(len(sample), -1)

    return fit(
        features_of(own, False), features_of(word, True), features_of(pair, False), rows, stored
    )


def _features(
    one: Sampled,
    vector: np.ndarray,
    scores: np.ndarray,
    positions: np.ndarray,
    hit_words: dict[int, frozenset[str]],
    counts: dict[str, int],
    rows: int,
    joint: Callable[[np.ndarray], np.ndarray] | None,
    gone: bool,
) -> np.ndarray:
    """Of one ask. Its own row does not know the caption that asks, and a word that was left out is
    in no row."""
    found = positions >= 0
    scores, positions = scores[found], positions[found]
    words = {}
    for word in words_of(one.text):
        count = 0 if gone and word == one.word else counts.get(word, 0) - (word not in one.others)
        words[word] = word_weight(rows, max(0, count))
    known = [one.others if p == one.row else hit_words[int(p)] for p in positions]
    other = joint(positions) @ vector if joint and len(positions) else np.zeros(len(positions))
    return features(scores, known, words, other)


def draw(captions: Captions, counts: Counter[str], rows: int, first: int) -> list[Sampled]:
    """At most SAMPLE captions, from `first` on among those of a row, with a word and a pair that
    can be left out, and the rows that go with them. In random order; the same for the same rows."""
    rng = np.random.default_rng(0)
    fewest, most = RAREST * rows, COMMONEST * rows
    places = set(rng.permutation(rows)[: 4 * SAMPLE].tolist())
    drawn: list[tuple[int, str, frozenset[str], str, tuple[str, ...]]] = []
    for row, texts in enumerate(captions()):
        if row not in places or len(texts) <= first:
            continue
        number = int(rng.integers(first, len(texts)))
        others = _words([*texts[:number], *texts[number + 1 :]])
        words = sorted(words_of(texts[number]))
        single = [word for word in words if fewest <= counts[word] <= most]
        paired = [word for word in words if fewest <= counts[word] <= 2 * most]
        if single and len(paired) > 1:
            pair = tuple(str(word) for word in rng.choice(paired, 2, replace=False))
            drawn.append((row, texts[number], others, str(rng.choice(single)), pair))
    drawn = [drawn[i] for i in rng.permutation(len(drawn))[:SAMPLE]]
    wanted = {word for *_, word, pair in drawn for word in (word, *pair)}
    postings: dict[str, list[int]] = {word: [] for word in wanted}
    for row, texts in enumerate(captions()):
        for word in _words(texts) & wanted:
            postings[word].append(row)
    naming = {word: np.array(found, np.int64) for word, found in postings.items()}
    return [
        Sampled(row, text, others, _left_out(row, naming, word, pair), word)
        for row, text, others, word, pair in drawn
    ]


def _left_out(
    row: int, naming: dict[str, np.ndarray], word: str, pair: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    both = np.intersect1d(naming[pair[0]], naming[pair[1]])
    return np.union1d(naming[word], [row]), np.union1d(both, [row])


def exact_hits(
    vectors: Vectors, xq: np.ndarray, sample: Sequence[Sampled]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The k = CALIBRATED_HITS best of all rows, of those without each caption's word, and of those
    without its pair: three times scores (Q, k) float32, best first, and positions, -1 where there
    are fewer."""
    k = CALIBRATED_HITS
    best = [
        (np.full((len(xq), k), -np.inf, np.float32), np.full((len(xq), k), -1, np.int64))
        for _ in range(3)
    ]
    for start, block in _blocks(vectors):
        scores = xq @ block.T
        scores[:, ~block.any(axis=1)] = -np.inf
        for variant, (top, positions) in enumerate(best):
            left = scores if variant == 0 else _without(scores, start, sample, variant - 1)
            for query in np.flatnonzero((left > top[:, -1:]).any(axis=1)):
                both = np.concatenate((top[query], left[query]))
                order = np.argpartition(-both, k)[:k]
                order = order[np.argsort(-both[order], kind="stable")]
                places = np.where(order < k, positions[query][order % k], order - k + start)
                positions[query] = np.where(np.isinf(both[order]), -1, places)
                top[query] = both[order]
    return best


def _without(scores: np.ndarray, start: int, sample: Sequence[Sampled], which: int) -> np.ndarray:
    left = scores.copy()
    for query, one in enumerate(sample):
        out = one.left_out[which]
        first, last = np.searchsorted(out, (start, start + scores.shape[1]))
        left[query, out[first:last] - start] = -np.inf
    return left


def _blocks(vectors: Vectors) -> Iterator[tuple[int, np.ndarray]]:
    for first, some in vectors():
        for start in range(0, len(some), BLOCK):
            yield first + start, np.asarray(some[start : start + BLOCK], np.float32)


def _count_words(captions: Captions) -> tuple[Counter[str], int]:
    counts: Counter[str] = Counter()
    rows = 0
    for texts in captions():
        counts.update(_words(texts))
        rows += 1
    return counts, rows


def _words(texts: Iterable[str]) -> frozenset[str]:
    return frozenset().union(*map(words_of, texts))
