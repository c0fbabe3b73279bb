"""What flows through the pipeline, in the order in which it flows.

    Shard -> Sample | Dropped | Note -> Decoded -> Batch -> Embedded

Letters: B rows of a batch, D width of a vector, S side of a picture in pixels. A modality is
`image`, `text`, or a name that an encoder gives; a column holds the vectors of one modality, or
`joint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

IMAGE, TEXT, SOUND = "image", "text", "sound"
COLUMNS = ("image", "text", "joint")  # the vector columns, in the order in which they are written

# Reasons of stage `read` with which the rest of a shard is lost: bytes are missing, bytes are
# wrong, a small file unpacks to too many bytes.
DAMAGES = ("truncated", "damaged", "bomb")


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar of samples as it was when it was listed.

    `url` is canonical (`file:///...` for local paths), `size` in bytes, `version` the store's etag
    or, for local files, the modification time in nanoseconds: size and version tell that a shard
    changed.
    """

    url: str
    id: str
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member's bytes are in its tar: `offset` of the first data byte, or None in a
    compressed shard."""

    member: str
    offset: int | None
    size: int


@dataclass(frozen=True, slots=True)
class Source:
    """The member that one modality of a sample is made from: its bytes and where they are."""

    data: bytes
    place: Place


@dataclass(frozen=True, slots=True)
class Sample:
    """The members of a shard that share one key.

    `sources`: by modality, those that are there; `image` is the encoded picture. `captions` may be
    empty. `json` is the sample's own json member, verbatim. `missing`: by modality, why it is not
    there, a reason of `shards.NOTE_REASONS`. A member that is there and cannot be used is no
    missing one: its sample is dropped, with the reason.
    """

    key: str
    sources: Mapping[str, Source]
    captions: tuple[str, ...]
    json: str | None
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def picture(self) -> bytes | None:
        """The encoded picture, None where there is none."""
        source = self.sources.get(IMAGE)
        return None if source is None else source.data


@dataclass(frozen=True, slots=True)
class Dropped:
    """A sample that became no row. `stage` is read, decode or encode; `reason` is one of a short
    closed list."""

    key: str
    stage: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """Something odd or missing about a row that was kept."""

    key: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a row remembers of the member that an input was made from. `sha256` is of its bytes;
    `size`: (width, height) of a picture as a person sees it (EXIF orientation applied)."""

    place: Place
    sha256: str
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """A sample ready for the encoder; the encoded bytes are gone.

    `inputs`: by modality what the encoder's `preprocess` made (for `text` of the first caption);
    `origins`: of those that are made from a member. `missing`: by modality, why it has no input.
    """

    key: str
    captions: tuple[str, ...]
    json: str | None
    inputs: Mapping[str, Any]
    origins: Mapping[str, Origin] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """B consecutive kept samples in tar order, B <= the batch size of the settings. cost: bytes
    that its forward pass takes, about."""

    rows: list[Decoded]
    cost: int = 0

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class VectorColumn:
    """vectors (B, D) float32, of unit length in every row where `has` (B,) bool is True, and zero
    elsewhere."""

    vectors: np.ndarray
    has: np.ndarray


@dataclass(frozen=True, slots=True)
class TokenColumn:
    """A vector for each token of B rows: values (T, W) float16, row after row; lengths (B,) int64,
    how many each row has, 0 in rows without the modality."""

    values: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True, slots=True)
class Embedded:
    """The rows of a batch that have vectors, with their vector columns; those samples of it that
    the encoder does not take, each with the reasons why it has no input of some modalities; what is
    odd about rows that it takes. tokens: by modality, of an encoder that gives a vector for each
    token."""

    batch: Batch
    columns: Mapping[str, VectorColumn]
    refused: tuple[tuple[Dropped, tuple[str, ...]], ...] = ()
    notes: tuple[Note, ...] = ()
    tokens: Mapping[str, TokenColumn] = field(default_factory=dict)
