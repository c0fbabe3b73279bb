"""Words of a text, and how much each one matters: by what the model gives to tokens, or by what the
score loses without it.

    r_w = S(text) - S(text without word w)      Li, Monroe and Jurafsky, Understanding Neural
                                                Networks through Representation Erasure, 2016

S is the log odds of a model that matches, else the cosine. A word that makes a caption false has a
relevance below zero: without it, the caption would fit better.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from chiasm.pipeline.encoders.protocols import Array, Encoder, Matcher
from chiasm.pipeline.records import IMAGE, TEXT

Span = tuple[int, int]

_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana and ideographs
_RUNS = re.compile(rf"[{_UNSPACED}]+|[^\s{_UNSPACED}]+")
_NEIGHBOURS = 8  # characters on either side of a boundary that may combine across it


def word_spans(text: str, tokens: Sequence[Span]) -> list[Span]:
    """The words of a text: what stands between spaces and, in scripts without spaces, each token
    of the model (spans in the text, in order). Punctuation belongs to the word before it."""
    starts = {start for start, _ in tokens}
    found: list[Span] = []
    for run in _RUNS.finditer(text):
        first, last = run.span()
        inside = [at for at in range(first + 1, last) if at in starts]
        cuts = [first, *(inside if _is_unspaced(run[0]) else ()), last]
        marks = all(unicodedata.category(mark)[0] == "P" for mark in run[0])
        if marks and found and found[-1][1] == first:
            found[-1] = (found[-1][0], last)
        else:
            found += itertools.pairwise(cuts)
    return found


def _is_unspaced(run: str) -> bool:
    return re.match(f"[{_UNSPACED}]", run) is not None


def sum_by_word(words: Sequence[Span], tokens: Sequence[Span], values: Array) -> Array:
    """Values of tokens (T,) or (T, ...) -> of words (W, ...) float32; a token that lies in several
    words is shared out by its characters in each."""
    starts, ends = np.array(words, np.int64).reshape(-1, 2).T[..., None]  # (W, 1)
    first, last = np.array(tokens, np.int64).reshape(-1, 2).T
    overlap = np.minimum(ends, last) - np.maximum(starts, first)  # (W, T)
    overlap = overlap.clip(min=0).astype(np.float32)
    share = overlap / overlap.sum(0, keepdims=True).clip(min=1)
    return np.tensordot(share, np.asarray(values, np.float32), 1)


def align(text: str, read: str, normal: Callable[[str], str]) -> list[Span]:
    """For each character of `read`, the characters of `text` that it was made from. read: `text`
    after `normal`, which changes characters or clusters of them one by one, with spaces and an end
    left out."""
    spans: list[Span] = []
    for start, end in _clusters(text, normal):
        for character in normal(text[start:end]):
            if len(spans) == len(read):
                return spans
            wanted = read[len(spans)]
            space = character.isspace() and wanted == " "
            # Lower case of a Greek sigma depends on its place in the word.
            if space or character.casefold() == wanted.casefold():
                spans.append((start, end))
    assert len(spans) == len(read), "a text that is normalised in another way"
    return spans


def _clusters(text: str, normal: Callable[[str], str]) -> list[Span]:
    """Spans of a text that `normal` changes on their own: a letter with its accents, the letters of
    a Hangul syllable."""
    cuts = [0]
    for at in range(1, len(text)):
        if unicodedata.combining(text[at]):
            continue
        left, right = text[max(0, at - _NEIGHBOURS) : at], text[at : at + _NEIGHBOURS]
        if text[at - 1 : at + 1].isascii() or normal(left) + normal(right) == normal(left + right):
            cuts.append(at)
    return list(zip(cuts, [*cuts[1:], len(text)], strict=True)) if text else []


def erasure(
    encoder: Encoder,
    matcher: Matcher | None,
    pictures: Sequence[Array],
    texts: Sequence[str],
    words: Sequence[Sequence[Span]],
) -> tuple[list[Array], Array, Array | None]:
    """The relevance of each word, pair by pair. matcher: the encoder, if it matches; pictures: what
    `preprocess` made of them; words: spans in each text -> (W,) float32 for each pair, the cosines
    (B,), and the log odds (B,), None without a matcher."""
    variants: list[str] = []
    first = [0]
    for text, spans in zip(texts, words, strict=True):
        variants += [text, *(f"{text[:start]}{text[end:]}" for start, end in spans)]
        first.append(len(variants))
    rows = np.repeat(np.arange(len(texts)), np.diff(first))
    items = [encoder.preprocess(TEXT, text) for text in variants]
    image = encoder.encode(IMAGE, pictures).vectors
    cosines = (image[rows] * encoder.encode_queries(TEXT, items).vectors).sum(1)
    scores = cosines
    if matcher is not None:
        pairs = np.stack([rows, np.arange(len(variants))], axis=1)
        scores = matcher.match((IMAGE, pictures), (TEXT, items), pairs)
    found = [scores[a] - scores[a + 1 : b] for a, b in itertools.pairwise(first)]
    whole = np.array(first[:-1])
    return found, cosines[whole], None if matcher is None else scores[whole]
