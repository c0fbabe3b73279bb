"""The house holds: arrows point one way, files and functions stay small, imports stay light."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from conftest import LONG_FILES
from source_tree import parse

ROOT = Path(__file__).parent.parent
ORDER = {"pipeline": 0, "index": 1, "jobs": 2}
HOME = {
    "ray": {"jobs"},
    "faiss": {"index"},
    "duckdb": {"index"},
    "fastapi": {"index", "jobs"},
}
# Where modules of ours are imported inside functions: what they load is slow, and seldom needed.
LAZY_IMPORTS = {
    "jobs/cli/app.py": {"chiasm.jobs.cli"},
    "jobs/cli/index.py": {"chiasm.jobs.build_index"},
    "jobs/cli/train_pocket.py": {"chiasm.jobs.train_model"},
    "jobs/shard_workers.py": {"chiasm.jobs.cluster"},
    "pipeline/__init__.py": {"chiasm.pipeline"},
    "pipeline/encoders/registry.py": {"chiasm.pipeline.encoders"},
    "pipeline/model/__init__.py": {
        "chiasm.pipeline.model",
        "chiasm.pipeline.model.attention",
        "chiasm.pipeline.model.plain_tensors",
        "chiasm.pipeline.model.sentence_module",
    },
    "pipeline/storage/schemes.py": {
        "chiasm.pipeline.storage.fsspec_store",
        "chiasm.pipeline.storage.http",
        "chiasm.pipeline.storage.s3",
    },
}
# What a room of `pipeline/` may import, beside what everybody may.
EVERYBODY = {"errors", "records", "stored_records", "timing", "metrics"}
READS = {"collection", "encoders", "images", "shards", "sounds", "storage"}
WRITES = READS | {"batches", "editions", "embed", "encode_batch", "worklist"}
TRAINS = READS | {"batches", "lanes", "pretrained", "model", "two_tower", "scenes", "training"}
NOTHING: set[str] = set()
ARROWS = {
    **dict.fromkeys(
        (*EVERYBODY, "known_formats", "scenes", "storage", "arrays", "resizing"), NOTHING
    ),
    "images": {"known_formats", "resizing"},
    "sounds": {"known_formats"},
    "shards": {"storage", "known_formats"},
    **{each: {"storage", "resizing"} for each in ("pretrained", "model")},
    "two_tower": {"model", "pretrained", "storage", "resizing"},
    "encoders": {"two_tower", "model", "pretrained", "storage"},
    "collection": {"storage", "encoders", "pretrained"},
    "in_order": NOTHING,
    "batches": {"collection", "encoders", "images", "in_order", "resizing", "shards", "sounds"},
    "lanes": {"batches", "collection", "encoders", "images", "in_order", "sounds"},
    "editions": {"batches", "collection", "images", "shards", "sounds"},
    "encode_batch": {"collection", "encoders"},
    "embed": READS | {"editions", "encode_batch", "lanes"},
    "caption_filter": READS | {"batches", "editions", "lanes"},
    "answers": READS | {"batches"},
    "totals": {"collection"},
    "tasks": {"collection", "editions", "storage"},
    "worklist": {"collection", "editions", "storage", "tasks", "totals"},
    "attempts": {"storage", "tasks", "worklist"},
    "embed_summary": {"shards", "worklist"},
    "make": WRITES | {"attempts", "pretrained", "embed_summary"},
    "verify": WRITES | {"pretrained"},
    "relocate": {"collection", "storage", "verify"},
    "forget": {"collection", "storage"},
    **dict.fromkeys(("training", "training/pocket", "training/two_tower"), TRAINS),
    "training/joint": TRAINS | {"training/pocket", "training/two_tower"},
}
EVERYBODY_OF_INDEX = {
    "index/hits",
    "index/queries",
    "index/output_files",
    "index/notebook",
    "index/results",
    "index/plan",
    "index/sizes",
    "index/value_checks",
    "index/audit",
    "index/faiss_runtime",
}
INDEX_ARROWS = {
    **dict.fromkeys((*EVERYBODY_OF_INDEX, "index/segments"), NOTHING),
    "index/query": {"index/segments"},
    **{each: {"index/query", "index/segments"} for each in ("index/build", "index/retrieve")},
    "index/sheet": {"index/retrieve", "index/query"},
    "index/content_words": NOTHING,
    "index/ask": {"index/query", "index/retrieve", "index/content_words"},
    "index/query_files": NOTHING,
    "index/hit_files": {"index/retrieve", "index/query_files"},
    "index/receipts": {"index/retrieve", "index/query", "index/query_files", "index/segments"},
    "index/verify": {"index/segments", "index/build"},
}
JOBS = {f"jobs/{path.stem}" for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__"}
EVERY_JOB = {*JOBS, "jobs/cluster", "jobs/console"}
JOBS_ARROWS = {
    **dict.fromkeys((*JOBS, "jobs/cli"), EVERY_JOB),
    **dict.fromkeys(("jobs/preset_files", "jobs/signals", "jobs/console"), NOTHING),
    "jobs/config": {"jobs/preset_files"},
    "jobs/cluster": {"jobs/config", "jobs/signals"},
}
# Rooms whose `__init__` says what others may import. In model, two_tower, scenes and training the
# public modules are the face.
FACES = {
    *(
        f"pipeline/{name}"
        for name in ("storage", "shards", "images", "sounds", "collection", "encoders")
    ),
    *(
        "pipeline/answers",
        "pipeline/verify",
        "index/build",
        "index/query",
        "index/segments",
        "index/sheet",
    ),
    *("index/receipts", "index/verify", "jobs/cluster", "jobs/console"),
}
SOURCES = sorted(path for room in ORDER for path in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MOST_LINES = 350
MOST_LINES_OF_A_FUNCTION = 50


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def parsed(path: Path) -> ast.Module:
    return parse(path.read_text())


def findings(check: Callable[[Path], Iterable[str]], paths: Sequence[Path]) -> list[str]:
    """What a check finds in files, each with the file's name. One test for all of them: they are
    thousands, and each test costs its collection in every process."""
    return [f"{named(path)}: {found}" for path in paths for found in check(path)]


def imports(tree: ast.AST) -> list[tuple[ast.stmt, str]]:
    found: list[tuple[ast.stmt, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.append((node, node.module or ""))
    return found


def test_arrows_point_from_jobs_to_index_to_pipeline():
    def check(path: Path) -> Iterator[str]:
        room = path.relative_to(ROOT).parts[0]
        for node, name in imports(parsed(path)):
            head, _, rest = name.partition(".")
            target = rest.split(".")[0] if head == "chiasm" else ""
            # The face of chiasm leads to every room: it is for programs that use chiasm.
            if name == "chiasm" and not isinstance(node, ast.Import):
                yield "imports from the face of chiasm"
            if head in ORDER:
                yield f"{name} is imported by a second name"
            if ORDER.get(target, -1) > ORDER[room]:
                yield f"{room} imports {name}"
            if room not in HOME.get(head, {room}):
                yield f"{head} is not imported in {room}"

    assert findings(check, SOURCES) == []


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def test_our_own_packages_are_imported_at_the_top():
    def check(path: Path) -> set[str]:
        tree = parsed(path)
        top = set(map(id, tree.body))
        top |= {id(node) for each in tree.body if is_type_checking(each) for node in ast.walk(each)}
        hidden = {name for node, name in imports(tree) if id(node) not in top}
        ours = {name for name in hidden if name.split(".")[0] == "chiasm"}
        return ours - LAZY_IMPORTS.get(named(path), set())

    assert findings(check, SOURCES) == []


def test_no_module_is_imported_by_a_string():
    """Types, renames and the rules of this file do not see such an import."""
    by_string = {"import_module", "__import__", "resolve_name", "run_module", "run_path"}

    def check(path: Path) -> list[str]:
        return [
            ast.unparse(node)
            for node in ast.walk(parsed(path))
            if (isinstance(node, ast.ImportFrom) and by_string & {name.name for name in node.names})
            or (isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in by_string)
        ]

    assert findings(check, SOURCES) == []


def lines_of(node: ast.stmt) -> int:
    """From its first line to its last, both counted."""
    return (node.end_lineno or 0) - node.lineno + 1


def test_the_lines_of_a_function_have_its_first_among_them():
    (function,) = ast.parse("def one():\n    a\n    b").body
    assert lines_of(function) == 3


def test_a_file_says_one_thing():
    def check(path: Path) -> Iterator[str]:
        lines = path.read_text().count("\n")
        if lines > MOST_LINES:
            yield f"{lines} lines"
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = lines_of(node)
                if length > MOST_LINES_OF_A_FUNCTION:
                    yield f"{node.name} has {length} lines"

    assert findings(check, SOURCES) == []


def test_every_file_opens_with_what_it_is_for():
    silent = [
        path for path in SOURCES if path.stat().st_size and not ast.get_docstring(parsed(path))
    ]
    assert silent == []


@functools.cache
def graph_of_modules() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports."""
    modules = {module_name(path): path for path in SOURCES}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        found = set()
        for node, name in imports(parsed(path)):
            # A module taken from its package is that module; the package itself holds only a face.
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            inside = {f"{name}.{each}" for each in names} & modules.keys()
            found |= inside
            if len(inside) < len(names) or not names:
                found.add(name)
        graph[module] = {name for name in found if name in modules and name != module}
    return graph


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(["chiasm", *parts]).removesuffix(".__init__")


