"""A copy of what a distribution is built from, as a clone has it: the three folders, and links to
them in `chiasm/`. In the repository itself setuptools would take up what an earlier build left."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "index", "jobs")
SOURCES = ("chiasm", *ROOMS, "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


def copy_sources(target: Path) -> Path:
    """Copy them into a new folder, links as links; returns the folder."""
    target.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, target)
    return target
