"""Do the readers of foreign bytes hold, whatever the bytes are?

    python -m benchmarks.fuzz                                  # a million inputs for each target
    python -m benchmarks.fuzz --target tar --inputs 10000 --seed 7
    python -m benchmarks.fuzz --target tar --replay FILE

Targets: whole tars, the json of samples, stored records of a collection and of its index, URLs.
atheris draws inputs by the code that they reach, from seeds and by mutations of ours. An input
fails where its reader raises anything but its declared errors, breaks a promise, takes over a
second of processor time or over 64 MB, or ends the process. Prints one line a target: inputs,
failures, the slowest input, and the one that takes the most memory. Failing inputs are kept, one
for each place that fails, the smallest. Exits 1 on a failure. Needs Linux, and
pip install 'chiasm[fuzz]'.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import gc
import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any

import platformdirs

from benchmarks.fuzz_inputs import change_bytes
from benchmarks.fuzz_targets import TARGETS, Target
from benchmarks.machine import machine

ROOT = Path(__file__).resolve().parents[1]
MOST_SECONDS, MOST_MEGABYTES = 1.0, 64.0
# Memory grows beside the input too: caches, the engine's corpus. More than this is measured again.
SUSPICIOUS_MEGABYTES = 1.0
# Packages whose code guides the engine: ours, and those that our readers rest on.
GUIDING = {"chiasm", "tarfile", "gzip", "glob", "fnmatch", "urllib"}
WATCHDOG_SECONDS = 120  # of wall clock, for code that is no Python: the engine ends the process
SAVED_EVERY = 10_000  # inputs after which a worker writes its outcome, in case it dies
# Freed memory goes back to the system at once, so that the next input's growth is its own.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "PYTHONHASHSEED": "0",
}


class TooSlow(BaseException):
    """Raised inside a target that does not end. No Exception: readers must not translate it."""


@dataclass
class Outcome:
    """What became of a target's inputs. failures: place -> the file of its smallest input."""

    inputs: int = 0
    slowest_seconds: float = 0.0
    slowest_bytes: int = 0
    largest_megabytes: float = 0.0
    largest_bytes: int = 0
    failures: dict[str, str] = field(default_factory=dict)


class Meter:
    """Runs a target's inputs: counts them, measures time and memory, keeps those that fail."""

    def __init__(
        self, run: Callable[[bytes], None], folder: Path, seconds: float = MOST_SECONDS
    ) -> None:
        self.outcome = Outcome()
        self._run, self._folder, self._seconds = run, folder, seconds
        self._sizes: dict[str, int] = {}
        self._began: float | None = None
        self._base = self._reset_peak()

    def __call__(self, data: bytes) -> None:
        """One input. No exception of the target leaves this function."""
        self.outcome.inputs += 1
        seconds = self._measured_seconds(data)
        if seconds > self.outcome.slowest_seconds:
            # What is done once, and a processor that was busy, count the first time only.
            seconds = min(seconds, self._measured_seconds(data))
        if seconds > self.outcome.slowest_seconds:
            self.outcome.slowest_seconds, self.outcome.slowest_bytes = seconds, len(data)
        if seconds > self._seconds:
            self._keep("too slow", data, f"{seconds:.2f} s of processor time")
        if memory("VmHWM") - self._base > SUSPICIOUS_MEGABYTES:
            self.measure_memory(data)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Inside it a target that does not end is stopped, if it runs Python code."""

        def stop(*_: Any) -> None:
            # Twice the limit: an input that ends by itself is measured to its end.
            if self._began is not None and time.thread_time() - self._began > 2 * self._seconds:
                raise TooSlow

        before = signal.signal(signal.SIGVTALRM, stop)
        signal.setitimer(signal.ITIMER_VIRTUAL, self._seconds, self._seconds / 2)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)

    def _measured_seconds(self, data: bytes) -> float:
        self._began = began = time.thread_time()
        failure = None
        try:
            try:
                self._run(data)
            finally:
                self._began = None  # what is noted of a failure is not stopped
        except TooSlow as error:
            failure = f"too slow, {_place_of(error)}", "stopped"
        except Exception as error:  # noqa: BLE001  any is a failure: declared ones end in the target
            failure = _place_of(error), traceback.format_exc()
        seconds = time.thread_time() - began
        if failure:
            self._keep(failure[0], data, failure[1])
        return seconds

    def measure_memory(self, data: bytes) -> None:
        """Run an input again for the memory that it takes at the most beyond that before."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = self._reset_peak()
        self._measured_seconds(data)
        grown = memory("VmHWM") - before
        if grown > self.outcome.largest_megabytes:
            self.outcome.largest_megabytes, self.outcome.largest_bytes = grown, len(data)
        if grown > MOST_MEGABYTES:
            self._keep("too large", data, f"{grown:.0f} MB")
        self._base = self._reset_peak()

    def _reset_peak(self) -> float:
        """Begin a new peak at what the process takes now, which is returned."""
        Path("/proc/self/clear_refs").write_text("5")
        return memory("VmRSS")

    def _keep(self, place: str, data: bytes, detail: str) -> None:
        """Keep an input that failed, unless a smaller one failed at the same place."""
        if len(data) >= self._sizes.get(place, len(data) + 1):
            return
        self._sizes[place] = len(data)
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.blake2b(place.encode(), digest_size=5).hexdigest()
        (self._folder / f"{name}.input").write_bytes(data)
        (self._folder / f"{name}.txt").write_text(f"{place}\n{detail}\n", errors="replace")
        self.outcome.failures[place] = str(self._folder / f"{name}.input")


