"""Rows of a catalog as Python values, from Arrow's record batches."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from chiasm.index.results import CatalogRow, row_id
from chiasm.pipeline.collection import member_prefixes
from chiasm.pipeline.records import IMAGE, Origin, Place


def read_rows(batches: Sequence[pa.RecordBatch], places: np.ndarray) -> list[CatalogRow]:
    """The row at a place of each batch, all in batches of one catalog. places: (n,) int64."""
    if not batches:
        return []
    slices = [batch.slice(place, 1) for batch, place in zip(batches, places.tolist(), strict=True)]
    prefixes = member_prefixes(modalities_of(slices[0].schema))
    placed = frozenset(prefixes) - {IMAGE}
    rows = pa.concat_batches(slices)
    cells = [_cells(column) for column in rows.columns]
    names = rows.schema.names
    return [
        _to_row(dict(zip(names, row, strict=True)), prefixes, placed)
        for row in zip(*cells, strict=True)
    ]


def _cells(column: pa.Array) -> list[Any]:
    """Those of names decoded first: pyarrow takes a microsecond for each cell of a dictionary."""
    return (
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    ).to_pylist()


def modalities_of(schema: pa.Schema) -> list[str]:
    """The modalities beyond pictures and texts whose members are in a catalog. Empty for one
    written before they were copied."""
    return [name.removesuffix("_member") for name in schema.names if name.endswith("_member")]


def _to_row(
    cells: dict[str, Any], prefixes: Mapping[str, str], placed: frozenset[str]
) -> CatalogRow:
    members = {
        modality: Origin(
            Place(cells[f"{prefix}member"], cells[f"{prefix}offset"], cells[f"{prefix}size"]),
            cells[f"{prefix}sha256"],
        )
        for modality, prefix in prefixes.items()
        if cells[f"{prefix}member"] is not None
    }
    picture = members.pop(IMAGE, None)
    captions = tuple(cells["captions"] or ())
    return CatalogRow(
        id=row_id(cells["shard"], cells["row"], cells["edition"]),
        key=cells["key"],
        shard=sys.intern(cells["shard"]),  # many rows share them
        url=sys.intern(cells["url"]),
        caption=captions[0] if captions[:1] == (cells["caption"],) else cells["caption"],
        captions=captions,
        meta=_to_meta(cells["meta"]),
        width=cells["width"],
        height=cells["height"],
        place=None if picture is None else picture.place,
        sha256=None if picture is None else picture.sha256,
        members=members,
        placed=placed,
    )


def _to_meta(value: dict[str, Any] | str | None) -> dict[str, Any]:
    if isinstance(value, str):  # objects without a common type are kept as text
        return _without_nulls(json.loads(value))
    return _without_nulls(value or {})


def meta_as_json(meta: pa.ChunkedArray) -> list[str | None]:
    """The cells of a catalog's `meta`, of whatever type, as JSON; None where one is null."""
    return [
        None if value is None else json.dumps(_to_meta(value), ensure_ascii=False)
        for value in meta.to_pylist()
    ]


def _without_nulls(value: Any) -> Any:
    """Without fields of the struct that this sample lacks."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # Python reads NaN and Infinity from json, but no other program does
    return value
