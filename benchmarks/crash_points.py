"""Every crash point of every command that writes to a collection.

    python -m benchmarks.crash_points
    python -m benchmarks.crash_points 'index add' 'index delete'

For each command, or those that are named: the states that a kill and a loss of power can leave on a
disk, those that a kill can leave in an object store; each call of the file system failing for want
of room and with an input/output error; each answer of the store lost, and the store out of reach
from each request on
(`tests/support/crash_points.py`). In each the command is run again; it must leave what an
undisturbed run leaves. Exits 1 where one does not.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests" / "support"))


def main() -> int:
    from crash_commands import COMMANDS
    from crash_points import recorded_runs_are_dead

    logging.disable(logging.CRITICAL)
    tried, failed, began = 0, 0, time.monotonic()
    with recorded_runs_are_dead():
        for name in sys.argv[1:] or COMMANDS:
            for kind, points in _kinds(name):
                failures = 0
                for point in points:
                    failures += not _holds(point, f"{name}, {kind}")
                print(f"{name:20} {kind:28} {len(points):6,} points {failures} lost", flush=True)
                tried, failed = tried + len(points), failed + failures
    print(f"{tried:,} points in {time.monotonic() - began:.0f} s, {failed} lost something")
    return min(failed, 1)


def _kinds(name: str) -> Iterator[tuple[str, list[Callable[[], None]]]]:
    """Each kind of crash of a command, and its points."""
    from crash_commands import COMMANDS
    from crash_points import FAILURES, DiskCrash, StoreCrash

    with tempfile.TemporaryDirectory() as folder:
        crash = DiskCrash.record(Path(folder).resolve(), COMMANDS[name])
        yield "killed, on a disk", [_bind(crash.recover, state) for state in crash.killed()]
        yield "power lost, on a disk", [_bind(crash.recover, state) for state in crash.powerless()]
        for number in FAILURES:
            points = range(len(crash.recorded.log))
            yield f"errno {number}", [_bind(crash.fail, point, number) for point in points]
    with tempfile.TemporaryDirectory() as folder:
        stored = StoreCrash.record(Path(folder).resolve(), COMMANDS[name])
        yield "killed, in a store", [_bind(stored.recover, state) for state in stored.killed()]
        requests = range(stored.requests)
        yield "an answer lost", [_bind(stored.lose_answer, number) for number in requests]
        yield "a store out of reach", [_bind(stored.lose_store, number) for number in requests]


def _bind(call: Callable[..., None], *arguments: object) -> Callable[[], None]:
    return lambda: call(*arguments)


def _holds(point: Callable[[], None], where: str) -> bool:
    from crash_points import Lost

    try:
        point()
    except Lost as error:
        print(f"{where}: {error}", flush=True)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
