"""Schema inference: the samples' own json -> one Arrow type that fits every row of every shard.

A first pass reads all rows and infers the type, a second converts each value to it. Types widen
only where nothing is lost: int -> float -> string, where an int that a float cannot represent goes
straight to string; values of other different types (a bool and a number, an object and a text)
become JSON text. Each widening is reported. The type has at most MAX_LEAVES leaves, since each
costs memory in every row: objects for whose fields there is no room stay JSON text, and so do very
deep values. Room is given to objects near the root first, and there to those of few fields. The
cost: each json is parsed twice.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

MAX_LEAVES = 256  # of the whole type; each costs some 8 bytes a row, whether the row has it or not
MAX_SEEN = 16_384  # fields of nested objects that are kept in mind until room is given
MAX_DEPTH = 8  # nested objects and lists kept as Arrow types
MAX_NESTING = 200  # far below the depth at which Python's own json raises a RecursionError

_EXACT_IN_FLOAT = 1 << 53
_EXACT_IN_INT64 = 1 << 63
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # the only way into a JSON text that is UTF-8


@dataclass
class Field:
    """What was seen at one path of the json.

    seen: kinds among bool, int, long (exact in 64 bits, not in a float), huge, float, string,
    object, list, wide (an object of too many fields), deep. Sets only grow, so the order of rows is
    immaterial, unless there are more than MAX_SEEN fields. fits: whether an object's fields have
    room in the type.
    """

    seen: set[str] = field(default_factory=set)
    fields: dict[str, Field] = field(default_factory=dict)
    element: Field | None = None
    fits: bool = False

    def add(self, value: Any, room: Room, depth: int = 0) -> None:
        kind = _kind_of(value)
        if kind in ("object", "list") and depth == MAX_DEPTH:
            kind = "deep"
        if kind is not None:
            self.seen.add(kind)
        if kind == "list":
            self.element = self.element or Field()
            for item in value:
                self.element.add(item, room, depth + 1)
        elif kind == "object" and "wide" not in self.seen:
            for name, item in value.items():
                if name not in self.fields:
                    self.fields[name] = Field()
                    room.seen += 1
                self.fields[name].add(item, room, depth + 1)
            if len(self.fields) > MAX_LEAVES or (depth and room.seen > MAX_SEEN):
                self.seen.add("wide")
                room.seen -= self.size()
                self.fields.clear()

    def size(self) -> int:
        """How many fields there are below, at any depth."""
        below = sum(1 + part.size() for part in self.fields.values())
        return below + (self.element.size() if self.element else 0)

    def objects(self) -> Iterator[Field]:
        """The objects that this value is, or holds through lists alone."""
        if self.seen == {"object"}:
            yield self
        elif self.seen == {"list"} and self.element:
            yield from self.element.objects()

    @property
    def kind(self) -> str:
        """The type that all values are stored as: bool, int, float, string, object or list."""
        if self.seen == {"object"} and self.fits:
            return "object"
        if len(self.seen) == 1 and self.seen <= {"bool", "string", "list", "float"}:
            return next(iter(self.seen))
        if self.seen and self.seen <= {"int", "long"}:
            return "int"
        if self.seen == {"int", "float"}:
            return "float"
        return "string"

    def arrow_type(self) -> pa.DataType:
        if self.kind == "object":
            parts = [
                pa.field(name, part.arrow_type()) for name, part in sorted(self.fields.items())
            ]
            return pa.struct(parts)
        if self.kind == "list":
            return pa.list_((self.element or Field()).arrow_type())
        return _PLAIN[self.kind]

    def converter(self) -> Callable[[Any], Any]:
        """A function from any value seen here to one that `arrow_type` takes."""
        if self.kind == "object":
            parts = [(name, part.converter()) for name, part in sorted(self.fields.items())]
            return lambda value: (
                value and {name: convert(value.get(name)) for name, convert in parts}
            )
        if self.kind == "list":
            convert_item = (self.element or Field()).converter()
            return lambda value: None if value is None else [convert_item(item) for item in value]
        return _CONVERTERS[self.kind]

    def widened(self, path: str) -> Iterator[dict[str, Any]]:
        """Fields with values of different types: {"field", "seen", "kept_as"}."""
        kind = self.kind
        if kind == "object":
            for name, part in sorted(self.fields.items()):
                yield from part.widened(f"{path}.{name}")
        elif kind == "list":
            yield from (self.element or Field()).widened(f"{path}[]")
        elif self.seen - {kind} - ({"long"} if kind == "int" else set()):
            wide = {"wide"} if self.seen == {"object"} and self.fields else set()
            yield {"field": path, "seen": sorted(self.seen | wide), "kept_as": kind}


@dataclass
class Room:
    """seen: fields of all objects that are kept in mind."""

    seen: int = 0


def give_room(root: Field) -> None:
    """Choose the objects whose fields are in the type: level by level from the root, those of few
    fields first, as long as there are at most MAX_LEAVES leaves."""
    leaves, level = 1, [root] if root.fields else []
    while level:
        objects = [found for part in level for found in part.objects()]
        level = []
        for found in sorted(objects, key=lambda found: len(found.fields)):
            found.fits = leaves - 1 + len(found.fields) <= MAX_LEAVES
            if found.fits:
                leaves += len(found.fields) - 1
                level += [part for _, part in sorted(found.fields.items())]


_PLAIN = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "string": pa.string()}


def _kind_of(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):  # before int, whose subclass it is
        return "bool"
    if isinstance(value, int):
        if abs(value) <= _EXACT_IN_FLOAT:
            return "int"
        return "long" if -_EXACT_IN_INT64 <= value < _EXACT_IN_INT64 else "huge"
    return {float: "float", str: "string", dict: "object", list: "list"}[type(value)]


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "bool": lambda value: value,
    "int": lambda value: value,
    "float": lambda value: None if value is None else float(value),
    "string": _as_text,
}


class SchemaInference:
    """Reads every json cell of a collection, then gives the common type and converts cells to
    it."""

    def __init__(self) -> None:
        self.root = Field()
        self.room = Room()
        self.invalid: Counter[str] = Counter()

    def add(self, cells: Iterable[str | None]) -> None:
        for cell in cells:
            value, problem = parse(cell)
            if problem:
                self.invalid[problem] += 1
            elif value is not None:
                self.root.add(value, self.room)

    def finish(self) -> None:
        """All cells were added: the type is settled."""
        give_room(self.root)

    def covers(self, cells: Iterable[str | None]) -> bool:
        """Whether the settled type is also that of cells that were not added."""
        more = copy.deepcopy(self)
        more.add(cells)
        more.finish()
        return more.arrow_type() == self.arrow_type()

    def arrow_type(self) -> pa.DataType:
        """A struct; string (JSON text) where no row has fields, or the rows have too many."""
        return self.root.arrow_type()

    def column(self, cells: Iterable[str | None]) -> pa.Array:
        """Cells that were added before, as an array of `arrow_type`; null where a cell is no
        object."""
        convert = self.root.converter()
        return pa.array([convert(parse(cell)[0]) for cell in cells], type=self.arrow_type())

    def report(self) -> list[dict[str, Any]]:
        """What was widened, and how many cells hold no JSON object: one dict a line."""
        invalid = [
            {"field": "meta", "seen": [name], "rows": n} for name, n in sorted(self.invalid.items())
        ]
        return [*self.root.widened("meta"), *invalid]


def parse(cell: str | None) -> tuple[dict[str, Any] | None, str]:
    """A json cell as an object, or None and what is wrong with it ("" where the cell is null)."""
    if cell is None:
        return None, ""
    try:
        value = json.loads(cell)
        if cell.count("{") + cell.count("[") > MAX_NESTING and _nesting(value) > MAX_NESTING:
            return None, "nested too deep"
        if _SURROGATE.search(cell):  # Arrow's strings are UTF-8, which has no lone surrogates
            replaced = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
            value = json.loads(replaced)
    except (ValueError, RecursionError):
        return None, "not json"
    return (value, "") if isinstance(value, dict) else (None, "not an object")


def _nesting(value: Any) -> int:
    """The depth of objects and lists inside each other; level by level, without recursion."""
    levels, level = 0, [value]
    while level:
        level = [part for outer in level for part in _parts(outer)]
        levels += 1
    return levels - 1


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
