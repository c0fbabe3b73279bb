"""What a filter may say: the lists of operators and functions, and the limits.

A function is here if it gives no more than it gets, reads nothing but its arguments, and takes
linear time.
"""

from __future__ import annotations

from chiasm.index.query.filter_fields import BOOL, LISTS, NUMBER, TEXT

# DuckDB plans a condition of so many parts in a tenth of a second; constants in lists do not count.
MAX_PARTS = 1000
MAX_PATTERN = 1000  # characters of LIKE: it takes as many steps for each character of a caption
MAX_DIGITS = 15  # of round: a float64 has no more
COMPARISONS = {
    "COMPARE_EQUAL": "=",
    "COMPARE_NOTEQUAL": "<>",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
}
PATTERNS = {"~~": "LIKE", "!~~": "NOT LIKE", "~~*": "ILIKE", "!~~*": "NOT ILIKE"}
ARITHMETIC = ("+", "-", "*", "/", "%")
# Name -> the kinds of its arguments and of its value. `coalesce` is an operator to the parser.
FUNCTIONS: dict[str, tuple[tuple[tuple[str, ...], ...], str]] = {
    **dict.fromkeys(("lower", "upper", "trim"), (((TEXT,),), TEXT)),
    **dict.fromkeys(("starts_with", "ends_with"), (((TEXT,), (TEXT,)), BOOL)),
    "length": (((TEXT, *LISTS.values()),), NUMBER),
    "abs": (((NUMBER,),), NUMBER),
    "round": (((NUMBER,), (NUMBER,)), NUMBER),  # the digits may be left out
    "contains": (((TEXT, *LISTS.values()), (NUMBER, TEXT, BOOL)), BOOL),
    "list_contains": ((tuple(LISTS.values()), (NUMBER, TEXT, BOOL)), BOOL),
}
FUNCTION_NAMES = ", ".join(sorted([*FUNCTIONS, "coalesce"]))
# Parts of the tree that have another name in SQL.
NAMES = {
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function",
    "CAST": "a cast",
    "CASE": "CASE",
    "LAMBDA": "a lambda",
    "STAR": "*",
    "PARAMETER": "a parameter",
    "COLLATE": "COLLATE",
    "ARRAY_EXTRACT": "a subscript",
    "ARRAY_SLICE": "a subscript",
    "STRUCT_EXTRACT": "a field of an expression",
    "COMPARE_DISTINCT_FROM": "IS DISTINCT FROM",
    "COMPARE_NOT_DISTINCT_FROM": "IS NOT DISTINCT FROM",
}
ALLOWED = (
    "fields, constants, comparisons, AND, OR, NOT, IN, BETWEEN, IS NULL, IS TRUE, IS FALSE, LIKE, "
    f"ILIKE, arithmetic and {FUNCTION_NAMES}"
)
BEHIND_IN = (
    "constants in brackets, or a list, behind IN; contains(caption, 'boat') finds a part of a text"
)
