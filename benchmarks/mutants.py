"""How many small faults in a package do its tests notice?

    python -m benchmarks.mutants pipeline.shards --mutants 300 --seed 0 --processes 2

Draws mutants of the package, each with one fault: a comparison, an operator, a number or a
condition changed, a returned value lost, a statement left out. Strings stay as they are.

One run of the test files that import the package records which test executes which line of it
(coverage.py). Then, for each mutant, in a copy of the tree, the tests that execute its statement
run until one fails: those that execute the fewest lines of the package first, 10 CPU seconds of
tests at most. For a statement that runs at import, or that no test is seen to execute: those that
execute any line of its file. What they do not notice counts as survived, or as "not executed".
Tests that are marked slow, and those that start processes (commands, Ray) or run models, take no
part: what they alone notice counts as survived, so the score is a lower bound.

Prints how many were killed, timed out, survived and were not executed, the score with its 95 %
interval (Wilson), and those that no test noticed. The same seed gives the same mutants of the same
code.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

from benchmarks.nearest_tests import ROOT, Executed, executed_lines, run_tests
from tests.support.source_tree import copy_sources

ROOMS = ("pipeline", "index", "jobs")
COPIED = ("chiasm", *ROOMS, "tests", "benchmarks", "docs", "examples")
COPIED += tuple(path.name for path in ROOT.iterdir() if path.is_file())  # documents link to them
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
REMOVED = (ast.AugAssign, ast.Raise, ast.Delete, ast.Continue, ast.Break)
BUDGET_SECONDS = 10.0  # of tests for one mutant, by what they took without a fault
UNNOTICED = ("survived", "not executed")
OUTCOMES = ("killed", "timeout", *UNNOTICED)


@dataclass(frozen=True)
class Mutant:
    """One fault: `original` at line `line` of `path` replaced by `replacement`. start and end are
    offsets into the file's UTF-8 bytes."""

    path: str
    line: int
    start: int
    end: int
    kind: str
    original: str
    replacement: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}  {self.kind}: {self.original} -> {self.replacement}"

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.replacement.encode() + source[self.end :]


