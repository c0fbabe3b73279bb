"""A training on a cluster: Ray Train starts the processes, `pipeline/training/pocket/loop.py` is
the loop.

Each worker runs the same loop on its own batches; torch.distributed averages the gradients, the
first worker writes state and model into the folder, which all of them must see. A worker that dies
ends the attempt, the next one goes on from the folder's last checkpoint: the loop's own
resumption, so that it makes no difference to the weights. What would fail at every attempt, such as
settings that are refused or a loss that is not finite, is tried once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from chiasm.jobs.cluster import connected
from chiasm.jobs.config import WorkerSettings
from chiasm.pipeline.errors import ChiasmError, StorageError
from chiasm.pipeline.training.pocket.loop import train
from chiasm.pipeline.training.pocket.settings import TrainSettings

ATTEMPTS = 3  # after the first


@dataclass(frozen=True)
class TrainJob:
    """One training for `workers` processes, each with `cpus` cores and, with `gpu`, a whole
    accelerator. address: of a running Ray, None to start one here."""

    settings: TrainSettings
    folder: Path
    towers: Path | None
    workers: int
    cpus: float
    gpu: bool
    precision: str
    drawing: int
    address: str | None


def train_on_ray(job: TrainJob, write_line: Callable[[str], None]) -> None:
    """Train to the end, passing on each line of the log. Raises ChiasmError where workers failed at
    every attempt, and at once, as it is, one of a worker's that another attempt would repeat."""
    # A worker's current folder is its own.
    towers = None if job.towers is None else job.towers.resolve()
    job = replace(job, folder=job.folder.resolve(), towers=towers)
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    workers = WorkerSettings(count=job.workers, cpus=job.cpus, gpus=float(job.gpu))
    log = job.folder / "log.jsonl"
    with connected(job.address, workers), following(log, write_line):
        trainer = TorchTrainer(
            _learn,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(  # pyrefly: ignore  # either version of Ray Train
                num_workers=job.workers,
                use_gpu=job.gpu,
                resources_per_worker={"CPU": job.cpus, **({"GPU": 1} if job.gpu else {})},
            ),
            run_config=RunConfig(  # pyrefly: ignore
                name="ray",
                storage_path=str(job.folder),
                # Ray's own attempts do not ask what failed.
                failure_config=FailureConfig(max_failures=0),  # pyrefly: ignore
            ),
        )
        for attempt in range(ATTEMPTS + 1):
            try:
                trainer.fit()
                break
            # Ray wraps what a worker raised in errors of its own, whatever that was.
            except Exception as error:
                for failure in _failures(error):
                    if isinstance(failure, ChiasmError) and not isinstance(failure, StorageError):
                        raise failure from error
                if attempt == ATTEMPTS:
                    raise ChiasmError(
                        f"training in {job.folder}",
                        expected="workers that learn to the end",
                        found=_cause(error),
                        do="mend that, then run the same command again to go on",
                    ) from error


def _learn(config: dict[str, Any]) -> None:
    """What each worker does."""
    job: TrainJob = config["job"]
    train(
        job.settings,
        job.folder,
        device="auto" if job.gpu else "cpu",
        precision=job.precision,
        workers=job.drawing,
        towers=job.towers,
    )
    ray.train.report({"step": job.settings.all_steps})


@contextmanager
def following(path: Path, write_line: Callable[[str], None]) -> Iterator[None]:
    """Pass on every line that is added to a file meanwhile: what workers write elsewhere is seen
    here as it comes."""
    done = threading.Event()
    began = path.stat().st_size if path.exists() else 0

    def follow() -> None:
        at, rest = began, b""
        while True:
            last = done.wait(0.5)
            if path.exists():
                with path.open("rb") as file:
                    file.seek(at)
                    new = file.read()
                at += len(new)
                *lines, rest = (rest + new).split(b"\n")
                for line in lines:
                    write_line(line.decode())
            if last:
                return

    thread = threading.Thread(target=follow, name="chiasm-follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _failures(error: BaseException) -> list[BaseException]:
    """The errors of the workers, as far as Ray passes them on."""
    failures = getattr(error, "worker_failures", {}).values()
    return [getattr(failure, "_base_exc", failure) for failure in failures]


def _cause(error: BaseException) -> str:
    """A worker's own error, as far as Ray passes it on: the last line of the innermost one."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