@functools.cache
def _status() -> int:
    """Linux's account of this process: opening it for every input would take longer than most."""
    return os.open("/proc/self/status", os.O_RDONLY)


def memory(name: str) -> float:
    """Megabytes that the process has (VmRSS), or has had at the most (VmHWM)."""
    status = os.pread(_status(), 8192, 0)
    start = status.index(name.encode()) + len(name) + 1
    return int(status[start : status.index(b"kB", start)]) / 1024


def _place_of(error: BaseException) -> str:
    """`ValueError at pipeline/shards/tar.py:120`: the type, and the innermost line of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if frame.filename != __file__] or frames
    ours = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(ROOT)]
    frame = (ours or frames)[-1]
    path = Path(frame.filename).resolve()
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
    return f"{type(error).__name__} at {name}:{frame.lineno}"


def drawn_inputs(target: Target, inputs: int, seed: int) -> Iterator[bytes]:
    """The seeds, then mutations of them and of each other: what is drawn without the engine."""
    rng = random.Random(seed)
    seeds = list(target.seeds())
    pool = [*seeds]
    yield from seeds[:inputs]
    for _ in range(inputs - len(seeds)):
        # Without coverage, mutations of mutations lose their structure: half begin anew.
        begun = rng.choice(rng.choice((seeds, pool)))
        data = target.mutate(rng, begun, lambda plain: change_bytes(rng, plain))
        if len(data) <= target.longest:
            pool[rng.randrange(len(pool))] = data
            yield data


def work(name: str, inputs: int, seed: int, folder: Path, result: Path) -> None:
    """Feed a target from the engine, which never returns, and write the outcome to `result`."""
    import atheris  # pyrefly: ignore  # an extra

    logging.disable()  # a million warnings would fill the disk
    target = TARGETS[name]
    for found in gc.get_objects():
        if isinstance(found, FunctionType) and (found.__module__ or "").split(".")[0] in GUIDING:
            atheris.instrument_func(found)  # pyrefly: ignore  # found at run time
    meter = Meter(target.run, folder)

    def run(data: bytes) -> None:
        failures = len(meter.outcome.failures)
        meter(data)
        done = meter.outcome.inputs
        if done % SAVED_EVERY == 0 or done == inputs or len(meter.outcome.failures) > failures:
            result.write_text(json.dumps(asdict(meter.outcome)))
        if done == inputs:
            os._exit(0)  # the engine has no end of its own that leaves the exit code to us

    def mutate(data: bytes, most: int, drawn: int) -> bytes:
        def mutate_bytes(plain: bytes) -> bytes:
            return atheris.Mutate(plain, len(plain) + 16)

        changed = target.mutate(random.Random(drawn), data, mutate_bytes)
        return changed if len(changed) <= most else mutate_bytes(data)[:most]

    corpus = Path(tempfile.mkdtemp())
    for number, data in enumerate(target.seeds()):
        (corpus / f"{number:04d}").write_bytes(data)
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "max_len": target.longest,
        "seed": seed % (1 << 32) or 1,  # 0 would be drawn by the clock
        "timeout": WATCHDOG_SECONDS,
        "report_slow_units": WATCHDOG_SECONDS,  # by the wall clock, which says little here
        "rss_limit_mb": 4096,
        "artifact_prefix": f"{folder}/",
        "verbosity": 0,
        "reload": 0,
    }
    flags = [f"-{option}={value}" for option, value in options.items()]
    gc.collect()
    gc.freeze()  # a collection over all that was imported would count as an input's time
    with meter.watching():
        atheris.Setup([sys.argv[0], *flags, str(corpus)], run, custom_mutator=mutate)
        atheris.Fuzz()


def fuzz(name: str, inputs: int, seed: int, folder: Path) -> Outcome:
    """A target's outcome, from a process of its own, which a bad input may end."""
    with tempfile.TemporaryDirectory(prefix="chiasm-fuzz-") as place:
        result, log = Path(place) / "outcome.json", Path(place) / "log"
        command = [sys.executable, "-m", "benchmarks.fuzz", "--target", name]
        command += ["--inputs", str(inputs), "--seed", str(seed), "--worker", str(result)]
        began = time.time()
        with log.open("w") as output:
            code = subprocess.run(
                [*command, "--failures", str(folder)],
                cwd=ROOT,
                # The worker leaves without tidying up.
                env={**os.environ, **ENVIRONMENT, "TMPDIR": place},
                stdout=output,
                stderr=output,
            ).returncode
        outcome = Outcome(**json.loads(result.read_text())) if result.exists() else Outcome()
        if code != 0 or outcome.inputs < inputs:
            # The engine names an input that ended the process after what happened.
            ended = [path for path in _artifacts(folder / name) if path.stat().st_mtime >= began]
            place_of_end = f"the process ended with {code}: {_reason(log)}"
            outcome.failures[place_of_end] = str(ended[0]) if ended else ""
    return outcome


