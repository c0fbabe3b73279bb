"""The columns of tokens: a vector for each token of a row's picture or text, for late interaction.

    image_tokens, text_tokens    list of vectors, fixed_size_list<float16>[W]; null without any

Of each modality its own, as its vectors have: a search asks for pictures or for texts, and MaxSim
over both would let a caption answer for a picture. A row costs 2 W bytes a token, which is most of
the file: 9 KB for 36 tokens of 128 numbers, 264 KB for the 1,030 of a ColPali.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from chiasm.pipeline.encoders import Ragged
from chiasm.pipeline.records import TokenColumn

SUFFIX = "_tokens"


def token_column(modality: str) -> str:
    """The name of the column of a modality's tokens."""
    return f"{modality}{SUFFIX}"


def token_fields(tokens: Mapping[str, int]) -> list[tuple[str, pa.DataType]]:
    """Name and type of each column. tokens: the width of a token's vector, by modality."""
    return [(token_column(modality), _type(width)) for modality, width in tokens.items()]


def token_leaves(tokens: Mapping[str, int]) -> list[str]:
    """The paths of their numbers in a Parquet file."""
    return [f"{token_column(modality)}.list.element.list.element" for modality in tokens]


def _type(width: int) -> pa.DataType:
    vector = pa.list_(pa.field("element", pa.float16(), nullable=False), width)
    return pa.list_(pa.field("element", vector, nullable=False))


def is_tokens(kind: pa.DataType) -> bool:
    """Whether a column of this type has tokens."""
    return pa.types.is_list(kind) and pa.types.is_fixed_size_list(kind.value_type)


def token_array(column: TokenColumn | None, rows: int, kind: pa.ListType) -> pa.Array:
    """A batch's tokens of a modality, None where no row has any, as a column of so many rows."""
    if column is None:
        return pa.nulls(rows, kind)
    ends = np.concatenate([[0], np.cumsum(column.lengths)]).astype(np.int32)
    flat = pa.array(column.values.reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, type=kind.value_type)
    none = pa.array(column.lengths == 0)
    return pa.ListArray.from_arrays(pa.array(ends), vectors, type=kind, mask=none)


def tokens_of(column: pa.ChunkedArray) -> Ragged:
    """A column of tokens: (T, W) float16, and how many of them each row has, 0 where it is null."""
    array = column.combine_chunks()
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    vectors = array.flatten()  # without what lies under nulls
    return Ragged(numbers_of(vectors).reshape(len(vectors), vectors.type.list_size), lengths)


def numbers_of(vectors: pa.FixedSizeListArray) -> np.ndarray:
    """The numbers of vectors, one after the other, float16."""
    return vectors.flatten().to_numpy(zero_copy_only=False)
