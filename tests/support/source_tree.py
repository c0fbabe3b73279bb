"""The sources as trees of syntax, and a copy of them as a clone has them: the three folders, and
links to them in `chiasm/`. In the repository itself setuptools would take up what an earlier build
left."""

from __future__ import annotations

import ast
import gc
import shutil
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "index", "jobs")
# What a distribution is built from.
SOURCES = ("chiasm", *ROOMS, "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


def copy_sources(target: Path, names: Sequence[str] = SOURCES) -> Path:
    """Copy files and folders of the repository into a new folder, links as links; returns it."""
    target.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", ".cache")
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, target)
    return target


def parse(source: str | bytes) -> ast.Module:
    """`ast.parse`, in which no collection of garbage runs other Python code. Where that code parses
    too, as the formatting of a traceback does, CPython 3.11 raises SystemError ("AST constructor
    recursion depth mismatch", python/cpython#106905)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        if enabled:
            gc.enable()
