"""Why a worker died, and what helps. Ray names every cause that there could be.

What is known: Ray's own account where it ended the worker, the exit code, a fault in the worker's
first moments, the last that it wrote to stderr where its log is on this machine, and whether the
kernel killed anything here for want of memory since this process began.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, RuntimeEnvSetupError

MORE_MEMORY = "give workers more memory (workers.memory_gb), or have fewer (workers.count)"
GO_ON = "run the same command again to go on"
_TAIL_BYTES = 1 << 16  # of a log: a crash writes the stack of every thread
_SILENT = "End of file"  # Ray's words for a worker that is gone without any


@dataclass(frozen=True)
class Death:
    """cause: in one line. advice: empty where nobody knows what helps."""

    cause: str
    advice: str


def oom_kills() -> int | None:
    """How many processes of this machine the kernel has killed for memory; None: it does not
    say."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return None


_OOM_KILLS_BEFORE = oom_kills()


def death_of(error: RayError) -> Death:
    """What became of a worker whose call ended with `error`."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or "low on memory" in text:
        return Death("ended by Ray, as its node ran low on memory", MORE_MEMORY)
    if isinstance(error, NodeDiedError) or "node has died" in text or "node died" in text:
        return Death("its node is gone", GO_ON)
    if isinstance(error, RuntimeEnvSetupError):
        cause = f"its environment could not be made: {_last_error(text)}"
        return Death(cause, "see the logs of Ray on that node")
    if "creation task" in text or "failed to import" in text:
        return Death(_last_error(text), "mend that, or take another --encoder")
    ended = re.search(r"exit code (-?\d+)\.(?: The process receives a (SIG\w+))?", text)
    if ended:
        return Death(f"ended by {ended[2]}" if ended[2] else f"exit code {ended[1]}", GO_ON)
    if _SILENT not in text:
        return Death(text.partition("\n")[0], GO_ON)
    return _crash(_written(text))


def _crash(written: str | None) -> Death:
    """Of a worker that is gone without a word to Ray. written: its stderr; None: on another
    machine."""
    killed = oom_kills()
    if killed is not None and _OOM_KILLS_BEFORE is not None and killed > _OOM_KILLS_BEFORE:
        return Death("killed by the kernel, for want of memory", MORE_MEMORY)
    if written is None:
        cause = "it crashed or was killed; its log is with Ray's on its machine"
        return Death(cause, "look there, and with dmesg whether memory was short")
    fatal = re.search(r"Fatal Python error: (.+)", written)
    if fatal:
        return Death(f"crashed: {fatal[1]}", "mend or leave out what crashes it")
    lines = [line for line in written.splitlines() if line.strip() and not line.startswith(":")]
    if lines:
        return Death(f"it crashed or was killed; its last line: {lines[-1].strip()[:300]}", GO_ON)
    if killed is None:  # a system that does not count them
        return Death("killed (SIGKILL), as for want of memory", MORE_MEMORY)
    return Death("killed (SIGKILL), and not by the kernel for memory", GO_ON)


def _written(text: str) -> str | None:
    """The end of what the worker wrote to stderr, by the process id in Ray's text."""
    node = ray._private.worker._global_node
    process = re.search(r"pid: (\d+)", text)
    if node is None or process is None:
        return None
    for log in _logs(Path(node.get_logs_dir_path()), process[1]):
        with suppress(OSError), log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    return None


def _logs(folder: Path, process: str) -> Iterator[Path]:
    with suppress(OSError):
        yield from folder.glob(f"worker-*-{process}.err")


def _last_error(text: str) -> str:
    """The last line of a traceback that names an error, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Exit)\b", line)]
    return (named or lines or ["nothing said"])[-1][:300]
