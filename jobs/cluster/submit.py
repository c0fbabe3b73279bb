"""Jobs on a running cluster: our packages packed into a working directory, a command to run
there."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError

from chiasm.jobs.cluster.packing import EXCLUDES, FILES, is_utf8, pack
from chiasm.pipeline.errors import ChiasmError, UsageError
from chiasm.pipeline.storage import require_no_credentials

if TYPE_CHECKING:
    from ray.job_submission import JobStatus, JobSubmissionClient

# They warn of files above 10 MiB, as the weights that ship are; our own line names the largest.
PACKING_LOGGERS = "ray._private.runtime_env.packaging", "ray.dashboard.modules.dashboard_sdk"
POLL_SECONDS = 1.0
AGENT_SECONDS = 60.0


def submit(
    command: Sequence[str],
    address: str,
    *,
    files: Sequence[str] = (),
    excludes: Sequence[str] = EXCLUDES,
    allow_query: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> str:
    """Start `chiasm COMMAND` as a job; returns the job's id.

    address: the cluster's dashboard, `http://host:8265` or `host:8265`. files: more files and
    folders to upload; the command finds them under their base names. allow_query: send URLs with
    any query; the command's own --allow-query does too. report: called with what was packed, and
    what of it was left out. Raises UsageError, ChiasmError.
    """
    _require_sendable(command, allow_query or "--allow-query" in command)
    client = connect(address)
    with tempfile.TemporaryDirectory(prefix="chiasm-submit-") as folder:
        for line in pack(Path(folder), files, excludes).lines():
            report(line)
        return _start(client, entrypoint(command), folder)


def _require_sendable(command: Sequence[str], allow_query: bool) -> None:
    """UsageError for a command that the cluster cannot run, or should not keep: it stores the words
    of a job and shows them to all who see its dashboard."""
    if not command:
        raise UsageError("submit", expected="a chiasm command after --", found="none")
    expected = "a URL that may be kept and shown by the cluster"
    for word in command:
        if not is_utf8(word):
            raise UsageError(
                f"submit {word!a}",
                expected="words in UTF-8: the cluster takes no others",
                found="other bytes",
                do="rename the file, or name it by a glob",
            )
        allow = "--allow-query to submit"
        require_no_credentials(word, expected, allow, allow_query=allow_query)


def entrypoint(command: Sequence[str]) -> str:
    """`python -m chiasm COMMAND` in the folder of the person's files, by the first Python on the
    cluster that has Ray: a bare Debian calls it python3, and where the cluster is this machine, Ray
    may be on no path at all."""
    pythons = shlex.join(["python", "python3", sys.executable])
    run = shlex.join(["-m", "chiasm", *command])
    has_ray = '"$p" -c "import ray" 2>/dev/null'
    return (
        'export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"; '
        f'for p in {pythons}; do {has_ray} && cd {FILES} && exec "$p" {run}; done; '
        "echo chiasm: the cluster has no Python with Ray on its PATH >&2; exit 1"
    )


def _start(client: JobSubmissionClient, entrypoint: str, folder: str) -> str:
    """Hand the job over. A cluster that has just begun answers before it can take one: wait for
    it."""
    for name in PACKING_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": folder})
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise ChiasmError(
                    "submit",
                    expected="a cluster that takes the job",
                    found=str(error).splitlines()[0],
                    do="see ray status on the cluster",
                ) from error
        time.sleep(POLL_SECONDS)


def dashboard_url(address: str) -> str:
    """`host:8265` -> `http://host:8265`; UsageError for what is no address of a dashboard."""
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"--address {address}",
            expected="the cluster's dashboard, http://HOST:8265",
            found=f"an address of {parts.scheme}://" if parts.hostname else "no host in it",
        )
    return url


def stop_command(address: str, job: str) -> str:
    """A shell command that stops the job, as it is typed on this machine."""
    return _ray_job("stop", address, job)


def status_command(address: str, job: str) -> str:
    """A shell command that prints the job's status, as it is typed on this machine."""
    return _ray_job("status", address, job)


def _ray_job(verb: str, address: str, job: str) -> str:
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", verb]
    token = "RAY_AUTH_MODE=token " if authorization() else ""
    return token + shlex.join([*command, "--address", dashboard_url(address), job])


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster's job server; with the cluster's token, where it asks for one."""
    # Here: every worker imports this package, and this takes a sixth of a second.
    from ray.job_submission import JobSubmissionClient

    address = dashboard_url(address)
    try:
        try:
            return JobSubmissionClient(address)
        except AuthenticationError:
            # The token goes only to a server that wants one.
            return JobSubmissionClient(address, headers=authorization())
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        raise ChiasmError(
            f"--address {address}",
            expected="the dashboard of a running Ray cluster",
            found=str(error).splitlines()[0],
            do="of a cluster of `ray up` it is http://127.0.0.1:8265 while `ray dashboard CONFIG` "
            "runs; on this machine: ray start --head --include-dashboard true",
        ) from error


def authorization() -> dict[str, str]:
    """The header that carries the token, from where Ray itself reads it: RAY_AUTH_TOKEN, the file
    that RAY_AUTH_TOKEN_PATH names, ~/.ray/auth_token. Empty where there is none."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not token and path.is_file():
        token = path.read_text(encoding="utf-8").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


def follow(address: str, job: str, write: Callable[[str], object]) -> JobStatus:
    """Pass on the job's output as it comes until it ends; returns how it ended.

    Raises ChiasmError when the cluster stops answering; the job may go on."""
    client = connect(address)
    written = 0
    try:
        while True:
            ended = client.get_job_status(job).is_terminal()  # before the logs: none are missed
            logs = client.get_job_logs(job)
            write(logs[written:])
            written = len(logs)
            if ended:
                return client.get_job_status(job)
            time.sleep(POLL_SECONDS)
    except (RuntimeError, OSError) as error:
        raise ChiasmError(
            f"job {job}",
            expected="a cluster that reports its state",
            found=str(error).splitlines()[0],
            do=f"the job may go on: {status_command(address, job)}",
        ) from error
