"""`chiasm ...` in a process of its own that need not import everything anew.

Importing torch and Ray takes longer than what most tests let a command do. So a server imports them
once, and each command is a fork of it: with its own memory, descriptors, folder and environment,
through the same `main`.

What libraries read while they are imported is fixed, for all commands alike, by the environment
that `choose_server` was given: the folders of huggingface_hub (HF_HOME) and of matplotlib, the
number of threads; the path of imports can only be added to. A Ray that a command starts is a small
one (tests/support/small_ray.py). And a fork ends by multiprocessing's `os._exit`, not as an
interpreter does: without `atexit` and without the end of modules. What imports and the exit print
is for tests that start Python.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from pathlib import Path

Finished = subprocess.CompletedProcess[str]

SECONDS = 800  # after which a command hangs: tests may take up to 900
_server_environment: dict[str, str] = {}
_preloaded = ["preloaded"]


def choose_server(environment: Mapping[str, str]) -> None:
    """Choose in which environment the server starts; once, before the first command."""
    assert not _server_environment, "the server's environment was chosen before"
    _server_environment.update(environment)


def preload(*modules: str) -> None:
    """Have the server import more, for files of tests whose commands all need it. Saves time where
    no command was run before in this process, and changes nothing else."""
    _preloaded.extend(modules)


def run_command(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    stdin: str = "",
    cwd: Path | None = None,
) -> Finished:
    """Run one command to its end. cwd: the folder in which it works, in place of this process's."""
    context = _server()
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        given.write(stdin.encode())
        given.seek(0)
        streams = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (given, out, err)]
        process = context.Process(
            target=_be_command,
            args=([*arguments], {**environment}, str(cwd or Path.cwd()), streams),
        )
        process.start()
        try:
            process.join(SECONDS)
            hangs = process.is_alive()
        finally:
            if process.is_alive():
                process.kill()
                process.join()
        texts: list[str] = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    assert not hangs, f"chiasm {' '.join(arguments)}: no end after {SECONDS} s\n{texts}"
    assert process.exitcode is not None
    return Finished(["chiasm", *arguments], process.exitcode, *texts)


@cache
def _server() -> multiprocessing.context.ForkServerContext:
    """Starts the server. Later calls leave this process's environment alone."""
    assert _server_environment, "expected choose_server before the first command"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_preloaded)
    before = dict(os.environ)
    os.environ.update(_server_environment)
    try:
        forkserver.ensure_running()
    finally:
        for name in _server_environment:  # the rest stays: threads read it
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]
    return context


def _be_command(
    arguments: list[str], environment: dict[str, str], cwd: str, streams: list[str]
) -> None:
    for number, name in enumerate(streams):
        os.dup2(os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(environment)
    added = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [folder for folder in added if folder and folder not in sys.path]
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin = io.TextIOWrapper(io.FileIO(0), encoding="utf-8")
    sys.argv = ["chiasm", *arguments]
    import preloaded  # noqa: F401  # the server is silent of what it cannot import; this is not

    from chiasm.jobs.cli.app import main

    gc.freeze()  # the collector of cycles need not look at what the server has imported
    main()
