"""What the joint network gives for explanations: maps of its patches and tokens."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from chiasm.pipeline.encoders.explainer import LEGRAD, MAX_SIM, Box
from chiasm.pipeline.encoders.explaining import Maps
from chiasm.pipeline.encoders.words import Span, align
from chiasm.pipeline.model.explain import (
    cosine_relevance,
    inner_tokens,
    max_sim,
    token_cosines,
)
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.preprocess import covered
from chiasm.pipeline.model.tokenizer import Tokenizer

_ENDS = 2  # the first and the last token of a text stand for no characters


class PocketMapper:
    """See the protocol `Mapper`."""

    def __init__(self, model: JointNetwork, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer

    def token_spans(self, text: str) -> tuple[list[Span], int]:
        read = self._tokenizer.normalise(text)
        places = align(text, read, lambda part: unicodedata.normalize("NFKC", part).lower())
        spans = [
            (places[start][0], places[end - 1][1]) for start, end in _spans(self._tokenizer, read)
        ]
        kept = spans[: self._model.config.text.context - _ENDS]
        return kept, len(text) if len(kept) == len(spans) else kept[-1][1]

    def maps(self, items: Sequence[Any], texts: Sequence[str], method: str) -> Maps:
        model = self._model
        device = model.log_scale.device
        ids = torch.from_numpy(self._tokenizer.batch(texts, model.config.text.context)).to(device)
        pixels = torch.from_numpy(np.stack(items)).to(device)
        near = None
        if method == MAX_SIM:
            cosines = token_cosines(model, pixels, ids)
            found, near = max_sim(cosines, inner_tokens(ids)), cosines.unflatten(2, self._grid)
        else:
            found = cosine_relevance(model, pixels, ids, over_layers=method == LEGRAD)
        counts = inner_tokens(ids).sum(1).tolist()
        return Maps(
            list(found.patches.unflatten(1, self._grid).cpu().numpy()),
            [row[1 : 1 + n].cpu().numpy() for row, n in zip(found.tokens, counts, strict=True)],
            None
            if near is None
            else [row[1 : 1 + n].cpu().numpy() for row, n in zip(near, counts, strict=True)],
        )

    def box(self, width: int, height: int) -> Box:
        return covered(width, height, self._model.config.image.side)

    @property
    def _grid(self) -> tuple[int, int]:
        side = math.isqrt(self._model.config.image.patches)
        return side, side


def _spans(tokenizer: Tokenizer, read: str) -> list[Span]:
    """The characters of each token of a normalised text. Tokens that are single bytes of one
    character each have that character."""
    spans: list[Span] = []
    at, pending = 0, []
    for token in tokenizer.encode(read):
        pending.append(token)
        made = tokenizer.decode(pending)
        # Bytes that are no character yet decode to U+FFFD, which a text may also have.
        whole = "\ufffd" not in made or len(tokenizer.encode(made)) == len(pending)
        if whole and read.startswith(made, at):
            spans += [(at, at + len(made))] * len(pending)
            at, pending = at + len(made), []
    assert at == len(read), "a tokenizer that does not give the text back"
    return spans
