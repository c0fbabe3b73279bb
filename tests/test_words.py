"""Names are the field's words: none of the old dialect is left in pipeline/, index/ and jobs/, and
the worst of it not in tests/ and benchmarks/."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from source_tree import parse

ROOT = Path(__file__).parent.parent
ROOMS = ("pipeline", "index", "jobs")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
TRIALS = sorted(
    path
    for room in ("tests", "benchmarks")
    for path in (ROOT / room).rglob("*.py")
    if ".cache" not in path.parts  # environments that benchmarks make
)

# Old word -> the field's word, by what was meant.
OLD_WORDS = {
    "told": "payload, message, params, fields, report, as it is meant",
    "told_range": "content_range",
    "tell": "message, log, format_report, render_caption, as it is meant",
    "Told": "CaptionTargets, ErrorContext",
    "persist": "retry",
    "Passing": "TransientError",
    "Absent": "NotFound",
    "Standing": "AlreadyExists",
    "standing": "existing",
    "Changed": "VersionChanged",
    "Unreachable": "RetriesExhausted",
    "Cut": "Limit",
    "spread": "scatter_rows",
    "account": "ledger_entry",
    "accounts": "ledger_entries",
    "Lesson": "TrainBatch",
    "Lessons": "TrainBatches",
    "lesson": "batch",
    "lessons": "batches",
    "feed": "data",
    "lies": "relations",
    "lies_told": "relations",
    "lying": "names, files",
    "how": "fusion",
    "MIXES": "FUSIONS",
    "inward": "input_projections",
    "brought": "project",
    "look": "stat_or_none, skip_finished, style_seed, as it is meant",
    "looked": "checked",
    "look_again": "recheck",
    "closely": "augmented",
    "held": "bag_of_words, claimed, as it is meant",
    "hold": "claim",
    "holds": "claimed",
    "usual": "word_prior, expected",
    "rooted": "sqrt_features",
    "traits": "match_features",
    "asked": "query_bank, requested",
    "first_of_list": "fit_conditional_logit",
    "logistic": "platt_scale",
    "shift_of": "fit_bias",
    "judge": "select",
    "better": "wins_by_one_standard_error",
    "lost": "token_mask_rate, dropped, failures",
    "Opened": "OpenIndex",
    "Covered": "IndexedShard",
    "behind": "stale_shards",
    "listed": "embedded_shard_ids",
    "pulled": "fetch_to_cache",
    "bound": "cache_limit_bytes, limit",
    "chosen": "select_columns",
    "establish": "create_or_check",
    "settled": "resolve_settings",
    "welcome": "on_worker_ready",
    "give_back": "requeue",
    "put_aside": "quarantine",
    "set_aside": "quarantined",
    "shown": "display_name",
    "is_far": "is_remote",
    "far": "remote",
    "each": "map_concurrent, or what each one is",
    "hush": "silence_loop",
    "quiet": "capture_warnings",
    "Live": "OpenResponse",
    "Reads": "ReadableStore",
    "Few": "CappedNotes",
    "Handful": "Chunk",
    "Seekable": "SeekableReader",
    "OneAnswer": "ResponseReader",
    "shrunk": "downscaled",
    "end_uploads": "abort_uploads",
}

# The words that tests and benchmarks do without too.
WORST_WORDS = {
    *("told", "lies", "how", "asked", "held", "shown", "lost", "listed", "look", "brought"),
}

# Where the standard library or a file on disk has the name: path -> names.
ALLOWED = {
    # `tell` of files: the protocol of io.IOBase.
    "index/segments/blocks.py": {"tell"},
    "index/segments/catalog.py": {"tell"},
    "index/segments/checksums.py": {"tell"},
    "pipeline/images/bounded_file.py": {"tell"},
    "pipeline/shards/tar_stream.py": {"tell"},
    "pipeline/storage/backend.py": {"tell"},
    "pipeline/storage/streams.py": {"tell"},
    "pipeline/storage/uploads.py": {"tell"},
    # Keys of JSON files and of saved configurations.
    "jobs/status.py": {"set_aside"},
    # How wide scores are spread within a list: a field of stored plans.
    "index/plan.py": {"spread"},
    "index/build/report.py": {"spread"},
    # Scenes: a claim holds or does not, as in logic.
    "jobs/demo.py": {"holds"},
    "pipeline/scenes/claims.py": {"holds"},
    "pipeline/scenes/translation.py": {"holds"},
    "pipeline/training/pocket/drawn_check.py": {"holds"},
    "pipeline/training/pocket/falsifying_changes.py": {"holds"},
}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def defined_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of what a module defines or imports: functions, classes, arguments, variables,
    attributes that are set, keyword arguments of its calls, modules and their parts."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield line, node.name
        elif isinstance(node, ast.arg):
            yield line, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield line, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield line, node.attr
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield line, node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield line, alias.asname or alias.name.rpartition(".")[2]
            if isinstance(node, ast.ImportFrom):
                for part in (node.module or "").split("."):
                    yield line, part


def names_of(path: Path) -> list[tuple[int, str]]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return [*((0, part) for part in parts), *defined_names(parse(path.read_text()))]


def old_words(path: Path) -> list[str]:
    allowed = ALLOWED.get(named(path), set())
    return [
        f"{named(path)}:{line}: {name} -> {OLD_WORDS[name.strip('_')]}"
        for line, name in names_of(path)
        if name.strip("_") in OLD_WORDS and name.strip("_") not in allowed
    ]


def test_no_name_is_of_the_old_dialect():
    assert [found for path in SOURCES for found in old_words(path)] == []


def test_no_name_of_tests_and_benchmarks_is_of_the_worst_words():
    worst = [
        f"{named(path)}:{line}: {name}"
        for path in TRIALS
        for line, name in names_of(path)
        if name.strip("_") in WORST_WORDS
    ]
    assert worst == []


def test_every_exception_is_still_needed():
    for name, words in ALLOWED.items():
        tree = parse((ROOT / name).read_text())
        assert words <= {found.strip("_") for _, found in defined_names(tree)}


def test_an_old_word_is_found_wherever_it_is_a_name(tmp_path):
    source = """
import a.look
from told import x as shown
class Live: ...
def tell(lies, *, how): _each = 1
self.standing = [held for held in y]
try: pass
except E as lost: pass
"""
    found = {name.strip("_") for _, name in defined_names(parse(source))}
    assert {
        *("look", "told", "shown", "Live", "tell", "lies", "how", "each", "standing", "held"),
        "lost",
    } <= found
