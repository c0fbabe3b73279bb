"""What is searched for: a text, a picture, both or a vector; and the stages that rerank the
hits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from chiasm.pipeline.errors import UsageError

CALIBRATED_HITS = 10  # whose scores and captions a p-value is made of
# Of vectors and of keywords at the least: a row that both lists have may be far down in one.
FUSED_DEPTH = 100

# A path or URL, an encoded file, a PIL picture, or uint8 pixels of shape (H, W, 3) or (H, W).
PictureSource = str | Path | bytes | Image.Image | np.ndarray


@dataclass(frozen=True, slots=True)
class RerankStage:
    """One stage of reranking, written `RERANKER:DEPTH` or `RERANKER:MODEL:DEPTH`.

    reranker: a key of `chiasm.index.query.rerank.RERANKERS`. depth: how many of the first hits are
    scored again, at least 1. model: for rerankers that take one.
    """

    reranker: str
    depth: int
    model: str = ""

    @classmethod
    def parse(cls, text: str) -> RerankStage:
        """`match:20`, `st:MODEL:20`; UsageError for another form. Whether there is such a reranker
        is checked by `chiasm.index.query.check_stages`."""
        head, _, depth = text.strip().rpartition(":")
        reranker, _, model = head.partition(":")
        number = re.fullmatch("[0-9]{1,9}", depth)  # what int() takes is far more
        if not reranker or not number or int(depth) < 1:
            raise UsageError(
                f"rerank {text!r}",
                expected="RERANKER:N with N at least 1, such as match:20",
                found=f"N = {depth}" if number else "no such number at its end",
            )
        return cls(reranker, int(depth), model)

    @property
    def name(self) -> str:
        """The key of its scores in `Hit.scores`."""
        return f"{self.reranker}:{self.model}" if self.model else self.reranker

    def __str__(self) -> str:
        return f"{self.name}:{self.depth}"


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """What to search for. Raises UsageError for values, TypeError for types that cannot be used.

    text and image: either or both; both are searched by what `encode_joint_queries` gives.
    vector: (D,) float32 in the collection's space, instead of text and image.
    column: the vector column searched. k: results wanted, at least 1.
    nprobe: cells of an IVF index searched; None takes what the generation was built with.
    calibrated: whether the answer has the p-value that nothing here matches; of words alone.
    rerank: stages that score the first hits again, one after the other; strings such as "match:20"
    are parsed, and one string is one stage.
    hybrid: search the captions for the text's words too, and fuse the two lists of hits.
    """

    text: str | None = None
    image: PictureSource | None = None
    vector: np.ndarray | None = None
    column: str = "image"
    k: int = 10
    nprobe: int | None = None
    rerank: Sequence[RerankStage | str] | str = ()
    calibrated: bool = False
    hybrid: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        object.__setattr__(self, "rerank", _parse_stages(self.rerank))
        has_input = self.words != "" or self.image is not None
        if not has_input and self.vector is None:
            found = "neither" if self.text is None else f"the text {self.text!r}"
            raise UsageError("query", expected="some words or a picture", found=found)
        if has_input and self.vector is not None:
            raise UsageError("query", expected="either a vector or words and picture", found="both")
        if self.hybrid and not self.words:
            found = "a vector" if self.image is None else "a picture alone"
            raise UsageError(
                "hybrid", expected="words to find in captions", found=found, do="add a text"
            )
        for name, number in (("k", self.k), ("nprobe", self.nprobe)):
            if number is not None and (not isinstance(number, int | np.integer) or number < 1):
                raise UsageError(name, expected="a whole number from 1 up", found=repr(number))

    def _check_types(self) -> None:
        if self.text is not None and not isinstance(self.text, str):
            raise TypeError(
                f"text: expected str, found {type(self.text).__name__}; "
                "search_many([...]) answers several texts or queries at once"
            )
        if self.image is None or isinstance(self.image, str | Path | bytes | Image.Image):
            return
        if not isinstance(self.image, np.ndarray):
            found = type(self.image).__name__
        elif self.image.dtype == np.uint8 and self.image.size and self._has_picture_shape:
            return
        else:
            found = f"an array of {self.image.dtype} {self.image.shape}"
        raise TypeError(
            "image: expected a path, a URL, an encoded file as bytes, a PIL picture or an array of "
            f"uint8 (H, W, 3) or (H, W), found {found}"
        )

    @property
    def _has_picture_shape(self) -> bool:
        assert isinstance(self.image, np.ndarray)
        return self.image.ndim == 2 or (self.image.ndim == 3 and self.image.shape[2] == 3)

    @property
    def stages(self) -> tuple[RerankStage, ...]:
        """`rerank`, parsed."""
        return _parse_stages(self.rerank)

    @property
    def candidates(self) -> int:
        """How many hits the search has to give: k, or the depth of the deepest stage; to be fused,
        FUSED_DEPTH at the least, and for a p-value CALIBRATED_HITS."""
        fused = FUSED_DEPTH if self.hybrid else 1
        calibrated = CALIBRATED_HITS if self.calibrated else 1
        return max([self.k, fused, calibrated, *(stage.depth for stage in self.stages)])

    @property
    def words(self) -> str:
        """The text to encode, "" where there is none."""
        return (self.text or "").strip()

    def as_json(self) -> dict[str, Any]:
        """Without bytes and pixels: {"text", "image", "column", "k", "rerank", "hybrid"}."""
        image = str(self.image) if isinstance(self.image, str | Path) else None
        if self.image is not None and image is None:
            image = "(given as bytes)" if isinstance(self.image, bytes) else "(given as pixels)"
        return {
            "text": self.text,
            "image": image,
            "column": self.column,
            "k": int(self.k),
            "rerank": [str(stage) for stage in self.stages],
            "hybrid": self.hybrid,
        }

    def __str__(self) -> str:
        image = self.as_json()["image"]
        parts = [f'"{self.words}"' if self.words else "", f"picture {image}" if image else ""]
        return " + ".join(part for part in parts if part) or "a vector"


def _parse_stages(rerank: Sequence[RerankStage | str] | str) -> tuple[RerankStage, ...]:
    stages = [rerank] if isinstance(rerank, str | RerankStage) else rerank
    if not isinstance(stages, Sequence):
        raise _no_stage(stages)
    return tuple(
        RerankStage.parse(stage) if isinstance(stage, str) else _require_stage(stage)
        for stage in stages
    )


def _require_stage(stage: object) -> RerankStage:
    if not isinstance(stage, RerankStage):
        raise _no_stage(stage)
    return stage


def _no_stage(found: object) -> TypeError:
    return TypeError(f"rerank: expected stages such as 'match:20', found {type(found).__name__}")
