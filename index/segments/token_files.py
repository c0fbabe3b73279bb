"""The tokens of a column in a segment, and the vectors that propose rows by them.

    image.tokens         (T, W) float16: the tokens of row 0, those of row 1, ...
    image.ends           int64 (rows,): where each row's end among them
    image_proposals.f16  (rows, D) float16, see proposals.py; zero in rows without tokens

A search scans the last of these and reads the tokens of its candidates alone: by mapped pages, or
by the blocks of a file in a store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader

import numpy as np
import pyarrow as pa

from chiasm.index.segments.blocks import VectorBlocks
from chiasm.index.segments.checksums import Digest
from chiasm.index.segments.files import SegmentFiles
from chiasm.index.segments.names import ENDS, TOKENS, blocks_file
from chiasm.index.segments.partial import Parts, Wanted
from chiasm.index.segments.proposals import Proposals, proposal_column
from chiasm.pipeline.collection import token_column, tokens_of
from chiasm.pipeline.encoders import Ragged
from chiasm.pipeline.errors import CollectionError

HALF = 2  # bytes of a float16


@dataclass(frozen=True)
class CopiedTokens:
    """Of some rows of another segment what it has of a modality: their tokens, and their
    proposals (n, D) float16."""

    tokens: Ragged
    proposals: np.ndarray


class TokenWriter:
    """Writes the tokens of a modality. create: opens a file of the segment by its name. proposals:
    makes vectors of rows that are added; None where all are copied. vectors: how many rows have
    tokens."""

    def __init__(
        self,
        modality: str,
        width: int,
        dim: int,
        create: Callable[[str], Digest],
        proposals: Proposals | None,
    ) -> None:
        self.vectors = 0
        self._modality, self._create, self._proposals = modality, create, proposals
        self._width, self._total = width, 0
        self._ends: list[np.ndarray] = []
        self._names = [f"{modality}.{TOKENS}", f"{proposal_column(modality)}.f16"]
        self._files = [create(name) for name in self._names]
        self._blocks = [VectorBlocks(HALF * width), VectorBlocks(HALF * dim)]

    def add(self, rows: pa.Table) -> None:
        """Take rows of a Parquet file."""
        assert self._proposals is not None
        tokens = tokens_of(rows[token_column(self._modality)])
        self._write(tokens, self._proposals.documents(tokens).astype("<f2"))

    def copy(self, copied: CopiedTokens) -> None:
        self._write(copied.tokens, copied.proposals)

    def _write(self, tokens: Ragged, proposals: np.ndarray) -> None:
        assert tokens.values.shape[1] == self._width
        for file, blocks, numbers in zip(
            self._files, self._blocks, (tokens.values, proposals), strict=True
        ):
            data = numbers.astype("<f2", copy=False).tobytes()
            file.write(data)
            blocks.add(data)
        self._ends.append(self._total + np.cumsum(tokens.lengths))
        self._total += len(tokens.values)
        self.vectors += int(np.count_nonzero(tokens.lengths))

    def finish(self) -> None:
        """Write what is known at the end."""
        ends = np.concatenate([np.empty(0, np.int64), *self._ends])
        self._create(f"{self._modality}.{ENDS}").write(ends.astype("<i8").tobytes())
        for name, blocks in zip(self._names, self._blocks, strict=True):
            self._create(blocks_file(name)).write(blocks.to_bytes())


class SegmentTokens:
    """The tokens of a modality in a segment, mapped. Safe to share. width: of a token's vector.
    Only rows whose parts were fetched may be taken, see `wanted`."""

    def __init__(
        self, files: SegmentFiles, modality: str, rows: int, width: int, where: str, rebuild: str
    ) -> None:
        self._files, self._name, self._width = files, f"{modality}.{TOKENS}", width
        content = files.read(f"{modality}.{ENDS}")
        self.ends = np.concatenate([np.zeros(1, np.int64), np.frombuffer(content, "<i8")])
        size = files.size(self._name)
        if (len(self.ends) != rows + 1 or (np.diff(self.ends) < 0).any()
                or self.ends[-1] * width * HALF != size):  # fmt: skip
            raise CollectionError(
                where,
                expected=f"ends of {rows} rows among {size} bytes of tokens of {width} numbers",
                found=f"{len(self.ends) - 1} ends, the last {self.ends[-1]}",
                do=rebuild,
            )
        self._values = self._map()

    def _parts(self) -> Parts | None:
        """Of the file; None where it is used whole."""
        return self._files.parts(self._name)

    def _map(self) -> np.ndarray:
        shape = (int(self.ends[-1]), self._width)
        if not shape[0]:
            return np.zeros(shape, "<f2")

        def opened(file: BufferedReader, *_: str) -> np.ndarray:
            return np.memmap(file, "<f2", "r", shape=shape).view(np.ndarray)

        parts = self._parts()
        return self._files.open_once(self._name, opened) if parts is None else opened(parts.file)

    def wanted(self, rows: np.ndarray) -> list[Wanted]:
        """The parts of the file that have the tokens of these rows."""
        parts = self._parts()
        if parts is None:
            return []
        offsets, size = parts.blocks.offsets, self._width * HALF
        firsts = np.searchsorted(offsets, self.ends[rows] * size, side="right") - 1
        lasts = np.searchsorted(offsets, self.ends[rows + 1] * size, side="left")
        spans = [np.arange(a, b) for a, b in zip(firsts.tolist(), lasts.tolist(), strict=True)]
        return [(parts, np.unique(np.concatenate([np.empty(0, np.int64), *spans])))]

    def take(self, rows: np.ndarray) -> Ragged:
        """The tokens of rows, float16, in their order."""
        starts, ends = self.ends[rows], self.ends[rows + 1]
        spans = [self._values[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        values = np.concatenate(spans) if spans else self._values[:0]
        return Ragged(values, ends - starts)
