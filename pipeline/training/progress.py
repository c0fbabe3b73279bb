"""A training's progress: one record now and then, for log.jsonl and for people.

A record is a dict. Of a step: `stage` (what is trained), `step` of `total`, `loss` and its terms,
`seconds_per_step` and `seconds_left` until `total`; of an evaluation: `recall` or `held_out_r1`. Of
anything else: `message`, one line of text, which is not logged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
Record = dict[str, Any]
Report = Callable[[Record], None]
# Keys of logs of earlier versions -> today's.
_EARLIER_KEYS = {"sitting": "stage", "lies": "relations"}


class Pace:
    """Seconds a step and seconds left, measured from the step at which it was made."""

    def __init__(self, step: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._first, self._clock, self._started = step, clock, clock()

    def at(self, step: int, total: int) -> Record:
        """The fields `total`, `seconds_per_step` and `seconds_left` of a record, after `step` steps
        of `total`."""
        done = max(1, step - self._first)
        item = (self._clock() - self._started) / done
        left = item * max(0, total - step)
        return {"total": total, "seconds_per_step": round(item, 3), "seconds_left": round(left)}


def append_log(folder: Path, record: Record) -> None:
    """Add a record to the log of a training."""
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_log(folder: Path) -> list[Record]:
    """The records of a training's log, by stage and step; of a step that was done again after a
    kill the last one. Lines that a kill cut are left out."""
    latest: dict[tuple[int, int, bool], Record] = {}
    stages: dict[str | None, int] = {}
    for text in (folder / LOG).read_text("utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        record = {_EARLIER_KEYS.get(key, key): value for key, value in line.items()}
        stage = stages.setdefault(record.get("stage"), len(stages))
        latest[stage, record["step"], "recall" in record] = record
    return [latest[key] for key in sorted(latest)]


def held_out_r1(record: Record) -> float | None:
    """R@1 on held-out samples, text to image, the mean over languages; None where there is none."""
    if "recall" in record:
        found = [recall["r1"] for recall in record["recall"]["text_to_image"].values()]
        return sum(found) / len(found) if found else None
    return record.get("held_out_r1")


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
