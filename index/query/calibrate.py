"""How a query's best hits compare with those of queries that have nothing here.

A flat threshold on scores does not work: how high the best score of an absent thing is depends on
the query. The collection's own captions give a sample of both cases without labels. A caption asks
as it is, and its own row is there; it asks again while every row whose captions name one of its
words is left out, and what that word names is absent. Two statistics of the hits are fitted on one
half of the sample, by logistic regression, and compared with the other half:

- `absence`, of the best score and of the rarest word of the query that no hit's captions name. Its
  split-conformal p-value against the absent half is at most `a` with probability at most `a` for an
  exchangeable query (Vovk et al., Algorithmic Learning in a Random World, 2005).
- `likeness`, of all features, fitted against captions that lack a word or two words together. A
  query below all but FLOOR of the captions whose row is there has the p-value 1: its parts may be
  here, but not together. The absent half goes through the same gate before p-values are counted.

calibration_sample.py draws the sample. Everything here is arithmetic on arrays.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from pydantic import FiniteFloat

from chiasm.index.plan import Count
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.stored_records import read_record

FEATURES = ("best", "last", "uncovered", "other_best", "other_last")
ABSENCE = (0, 2)  # best and uncovered: with more, the rate differed between topics
FLOOR = 0.05  # of the queries whose row is here, that `likeness` may answer "nothing"
MIN_SAMPLE = 200  # captions; half of them are compared with, so that rates below 1 % can be stated
SHRINK = 1e-3  # L2 penalty on weights of standardised features, against features that separate
NEWTON_STEPS = 25  # penalised, so it converges in about ten
SCHEMA = 1

# Scripts that are written without spaces: Han, kana, Thai, Lao, Khmer, Burmese.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_UNSPACED}]+|[^\\W_{_UNSPACED}]+")
_UNSPACED_START = re.compile(f"[{_UNSPACED}]")


def words_of(text: str) -> frozenset[str]:
    """The words of a text in lower case; of a script without spaces each two neighbours."""
    words: set[str] = set()
    for run in _WORD.findall(text.lower()):
        if len(run) > 1 and _UNSPACED_START.match(run):
            words.update(run[i : i + 2] for i in range(len(run) - 1))
        else:
            words.add(run)
    return frozenset(words)


def features(
    scores: np.ndarray,
    hit_words: Sequence[frozenset[str]],
    query_words: Mapping[str, float],
    other: np.ndarray,
) -> np.ndarray:
    """FEATURES of one query: (5,) float64.

    scores: (n,) of its first hits by vectors, best first; n may be less. hit_words: the words
    of each hit's captions. query_words: each word of the query with its weight. other: (n,) inner
    products of the query with the hits' joint vectors, zeros where there are none.
    """
    if not len(scores):
        return np.array([-1.0, -1.0, max(query_words.values(), default=0.0), -1.0, -1.0])
    named = frozenset().union(*hit_words)
    uncovered = max((w for word, w in query_words.items() if word not in named), default=0.0)
    return np.array([scores[0], scores[-1], uncovered, other.max(), other.min()], np.float64)


def word_weight(rows: int, rows_with: int) -> float:
    """Inverse document frequency: ln((N + 1) / (n + 1/2))."""
    return math.log((rows + 1) / (rows_with + 0.5))


@dataclass(frozen=True)
class Calibration:
    """What is stored of a column's calibration. Weights are for raw features.

    rows: of the collection. words: in how many rows each word of the sampled captions occurs;
    a word that is not among them counts as unknown. absence, likeness: one weight for each of
    FEATURES. floor: the lowest `likeness` of a query that may match. compared: how many queries
    whose word was left out; absent: `absence` of those that reach the floor, in rising order.
    """

    rows: Count
    words: dict[str, Count]
    absence: tuple[FiniteFloat, ...]
    likeness: tuple[FiniteFloat, ...]
    floor: FiniteFloat
    compared: Count
    absent: tuple[FiniteFloat, ...]
    schema: int = SCHEMA

    def p_value(self, query_features: np.ndarray) -> float:
        """How likely a query that has nothing here scores as high: in (0, 1]. (5,) features."""
        if float(query_features @ np.array(self.likeness)) < self.floor:
            return 1.0
        statistic = float(query_features @ np.array(self.absence))
        as_high = len(self.absent) - int(np.searchsorted(self.absent, statistic, side="left"))
        return (1 + as_high) / (1 + self.compared)

    def query_words(self, text: str) -> dict[str, float]:
        """Each word of a query with its weight."""
        return {word: word_weight(self.rows, self.words.get(word, 0)) for word in words_of(text)}

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False).encode("utf-8", "surrogatepass")

    @classmethod
    def from_json(cls, data: bytes, where: str, do: str) -> Calibration:
        """Raises CollectionError for anything that `to_json` did not write."""
        found = read_record(data, where, cls, what="a calibration", do=do, schema=SCHEMA)
        widths = {len(found.absence), len(found.likeness)}
        in_order = list(found.absent) == sorted(found.absent)
        if widths != {len(FEATURES)} or not in_order or found.compared < len(found.absent):
            raise CollectionError(where, expected="a calibration", found="another", do=do)
        return found


def fit(
    present: np.ndarray,
    without_word: np.ndarray,
    without_pair: np.ndarray,
    rows: int,
    words: Mapping[str, int],
) -> Calibration:
    """A calibration of the features (n, 5) of captions whose row is there, of those whose word was
    left out, and of those that lack two words together, in random order. Even rows are fitted on,
    odd ones are compared with.
    """
    absence = np.zeros(len(FEATURES))
    columns = list(ABSENCE)
    absence[columns] = separating_weights(present[::2][:, columns], without_word[::2][:, columns])
    lacking = np.concatenate((without_word[::2], without_pair[::2]))
    likeness = separating_weights(present[::2], lacking)
    typical = np.sort(present[1::2] @ likeness)
    floor = float(typical[int(FLOOR * len(typical))])
    compared = without_word[1::2]
    reaching = compared[compared @ likeness >= floor]
    return Calibration(
        rows=rows,
        words=dict(words),
        absence=tuple(absence.tolist()),
        likeness=tuple(likeness.tolist()),
        floor=floor,
        compared=len(compared),
        absent=tuple(np.sort(reaching @ absence).tolist()),
    )


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
