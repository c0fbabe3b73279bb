"""The house holds: arrows point one way, files and functions stay small, imports stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = {"pipeline": 0, "index": 1, "jobs": 2}
HOME = {
    "ray": {"jobs"},
    "faiss": {"index"},
    "duckdb": {"index"},
    "fastapi": {"index", "jobs"},
}
SOURCES = sorted(path for room in ORDER for path in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# Modules of ours that may be imported inside functions, by file: what most commands do not need.
LAZY_IMPORTS: dict[str, set[str]] = {
    "pipeline/storage/schemes.py": {
        "chiasm.pipeline.storage.fsspec_store",
        "chiasm.pipeline.storage.http",
        "chiasm.pipeline.storage.s3",
    },
}
# Faces that import on demand (`__getattr__`), with imports for the type checker beside it.
FACES_ON_DEMAND: set[str] = set()
# Files that still import modules by a string.
IMPORTS_BY_STRING = {
    "index/query/rerank.py",
    "jobs/cli/app.py",
    "jobs/cli/train.py",
    "jobs/cli/train_pocket.py",
    "pipeline/encoders/__init__.py",
    "pipeline/model/__init__.py",
}

MOST_LINES = 350
MOST_LINES_OF_A_FUNCTION = 50


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST) -> list[tuple[ast.stmt, str]]:
    found: list[tuple[ast.stmt, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.append((node, node.module or ""))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_arrows_point_from_jobs_to_index_to_pipeline(path):
    room = path.relative_to(ROOT).parts[0]
    for _, name in imports(ast.parse(path.read_text())):
        head, _, rest = name.partition(".")
        target = rest.split(".")[0] if head == "chiasm" else ""
        assert head not in ORDER, f"{name} is imported by a second name"
        assert ORDER.get(target, -1) <= ORDER[room], f"{room} imports {name}"
        assert room in HOME.get(head, {room}), f"{head} is not imported in {room}"


def inside_functions(tree: ast.AST) -> list[tuple[ast.stmt, str]]:
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [found for function in functions for found in imports(function)]


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_our_own_packages_are_imported_inside_functions_only_where_a_table_says_so(path):
    tree = ast.parse(path.read_text())
    lazy = {id(node): name for node, name in inside_functions(tree) if name.startswith("chiasm")}
    assert sorted(set(lazy.values())) == sorted(LAZY_IMPORTS.get(named(path), ()))
    top = set(map(id, tree.body))
    elsewhere = [
        name
        for node, name in imports(tree)
        if id(node) not in top and id(node) not in lazy and name.startswith("chiasm")
    ]
    assert elsewhere == [] or named(path) in FACES_ON_DEMAND


def test_the_table_of_lazy_imports_names_files_that_exist():
    assert [name for name in LAZY_IMPORTS if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_no_module_is_imported_by_a_string(path):
    """Types, renames and the rules of this file do not see such an import."""
    calls = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith(("import_module", "__import__"))
    ]
    assert bool(calls) == (named(path) in IMPORTS_BY_STRING), calls


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_file_says_one_thing(path):
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno
            assert length <= MOST_LINES_OF_A_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_every_file_opens_with_what_it_is_for(path):
    assert path.stat().st_size == 0 or ast.get_docstring(ast.parse(path.read_text()))


def test_no_circles():
    graph: dict[str, set[str]] = {}
    modules = {
        "chiasm."
        + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in SOURCES
    }
    for module, path in modules.items():
        tree = ast.parse(path.read_text())
        found = set()
        for node, name in imports(tree):
            # A module taken from its package is that module; the package itself holds only a face.
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            inside = {f"{name}.{each}" for each in names} & modules.keys()
            found |= inside
            if len(inside) < len(names) or not names:
                found.add(name)
        graph[module] = {name for name in found if name in modules and name != module}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for name in sorted(graph[module]):
                visit(name, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_no_test_folder_becomes_a_package():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("path", TESTS, ids=named)
def test_no_test_imports_benchmarks(path):
    """Benchmarks use tests/support instead; what tests them lies in benchmarks/checks."""
    found = [name for _, name in imports(ast.parse(path.read_text()))]
    assert [name for name in found if name.split(".")[0] == "benchmarks"] == []


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        (
            "import chiasm.jobs.cli.app; chiasm.jobs.cli.app.application(['--help'])",
            "torch ray faiss pyarrow transformers",
        ),
        ("import chiasm.jobs.cli.status", "torch ray faiss transformers sentence_transformers"),
        ("import chiasm.jobs.cli.check", "torch ray transformers sentence_transformers"),
        ("import chiasm.jobs.cli.search", "torch ray transformers sentence_transformers"),
        ("import chiasm.jobs.cli.embed", "torch faiss transformers sentence_transformers"),
        ("import chiasm.pipeline.encoders.pocket", "ray faiss transformers sentence_transformers"),
    ],
)
def test_a_command_loads_only_what_it_needs(statement, heavy):
    told = f"{statement}; import sys; print(*sorted(set({heavy.split()!r}) & set(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == []


def test_importing_the_three_packages_prints_nothing_and_starts_nothing():
    told = (
        "import threading, chiasm.pipeline.embed, chiasm.index, chiasm.jobs.config;"
        "assert threading.active_count() == 1, threading.enumerate()"
    )
    ran = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
