"""What an encoder is to the write path and the read path, and what a matcher is.

Letters: B items of one modality, D width of a vector, T tokens of an item, P pairs. A modality is a
name such as `image` or `text`; a column is one of an encoder's vectors: one a modality, and `joint`
for what was made of several modalities together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

Array = np.ndarray
# Of members that are sounds, in order of preference where a sample has several.
SOUND_EXTENSIONS = ("wav", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff")
JOINT = "joint"  # the column of vectors that several modalities share


@dataclass(frozen=True, slots=True)
class Input:
    """What an encoder takes of one modality.

    extensions: of the members that belong to it; empty for `image` and `text`, whose members the
    reader knows. side: pictures: the shorter side that is wanted in pixels, None for the whole
    picture. rate: samples a second of a modality that is sound: its members are decoded, and each
    item is one channel at that rate. None for any other.
    """

    extensions: tuple[str, ...] = ()
    side: int | None = None
    rate: int | None = None


@dataclass(frozen=True, slots=True)
class Ragged:
    """B matrices of different length: `values` (sum of T_i, D), `lengths` (B,) int64."""

    values: Array
    lengths: Array

    def take(self, rows: Array) -> Ragged:
        """The matrices of `rows`, in their order."""
        ends = np.cumsum(self.lengths)
        parts = [self.values[ends[row] - self.lengths[row] : ends[row]] for row in rows]
        values = np.concatenate(parts) if parts else self.values[:0]
        return Ragged(values, self.lengths[rows])


class State(Protocol):
    """What an encoder remembers of B items between `encode` and `encode_joint`."""

    def take(self, rows: Any, /) -> Self: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """B items of one modality, encoded; everything in it is aligned by row.

    vectors: (B, D) float32, unit rows. tokens: a vector for each token, for late interaction, or
    None. tokens_cut: (B,) int64, the tokens of each item that were cut off, or None. state: the
    encoder's own, such as features that its fusion reads; it lives no longer than its batch.
    """

    vectors: Array
    tokens: Ragged | None = None
    tokens_cut: Array | None = None
    state: State | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, rows: Array) -> Encoded:
        """The rows at `rows`, (B',) int64, in their order."""
        return Encoded(
            self.vectors[rows],
            None if self.tokens is None else self.tokens.take(rows),
            None if self.tokens_cut is None else self.tokens_cut[rows],
            None if self.state is None else self.state.take(rows),
        )


class Preprocessor(Protocol):
    """What decoding asks of a model: which modalities it takes, and what of each."""

    name: str

    @property
    def modalities(self) -> Mapping[str, Input]: ...

    def preprocess(self, modality: str, raw: Any) -> Any: ...
    def cost(self, modality: str, item: Any) -> int: ...


class Encoder(Preprocessor, Protocol):
    """A model that gives each modality vectors of one space. `BaseEncoder` has the defaults.

    Nothing in it changes once it is loaded: any number of threads may call it, and what it answers
    depends on what it is given alone.

    fingerprint: hex digest of weights, tokenizer and preprocessing: same fingerprint, same space.
    precision and device: what was chosen, recorded beside the fingerprint, never part of it.
    preprocessing: the whole of it in words and numbers, as stored in collection.json.
    modalities: what it takes. dims: the width of each column it fills.
    """

    fingerprint: str
    precision: str
    device: str
    preprocessing: dict[str, Any]

    @property
    def dims(self) -> Mapping[str, int]: ...

    def preprocess(self, modality: str, raw: Any) -> Any:
        """One raw item -> what `encode` takes of it. Runs in the decode threads.

        raw: `image`: uint8 (H, W, 3) RGB; `text`: str; a modality with a rate: float32 (T,), T > 0,
        at that rate; another modality: the bytes of its member. Raises errors.Undecodable for an
        item that cannot be used."""
        ...

    def cost(self, modality: str, item: Any) -> int:
        """Bytes that the forward pass of one preprocessed item takes, about: batches are cut by
        their sum."""
        ...

    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        """B > 0 outputs of `preprocess` -> B rows."""
        ...

    def encode_queries(self, modality: str, items: Sequence[Any]) -> Encoded:
        """The same for queries, which some models encode in another way than rows."""
        ...

    def encode_joint(self, parts: Mapping[str, Encoded]) -> Array:
        """What `encode` gave for B items of each modality, row by row of one sample -> (B, D)
        float32, unit rows."""
        ...

    def encode_joint_queries(self, parts: Mapping[str, Encoded]) -> Array:
        """The same of what `encode_queries` gave, for two or more of its modalities: a query need
        not have all of them."""
        ...


@runtime_checkable
class Matcher(Preprocessor, Protocol):
    """A model that looks at two items together. It need not be an encoder."""

    fingerprint: str

    def match(
        self, a: tuple[str, Sequence[Any]], b: tuple[str, Sequence[Any]], pairs: Array
    ) -> Array:
        """(modality, preprocessed items) twice, pairs (P, 2) int64 of their indices -> (P,)
        float32: the log odds that the two belong together. Each item is listed once, however many
        pairs it is in."""
        ...


class MatchingEncoder(Encoder, Matcher, Protocol):
    """Both: what `chiasm train` makes."""
