"""A filter's text -> the tree of its one expression, or a line that says what is refused and where.

DuckDB's own parser makes the tree (`json_serialize_sql`): it is the grammar that evaluates, it
gives the place of every part, and it takes linear time with a limit of depth. The text is its
argument, never part of a statement. The connection reads no files and its settings are locked.
Nothing of the text goes further than this tree: query/filters.py checks it and writes other SQL.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from types import ModuleType
from typing import Any

from chiasm.pipeline.errors import UsageError

# Some 15,000 numbers in a list, parsed in half a second; longer lists are no conditions any more.
MAX_CHARACTERS = 100_000
# Nested parts: beyond what anybody writes, and far from the end of Python's stack and of DuckDB's.
MAX_DEPTH = 100
LOCKED = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
    "threads": "1",
}
SELECT = "SELECT "
PLACE = "query_location"
NO_PLACE = (1 << 64) - 1  # of parts that the parser has added
_LOCK = threading.Lock()

Tree = dict[str, Any]


@functools.cache
def load_duckdb() -> ModuleType:
    """Imported with the first filter: it takes a tenth of a second."""
    import duckdb

    return duckdb


def refused(expected: str, found: str, place: int | None = None) -> UsageError:
    """place: of the part that is refused, its first character being 1."""
    where = "" if place is None else f" at character {place}"
    return UsageError("where", expected=expected, found=found + where)


class Source:
    """A filter's text, with the parser's places as characters."""

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._bytes = text.encode()
        except UnicodeEncodeError as error:
            raise refused("a text", "bytes that are no UTF-8", error.start + 1) from None

    def place(self, offset: int) -> int | None:
        """offset: in bytes, from the beginning of the text; what is beyond it has no place."""
        if not 0 <= offset <= len(self._bytes):
            return None
        return len(self._bytes[:offset].decode(errors="ignore")) + 1

    def place_of(self, tree: Tree) -> int | None:
        return self.place(tree.get(PLACE, -1) - len(SELECT))

    def excerpt(self, tree: Tree) -> str:
        """The text of a part as it is written, short and printable."""
        first = max(tree.get(PLACE, -1) - len(SELECT), 0)
        length = tree.get(f"{PLACE}_length", 0)
        if tree.get("is_operator") and not length:  # its place is that of the operator
            word = re.match(rb"[A-Za-z]+", self._bytes[first:])
            return quoted(word[0].decode() if word else tree["function_name"])
        return quoted(self._bytes[first : first + length].decode(errors="ignore"))


def quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def parse(source: Source) -> Tree:
    """The tree of the expression that a text is; UsageError where it is more or something else."""
    text = source.text
    if len(text) > MAX_CHARACTERS:
        raise refused(f"at most {MAX_CHARACTERS:,} characters", f"{len(text):,}")
    if not text.strip():
        raise refused("a condition, such as width > 512", "an empty text")
    if "\0" in text:
        raise refused("a condition", "a NUL character", text.index("\0") + 1)
    _refuse_comments(source)
    with _LOCK:
        [(answer,)] = (
            _connection().execute("SELECT json_serialize_sql(?)", [SELECT + text]).fetchall()
        )
    parsed = json.loads(answer)
    if parsed["error"]:
        raise _syntax_error(source, parsed)
    return _one_expression(source, parsed["statements"])


@functools.cache
def _connection() -> Any:
    settings = {**LOCKED, "max_expression_depth": str(MAX_DEPTH), "lock_configuration": "true"}
    return load_duckdb().connect(":memory:", config=settings)


def _refuse_comments(source: Source) -> None:
    """The tree has neither comments nor an empty statement behind a semicolon."""
    duckdb = load_duckdb()
    written = source.text.encode()
    for offset, kind in duckdb.tokenize(source.text):
        if kind == duckdb.token_type.comment:
            raise refused("a condition without comments", "a comment", source.place(offset))
        if kind == duckdb.token_type.operator and written[offset : offset + 1] == b";":
            raise refused("one condition", "';'", source.place(offset))


def _syntax_error(source: Source, parsed: Tree) -> UsageError:
    message = parsed["error_message"]
    if "expression depth" in message:
        return refused(f"at most {MAX_DEPTH} nested parts", "more")
    if "SELECT statements" in message:  # of what is none; it has no place
        return refused("a condition in SQL", "another statement")
    offset = int(parsed["position"]) - len(SELECT) if "position" in parsed else -1
    found = message.partition("\n")[0][:200]  # it repeats a part of the text
    return refused("a condition in SQL", found, source.place(offset))


def _one_expression(source: Source, statements: list[Tree]) -> Tree:
    """The one expression of a SELECT that has nothing else."""
    tree, *others = statements
    node = tree["node"]
    expected = {"type", "select_list", "from_table", "aggregate_handling"}
    extra = [name for name, value in node.items() if name not in expected and not is_blank(value)]
    table = node.get("from_table", {})
    if (
        others
        or extra
        or node["type"] != "SELECT_NODE"
        or node["aggregate_handling"] != "STANDARD_HANDLING"
        or table.get("type") != "EMPTY"
    ):
        found = "several statements" if others else "a query"
        raise refused("one condition", found, source.place_of(table))
    first, *more = node["select_list"]
    if more:
        raise refused("one condition", "several", source.place_of(more[0]))
    return first


def truth_of(tree: Tree) -> tuple[Tree, str] | None:
    """Of `X IS [NOT] TRUE` and `X IS [NOT] FALSE`: X and the rest; None for other parts. The parser
    makes a comparison of them whose cast and constant have no place, as nobody wrote them."""
    signs = {"COMPARE_NOT_DISTINCT_FROM": "IS", "COMPARE_DISTINCT_FROM": "IS NOT"}
    if tree["type"] not in signs:
        return None
    cast, constant = tree["left"], tree["right"]
    if (cast["class"], constant["class"]) != ("CAST", "CONSTANT"):
        return None
    if min(cast[PLACE], constant[PLACE]) < NO_PLACE:
        return None
    return cast["child"], f"{signs[tree['type']]} {constant['literal']['text'].upper()}"


def is_in(tree: Tree) -> bool:
    """Whether a function is `X IN Y` without brackets, which the parser calls contains(Y, X): it
    has the place of Y."""
    arguments = tree["arguments"]
    return (
        tree["function_name"] == "contains"
        and len(arguments) == 2
        and tree[PLACE] == arguments[0]["expression"].get(PLACE)
    )


def is_blank(value: Any) -> bool:
    """Whether a part of a tree says nothing: a list of no orders, no alias, no filter."""
    if isinstance(value, dict):
        return all(is_blank(part) for name, part in value.items() if name != "type")
    return value in (None, False, "", [])
