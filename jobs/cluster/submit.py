"""Jobs on a running cluster: our packages packed into a working directory, a command to run
there."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from chiasm.jobs.cluster.session import packages
from chiasm.pipeline.errors import ChiasmError, UsageError

EXCLUDES = ("__pycache__", "*.pyc", ".git", ".venv", "*.tar", "*.tar.gz", "*.tar.zst", "*.parquet")
LIMIT_BYTES = 100 * 2**20  # Ray refuses a larger working directory, with an unclear message
POLL_SECONDS = 1.0
AGENT_SECONDS = 60.0


def submit(
    command: Sequence[str],
    address: str,
    *,
    files: Sequence[str] = (),
    excludes: Sequence[str] = EXCLUDES,
) -> str:
    """Start `chiasm COMMAND` as a job; returns the job's id.

    address: the cluster's dashboard, `http://host:8265` or `host:8265`. files: more files and
    folders to upload; the command finds them under their base names. Raises UsageError,
    ChiasmError.
    """
    if not command:
        raise UsageError("submit", expected="a chiasm command after --", found="none")
    client = connect(address)
    with tempfile.TemporaryDirectory(prefix="chiasm-submit-") as folder:
        pack(Path(folder), files, excludes)
        return _start(client, entrypoint(command), folder)


def entrypoint(command: Sequence[str]) -> str:
    """`python -m chiasm COMMAND`, by the first Python on the cluster that has Ray: a bare Debian
    calls it python3, and where the cluster is this machine, Ray may be on no path at all."""
    pythons = shlex.join(["python", "python3", sys.executable])
    run = shlex.join(["-m", "chiasm", *command])
    return (
        f'for p in {pythons}; do "$p" -c "import ray" 2>/dev/null && exec "$p" {run}; done; '
        "echo chiasm: the cluster has no Python with Ray on its PATH >&2; exit 1"
    )


def _start(client: JobSubmissionClient, entrypoint: str, folder: str) -> str:
    """Hand the job over. A cluster that has just begun answers before it can take one: wait for
    it."""
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
            do="it is http://HEAD:8265; on this machine: ray start --head --include-dashboard true",
        ) from error


def authorization() -> dict[str, str]:
    """The header that carries the token, from where Ray itself reads it: RAY_AUTH_TOKEN, the file
    that RAY_AUTH_TOKEN_PATH names, ~/.ray/auth_token. Empty where there is none."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not token and path.is_file():
        token = path.read_text(encoding="utf-8").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


def pack(folder: Path, files: Sequence[str], excludes: Sequence[str]) -> None:
    """Copy our packages and `files` into `folder`, leaving out what `excludes` names."""
    for source in [*packages(), *files]:
        path = Path(source)
        if path.is_dir():
            target = folder / path.resolve().name
            shutil.copytree(path, target, ignore=shutil.ignore_patterns(*excludes))
        elif path.is_file():
            shutil.copy2(path, folder)
        else:
            raise UsageError(
                source, expected="a file or folder to upload with the job", found="none"
            )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LIMIT_BYTES:
        raise UsageError(
            "the job's working directory",
            expected=f"at most {LIMIT_BYTES >> 20} MiB",
            found=f"{size / 2**20:.0f} MiB",
            do="leave large files where the cluster can read them, or --exclude them",
        )


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
