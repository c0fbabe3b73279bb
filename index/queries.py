"""What is searched for: a text, a picture, a file of another modality, several of these, weighted
terms or a vector; and what becomes of the hits: stages that rerank them, near duplicates folded,
diversity."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from chiasm.index.value_checks import check_input, check_members, require_number, require_whole
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.records import IMAGE, TEXT

# Of vectors and of keywords at the least: a row that both lists have may be far down in one.
FUSED_DEPTH = 100
CALIBRATED_HITS = 10  # whose scores and captions a p-value is made of

# A path or URL, an encoded file, a PIL picture, or uint8 pixels of shape (H, W, 3) or (H, W).
PictureSource = str | Path | bytes | Image.Image | np.ndarray

# A file of another modality, such as sound: a path or URL, or its bytes.
MemberSource = str | Path | bytes

# Candidates a result that diversity chooses from: with as many as results it could only reorder
# them, and with far more they stray from the query.
DIVERSITY_POOL = 5


class PictureBytes(bytes):
    """An encoded file that was read already. name: as errors and answers call it. place: a path or
    URL where it was read, "" for none."""

    name: str
    place: str

    def __new__(cls, data: bytes, name: str, place: str = "") -> PictureBytes:
        picture = super().__new__(cls, data)
        picture.name, picture.place = name, place
        return picture


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
class Term:
    """A part of a weighted query: a text, a picture or one of `members`, as in {"sound": path};
    and its weight, below zero to search away from it. Raises UsageError for values, TypeError for
    types that cannot be used."""

    text: str | None = None
    image: PictureSource | None = None
    weight: float = 1.0
    members: Mapping[str, MemberSource] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_input(self.text, self.image)
        check_members(self.members)
        given = bool(self.words) + (self.image is not None) + len(self.members)
        if given != 1:
            found = ("neither", "one", "both")[given] if given < 3 else f"{given} of them"
            expected = "some words or a picture" + (", or a member" if self.members else "")
            raise UsageError("term", expected=expected, found=found)
        require_number("weight", self.weight, -math.inf, math.inf)

    @property
    def modality(self) -> str:
        """What it is: `text`, `image`, or the name of its member's modality."""
        if self.words:
            return TEXT
        return IMAGE if self.image is not None else next(iter(self.members))

    @property
    def words(self) -> str:
        """The text to encode, "" where there is none."""
        return (self.text or "").strip()

    def as_json(self) -> dict[str, Any]:
        """{"text", "image", "weight"}, without bytes and pixels."""
        return {
            "text": self.text,
            "image": _picture_name(self.image),
            **_members_as_json(self.members),
            "weight": float(self.weight),
        }

    def __str__(self) -> str:
        """`2 x "a red boat"`, without the sign of the weight."""
        name = f'"{self.words}"' if self.words else f"picture {_picture_name(self.image)}"
        for modality, source in self.members.items():
            name = f"{modality} {_picture_name(source)}"
        weight = abs(self.weight)
        return name if weight == 1 else f"{weight:g} x {name}"


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """What to search for. Raises UsageError for values, TypeError for types that cannot be used.

    text, image and members: one or several; several are searched by what `encode_joint_queries`
    gives. members: by modality beyond these two a file of it, as in {"sound": "dog.wav"}.
    terms: weighted texts, pictures and members instead; searched by the normalised weighted sum of
    their vectors. vector: (D,) float32 in the collection's space, instead of all of these.
    column: the vector column searched. k: results wanted, at least 1.
    nprobe: cells of an IVF index searched; None takes what the generation was built with.
    calibrated: whether the answer has the p-value that nothing here matches; of words alone.
    rerank: stages that score the first hits again, one after the other; strings such as "match:20"
    are parsed, and one string is one stage.
    hybrid: search the captions for the text's words too, and fuse the two lists of hits.
    dedup: hits whose stored vectors have at least this cosine with a better hit are folded under
    it, None for no folding. diversity: how much results that are like better ones give way to
    others, from 0 to 1; both see index/query/diversify.py.
    where: a condition in SQL that hits fulfil, such as "width > 512", see index/query/filters.py.
    """

    text: str | None = None
    image: PictureSource | None = None
    vector: np.ndarray | None = None
    column: str = "image"
    k: int = 10
    nprobe: int | None = None
    rerank: Sequence[RerankStage | str] | str = ()
    hybrid: bool = False
    calibrated: bool = False
    terms: Sequence[Term] = ()
    dedup: float | None = None
    diversity: float = 0.0
    where: str | None = None
    members: Mapping[str, MemberSource] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_input(self.text, self.image)
        check_members(self.members)
        if not isinstance(self.column, str):
            raise TypeError(f"column: expected str, found {type(self.column).__name__}")
        for name, flag in (("hybrid", self.hybrid), ("calibrated", self.calibrated)):
            if not isinstance(flag, bool):
                raise TypeError(f"{name}: expected bool, found {type(flag).__name__}")
        if self.where is not None and not isinstance(self.where, str):
            raise TypeError(f"where: expected str, found {type(self.where).__name__}")
        object.__setattr__(self, "rerank", _parse_stages(self.rerank))
        object.__setattr__(self, "terms", _require_terms(self.terms))
        self._require_one_input()
        if self.hybrid and not self.words:
            self._refuse_hybrid()
        require_whole(1, k=self.k)
        if self.nprobe is not None:
            require_whole(1, nprobe=self.nprobe)
        if self.dedup is not None:
            require_number("dedup", self.dedup, 0, 1)
        require_number("diversity", self.diversity, 0, 1)

    def _refuse_hybrid(self) -> NoReturn:
        found, do = "a picture alone" if self.image is not None else "no words", "add a text"
        if self.terms:
            found, do = "weighted terms", "search by one text without weights, or without hybrid"
        elif self.vector is not None:
            found, do = "a vector", "search without hybrid"
        raise UsageError("hybrid", expected="words to find in captions", found=found, do=do)

    def _require_one_input(self) -> None:
        """UsageError where there is nothing to search for, or where it is said in two ways."""
        plain = self.words != "" or self.image is not None or bool(self.members)
        if plain and self.terms:
            raise UsageError("query", expected="either terms or words and picture", found="both")
        if (plain or self.terms) and self.vector is not None:
            raise UsageError("query", expected="either a vector or words and picture", found="both")
        if not plain and not self.terms and self.vector is None:
            found = "neither" if self.text is None else f"the text {self.text!r}"
            raise UsageError("query", expected="some words or a picture", found=found)
        if self.terms and not any(term.weight for term in self.terms):
            raise UsageError("query", expected="a term with a weight other than 0", found="none")

    @property
    def inputs(self) -> tuple[Term, ...]:
        """What is encoded: the terms, or the text, the picture and the members; () for a vector."""
        if self.terms:
            return tuple(self.terms)
        texts = (Term(self.text),) if self.words else ()
        images = () if self.image is None else (Term(image=self.image),)
        members = [Term(members={name: source}) for name, source in self.members.items()]
        return (*texts, *images, *members)

    @property
    def kind(self) -> str:
        """For recall, which is promised by kind: text, picture, filtered; of vector and of mixed,
        which is several texts and pictures or any member, nothing of their own was measured."""
        if self.where is not None:
            return "filtered"
        if self.vector is not None:
            return "vector"
        if self.terms or self.members or (self.words and self.image is not None):
            return "mixed"
        return "text" if self.words else "picture"

    @property
    def stages(self) -> tuple[RerankStage, ...]:
        """`rerank`, parsed."""
        return _parse_stages(self.rerank)

    @property
    def distinct(self) -> int:
        """How many hits are wanted after folding: k, or those that diversity chooses from."""
        return int(self.k) * (DIVERSITY_POOL if self.diversity else 1)

    @property
    def candidates(self) -> int:
        """How many hits the search has to give at first: those wanted, some for folding, the depth
        of the deepest stage, what a p-value is made of; to be fused, FUSED_DEPTH at the least."""
        least = [self.distinct * (1 if self.dedup is None else 2)]
        least += [FUSED_DEPTH] if self.hybrid else []
        least += [CALIBRATED_HITS] if self.calibrated else []
        return max([*least, *(stage.depth for stage in self.stages)])

    @property
    def words(self) -> str:
        """The text to encode, "" where there is none."""
        return (self.text or "").strip()

    def as_json(self) -> dict[str, Any]:
        """Without bytes and pixels: {"text", "image", "column", "k", "rerank", "hybrid", "where"},
        and `members`, `terms`, `dedup` and `diversity` where they are given."""
        fields: dict[str, Any] = {
            "text": self.text,
            "image": _picture_name(self.image),
            "column": self.column,
            "k": int(self.k),
            "rerank": [str(stage) for stage in self.stages],
            "hybrid": self.hybrid,
            "where": self.where,
            **_members_as_json(self.members),
        }
        if self.terms:
            fields["terms"] = [term.as_json() for term in self.terms]
        if self.dedup is not None:
            fields["dedup"] = float(self.dedup)
        if self.diversity:
            fields["diversity"] = float(self.diversity)
        return fields

    def __str__(self) -> str:
        """`"a red boat" + picture boat.jpg`, `2 x "a red boat" - "night"`, `a vector`."""
        line = ""
        for term in self.inputs:
            minus = term.weight < 0
            sign = (" - " if minus else " + ") if line else ("-" if minus else "")
            line += f"{sign}{term}"
        return line or "a vector"


