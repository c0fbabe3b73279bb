"""Reading the JSON files that chiasm itself has written: ledgers, runs, manifests, identities.

A record is a frozen dataclass; pydantic checks its types. Within a schema version unknown fields
are passed over, since a later release may add some. A file of a higher schema version is refused by
its number. A damaged file is one CollectionError, never a traceback, whatever is in it.
"""

from __future__ import annotations

import functools
import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from chiasm.pipeline.errors import CollectionError

T = TypeVar("T")

MOST_NESTED = 100  # ours have four levels; whoever checks or copies a record recurses into it
_MAX_FOUND = 120  # characters of a message about a damaged file


def read_record(
    data: bytes, where: str, kind: type[T], *, what: str, do: str = "", schema: int = 1
) -> T:
    """The record in `data`, the content of a JSON file.

    where: the file's name for messages. kind: a dataclass; a field's name in the file is its
    `pydantic.Field(alias=...)` where it has one. what: what such a file is, for messages. do: what
    a person can do about a damaged one. schema: the highest version of this file that we can read.
    Raises CollectionError.
    """

    def refuse(found: str, do: str = do) -> CollectionError:
        return CollectionError(where, expected=what, found=found[:_MAX_FOUND], do=do)

    try:
        fields = _parse(data)
    except (ValueError, RecursionError) as error:
        raise refuse(f"no valid JSON ({_one_line(error)})") from error
    if _nested_deeper(fields, MOST_NESTED):
        raise refuse("values nested too deeply")
    if not isinstance(fields, dict):
        raise refuse(f"a JSON {type(fields).__name__} where an object belongs")
    version = fields.get("schema", 1)
    if type(version) is not int or version < 1:
        raise refuse(f"schema version {version!r}")
    if version > schema:
        found = f"schema version {version}, of which this chiasm reads {schema} at most"
        raise refuse(found, "read it with the version of chiasm that wrote it, or a later one")
    try:
        return _adapter(kind).validate_python(fields)
    except ValidationError as error:
        raise refuse(_first_fault(error)) from error


def _parse(data: bytes) -> Any:
    # Paths that are no UTF-8 reach a file as lone surrogates.
    return json.loads(data.decode("utf-8", "surrogatepass"))


def _nested_deeper(value: Any, most: int) -> bool:
    """Whether lists and objects lie in each other more than `most` deep."""
    level, depth = [value] if isinstance(value, dict | list) else [], 0
    while level and depth < most:
        parts = (outer.values() if isinstance(outer, dict) else outer for outer in level)
        level = [item for part in parts for item in part if isinstance(item, dict | list)]
        depth += 1
    return bool(level)


@functools.cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(ascii(part).strip("'") for part in fault["loc"])
    return f"{place}: {_one_line(fault['msg'])}"


def _one_line(message: object) -> str:
    return " ".join(ascii(str(message)).strip("'\"").split())
