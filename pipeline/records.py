"""What flows through the pipeline, in the order in which it flows.

    Shard -> Sample | Dropped | Note -> Decoded -> Batch -> Embedded

Letters: B rows of a batch, D width of a vector, S side of a picture in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

COLUMNS = ("image", "text", "joint")  # the vector columns, in the order in which they are written


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
    """Where a member's bytes lie in its tar: `offset` of the first data byte, or None in a
    compressed shard."""

    member: str
    offset: int | None
    size: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The members of a shard that share one key.

    `picture` is the encoded file, None where there is none; `place` says where it lies. `captions`
    may be empty. `json` is the sample's own json member, verbatim.
    """

    key: str
    picture: bytes | None
    place: Place | None
    captions: tuple[str, ...]
    json: str | None


@dataclass(frozen=True, slots=True)
class Dropped:
    """A sample that became no row. `stage` is read or decode; `reason` is one of a short closed
    list."""

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
class Decoded:
    """A sample ready for the encoder.

    `pixels` is what the encoder's `preprocess` made of the picture (for fixed-size encoders uint8
    of shape (3, S, S)), None without a picture; `sample.picture` is None by now. `width` and
    `height` are those of the picture as a person sees it (EXIF orientation applied); `sha256` is of
    the encoded file.
    """

    sample: Sample
    pixels: np.ndarray | None
    width: int | None
    height: int | None
    sha256: str | None

    @classmethod
    def of(
        cls,
        sample: Sample,
        pixels: np.ndarray | None,
        width: int | None,
        height: int | None,
        sha256: str | None,
    ) -> Decoded:
        """Let go of the encoded bytes: a decoded row must not keep two copies of its picture."""
        return cls(replace(sample, picture=None), pixels, width, height, sha256)


@dataclass(frozen=True, slots=True)
class Batch:
    """B consecutive kept samples in tar order, B <= the batch size of the settings."""

    rows: list[Decoded]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Embedded:
    """A batch and its vectors: each of `image`, `text`, `joint` is (B, D) float32, of unit length
    in every row whose entry in `has[column]` (B,) bool is True, and zero elsewhere."""

    batch: Batch
    image: np.ndarray
    text: np.ndarray
    joint: np.ndarray
    has: dict[str, np.ndarray] = field(default_factory=dict)
