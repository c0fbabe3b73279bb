"""A condition in SQL over the catalog's fields, checked part by part and written anew.

    width > 512 AND meta.license = 'cc0' AND caption ILIKE '%boat%'

DuckDB has no mode for expressions alone. So its parser gives a tree (query/filter_parse.py), and
only parts of these lists are let through: fields, constants, comparisons, AND, OR, NOT, IN with
constants, BETWEEN, IS [NOT] NULL, TRUE or FALSE, [I]LIKE, arithmetic and the functions of
query/filter_allowed.py. Kinds must fit, as nothing is cast. From the checked tree other SQL is
written: columns are called c0, c1, ..., constants are parameters, and no character of the text is
in it.

A row passes where the condition is true, as in SQL: not where it is NULL. Arithmetic is done in
float64, and dividing by zero gives NULL. NULL as a constant is refused, since no comparison with it
is ever true.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from chiasm.index.query.filter_allowed import (
    ALLOWED,
    ARITHMETIC,
    BEHIND_IN,
    COMPARISONS,
    FUNCTIONS,
    MAX_DIGITS,
    MAX_PARTS,
    MAX_PATTERN,
    NAMES,
    PATTERNS,
)
from chiasm.index.query.filter_fields import BOOL, ID, LISTS, NUMBER, TEXT, Fields, Path, field_name
from chiasm.index.query.filter_parse import (
    Source,
    Tree,
    is_blank,
    is_in,
    parse,
    quoted,
    refused,
    truth_of,
)
from chiasm.index.query.filter_rows import Filter
from chiasm.index.segments import Generation
from chiasm.pipeline.errors import UsageError

INT64 = 1 << 63
FIELDS = " fields"  # of what a generation has opened; no column's name


def compile_filter(text: str, schemas: Iterable[pa.Schema]) -> Filter:
    """The filter that a text says, for segments whose catalogs have these schemas.

    Raises UsageError, which names what is refused and its place. Nothing of the segments is read.
    """
    return _compile(text, Fields(schemas))


def filter_for(text: str, generation: Generation) -> Filter:
    """The same for a generation, whose fields are found once."""
    opened = generation.opened
    if FIELDS not in opened:
        opened[FIELDS] = Fields(segment.catalog.schema for segment in generation.segments)
    return _compile(text, opened[FIELDS])


@functools.lru_cache(maxsize=128)  # compiling takes a millisecond, ten times what a query does
def _compile(text: str, fields: Fields) -> Filter:
    compiler = _Compiler(Source(text), fields)
    whole = compiler.expression(parse(compiler.source))
    compiler.require(whole, BOOL)
    return Filter(
        whole.text, whole.sql, tuple(compiler.parameters), tuple(compiler.columns.items())
    )


@dataclass(frozen=True, slots=True)
class Expression:
    """A part that was checked: as SQL for DuckDB, as a person would write it, and its kind. tree:
    where it was written. constant: its value, None where it has none."""

    sql: str
    text: str
    kind: str
    tree: Tree
    constant: bool | int | float | str | None = None


class _Compiler:
    """Checks a tree and writes it anew."""

    def __init__(self, source: Source, fields: Fields) -> None:
        self.source, self.fields = source, fields
        self.parameters: list[Any] = []
        self.columns: dict[Path, str] = {}
        self._parts = 0

    def expression(self, tree: Tree) -> Expression:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise refused(f"at most {MAX_PARTS} parts", "more", self.source.place_of(tree))
        if not is_blank(tree.get("alias")):
            raise self.refuse(tree, f"the alias {quoted(tree['alias'])}")
        handlers: dict[str, Callable[[Tree], Expression]] = {
            "COLUMN_REF": self._field,
            "CONSTANT": self._constant,
            "COMPARISON": self._comparison,
            "CONJUNCTION": self._conjunction,
            "BETWEEN": self._between,
            "OPERATOR": self._operator,
            "FUNCTION": self._function,
        }
        if tree["class"] not in handlers:
            raise self.refuse(tree)
        return handlers[tree["class"]](tree)

    def refuse(self, tree: Tree, found: str = "") -> UsageError:
        """found: what is refused; by default the part's name."""
        name = NAMES.get(tree["class"]) or NAMES.get(tree["type"]) or tree["type"].replace("_", " ")
        return refused(ALLOWED, found or name, self.source.place_of(tree))

    def require(self, part: Expression, *kinds: str) -> None:
        """Raises UsageError for a part of another kind; nothing is cast."""
        if part.kind not in kinds:
            found = f"{self.source.excerpt(part.tree)}, {part.kind},"
            raise refused(" or ".join(kinds), found, self.source.place_of(part.tree))

    def require_same(self, parts: list[Expression], *kinds: str) -> None:
        """Raises UsageError unless all parts are of one of these kinds, and of the same."""
        first, *others = parts
        self.require(first, *kinds)
        for part in others:
            self.require(part, first.kind)

    def _field(self, tree: Tree) -> Expression:
        path = self.fields.find(tuple(tree["column_names"]), self.source.place_of(tree))
        kind = self.fields.kinds[path]
        if path == (ID,):  # as `row_id` makes it
            shard, row, edition = map(
                self._column, ("shard", "row", "edition"), (TEXT, NUMBER, TEXT)
            )
            sql = f"({shard} || '/' || {row}::VARCHAR || '@' || {edition})"
        else:
            sql = self._column(path, kind)
        return Expression(sql, field_name(path), kind, tree)

    def _column(self, path: Path | str, kind: str) -> str:
        path = (path,) if isinstance(path, str) else path
        self.columns.setdefault(path, kind)
        return f"c{list(self.columns).index(path)}"

    def _constant(self, tree: Tree) -> Expression:
        value = self._value(tree)
        if isinstance(value, bool):
            name = "TRUE" if value else "FALSE"
            return Expression(name, name, BOOL, tree, value)
        return Expression(self._parameter(value), _written(value), _kind_of(value), tree, value)

    def _value(self, tree: Tree) -> bool | int | float | str:
        literal = tree["literal"]
        kind, text = literal["kind"], literal.get("text", "")
        if kind == "BOOLEAN":
            return text == "true"
        if kind == "STRING":
            return text
        if kind == "NULL_LITERAL":
            expected = "a value; NULL equals nothing, write IS NULL or IS NOT NULL"
            raise refused(expected, "NULL", self.source.place_of(tree))
        if kind not in ("INTEGER", "NUMERIC"):
            raise self.refuse(tree, f"a constant of type {kind.lower()}")
        digits = text.replace("_", "")
        if kind == "INTEGER" and len(digits) <= 20 and -INT64 <= int(digits) < INT64:
            return int(digits)
        try:
            value = float(digits)
        except ValueError:  # DuckDB's parser takes 1e
            raise refused("digits behind the e of a number", *self._named(tree)) from None
        if value in (float("inf"), -float("inf")):
            raise refused("a number below 1e309", quoted(text), self.source.place_of(tree))
        return value

    def _parameter(self, value: Any) -> str:
        """A constant, or the constants of a list, as a parameter of the type that it has."""
        self.parameters.append(value)
        one = value[0] if isinstance(value, list) else value
        name = {str: "VARCHAR", int: "BIGINT", float: "DOUBLE"}[type(one)]
        return f"${len(self.parameters)}::{name}{'[]' if isinstance(value, list) else ''}"

    def _comparison(self, tree: Tree) -> Expression:
        if truth := truth_of(tree):
            part, sign = self.expression(truth[0]), truth[1]
            self.require(part, BOOL)
            return Expression(f"({part.sql} {sign})", f"({part.text} {sign})", BOOL, tree)
        if tree["type"] not in COMPARISONS:
            raise self.refuse(tree)
        sign = COMPARISONS[tree["type"]]
        parts = [self.expression(tree["left"]), self.expression(tree["right"])]
        self.require_same(parts, NUMBER, TEXT, *([BOOL] if sign in ("=", "<>") else []))
        return self._joined(parts, sign, BOOL, tree)

    def _conjunction(self, tree: Tree) -> Expression:
        parts = [self.expression(part) for part in tree["children"]]
        for part in parts:
            self.require(part, BOOL)
        return self._joined(parts, tree["type"].removeprefix("CONJUNCTION_"), BOOL, tree)

    def _joined(self, parts: list[Expression], sign: str, kind: str, tree: Tree) -> Expression:
        sql = f" {sign} ".join(part.sql for part in parts)
        text = f" {sign} ".join(part.text for part in parts)
        return Expression(f"({sql})", f"({text})", kind, tree)

    def _between(self, tree: Tree) -> Expression:
        parts = [self.expression(tree[name]) for name in ("input", "lower", "upper")]
        self.require_same(parts, NUMBER, TEXT)
        value, low, high = parts
        return Expression(
            f"({value.sql} BETWEEN {low.sql} AND {high.sql})",
            f"({value.text} BETWEEN {low.text} AND {high.text})",
            BOOL,
            tree,
        )

    def _operator(self, tree: Tree) -> Expression:
        kind, children = tree["type"], tree["children"]
        if kind == "COMPARE_IN":
            return self._in(tree)
        signs = {"OPERATOR_IS_NULL": "IS NULL", "OPERATOR_IS_NOT_NULL": "IS NOT NULL"}
        if kind not in ("OPERATOR_NOT", "OPERATOR_COALESCE", *signs):
            raise self.refuse(tree)
        parts = [self.expression(child) for child in children]
        if kind in signs:
            [part] = parts
            sign = signs[kind]
            return Expression(f"({part.sql} {sign})", f"({part.text} {sign})", BOOL, tree)
        if kind == "OPERATOR_NOT":
            [part] = parts
            self.require(part, BOOL)
            return Expression(f"(NOT {part.sql})", f"(NOT {part.text})", BOOL, tree)
        self.require_same(parts, NUMBER, TEXT, BOOL)
        return self._call("coalesce", parts, parts[0].kind, tree)

    def _in(self, tree: Tree) -> Expression:
        """As a search of a list, which is one parameter however long it is."""
        first, *rest = tree["children"]
        part = self.expression(first)
        for child in rest:
            if child["class"] != "CONSTANT":
                raise refused("constants in the list of IN", *self._named(child))
        values = [self._value(child) for child in rest]
        items = [
            Expression("", "", _kind_of(value), child)
            for value, child in zip(values, rest, strict=True)
        ]
        self.require_same([part, *items], NUMBER, TEXT)
        # Integers apart, as beside a float they would be floats, and large ones others.
        kinds = [[one for one in values if isinstance(one, kind)] for kind in (int, float, str)]
        sql = " OR ".join(
            f"list_contains({self._parameter(some)}, {part.sql})" for some in kinds if some
        )
        text = f"({part.text} IN ({', '.join(map(_written, values))}))"
        return Expression(f"({sql})", text, BOOL, tree)

    def _named(self, tree: Tree) -> tuple[str, int | None]:
        return self.source.excerpt(tree), self.source.place_of(tree)

    def _function(self, tree: Tree) -> Expression:
        name = tree["function_name"].lower()
        plain = {"class", "type", "query_location", "query_location_length", "function_name"}
        plain |= {"is_operator", "arguments", "qualified_name"}
        extra = [key for key, value in tree.items() if key not in plain and not is_blank(value)]
        arguments = tree["arguments"]
        extra += [argument["name"] for argument in arguments if argument.get("name")]
        if extra or name not in (*FUNCTIONS, *PATTERNS, *ARITHMETIC):
            raise self.refuse(tree, f"the function or operator {quoted(tree['function_name'])}")
        parts = [self.expression(argument["expression"]) for argument in arguments]
        if name in PATTERNS:
            return self._pattern(PATTERNS[name], parts, tree)
        if name in ARITHMETIC:
            return self._arithmetic(name, parts, tree)
        if is_in(tree) and parts[0].kind not in LISTS.values():
            raise refused(BEHIND_IN, *self._named(parts[0].tree))
        kinds, result = FUNCTIONS[name]
        if len(parts) != len(kinds) and (name, len(parts)) != ("round", 1):
            raise refused(
                f"{len(kinds)} arguments of {name}", str(len(parts)), self.source.place_of(tree)
            )
        for part, allowed in zip(parts, kinds, strict=False):
            self.require(part, *allowed)
        return self._checked_call(name, parts, result, tree)

    def _checked_call(
        self, name: str, parts: list[Expression], result: str, tree: Tree
    ) -> Expression:
        """A function whose arguments are of kinds that it takes, if they fit each other."""
        if name in ("contains", "list_contains"):
            elements = {kind: element for element, kind in LISTS.items()}
            self.require(parts[1], elements.get(parts[0].kind, TEXT))
            name = "contains" if parts[0].kind == TEXT else "list_contains"
        if name == "round" and len(parts) == 2:
            digits = parts[1].constant
            if not isinstance(digits, int) or not 0 <= digits <= MAX_DIGITS:
                raise refused(f"0 to {MAX_DIGITS} digits", *self._named(parts[1].tree))
            sql = f"round({parts[0].sql}::DOUBLE, {parts[1].sql}::INTEGER)"
            return Expression(sql, f"round({parts[0].text}, {digits})", result, tree)
        if name in ("abs", "round"):
            sql = f"{name}({parts[0].sql}::DOUBLE)"
            return Expression(sql, f"{name}({parts[0].text})", result, tree)
        return self._call(name, parts, result, tree)

    def _call(self, name: str, parts: list[Expression], kind: str, tree: Tree) -> Expression:
        sql = ", ".join(part.sql for part in parts)
        text = ", ".join(part.text for part in parts)
        return Expression(f"{name}({sql})", f"{name}({text})", kind, tree)

    def _pattern(self, sign: str, parts: list[Expression], tree: Tree) -> Expression:
        value, pattern = parts
        self.require(value, TEXT)
        if not isinstance(pattern.constant, str):
            raise refused(f"a text in quotes behind {sign}", *self._named(pattern.tree))
        if len(pattern.constant) > MAX_PATTERN:
            expected = f"a pattern of at most {MAX_PATTERN:,} characters"
            place = self.source.place_of(pattern.tree)
            raise refused(expected, f"{len(pattern.constant):,}", place)
        return self._joined(parts, sign, BOOL, tree)

    def _arithmetic(self, sign: str, parts: list[Expression], tree: Tree) -> Expression:
        for part in parts:
            self.require(part, NUMBER)
        cast = [Expression(f"{part.sql}::DOUBLE", part.text, NUMBER, tree) for part in parts]
        if len(cast) == 1:
            return Expression(f"({sign} {cast[0].sql})", f"({sign} {cast[0].text})", NUMBER, tree)
        return self._joined(cast, sign, NUMBER, tree)


def _kind_of(value: bool | float | str) -> str:
    return BOOL if isinstance(value, bool) else TEXT if isinstance(value, str) else NUMBER


def _written(value: bool | float | str) -> str:
    """A constant as it is written in a filter."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)