def _artifacts(folder: Path) -> list[Path]:
    return [
        path for kind in ("crash", "timeout", "oom", "leak") for path in folder.glob(f"{kind}-*")
    ]


def _reason(log: Path) -> str:
    """What the engine says of the end of its process, else the last line."""
    lines = log.read_text(errors="replace").strip().splitlines() or ["nothing said"]
    return next((line for line in lines if line.startswith("SUMMARY: ")), lines[-1])


def report(name: str, outcome: Outcome, minutes: float) -> str:
    """One line for a target, and one for each failure."""
    first = (
        f"{name:<8}{outcome.inputs:>10,} inputs  {len(outcome.failures)} failures"
        f"  slowest {outcome.slowest_seconds:.3f} s ({outcome.slowest_bytes:,} bytes)"
        f"  largest {outcome.largest_megabytes:.1f} MB ({outcome.largest_bytes:,} bytes)"
        f"  in {minutes:.1f} minutes"
    )
    return "\n".join(
        [first, *(f"    {place}: {file}" for place, file in sorted(outcome.failures.items()))]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=TARGETS, nargs="*", default=list(TARGETS))
    parser.add_argument("--inputs", type=int, default=1_000_000, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this one input")
    parser.add_argument("--json", type=Path, help="write the outcomes")
    parser.add_argument(
        "--failures",
        type=Path,
        metavar="FOLDER",
        default=platformdirs.user_cache_path("chiasm", appauthor=False) / "fuzz",
        help="where failing inputs are kept (default: %(default)s)",
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        work(
            given.target[0],
            given.inputs,
            given.seed,
            given.failures / given.target[0],
            given.worker,
        )
    if given.replay is not None:
        if len(given.target) != 1:
            parser.error("--replay: expected the --target that read it, found none")
        return replay(given.target[0], given.replay, given.failures)
    if find_spec("atheris") is None:
        parser.error("expected the package atheris, found none; pip install 'chiasm[fuzz]'")
    outcomes = {}
    for name in given.target:
        began = time.monotonic()
        outcomes[name] = fuzz(name, given.inputs, given.seed, given.failures)
        print(report(name, outcomes[name], (time.monotonic() - began) / 60), flush=True)
    if given.json is not None:
        targets = {name: asdict(outcome) for name, outcome in outcomes.items()}
        figures = {"machine": machine(), "seed": given.seed, "targets": targets}
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(any(outcome.failures for outcome in outcomes.values()))


def replay(name: str, file: Path, folder: Path) -> int:
    """One kept input again, with the traceback of its failure."""
    meter = Meter(TARGETS[name].run, folder / name)
    with meter.watching():
        meter(file.read_bytes())
        meter.measure_memory(file.read_bytes())
    print(report(name, meter.outcome, 0.0))
    for kept in meter.outcome.failures.values():
        print(Path(kept).with_suffix(".txt").read_text())
    return int(bool(meter.outcome.failures))


if __name__ == "__main__":
    sys.exit(main())