def mutants_of(path: str, source: bytes) -> list[Mutant]:
    """Every mutant of one file, in the order of its text."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found = []
    for node, kind, replacement in _changes(ast.parse(source)):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        original = " ".join(source[start:end].decode().split())
        found.append(Mutant(path, node.lineno, start, end, kind, original, replacement))
    return sorted(found, key=lambda mutant: (mutant.start, mutant.end, mutant.replacement))


def _changes(tree: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str, str]]:
    """(node, kind of fault, text in its place) of all that is run below a node."""
    if isinstance(tree, ast.expr):
        for kind, changed in _changed_expressions(tree):
            yield tree, kind, f"({ast.unparse(changed)})"
    elif isinstance(tree, ast.stmt):
        yield from _changed_statements(tree)
    for child in _run_parts(tree):
        yield from _changes(child)


def _run_parts(node: ast.AST) -> Iterator[ast.AST]:
    """The children that decide what is computed: no annotation, decorator, f-string or message."""
    if isinstance(node, ast.JoinedStr | ast.Raise | ast.Assert):
        return
    left_out = {"annotation", "returns", "decorator_list"}
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        left_out |= {"test", "body"}
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        left_out |= {"slice"} if isinstance(node.slice.value, str) else set()
    for name, value in ast.iter_fields(node):
        if name not in left_out:
            parts = value if isinstance(value, list) else [value]
            yield from (part for part in parts if isinstance(part, ast.AST))


def _changed_expressions(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.Compare):
        for number, operator in enumerate(node.ops):
            changed = [*node.ops]
            changed[number] = OPERATORS[type(operator)]()  # type: ignore[call-overload]
            yield "comparison", ast.Compare(node.left, changed, node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and not _is_text(node):
        yield "operator", ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)  # type: ignore[arg-type]
    elif isinstance(node, ast.BoolOp):
        yield "operator", ast.BoolOp(OPERATORS[type(node.op)](), node.values)  # type: ignore[arg-type]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield "operator", node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield "constant", ast.Constant(node.value + 1)
    elif isinstance(node, ast.IfExp):
        yield "condition", ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)


def _is_text(node: ast.AST) -> bool:
    return any(
        isinstance(part, ast.JoinedStr)
        or (isinstance(part, ast.Constant) and isinstance(part.value, str | bytes))
        for part in ast.walk(node)
    )


def _changed_statements(node: ast.stmt) -> Iterator[tuple[ast.expr | ast.stmt, str, str]]:
    if isinstance(node, REMOVED) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await)
    ):
        yield node, "statement left out", "pass"
    elif isinstance(node, ast.Return) and node.value is not None:
        if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield node, "returned value", "return None"
    elif isinstance(node, ast.If | ast.While) and not _negated_elsewhere(node.test):
        yield node.test, "condition", f"(not ({ast.unparse(node.test)}))"


def _negated_elsewhere(test: ast.expr) -> bool:
    """Whether another mutant is the negation of the test, or it is one for type checkers."""
    negated = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
    return (
        (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], negated))
        or (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not))
        or "TYPE_CHECKING" in ast.unparse(test)
    )


def draw(root: Path, package: str, count: int, seed: int) -> list[Mutant]:
    """`count` mutants of a package or module (`pipeline.shards`), or all where there are fewer."""
    place = root.joinpath(*package.split("."))
    paths = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    every = [
        mutant
        for path in paths
        for mutant in mutants_of(str(path.relative_to(root)), path.read_bytes())
    ]
    if not every:
        raise SystemExit(f"mutants: expected a package of ours with code, found none at {place}")
    drawn = random.Random(seed).sample(every, min(count, len(every)))
    return sorted(drawn, key=lambda mutant: (mutant.path, mutant.start, mutant.replacement))


def related_tests(root: Path, package: str) -> list[str]:
    """The test files that import the package or something inside it, those that import most first:
    they are the likeliest to fail."""
    wanted = f"chiasm.{package}"
    imports: dict[str, int] = {}
    for path in sorted((root / "tests").glob("test_*.py")):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        count = sum(name == wanted or name.startswith(f"{wanted}.") for name in names)
        if count:
            imports[str(path.relative_to(root))] = count
    return sorted(imports, key=lambda path: -imports[path])


def outcome(mutant: Mutant, tree: Path, executed: Executed) -> str:
    """How the nearest tests end with the fault in a copy of the tree."""
    path = tree / mutant.path
    source = path.read_bytes()
    seen = executed.of_statement(mutant.path, source, mutant.line)
    # Not every line is seen: in a coroutine none is after an exception came out of an `await`.
    tests = executed.nearest(seen or executed.of_file(mutant.path), BUDGET_SECONDS)
    chosen = tree / "chosen.txt"
    chosen.write_text("\n".join(tests))
    seconds = sum(executed.seconds[test] for test in tests)
    try:
        path.write_bytes(mutant.apply(source))
        ended = run_tests(tree, [f"@{chosen}"], 10 + 4 * seconds) if tests else "survived"
    finally:
        path.write_bytes(source)
    return "not executed" if ended == "survived" and not seen else ended


def outcomes(
    mutants: Sequence[Mutant],
    executed: Executed,
    trees: Sequence[Path],
    report: Callable[[Mutant, str], None],
) -> list[str]:
    """How each mutant ended, one at a time in each copy of the tree."""
    free: SimpleQueue[Path] = SimpleQueue()
    for tree in trees:
        free.put(tree)

    def run(mutant: Mutant) -> str:
        tree = free.get()
        try:
            ended = outcome(mutant, tree, executed)
        finally:
            free.put(tree)
        report(mutant, ended)
        return ended

    with ThreadPoolExecutor(len(trees)) as pool:
        return list(pool.map(run, mutants))


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a share (E. B. Wilson, 1927); z = 1.96: 95 %."""
    share = successes / trials
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return (middle - half) / scale, (middle + half) / scale


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", help="pipeline.shards, index.query, jobs.cluster.pool, ...")
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", nargs="*", help="instead of those that import the package")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--executed", type=Path, help="which test executes what: kept, reused")
    parser.add_argument("--list", action="store_true", help="print the draw and run nothing")
    parser.add_argument("--json", type=Path, help="write every mutant and how it ended")
    given = parser.parse_args()
    mutants = draw(ROOT, given.package, given.mutants, given.seed)
    tests = given.tests or related_tests(ROOT, given.package)
    print(f"{len(mutants)} mutants of {given.package}, seed {given.seed}; {' '.join(tests)}")
    if given.list:
        print(*mutants, sep="\n")
        return
    if not tests:
        raise SystemExit(f"mutants: expected tests that import {given.package}, found none")

    def report(mutant: Mutant, ended: str) -> None:
        print(f"{ended:12}  {mutant}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="chiasm-mutants-") as folder:
        trees = [copy_sources(Path(folder) / str(n), COPIED) for n in range(given.processes)]
        record = (given.executed or Path(folder) / "executed.json").absolute()
        executed = executed_lines(trees[0], given.package, tests, record)
        ended = outcomes(mutants, executed, trees, report)
    show(mutants, ended)
    if given.json is not None:
        rows = [
            asdict(mutant) | {"outcome": outcome}
            for mutant, outcome in zip(mutants, ended, strict=True)
        ]
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def show(mutants: Sequence[Mutant], ended: Sequence[str]) -> None:
    """Counts, the score with its interval, and the mutants that no test noticed."""
    counts = Counter(ended)
    noticed = counts["killed"] + counts["timeout"]
    low, high = wilson(noticed, len(mutants))
    print(", ".join(f"{name} {counts[name]}" for name in OUTCOMES))
    print(f"score {noticed / len(mutants):.3f} ({low:.3f} to {high:.3f})")
    for mutant, outcome in zip(mutants, ended, strict=True):
        if outcome in UNNOTICED:
            print(f"{outcome:12}  {mutant}")


if __name__ == "__main__":
    main()
