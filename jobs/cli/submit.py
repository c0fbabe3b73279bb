"""`chiasm submit`: a chiasm command as a job on a Ray cluster."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer
from ray.job_submission import JobStatus

from chiasm.jobs.cli.options import print_progress
from chiasm.jobs.cluster import EXCLUDES, follow, status_command, stop_command
from chiasm.jobs.cluster import submit as submit_job
from chiasm.jobs.console import printable
from chiasm.jobs.signals import Stopped
from chiasm.pipeline.errors import ChiasmError

HELP = """
  chiasm submit --address http://head:8265 -- embed '/data/*.tar' --to /data/c --preset cluster
  chiasm submit --address head:8265 --no-wait -- index build /data/c

Our package travels with the job, and what --file names: of folders without dotfiles and links that
lead out of them. The paths in the command are the cluster's. What the job prints is printed here
until it ends, and its success is this command's."""


def submit(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...")],
    address: Annotated[str, typer.Option(help="The cluster's dashboard, http://host:8265.")],
    file: Annotated[
        list[str] | None,
        typer.Option(help="A file or folder to upload with the job; may be repeated."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="A glob of names, or of paths in a folder, to leave out; may be repeated."
        ),
    ] = None,
    allow_query: Annotated[
        bool,
        typer.Option(
            "--allow-query", help="Send URLs with any query. The cluster keeps and shows them."
        ),
    ] = False,
    wait: Annotated[bool, typer.Option(help="Stay until the job ends.")] = True,
) -> None:
    # Ray's client logs every package that it uploads, by several loggers; this process logs nothing
    # of its own below a warning.
    logging.disable(logging.INFO)
    job = submit_job(
        command,
        address,
        files=file or (),
        excludes=(*EXCLUDES, *(exclude or ())),
        allow_query=allow_query,
        report=print_progress,
    )
    print_progress(f"job {job}")
    if not wait:
        print_progress(f"status: {status_command(address, job)}")
        print_progress(f"stop: {stop_command(address, job)}")
        print(printable(job))
        return
    try:
        ended = follow(address, job, _write)
    except Stopped as stopped:
        stopped.message = f"no longer following; the job goes on; {stop_command(address, job)}"
        raise
    if ended != JobStatus.SUCCEEDED:
        raise ChiasmError(
            f"job {job}",
            expected="success",
            found=str(ended.value).lower(),
            do="its output is above",
        )


def _write(text: str) -> None:
    # Line ends are the job's own; whatever else commands a terminal is shown.
    sys.stdout.write("\n".join(map(printable, text.split("\n"))))
    sys.stdout.flush()
