"""The only `ray.init`: a Ray of our own on this machine, or the cluster at an address."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

import chiasm
from chiasm.jobs.cluster.address import Address, chosen_address, require_ray
from chiasm.jobs.cluster.ray_folder import ray_folder
from chiasm.jobs.config import WorkerSettings
from chiasm.jobs.signals import STOPPING
from chiasm.pipeline.errors import ChiasmError, UsageError

# Only shard names and ledger entries travel: Ray's least is enough.
OBJECT_STORE_BYTES = 128 * 2**20
STARTS = 3  # attempts to start a Ray of our own
LOOPBACK_SECONDS = 5.0  # in which a busy machine too reaches itself
# Ray would start a process for each core beforehand, of which our actors take one or two.
PRESTART = ("prestart_worker_first_driver", "enable_worker_prestart")


def require_address(given: str | None) -> Address:
    """The address in force, for `connected`. Raises ChiasmError where a Ray is to be joined that
    does not answer: to be called before anything is written."""
    address = chosen_address(given)
    if not (address.is_local or ray.is_initialized()):
        require_ray(address)
    return address


@contextmanager
def connected(address: str | Address | None, workers: WorkerSettings) -> Iterator[None]:
    """A Ray to run workers on, for the length of the `with`.

    address: `host:port`, `auto`, `local` or `ray://...`; None takes RAY_ADDRESS where that is set
    (as it is inside a submitted job), else starts a Ray on this machine, for this run alone; or
    what `require_address` has returned. A Ray
    that this process has already joined is used and left as it is. Raises ChiasmError, for an
    address that nobody answers within half a minute.
    """
    if ray.is_initialized():
        yield
        return
    found = isinstance(address, Address)
    resolved = address if found else chosen_address(address)
    with STOPPING.deferred(), _keeping_sigterm():
        if resolved.is_local:
            _start_local(workers)
        else:
            _join(resolved, announce=not found)
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
    _require_loopback()
    _provide_token()
    folder = ray_folder()
    # A worker on a laptop may reserve more cores than there are: Ray counts, it does not enforce.
    cpus = max(os.cpu_count() or 1, round(workers.cpus * workers.count + 0.5))
    for attempt in range(1, STARTS + 1):
        STOPPING.check()
        try:
            _init(
                folder,
                address="local",
                runtime_env={"env_vars": {"PYTHONPATH": worker_path()}},
                num_cpus=cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),
            )
            break
        # Ray gives itself 30 s, and raises a bare Exception where a busy machine took more.
        except Exception as error:
            ray.shutdown()
            if attempt == STARTS:
                raise _start_error(error, folder) from error
    found = ray.cluster_resources().get("GPU", 0)
    if workers.gpus > found:
        ray.shutdown()
        raise UsageError(
            "workers.gpus",
            expected=f"an accelerator for each worker ({workers.gpus:g})",
            found=f"{found:g} on this machine",
            do="give --set workers.gpus=0, or --address of a cluster",
        )


def _start_error(error: Exception, folder: Path) -> ChiasmError:
    found = str(error).splitlines()[0] if str(error) else type(error).__name__
    # Ray's own words for what takes longer than it gives itself.
    slow = "timed out" in found.lower()
    busy = "run the same command again when the machine is less busy; what Ray says is"
    return ChiasmError(
        "Ray on this machine",
        expected=f"a start within 30 s, in {STARTS} attempts",
        found=found,
        do=f"{busy if slow else 'what else Ray says is'} in {folder}/session_latest/logs",
    )


def _require_loopback() -> None:
    """ChiasmError where this machine cannot reach itself, as in a container whose loopback
    interface is down: Ray's processes would wait for each other for ever."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            socket.create_connection(("127.0.0.1", port), timeout=LOOPBACK_SECONDS).close()
    except OSError as error:
        raise ChiasmError(
            "Ray on this machine",
            expected="a network of its own, 127.0.0.1, for its processes",
            found=error.strerror or str(error),
            do="run `ip link set lo up` as root, or embed by make_collection(), without Ray",
        ) from error


def _provide_token() -> None:
    """A token for a Ray of our own where Ray cannot keep one at home: it would end there."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    try:
        kept = Path.home() / ".ray"
        kept.mkdir(parents=True, exist_ok=True)
        writable = (kept / "auth_token").is_file() or os.access(kept, os.W_OK | os.X_OK)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        writable = False
    if not writable:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _join(address: Address, *, announce: bool) -> None:
    require_ray(address, announce=announce)  # again: hours may have passed since it answered
    try:
        options = {
            "address": address.text,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
        }
        if _inside_a_job():  # it has brought its packages and a working directory
            ray.init(**options)
        else:
            _init(None, runtime_env={"py_modules": packages()}, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
        found = str(error).splitlines()[0] if str(error) else type(error).__name__
        address.refuse(found, _join_advice(found))


def _join_advice(found: str) -> str:
    """What helps against Ray's words for why it cannot be joined."""
    if "token" in found.lower() or "auth" in found.lower():
        return "export RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN"
    if "version" in found.lower():
        return "use the cluster's version of Ray and Python here"
    if "node" in found.lower():  # the driver needs a node of the cluster on its own machine
        return (
            "run this on a machine of the cluster, give ray://HEAD:10001, or send the command "
            "with chiasm submit"
        )
    return "start one there with `ray start --head`"


def _init(folder: Path | None, *, runtime_env: dict[str, Any], **options: Any) -> None:
    """`ray.init` with an empty working directory. Without one Ray puts the current folder first on
    the workers' `sys.path`, where a person's safetensors.py stands before the library. folder: in
    which that is made; None: where temporary files are."""
    with tempfile.TemporaryDirectory(prefix="chiasm-ray-", dir=folder) as empty:  # Ray copies it
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
