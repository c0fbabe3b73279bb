"""Draws the sample that `chiasm.index.query.calibrate` is fitted on, from a collection's captions.

SAMPLE captions are encoded as queries. Each asks three times: as it is; without the rows that name
one of its words; and without those that name two of its neighbouring words. Which word of a caption
is drawn makes the stated rate true. Absent things have names such as "dog", and without "standing"
rows that match are left. So words are drawn by how often the AGREE nearest other rows of captions
that have them all name them; each caption may ask, whatever its own neighbours name. A word goes in
all its forms (rows are found by stem), since rows with "dogs" match where those with "dog" are
gone.

Terms are counted in COUNTED rows; every row is scored once for each sampled caption.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from chiasm.index.queries import CALIBRATED_HITS
from chiasm.index.query.calibrate import (
    MIN_SAMPLE,
    Calibration,
    features,
    fit,
    is_pair,
    is_usable,
    pairs_of,
    term_weight,
    terms_of,
    words_of,
)
from chiasm.index.query.calibration_hits import Hits, Postings, exact_hits
from chiasm.index.segments import stem_of
from chiasm.pipeline.errors import CollectionError


class TooFewCaptions(CollectionError):
    """A column cannot be calibrated by its captions."""


SAMPLE = 1000  # captions: some 500 are compared with, so a rate of 5 % is off by one point
AGREE = 3  # of nearest other rows
# Power of the share of captions whose neighbours agree, by which words are drawn. With 1, 2 and 4,
# 5 % stated were 2, 3 and 3.5 % on seven topics of photographs that the method was developed on.
SHARPNESS = 4
COUNTED = 20_000  # rows whose words and pairs are counted: some 2 s
MOST_TERMS = 100_000  # words, and as many pairs, stored with their counts: some 2 MB


class Background(Protocol):
    """What a calibration sees of a column: the rows that may be found. positions: theirs, rising.
    indexed_caption: whether a row's first caption is in its vector, as in `text` and `joint`; then
    it does not ask. where: for messages."""

    positions: np.ndarray
    indexed_caption: bool
    where: str

    def captions(self, positions: Sequence[int]) -> dict[int, Sequence[str]]: ...

    def postings(self, stems: Sequence[str]) -> dict[str, Postings]:
        """The rows that name each of the stems."""
        ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Texts as queries, (n, D) float32; zeros for one that the encoder refuses."""
        ...

    def search(self, xq: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows of each: scores and positions (n, k), -1 where there are fewer."""
        ...

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions (n,), rising, and vectors (n, D) of all rows that have one."""
        ...


@dataclass
class Asking:
    """A caption that asks, of a row. words: of it, in order. others: terms of the row's other
    captions. word: the stem that is left out, pair: the two stems and the term; "" and () where
    there is none."""

    row: int
    words: list[str]
    terms: frozenset[str]
    others: frozenset[str]
    text: str
    word: str = ""
    pair: tuple[str, ...] = ()


@dataclass
class Counts:
    """In how many of `rows` rows each term occurs, and each stem."""

    rows: int = 0
    terms: Counter[str] = field(default_factory=Counter)
    stems: Counter[str] = field(default_factory=Counter)
    usable: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, captions: Iterable[Sequence[str]]) -> Counts:
        counts, parts = cls(), [[words_of(text) for text in texts] for texts in captions]
        counts.rows = len(parts)
        for row in parts:
            named = {word for words in row for word in words}
            counts.terms.update(named)
            counts.stems.update({stem_of(word) for word in named})
        counts.usable = {w for w, count in counts.terms.items() if is_usable(count, counts.rows)}
        pairs: Counter[str] = Counter()
        for row in parts:
            pairs.update({pair for words in row for pair in pairs_of(words, counts.usable)})
        counts.terms = Counter(dict(counts.terms.most_common(MOST_TERMS)))
        # A pair that one row has is, for its own caption, one that no other row has.
        counts.terms.update({p: n for p, n in pairs.most_common(MOST_TERMS) if n > 1})
        return counts


def calibrate(background: Background) -> Calibration:
    """The calibration of one column. Raises TooFewCaptions."""
    rng = np.random.default_rng(0)
    rows = background.positions
    drawn = rows[rng.permutation(len(rows))[:COUNTED]].tolist()
    captions = background.captions(drawn)
    can_ask = sum(len(texts) > background.indexed_caption for texts in captions.values())
    if can_ask < MIN_SAMPLE:
        raise _too_few(background, can_ask)
    counts = Counts.of(captions.values())
    asking = ask(drawn, captions, counts, background.indexed_caption, rng)
    xq = background.encode([one.text for one in asking])
    taken = np.flatnonzero(xq.any(axis=1))
    asking, xq = [asking[number] for number in taken], xq[taken]
    scores, positions = background.search(xq, CALIBRATED_HITS + 1)
    named = _Named(background, counts)
    named.learn(positions)
    leave_out(asking, positions, named, counts, rng)
    everyone = list(range(len(asking)))
    with_word, with_pair = (
        [i for i in everyone if getattr(asking[i], n)] for n in ("word", "pair")
    )
    if len(with_word) < MIN_SAMPLE:
        raise _too_few(background, len(with_word))
    word, pair = _lacking(background, asking, xq)
    named.learn(word[1])
    named.learn(pair[1])

    def sample(hits: Hits, numbers: list[int], gone: str) -> np.ndarray:
        rows = [_features(asking[i], hits[0][i], hits[1][i], named, counts, gone) for i in numbers]
        return np.array(rows)

    return fit(
        sample((scores[:, :CALIBRATED_HITS], positions[:, :CALIBRATED_HITS]), everyone, ""),
        sample(word, with_word, "word"),
        sample(pair, with_pair, "pair"),
        rows=len(rows),
        counted=counts.rows,
        terms=counts.terms,
    )


