"""Lines that tell people how far a training is, and which of its files are kept."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from chiasm.pipeline.training.log import Record, held_out_r1


def format_progress(record: Record) -> str:
    """A record as one line of plain text.

    >>> format_progress({"step": 120, "total": 1600, "loss": 2.31, "held_out_r1": 0.41,
    ...                  "seconds_per_step": 1.9, "seconds_left": 2760})
    'step 120 of 1,600  loss 2.31  held out R@1 0.41  1.9 s/step  46 min left'
    """
    if "message" in record:
        return record["message"]
    step = f"step {record['step']:,}"
    parts = [f"{step} of {record['total']:,}" if "total" in record else step]
    if "stage" in record:
        parts.insert(0, record["stage"])
    if "loss" in record:
        parts.append(f"loss {record['loss']:.3g}")
    recall = held_out_r1(record)
    if recall is not None:
        parts.append(f"held out R@1 {recall:.2f}")
    parts += [f"{task} {of['all']:.2f} right" for task, of in record.get("accuracy", {}).items()]
    if "seconds_per_step" in record:
        parts.append(f"{record['seconds_per_step']:.2g} s/step")
    if "seconds_left" in record:
        parts.append(f"{format_duration(record['seconds_left'])} left")
    return "  ".join(parts)


def format_duration(seconds: float) -> str:
    """Seconds in the unit that gives one to three digits: 50 s, 46 min, 3.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def format_kept_files(folder: Path, names: Iterable[str]) -> str:
    """One line that names the intermediate files and folders of a training that are there."""
    kept = [(name, _size(folder / name)) for name in names if (folder / name).exists()]
    records = ", ".join(f"{name} ({size / 1e6:,.1f} MB)" for name, size in kept)
    return f"kept in {folder}, to go on with this training; the model does not need them: {records}"


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
