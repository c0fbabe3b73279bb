"""The log of a training, log.jsonl: one record now and then.

A record is a dict. Of a step: `stage` (what is trained), `step` of `total`, `loss` and its terms,
`seconds_per_step` and `seconds_left` until `total`; of an evaluation: `recall`, `accuracy` (task,
group, share) or `held_out_r1`. Of anything else: `message`, one line of text, which is not logged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
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
        latest[stage, record["step"], is_evaluation(record)] = record
    return [latest[key] for key in sorted(latest)]


def is_evaluation(record: Record) -> bool:
    """Whether a record is of an evaluation alone, and not of a step."""
    return "recall" in record or "accuracy" in record


def held_out_r1(record: Record) -> float | None:
    """R@1 on held-out samples, text to image, the mean over languages; None where there is none."""
    if "recall" in record:
        found = [recall["r1"] for recall in record["recall"]["text_to_image"].values()]
        return sum(found) / len(found) if found else None
    return record.get("held_out_r1")