class _Named(dict[int, frozenset[str]]):
    """Position -> the terms of its captions."""

    def __init__(self, background: Background, counts: Counts) -> None:
        super().__init__()
        self._background, self._usable = background, counts.usable

    def learn(self, positions: np.ndarray) -> None:
        new = {int(position) for position in positions.ravel() if position >= 0} - self.keys()
        for position, texts in self._background.captions(sorted(new)).items():
            self[position] = terms_of(texts, self._usable)


def _lacking(background: Background, asking: Sequence[Asking], xq: np.ndarray) -> list[Hits]:
    """The hits of each caption without its word, and without its pair."""
    stems = {stem for one in asking for stem in (one.word, *one.pair[:2]) if stem}
    postings = background.postings(sorted(stems))
    words = [[postings[one.word]] if one.word else [] for one in asking]
    pairs = [[postings[stem] for stem in one.pair[:2]] for one in asking]
    return exact_hits(background.blocks(), xq, [one.row for one in asking], [words, pairs])


def _too_few(background: Background, found: int) -> TooFewCaptions:
    others = ""
    if background.indexed_caption:
        others = ", beside the first of a row, which is in its vector"
    return TooFewCaptions(
        background.where,
        expected=f"at least {MIN_SAMPLE} captions to calibrate by{others}",
        found=str(found),
        do="search without a false-alarm rate",
    )


def ask(
    rows: Sequence[int],
    captions: Mapping[int, Sequence[str]],
    counts: Counts,
    first: int,
    rng: np.random.Generator,
) -> list[Asking]:
    """A caption, from `first` on, of each of the first SAMPLE rows that have one."""
    asking: list[Asking] = []
    for row in rows:
        texts = captions[row]
        if len(texts) > first and len(asking) < SAMPLE:
            number = int(rng.integers(first, len(texts)))
            words = words_of(texts[number])
            if not words:
                continue
            terms = frozenset({*words, *pairs_of(words, counts.usable)})
            others = terms_of([*texts[:number], *texts[number + 1 :]], counts.usable)
            asking.append(Asking(row, words, terms, others, texts[number]))
    return asking


def leave_out(
    asking: Sequence[Asking],
    positions: np.ndarray,
    named: Mapping[int, frozenset[str]],
    counts: Counts,
    rng: np.random.Generator,
) -> None:
    """Draw the word and the pair of each caption. positions: (n, k), its best hits. named: the
    terms of their captions."""
    stems = [
        sorted({s for s in map(stem_of, one.words) if is_usable(counts.stems[s], counts.rows)})
        for one in asking
    ]
    share = agreement(asking, positions, named, stems)
    for one, own in zip(asking, stems, strict=True):
        one.word = _drawn(own, [share[stem] ** SHARPNESS for stem in own], rng)
        pairs = sorted(filter(is_pair, one.terms))
        shares = [_pair_share(pair, share, counts) for pair in pairs]
        if pair := _drawn(pairs, shares, rng):
            one.pair = (*map(stem_of, pair.split(" ")), pair)


def agreement(
    asking: Sequence[Asking],
    positions: np.ndarray,
    named: Mapping[int, frozenset[str]],
    stems: Sequence[Sequence[str]],
) -> dict[str, float]:
    """For each stem, of the captions that have it, the share whose AGREE nearest other rows all
    name it. stems: of each caption."""
    having: Counter[str] = Counter()
    agreed: Counter[str] = Counter()
    for one, found, own in zip(asking, positions, stems, strict=True):
        near = [named[int(at)] for at in found if at >= 0 and at != one.row][:AGREE]
        words = [{stem_of(term) for term in terms if not is_pair(term)} for terms in near]
        having.update(own)
        if len(words) == AGREE:
            agreed.update(set.intersection(*words) & set(own))
    return {stem: agreed[stem] / count for stem, count in having.items()}


def _pair_share(pair: str, share: Mapping[str, float], counts: Counts) -> float:
    """How likely a pair is drawn beside others; 0 where its words mostly go together: that is one
    thing with a name of two words."""
    words = pair.split(" ")
    if 2 * counts.terms[pair] > min(counts.terms[word] for word in words):
        return 0.0
    return math.prod(share.get(stem_of(word), 0.0) for word in words)


def _drawn(items: Sequence[str], weights: Sequence[float], rng: np.random.Generator) -> str:
    """One of the items, as likely as its weight; "" where all are 0."""
    total = sum(weights)
    return str(rng.choice(items, p=np.array(weights) / total)) if total else ""


def _features(
    one: Asking,
    scores: np.ndarray,
    positions: np.ndarray,
    named: Mapping[int, frozenset[str]],
    counts: Counts,
    gone: str,
) -> np.ndarray:
    """Of one caption that asks; gone: what was left out. Its own row does not know the caption, and
    what was left out is in no row."""
    found = positions >= 0
    scores, positions = scores[found], positions[found].tolist()
    weights: dict[str, float] = {}
    for term in one.terms:
        count = counts.terms[term] - (term not in one.others)
        if gone == "word":
            count = 0 if not is_pair(term) and stem_of(term) == one.word else count
        elif gone == "pair" and term == one.pair[2]:
            count = 0
        weights[term] = term_weight(counts.rows, max(0, count))
    known = frozenset().union(*(one.others if at == one.row else named[at] for at in positions))
    return features(scores, known, weights)
