"""`chiasm ...` in a process of its own that need not import everything anew.

Importing torch and Ray takes longer than what most tests let a command do. So a server imports them
once, and each command is a fork of it: with its own memory, descriptors, folder and environment,
through the same `main`. What a command imports by itself is for tests that start Python.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

Finished = subprocess.CompletedProcess[str]

IMPORTED = [  # without faiss, which comes after torch where a command uses both
    "chiasm.jobs.cli.app",
    "chiasm.jobs.cli.embed",
    "chiasm.jobs.cli.search",
    "chiasm.jobs.cli.train_pocket",
    "chiasm.jobs.cli.train_two_tower",
    "chiasm.pipeline.encoders.pocket",
]


def run_command(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    stdin: str = "",
    cwd: Path | None = None,
) -> Finished:
    """Run one command to its end."""
    context = _server(environment)
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
        process.join()
        assert process.exitcode is not None
        texts: list[str] = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return Finished(["chiasm", *arguments], process.exitcode, *texts)


def _server(environment: Mapping[str, str]) -> multiprocessing.context.ForkServerContext:
    """Starts the server once; it keeps this environment's PYTHONPATH."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def _be_command(
    arguments: list[str], environment: dict[str, str], cwd: str, streams: list[str]
) -> None:
    for number, name in enumerate(streams):
        os.dup2(os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin = io.TextIOWrapper(io.FileIO(0), encoding="utf-8")
    sys.argv = ["chiasm", *arguments]
    from chiasm.jobs.cli.app import main

    main()
