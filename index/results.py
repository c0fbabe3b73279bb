"""What is asked and what is answered: Query -> Hit -> Result -> Answer.

A query names what to look for (words, a picture, both, or a vector made earlier) and in which
vector column. A hit is an id and a score; a result is a hit with what a person wants to see beside
it, and it can fetch its own picture with one range read of the shard. Everything here is plain
data: to search is `chiasm.index.retrieve`'s business. `Answer.as_json` is the shape other programs
rely on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from chiasm.pipeline.errors import SourceError, UsageError
from chiasm.pipeline.records import COLUMNS, Place
from chiasm.pipeline.shards import read_checked

PictureSource = str | Path | bytes | Image.Image  # a path, an encoded file, or pixels


RERANKERS = {  # how -> what it is written as
    "vectors": "vectors:N",
    "match": "match:N",
    "st": "st:NAME:N",
}


@dataclass(frozen=True, slots=True)
class Rerank:
    """One stage of reranking: how, by which model where it takes one, and how many candidates."""

    how: str
    depth: int
    model: str = ""

    @classmethod
    def parse(cls, told: str) -> Rerank:
        """`match:20`, `st:NAME:20` and their like; UsageError for anything else."""
        head, _, depth = told.strip().rpartition(":")
        how, _, model = head.partition(":")
        if how not in RERANKERS or bool(model) != (how == "st") or not depth.isdigit():
            raise UsageError(
                f"rerank {told!r}", expected=", ".join(RERANKERS.values()), found="none of them"
            )
        if int(depth) < 1:
            raise UsageError(f"rerank {told!r}", expected="at least 1 candidate", found=depth)
        return cls(how, int(depth), model)

    @property
    def name(self) -> str:
        """What its scores are told under."""
        return f"{self.how}:{self.model}" if self.model else self.how

    def __str__(self) -> str:
        return f"{self.name}:{self.depth}"


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """What to look for. Raises UsageError for a query that cannot be meant.

    text and image: either or both; both are searched by the normalised mean of their vectors.
    vector: (D,) float32 in the collection's space, instead of text and image.
    column: the vector column searched. k: results wanted, at least 1.
    nprobe: cells of an IVF index looked into; None takes what the generation was built with.
    rerank: stages that score the first hits again, one after the other.
    """

    text: str | None = None
    image: PictureSource | None = None
    vector: np.ndarray | None = None
    column: str = "image"
    k: int = 10
    nprobe: int | None = None
    rerank: tuple[Rerank, ...] = ()

    def __post_init__(self) -> None:
        asked = self.words != "" or self.image is not None
        if not asked and self.vector is None:
            found = "neither" if self.text is None else f"the text {self.text!r}"
            raise UsageError("query", expected="some words or a picture", found=found)
        if asked and self.vector is not None:
            raise UsageError("query", expected="either a vector or words and picture", found="both")
        if self.column not in COLUMNS:
            raise UsageError(
                f"column {self.column!r}", expected="one of " + ", ".join(COLUMNS), found="no such"
            )
        for name, number in (("k", self.k), ("nprobe", self.nprobe)):
            if number is not None and (not isinstance(number, int | np.integer) or number < 1):
                raise UsageError(name, expected="a whole number from 1 up", found=repr(number))

    @property
    def candidates(self) -> int:
        """How many hits the search has to give: k, or what a stage wants to see."""
        return max([self.k, *(stage.depth for stage in self.rerank)])

    @property
    def words(self) -> str:
        """The text to encode, "" where there is none."""
        return (self.text or "").strip()

    def as_json(self) -> dict[str, Any]:
        """What was asked, without bytes and pixels: {"text", "image", "column", "k", "rerank"}."""
        image = str(self.image) if isinstance(self.image, str | Path) else None
        if self.image is not None and image is None:
            image = "(given as bytes)" if isinstance(self.image, bytes) else "(given as pixels)"
        return {
            "text": self.text,
            "image": image,
            "column": self.column,
            "k": int(self.k),
            "rerank": [str(stage) for stage in self.rerank],
        }

    def __str__(self) -> str:
        image = self.as_json()["image"]
        parts = [f'"{self.words}"' if self.words else "", f"picture {image}" if image else ""]
        return " + ".join(part for part in parts if part) or "a vector"


@dataclass(frozen=True, slots=True)
class Hit:
    """A row that was found. `id` is '<shard id>/<row>@<edition>' and names the row for ever;
    `score`, higher is nearer, is the inner product of unit vectors, in [-1, 1], or what the last
    stage of reranking made of it.
    """

    id: str
    score: float


@dataclass(frozen=True, slots=True)
class Result(Hit):
    """A hit and what belongs to it.

    rank counts from 1. scores holds the score of each stage that saw the row, by the stage's name,
    `search` first. key is unique within its shard only. caption is the first of captions, None
    without any. meta is the sample's json in the collection's types, absent fields left out. width
    and height are in pixels, as a person sees the picture. url is the shard's, place where the
    picture's bytes lie in it, sha256 their digest: all three None for a row without a picture.
    """

    rank: int
    key: str
    shard: str
    caption: str | None
    captions: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    width: int | None = None
    height: int | None = None
    url: str = ""
    place: Place | None = None
    sha256: str | None = None
    scores: dict[str, float] = field(default_factory=dict)

    def picture(self) -> bytes:
        """The encoded picture, read from its shard and compared with what was embedded.

        Raises SourceError for a row without one, a shard that is gone, or one that has changed.
        """
        if self.place is None:
            raise SourceError(self.id, expected="a picture", found="a row with a caption only")
        return read_checked(self.url, self.place, self.sha256)

    def as_json(self) -> dict[str, Any]:
        told = ("rank", "id", "key", "shard", "score", "scores", "caption", "meta")
        return {name: getattr(self, name) for name in told}


@dataclass(frozen=True, slots=True)
class Answer(Sequence[Result]):
    """The results of one query, best first. `seconds` by stage; of a batch, each answer's share."""

    query: Query
    results: tuple[Result, ...]
    seconds: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.results)

    @overload
    def __getitem__(self, at: int) -> Result: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Result, ...]: ...
    def __getitem__(self, at: int | slice) -> Result | tuple[Result, ...]:
        return self.results[at]

    def as_json(self) -> dict[str, Any]:
        """{"query": {...}, "results": [{"rank", "id", "key", ...}], "seconds": {stage: s}}"""
        return {
            "query": self.query.as_json(),
            "results": [result.as_json() for result in self.results],
            "seconds": {stage: round(spent, 6) for stage, spent in self.seconds.items()},
        }
