"""How a query's best hits compare with those of queries that have nothing here.

A flat threshold on scores does not work: how high the best score of an absent thing is depends on
the query. The collection's own captions give a sample of both cases without labels. A caption asks
as it is, and its own row is there; it asks again while every row that names one of its words, in
any form, is left out, and what that word names is absent; and while every row that names two of its
neighbouring words is left out, and their combination is absent. Two statistics of the hits are
fitted on a third of the sample, by logistic regression, and compared with the rest:

- `absence`, of the best score and of the rarest word of the query that no hit's captions name. Its
  split-conformal p-value against the captions that lack a word is at most `a` with probability at
  most `a` for an exchangeable query (Vovk et al., Algorithmic Learning in a Random World, 2005).
- `likeness`, of all features, against captions that lack a word or a pair. Its p-value is that
  against captions that lack a pair. It counts only for queries below all but FLOOR of the captions
  whose row is there: where captions do not say all, rows without the pair mostly match all the
  same, and no threshold would leave anything.

The p-value of a query is the greater of the two. calibration_sample.py draws the sample, and says
which words and pairs are left out. Everything here is arithmetic on arrays.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from pydantic import FiniteFloat

from chiasm.index.plan import Count
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.stored_records import read_record

FEATURES = ("best", "last", "word", "pair")
ABSENCE = (0, 2)  # best and word: with `last` too, 5 % stated were 11 % on topics of photographs
FLOOR = 0.02  # of the queries whose row is here, that `likeness` may answer "nothing"
MIN_SAMPLE = 200  # captions, of which so many lack a word: rates below 1 % can be stated
FITTED = 3  # every third is fitted on, for four weights; the others are compared with
SHRINK = 1e-3  # L2 penalty on weights of standardised features, against features that separate
NEWTON_STEPS = 25  # penalised, so it converges in about ten
# Share of rows whose captions name a word. Rarer ones are names and slips; with commoner ones too
# much of the collection goes, and what is left is no longer like it.
RAREST, COMMONEST = 0.003, 0.25
# Words from each other that a pair of neighbours is at most: an adjective and its noun, with
# others between. Of scripts without spaces, where words are of two characters and overlap.
REACH, REACH_UNSPACED = 3, 6
SCHEMA = 2  # 1 had features of joint vectors, too

# Scripts that are written without spaces: Han, kana, Thai, Lao, Khmer, Burmese.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_UNSPACED}]+|[^\\W_{_UNSPACED}]+")
_UNSPACED_START = re.compile(f"[{_UNSPACED}]")


def words_of(text: str) -> list[str]:
    """The words of a text in order, in lower case; of a script without spaces each two
    neighbours."""
    words: list[str] = []
    for run in _WORD.findall(text.lower()):
        if len(run) > 1 and _UNSPACED_START.match(run):
            words += [run[i : i + 2] for i in range(len(run) - 1)]
        else:
            words.append(run)
    return words


def pairs_of(words: Sequence[str], usable: Collection[str]) -> set[str]:
    """Neighbouring words of a text, `"red boat"`, of those that are usable."""
    pairs: set[str] = set()
    for place, word in enumerate(words):
        if word in usable:
            reach = REACH_UNSPACED if _UNSPACED_START.match(word) else REACH
            near = words[place + 1 : place + 1 + reach]
            pairs.update(f"{word} {other}" for other in near if other in usable and other != word)
    return pairs


def terms_of(texts: Sequence[str], usable: Collection[str]) -> frozenset[str]:
    """The words of all texts, and the pairs of each."""
    terms: set[str] = set()
    for text in texts:
        words = words_of(text)
        terms.update(words, pairs_of(words, usable))
    return frozenset(terms)


def is_pair(term: str) -> bool:
    return " " in term


def features(
    scores: np.ndarray, named: Collection[str], query_terms: Mapping[str, float]
) -> np.ndarray:
    """FEATURES of one query: (4,) float64.

    scores: (n,) of its first hits by vectors, best first; n may be less. named: the terms of the
    hits' captions. query_terms: each term of the query with its weight.
    """
    missing = {False: 0.0, True: 0.0}
    for term, weight in query_terms.items():
        if term not in named:
            missing[is_pair(term)] = max(missing[is_pair(term)], weight)
    ends = (scores[0], scores[-1]) if len(scores) else (-1.0, -1.0)
    return np.array([*ends, missing[False], missing[True]], np.float64)


def term_weight(rows: int, rows_with: int) -> float:
    """Inverse document frequency: ln((N + 1) / (n + 1/2))."""
    return math.log((rows + 1) / (rows_with + 0.5))


@dataclass(frozen=True)
class Calibration:
    """What is stored of a column's calibration. Weights are for raw features.

    rows: of the collection. counted: how many of them terms were counted in. terms: in how many of
    those each occurs; one that is not among them counts as unknown. absence, likeness: one weight
    for each of FEATURES. floor: the `likeness` from which on a query may match. without_word:
    `absence` of the captions that lack a word, without_pair: `likeness` of those that lack a pair,
    in rising order.
    """

    rows: Count
    counted: Count
    terms: dict[str, Count]
    absence: tuple[FiniteFloat, ...]
    likeness: tuple[FiniteFloat, ...]
    floor: FiniteFloat
    without_word: tuple[FiniteFloat, ...]
    without_pair: tuple[FiniteFloat, ...]
    schema: int = SCHEMA

    def p_value(self, query_features: np.ndarray) -> float:
        """How likely a query that has nothing here scores as high: in (0, 1]. (4,) features."""
        p = share_as_high(self.without_word, float(query_features @ np.array(self.absence)))
        likeness = float(query_features @ np.array(self.likeness))
        return p if likeness >= self.floor else max(p, share_as_high(self.without_pair, likeness))

    def usable(self, word: str) -> bool:
        """Whether a word may be part of a pair."""
        return is_usable(self.terms.get(word, 0), self.counted)

    def weights(self, text: str) -> dict[str, float]:
        """Each term of a query with its weight."""
        words = words_of(text)
        terms = {*words, *pairs_of(words, set(filter(self.usable, words)))}
        return {term: term_weight(self.counted, self.terms.get(term, 0)) for term in terms}

    def named(self, texts: Sequence[str]) -> frozenset[str]:
        """The terms of captions, and single characters of scripts without spaces: in captions they
        are parts of words, of a query such as "猫" the whole word."""
        usable = {word for text in texts for word in words_of(text) if self.usable(word)}
        characters = {one for text in texts for one in text if _UNSPACED_START.match(one)}
        return terms_of(texts, usable) | characters

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False).encode("utf-8", "surrogatepass")

    @classmethod
    def from_json(cls, data: bytes, where: str, do: str) -> Calibration | None:
        """None for one that an earlier release wrote, whose features were others. Raises
        CollectionError for anything else that `to_json` did not write."""
        found = read_record(data, where, cls, what="a calibration", do=do, schema=SCHEMA)
        if found.schema < SCHEMA:
            return None
        widths = {len(found.absence), len(found.likeness)}
        samples = [list(found.without_word), list(found.without_pair)]
        if widths != {len(FEATURES)} or any(one != sorted(one) for one in samples):
            raise CollectionError(where, expected="a calibration", found="another", do=do)
        return found


def is_usable(rows_with: int, rows: int) -> bool:
    """Whether a word that so many of the rows have is neither too rare nor too common."""
    return RAREST * rows <= rows_with <= COMMONEST * rows


def share_as_high(ordered: Sequence[float], value: float) -> float:
    """The conformal p-value of a value among a sample in rising order."""
    as_high = len(ordered) - int(np.searchsorted(ordered, value, side="left"))
    return (1 + as_high) / (1 + len(ordered))


def fit(
    present: np.ndarray,
    without_word: np.ndarray,
    without_pair: np.ndarray,
    *,
    rows: int = 0,
    counted: int = 0,
    terms: Mapping[str, int] | None = None,
) -> Calibration:
    """A calibration of the features (n, 4) of captions whose row is there, of those whose word was
    left out, and of those that lack a pair, each in random order. With fewer than MIN_SAMPLE of the
    last, `likeness` answers nothing."""
    (some, there), (word, compared) = _parts(present), _parts(without_word)
    pair, compared_pairs = _parts(without_pair)
    absence, likeness = np.zeros(len(FEATURES)), np.zeros(len(FEATURES))
    columns = list(ABSENCE)
    absence[columns] = separating_weights(some[:, columns], word[:, columns])
    floor = 0.0
    if len(without_pair) >= MIN_SAMPLE:
        likeness = separating_weights(some, np.concatenate((word, pair)))
        floor = float(np.sort(there @ likeness)[int(FLOOR * len(there))])
    return Calibration(
        rows=rows,
        counted=counted,
        terms=dict(terms or {}),
        absence=tuple(absence.tolist()),
        likeness=tuple(likeness.tolist()),
        floor=floor,
        without_word=tuple(np.sort(compared @ absence).tolist()),
        without_pair=tuple(np.sort(compared_pairs @ likeness).tolist()),
    )


def _parts(sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is fitted on, and what is compared with."""
    sample = sample.reshape(-1, len(FEATURES))
    fitted = np.arange(len(sample)) % FITTED == 0
    return sample[fitted], sample[~fitted]


def separating_weights(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Weights (F,) that separate two samples (n, F), each of the same weight in all, by Newton's
    method; without the intercept, which moves no rank. A feature that never varies gets 0."""
    x = np.concatenate((positive, negative))
    scale = x.std(axis=0)
    scale[scale < 1e-9] = np.inf
    z = np.column_stack(((x - x.mean(axis=0)) / scale, np.ones(len(x))))
    y = np.repeat((1.0, 0.0), (len(positive), len(negative)))
    weight = np.repeat((0.5 / len(positive), 0.5 / len(negative)), (len(positive), len(negative)))
    penalty = np.append(np.full(x.shape[1], 2 * SHRINK), 1e-9)
    w = np.zeros(z.shape[1])
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(z @ w, -30, 30)))
        gradient = z.T @ (weight * (p - y)) + penalty * w
        curvature = (z * (weight * p * (1 - p))[:, None]).T @ z + np.diag(penalty)
        w -= np.linalg.solve(curvature, gradient)
    return w[:-1] / scale