def room_of(module: str) -> str:
    """`chiasm.pipeline.storage.s3` -> `pipeline/storage`; a file at the top is a room itself."""
    parts = module.split(".")[1:]
    if not ROOT.joinpath(*parts).is_dir():
        parts = parts[:-1] if len(parts) > 2 else parts
    return "/".join(parts)


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """The first circle that is found, [] where there is none."""
    done: set[str] = set()

    def visit(node: str, path: tuple[str, ...]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for name in sorted(graph.get(node, ())):
                if circle := visit(name, (*path, node)):
                    return circle
            done.add(node)
        return []

    return next((circle for node in sorted(graph) if (circle := visit(node, ()))), [])


@functools.cache
def graph_of_rooms() -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {}
    for module, imported in graph_of_modules().items():
        room = rooms.setdefault(room_of(module), set())
        room |= {room_of(name) for name in imported} - {room_of(module)}
    return rooms


def test_no_circle_of_modules_and_none_of_rooms():
    assert circle_in(graph_of_modules()) == []
    assert circle_in(graph_of_rooms()) == []
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def allowed(room: str) -> set[str]:
    """The rooms that a room may import."""
    tree, _, name = room.partition("/")
    if tree == "pipeline":
        return {f"pipeline/{each}" for each in EVERYBODY | ARROWS[name]}
    below = {each for each in graph_of_rooms() if each.startswith("pipeline")}
    if tree == "index":
        return below | EVERYBODY_OF_INDEX | INDEX_ARROWS[room]
    return (
        below | {each for each in graph_of_rooms() if each.startswith("index")} | JOBS_ARROWS[room]
    )


def test_rooms_import_what_the_table_allows():
    wrong = {room: names - allowed(room) for room, names in graph_of_rooms().items() if "/" in room}
    assert {room: names for room, names in wrong.items() if names} == {}


def test_other_rooms_are_entered_by_their_face():
    def check(path: Path) -> Iterator[str]:
        here = room_of(module_name(path))
        for node, name in imports(parsed(path)):
            room = room_of(name) if name.startswith("chiasm.") else ""
            if room == here or room not in FACES:
                continue
            face = f"chiasm.{room.replace('/', '.')}"
            from_face = isinstance(node, ast.ImportFrom)
            names = {alias.name for alias in node.names} if from_face else set()
            if name != face or names - names_of_face(room):
                yield ast.unparse(node)

    assert findings(check, SOURCES) == []


@functools.cache
def names_of_face(room: str) -> set[str]:
    """What the `__all__` of a room's `__init__` lists."""
    for node in parsed(ROOT / room / "__init__.py").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def test_every_lazy_import_is_still_made():
    for name, modules in LAZY_IMPORTS.items():
        tree = parsed(ROOT / name)
        top = set(map(id, tree.body))
        assert modules <= {module for node, module in imports(tree) if id(node) not in top}, name


def test_no_test_folder_becomes_a_package():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_every_long_file_of_tests_is_there():
    names = {path.name for path in TESTS}
    assert [name for name in LONG_FILES if f"test_{name}.py" not in names] == []


def test_no_test_imports_benchmarks():
    """Benchmarks use tests/support instead; what tests them lies in benchmarks/checks."""

    def check(path: Path) -> list[str]:
        found = [name for _, name in imports(parsed(path))]
        return [name for name in found if name.split(".")[0] == "benchmarks"]

    assert findings(check, TESTS) == []


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        (
            "from chiasm.jobs.cli.app import application; application()(['-h'], standalone_mode=0)",
            "torch ray faiss duckdb pyarrow pydantic transformers",
        ),
        ("import chiasm.jobs.cli.status", "torch ray faiss transformers sentence_transformers"),
        ("import chiasm.jobs.cli.check", "torch ray transformers sentence_transformers"),
        ("import chiasm.jobs.cli.search", "torch ray duckdb transformers sentence_transformers"),
        ("import chiasm.jobs.cli.embed", "torch faiss transformers sentence_transformers"),
        ("import chiasm.pipeline.encoders.pocket", "ray faiss transformers sentence_transformers"),
    ],
)
def test_a_command_loads_only_what_it_needs(statement, heavy):
    code = f"{statement}; import sys; print(*sorted(set({heavy.split()!r}) & set(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[-1].split() == []


def test_importing_the_three_packages_prints_nothing_and_starts_nothing():
    code = (
        "import threading, chiasm.pipeline.embed, chiasm.index, chiasm.jobs.config;"
        "assert threading.active_count() == 1, threading.enumerate()"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
