"""Explanations put together from what models give: maps of patches, relevance of tokens, and what
the score loses without a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from chiasm.pipeline.encoders.explainer import (
    DEFAULT,
    ERASURE,
    Box,
    ExplainingEncoder,
    Explanation,
    Word,
    require_method,
)
from chiasm.pipeline.encoders.protocols import Array, Matcher
from chiasm.pipeline.encoders.words import Span, erasure, sum_by_word, word_spans
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.records import IMAGE

BLOCK = 32  # pairs of one pass: each word of them is one more text
BLOCK_BYTES = 1 << 30  # of their pictures, by the encoder's `cost`; LeGrad keeps a multiple of it


@dataclass(frozen=True, slots=True)
class Maps:
    """Of B pairs: patches (h, w) float32 each; tokens (T,) float32 each, those of `token_spans`;
    near (T, h, w) float32 each, how near patches are to tokens. The last two may be None."""

    patches: Sequence[Array]
    tokens: Sequence[Array] | None = None
    near: Sequence[Array] | None = None


class Mapper(Protocol):
    """What an encoder gives for its explanations."""

    def token_spans(self, text: str) -> tuple[list[Span], int]:
        """The characters of each token that is read, special ones left out, and how many characters
        are read."""
        ...

    def maps(self, items: Sequence[Any], texts: Sequence[str], method: str) -> Maps:
        """By a method other than DEFAULT; items: what `preprocess` made of the pictures."""
        ...

    def box(self, width: int, height: int) -> Box:
        """`Explanation.box` of a picture of that size."""
        ...


def explain(
    encoder: ExplainingEncoder,
    matcher: Matcher | None,
    mapper: Mapper,
    pictures: Sequence[Array],
    texts: Sequence[str],
    method: str,
) -> list[Explanation]:
    """See `Explainer.explain`. matcher: the encoder, where it has learned to match."""
    require_method(encoder, method)
    if len(pictures) != len(texts):
        raise ValueError(f"{len(pictures)} pictures and {len(texts)} texts: expected pairs")
    found: list[Explanation] = []
    while len(found) < len(texts):
        items: list[Any] = []
        for picture in pictures[len(found) : len(found) + BLOCK]:
            items.append(encoder.preprocess(IMAGE, picture))
            if sum(encoder.cost(IMAGE, item) for item in items) > BLOCK_BYTES:
                break
        some = slice(len(found), len(found) + len(items))
        found += _explain(encoder, matcher, mapper, pictures[some], items, texts[some], method)
    return found


def _explain(
    encoder: ExplainingEncoder,
    matcher: Matcher | None,
    mapper: Mapper,
    pictures: Sequence[Array],
    items: Sequence[Any],
    texts: Sequence[str],
    method: str,
) -> list[Explanation]:
    lengths = [mapper.token_spans(text)[1] for text in texts]
    texts = [text[:length] for text, length in zip(texts, lengths, strict=True)]
    tokens = [mapper.token_spans(text)[0] for text in texts]
    words = [word_spans(text, spans) for text, spans in zip(texts, tokens, strict=True)]
    for text, spans in zip(texts, words, strict=True):
        if not spans:
            raise UsageError(f'"{text}"', expected="a text with words to explain", found="none")
    patches_by = encoder.methods[1] if method == DEFAULT else method
    maps = mapper.maps(items, texts, patches_by)
    by_tokens = method != DEFAULT and maps.tokens is not None
    without = [()] * len(words) if by_tokens else words
    erased, cosines, logits = erasure(encoder, matcher, items, texts, without)
    explanations = []
    for row, (picture, text, spans) in enumerate(zip(pictures, texts, words, strict=True)):
        of_words, near = erased[row], None
        if by_tokens and maps.tokens is not None:
            of_words = sum_by_word(spans, tokens[row], maps.tokens[row])
        if maps.near is not None:
            near = sum_by_word(spans, tokens[row], maps.near[row])
        explanations.append(
            Explanation(
                patches=np.maximum(maps.patches[row], 0).astype(np.float32),
                box=mapper.box(picture.shape[1], picture.shape[0]),
                words=tuple(
                    Word(start, end, text[start:end], float(value))
                    for (start, end), value in zip(spans, of_words, strict=True)
                ),
                read=lengths[row],
                score=float(cosines[row]),
                logit=None if logits is None else float(logits[row]),
                patches_by=patches_by,
                words_by=method if by_tokens else ERASURE,
                word_patches=near,
            )
        )
    return explanations