def _members_as_json(members: Mapping[str, MemberSource]) -> dict[str, Any]:
    """{"members": {modality: name}}, {} without any."""
    named = {modality: _picture_name(source) for modality, source in members.items()}
    return {"members": named} if named else {}


def _picture_name(image: PictureSource | None) -> str | None:
    if image is None or isinstance(image, str | Path):
        return None if image is None else str(image)
    if isinstance(image, PictureBytes):
        return image.name
    return "(given as bytes)" if isinstance(image, bytes) else "(given as pixels)"


def _require_terms(terms: Sequence[Term]) -> tuple[Term, ...]:
    if not isinstance(terms, Sequence) or not all(isinstance(term, Term) for term in terms):
        found = type(terms).__name__
        if isinstance(terms, Sequence) and not isinstance(terms, str):
            found = next(type(term).__name__ for term in terms if not isinstance(term, Term))
        raise TypeError(f"terms: expected Term(text=..., weight=...) in a list, found {found}")
    return tuple(terms)


def check_rate(false_alarms: float, up_to: str = "below") -> bool:
    """True for a rate above 0 and below 1; UsageError for another. up_to: what the error calls the
    upper bound, `at most` where the caller takes 1 too."""
    if not 0 < false_alarms < 1:
        expected = f"a rate above 0 and {up_to} 1"
        raise UsageError("false alarms", expected=expected, found=repr(false_alarms))
    return True


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
