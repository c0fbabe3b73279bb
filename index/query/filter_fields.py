"""The fields that a filter may name, their kinds, and their cells as columns for DuckDB.

Fields of the catalog, and those of the samples' json at any depth: `meta.license`, `meta.exif.iso`,
`meta."a field"`. What a hit does not have is NULL: a field that the sample lacks, a number that is
not finite, a field that this segment does not have at all.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from chiasm.index.query.filter_parse import quoted, refused
from chiasm.pipeline.errors import CollectionError

Path = tuple[str, ...]

NUMBER, TEXT, BOOL = "a number", "a text", "true or false"
LISTS = {NUMBER: "a list of numbers", TEXT: "a list of texts", BOOL: "a list of true and false"}
OTHER = "an object or a list of such"  # can be asked for NULL alone
META = "meta"
ID = "id"
# In this order they are listed. The id is made of three columns.
CATALOG_KINDS = {
    **dict.fromkeys(("key", "shard", ID, "url", "caption"), TEXT),
    "captions": LISTS[TEXT],
    **dict.fromkeys(("width", "height", "row"), NUMBER),
}
ARROW_TYPES = {NUMBER: pa.float64(), TEXT: pa.string(), BOOL: pa.bool_(), OTHER: pa.bool_()}
ARROW_TYPES |= {kind: pa.list_(ARROW_TYPES[element]) for element, kind in LISTS.items()}
MOST_NAMES = 40  # of fields in an error message
LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class Fields:
    """The fields of segments with these catalogs. The kind of a field is the same in all; where one
    segment never saw a value, it stores the field as text, and the others' kind counts."""

    def __init__(self, schemas: Iterable[pa.Schema]) -> None:
        self.kinds: dict[Path, str] = {(name,): kind for name, kind in CATALOG_KINDS.items()}
        seen: list[pa.DataType] = []
        for schema in schemas:
            meta = schema.field(META).type
            if meta not in seen:
                seen.append(meta)
                for path, kind in _kinds((META,), meta):
                    if self.kinds.get(path, TEXT) == TEXT:
                        self.kinds[path] = kind

    def find(self, path: Path, place: int | None) -> Path:
        """The field that is meant: the catalog's in any case; of the json the one that is written
        so, or the only one that differs in case alone. UsageError, which lists the fields."""
        path = (*_lower(path[:1]), *path[1:])
        if path in self.kinds:
            return path
        alike = [known for known in self.kinds if _lower(known) == _lower(path)]
        if len(alike) == 1:
            return alike[0]
        names = sorted(field_name(known) for known in self.kinds if known[0] == META)
        names = [*CATALOG_KINDS, *names]
        named = ", ".join(names[:MOST_NAMES])
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        found = quoted(field_name(path))
        if inside := self._inside_text(path):
            found += f", where {inside} is stored as JSON text,"
        raise refused(f"a field, one of {named}{more}", found, place)

    def _inside_text(self, path: Path) -> str:
        """The object, stored as a text, that a path leads into."""
        outer = [path[:end] for end in range(1, len(path)) if path[0] == META]
        return next((field_name(one) for one in outer if self.kinds.get(one) == TEXT), "")


def _lower(path: Path) -> Path:
    """Latin letters alone: the sign of Kelvin is no K."""
    return tuple(part.translate(LOWER) for part in path)


def field_name(path: Path) -> str:
    """As it is written in a filter."""
    simple = re.compile("[A-Za-z_][A-Za-z0-9_]*")
    parts = (
        part if simple.fullmatch(part) else '"' + part.replace('"', '""') + '"' for part in path
    )
    return ".".join(parts)


def _kinds(path: Path, found: pa.DataType) -> Iterator[tuple[Path, str]]:
    yield path, kind_of(found)
    if pa.types.is_struct(found):
        for field in found:
            yield from _kinds((*path, field.name), field.type)


def kind_of(found: pa.DataType) -> str:
    if pa.types.is_boolean(found):
        return BOOL
    if pa.types.is_integer(found) or pa.types.is_floating(found):
        return NUMBER
    if pa.types.is_string(found) or pa.types.is_dictionary(found):
        return TEXT
    if pa.types.is_list(found):
        return LISTS.get(kind_of(found.value_type), OTHER)
    return OTHER


def read_column(table: pa.Table, path: Path, kind: str) -> pa.ChunkedArray:
    """The cells of a field, of a type of its kind; of `OTHER`, true where there is one. Raises
    CollectionError where this segment has values of another kind."""
    found = _descend(table, path)
    if found is None:
        return pa.chunked_array([pa.nulls(len(table), ARROW_TYPES[kind])])
    if kind == OTHER:
        valid = _call("is_valid", found)
        return _call("if_else", valid, valid, _null(pa.bool_()))
    if kind_of(found.type) != kind:
        return _cast_empty(found, path, kind)
    if pa.types.is_floating(found.type):
        return _call("if_else", _call("is_finite", found), found, _null(found.type))
    return found


def _descend(table: pa.Table, path: Path) -> Any:
    """A column, or a field inside it; None where there is none."""
    if path[0] not in table.column_names:
        return None
    found = table[path[0]]
    for name in path[1:]:
        number = found.type.get_field_index(name) if pa.types.is_struct(found.type) else -1
        if number < 0:
            return None
        found = _call("struct_field", found, options=pc.StructFieldOptions([number]))
    return found


def _null(of: pa.DataType) -> pa.Scalar:
    """Not by `pa.scalar`, which imports pandas where it is installed: half a second."""
    return pa.nulls(1, of)[0]


def _call(name: str, *arguments: Any, options: Any = None) -> Any:
    """A function of pyarrow.compute, which makes most of them when it is imported: a type checker
    does not see those."""
    return pc.call_function(name, list(arguments), options)


def _cast_empty(found: pa.ChunkedArray, path: Path, kind: str) -> pa.ChunkedArray:
    """A column of another type that has no value at all."""
    values = _call("list_flatten", found) if pa.types.is_list(found.type) else found
    if values.null_count < len(values):
        raise CollectionError(
            f"where: field {field_name(path)}",
            expected=f"{kind} in every segment of the index",
            found=f"{kind_of(found.type)} in one of them",
            do="run chiasm index build, which finds a common type",
        )
    return pa.chunked_array([pa.nulls(len(found), ARROW_TYPES[kind])])
