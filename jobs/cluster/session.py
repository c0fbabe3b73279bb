"""The only `ray.init`: a Ray of our own on this machine, or the cluster at an address."""

from __future__ import annotations

import logging
import os
import signal
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

import chiasm
from chiasm.jobs.config import WorkerSettings
from chiasm.jobs.signals import STOPPING
from chiasm.pipeline.errors import ChiasmError, UsageError

# Only shard names and ledger entries travel: Ray's least is enough.
OBJECT_STORE_BYTES = 128 * 2**20
STARTS = 2  # attempts to start a Ray of our own
# Ray would start a process for each core beforehand, of which our actors take one or two.
PRESTART = ("prestart_worker_first_driver", "enable_worker_prestart")


@contextmanager
def connected(address: str | None, workers: WorkerSettings) -> Iterator[None]:
    """A Ray to run workers on, for the length of the `with`.

    address: `host:port`, `auto` or `ray://...` of a running cluster; None takes RAY_ADDRESS where
    that is set (as it is inside a submitted job), else starts a Ray on this machine, for this run
    alone. A Ray that this process has already joined is used and left as it is.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    with STOPPING.deferred(), _keeping_sigterm():
        if address == "local":
            _start_local(workers)
        else:
            _join(address)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Inside, the handler for SIGTERM is not replaced: those that ray.init puts in its place leave
    at once, with 15 or 1 and without a message. At the end it is put above the one of Ray's C++
    code, which Python's signal module does not see."""
    replace = signal.signal

    def kept(signalnum: int, handler: Any) -> Any:
        sigterm = signalnum == signal.SIGTERM
        return signal.getsignal(signalnum) if sigterm else replace(signalnum, handler)

    signal.signal = kept
    try:
        yield
    finally:
        signal.signal = replace
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _start_local(workers: WorkerSettings) -> None:
    for name in ("USAGE_STATS_ENABLED", *PRESTART):
        os.environ.setdefault(f"RAY_{name}", "0")
    # A worker on a laptop may reserve more cores than there are: Ray counts, it does not enforce.
    cpus = max(os.cpu_count() or 1, round(workers.cpus * workers.count + 0.5))
    for attempt in range(1, STARTS + 1):
        try:
            _init(
                address="local",
                runtime_env={"env_vars": {"PYTHONPATH": worker_path()}},
                num_cpus=cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            break
        # Ray gives itself 30 s, and raises a bare Exception where a busy machine took more.
        except Exception as error:
            ray.shutdown()
            if attempt == STARTS:
                raise ChiasmError(
                    "Ray on this machine",
                    expected=f"a start within 30 s, in {STARTS} attempts",
                    found=str(error).splitlines()[0] if str(error) else type(error).__name__,
                    do="run the same command again when the machine is less busy",
                ) from error
    found = ray.cluster_resources().get("GPU", 0)
    if workers.gpus > found:
        ray.shutdown()
        raise UsageError(
            "workers.gpus",
            expected=f"an accelerator for each worker ({workers.gpus:g})",
            found=f"{found:g} on this machine",
            do="use --preset laptop, or --address of a cluster",
        )


def _join(address: str) -> None:
    try:
        options = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
        if _inside_a_job():  # it has brought its packages and a working directory
            ray.init(**options)
        else:
            _init(runtime_env={"py_modules": packages()}, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ChiasmError(
            f"--address {address}",
            expected="a running Ray",
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            do="start one with `ray start --head`, leave --address out, or, if the cluster asks "
            "for a token, export RAY_AUTH_MODE=token",
        ) from error


def _init(*, runtime_env: dict[str, Any], **options: Any) -> None:
    """`ray.init` with an empty working directory. Without one Ray puts the current folder first on
    the workers' `sys.path`, where a person's safetensors.py stands before the library."""
    with tempfile.TemporaryDirectory(prefix="chiasm-ray-") as empty:  # Ray takes a copy
        ray.init(runtime_env={"working_dir": empty, **runtime_env}, **options)


def worker_path() -> str:
    """PYTHONPATH of the workers: this process's own with absolute entries and, where chiasm is not
    installed, the folder in which it lies."""
    entries = [
        os.path.abspath(entry)
        for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if entry
    ]
    home = str(Path(str(chiasm.__file__)).resolve().parent.parent)
    if home not in (*entries, *map(sysconfig.get_path, ("purelib", "platlib"))):
        entries.append(home)
    return os.pathsep.join(entries)


def packages() -> list[str]:
    """The folder of our package: what a cluster needs of us."""
    return [str(Path(str(chiasm.__file__)).parent)]


def _inside_a_job() -> bool:
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
