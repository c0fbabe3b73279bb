"""What an explainer is: a model that says which parts of a picture and which words of a text its
score of the pair rests on.

Letters: W words of a text, h and w rows and columns of the grid of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from chiasm.pipeline.encoders.protocols import Array, Encoder
from chiasm.pipeline.errors import UsageError

DEFAULT = "default"  # patches by the model's first method, words by erasure
GRAD_ECLIP, LEGRAD, MAX_SIM = "grad-eclip", "legrad", "max-sim"  # pipeline/model/explain.py
ERASURE = "erasure"  # words.py
HIRES_CAM = "hires-cam"  # explain_two_tower.py

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Word:
    """Characters start to end of a text, and their relevance: above zero they speak for the pair,
    below zero against it."""

    start: int
    end: int
    text: str
    relevance: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a picture and a text have the score that they have.

    patches: (h, w) float32 >= 0, row by row from the top left, each over one cell of `box`. box:
    left, top, right and bottom of what the model sees of the picture, as shares of its width and
    height; beyond 0 and 1 where the model adds a margin. words: in order; together they cover all
    of the text that was read but spaces. read: characters of the text that the model reads; what
    follows has no part in the score. score: the cosine of the two vectors. logit: log odds that the
    text is true of the picture, None from a model that does not match. patches_by, words_by: the
    methods. word_patches: (W, h, w) float32, how near each patch is to each word, of a method that
    compares them, else None.
    """

    patches: Array
    box: Box
    words: tuple[Word, ...]
    read: int
    score: float
    logit: float | None
    patches_by: str
    words_by: str
    word_patches: Array | None = None


@runtime_checkable
class Explainer(Protocol):
    """methods: names that `explain` takes, DEFAULT first, then what that means for patches."""

    name: str

    @property
    def methods(self) -> tuple[str, ...]: ...

    def explain(
        self, pictures: Sequence[Array], texts: Sequence[str], method: str = DEFAULT
    ) -> list[Explanation]:
        """Pictures uint8 (H, W, 3) RGB of any size and as many texts, pair by pair. The same pair
        is explained alike in any batch. UsageError for another method than `methods`, and for a
        text of which nothing is left to read."""
        ...


class ExplainingEncoder(Encoder, Explainer, Protocol):
    """Both."""


def require_explainer(encoder: Encoder) -> ExplainingEncoder:
    """The encoder, if it can explain; UsageError for one that cannot."""
    if isinstance(encoder, Explainer):
        return cast(ExplainingEncoder, encoder)
    if "dims" in encoder.preprocessing:
        raise UsageError(
            f"encoder {encoder.name}",
            expected="whole vectors, whose scores are explained",
            found=f"vectors cut to {encoder.preprocessing['dims']} numbers by encoder.dims",
            do="embed without it",
        )
    raise UsageError(
        f"encoder {encoder.name}",
        expected="one that explains its scores",
        found="one that does not",
        do="take pocket, pocket:DIR, two-tower:DIR, a CLIP or SigLIP by hf:, or the encoder below "
        "a joint:DIR",
    )


def require_method(explainer: Explainer, method: str) -> None:
    """UsageError for a method that the model does not have."""
    if method not in explainer.methods:
        raise UsageError(
            f"method {method!r}",
            expected=f"one of {', '.join(explainer.methods)} for encoder {explainer.name}",
        )
