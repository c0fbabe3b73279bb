"""Which tests execute a line of a package: a plugin of pytest, and the choice by its record.

As a plugin (`-p benchmarks.nearest_tests --lines-of pipeline/storage --lines-to FILE`) it measures
line coverage of a folder with one context for each test. Tests that start processes are left out:
lines are not seen there, and a busy machine can make them fail.
"""

from __future__ import annotations

import ast
import contextlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OPTIONS = [
    *("-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "no:randomly"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # of what is loaded beforehand
]
PRELOADED = ("hypothesis", "pyarrow.parquet", "pydantic", "pytest", "s3fs", "torch", "boto3")

TRACE_SECONDS = 1800.0

# Fixtures and files of tests that run commands, Ray or models are left out beforehand: they take
# seconds each.
SLOW_FIXTURES = {"builders", "chiasm", "coloured", "head", "other_run", "ray_session", "towers"}
SLOW_FILES = ("demo", "filter", "kills", "query_picture", "rerank", "retrieve")
SLOW_FILES += ("store_kills", "submit")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lines-of", help="folder or file whose lines count, from the root")
    parser.addoption("--lines-to", help="the record, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--lines-to"):
        config.pluginmanager.register(_Recorder(config), "line-recorder")


class _Recorder:
    def __init__(self, config: pytest.Config) -> None:
        from coverage import Coverage  # the choice of tests by a record needs none

        self.root = config.rootpath
        self.target = Path(config.getoption("--lines-to"))
        place = self.root / config.getoption("--lines-of")
        included = f"{place}/*" if place.is_dir() else str(place)
        self.coverage = Coverage(
            data_file=None, config_file=False, include=[included], concurrency=["thread"]
        )
        self.seconds: dict[str, float] = {}
        self.test = ""
        self.of_processes = {""}  # tests that start processes, and no test
        sys.addaudithook(self._hear)
        self.coverage.start()

    def _hear(self, event: str, arguments: object) -> None:
        if event == "subprocess.Popen":
            self.of_processes.add(self.test)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        names = {f"test_{name}.py" for name in SLOW_FILES}
        items[:] = [
            item
            for item in items
            if item.path.name not in names and SLOW_FIXTURES.isdisjoint(item.fixturenames)  # type: ignore[attr-defined]
        ]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.test = item.nodeid
        self.coverage.switch_context(item.nodeid)
        began = time.process_time()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.process_time() - began
            self.test = ""
            self.coverage.switch_context("")

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.coverage.stop()
        if exitstatus:
            return
        data = self.coverage.get_data()
        lines = {
            str(Path(path).relative_to(self.root)): {
                line: [test for test in tests if test not in self.of_processes]
                for line, tests in data.contexts_by_lineno(path).items()
            }
            for path in data.measured_files()
        }
        self.target.write_text(json.dumps({"seconds": self.seconds, "lines": lines}))


@dataclass(frozen=True)
class Executed:
    """What a run of the tests executed: test -> seconds of CPU; path -> line -> tests."""

    seconds: dict[str, float]
    lines: dict[str, dict[int, list[str]]]

    @classmethod
    def read(cls, path: Path) -> Executed:
        data = json.loads(path.read_text())
        lines = {
            name: {int(line): tests for line, tests in found.items()}
            for name, found in data["lines"].items()
        }
        return cls(data["seconds"], lines)

    def of_statement(self, path: str, source: bytes, line: int) -> set[str]:
        """The tests that execute the statement at a line of a file; where it runs at import, any
        line of the file."""
        wanted = _lines_of_statement(ast.parse(source), line)
        of_lines = self.lines.get(path, {})
        return {test for number in wanted or of_lines for test in of_lines.get(number, ())}

    def of_file(self, path: str) -> set[str]:
        """The tests that execute any line of a file."""
        return {test for tests in self.lines.get(path, {}).values() for test in tests}

    def nearest(self, tests: Collection[str], budget: float) -> list[str]:
        """Those of the tests that execute the fewest lines of the package first, as many as take
        `budget` seconds of CPU in all."""
        sizes = self._sizes()
        chosen, left = [], budget
        for test in sorted(tests, key=lambda test: (sizes[test], self.seconds[test], test)):
            if self.seconds[test] <= left or not chosen:
                chosen.append(test)
                left -= self.seconds[test]
        return chosen

    def _sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = defaultdict(int)
        for of_lines in self.lines.values():
            for tests in of_lines.values():
                for test in tests:
                    sizes[test] += 1
        return sizes


def _lines_of_statement(tree: ast.AST, line: int) -> range:
    """The lines of the innermost statement at a line that are its own and not its body's; none
    where it is in no function and so is executed at import."""
    wanted = range(0)
    for node in ast.walk(tree):  # outer nodes come before inner ones
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for part in ast.walk(ast.Module(node.body, [])):
            if isinstance(part, ast.stmt) and part.lineno <= line <= (part.end_lineno or 0):
                body = getattr(part, "body", None)
                end = body[0].lineno if body else (part.end_lineno or 0) + 1
                if line < end:
                    wanted = range(part.lineno, end)
    return wanted


def run_tests(
    tree: Path, arguments: Sequence[str], seconds: float, output: str = os.devnull
) -> str:
    """`survived`, `killed` or `timeout`: how the tests end in a copy of the tree. seconds: of CPU
    after which they hang; waiting, ten times as much and a minute. output: where they print."""
    # A fork of a process that has loaded what the tests import, but for our own packages.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    process = context.Process(
        target=_be_pytest, args=(tree, [*OPTIONS, *arguments], seconds, output)
    )
    process.start()
    process.join(60 + 10 * seconds)
    try:
        if process.is_alive() or process.exitcode == -signal.SIGXCPU:
            return "timeout"
        return "survived" if process.exitcode == 0 else "killed"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()


def _be_pytest(tree: Path, arguments: Sequence[str], seconds: float, output: str) -> None:
    os.setsid()  # what the tests start ends with them
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, resource.RLIM_INFINITY))
    os.chdir(tree)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    printed = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(printed, stream)
    for name, module in [*sys.modules.items()]:
        ours = (getattr(module, "__file__", None) or "").startswith(f"{ROOT}/")
        if ours and name not in ("__main__", "__mp_main__"):
            del sys.modules[name]
    sys.path[:] = [str(tree), *(path for path in sys.path if path not in ("", str(ROOT)))]
    # A mutant may have the size and, within a second, the time of the file that it replaces.
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    sys.exit(pytest.main([*arguments]))


def executed_lines(tree: Path, package: str, tests: Sequence[str], record: Path) -> Executed:
    """What the tests execute of a package without a fault; as `record` says where that exists, else
    it is written."""
    place = package.replace(".", "/")
    place += "" if (tree / place).is_dir() else ".py"
    plugin = ("-p", "benchmarks.nearest_tests", "--lines-of", place, "--lines-to", str(record))
    printed = record.with_suffix(".log")
    if not record.exists() and (
        run_tests(tree, [*plugin, *tests], TRACE_SECONDS, str(printed)) != "survived"
    ):
        last = "\n".join(printed.read_text().splitlines()[-5:])
        raise SystemExit(f"mutants: expected tests that pass without a fault, found\n{last}")
    return Executed.read(record)
