"""Which process is which: a process id alone is soon another's, and a start time moves with the
clock.

A process is known by the boot of its machine, its pid namespace, its id and the ticks between that
boot and its start. They are compared for equality, so a clock that is set changes nothing. Where
boot or namespace is another's, or not known (other systems than Linux), nothing is claimed.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

_PROC = "/proc"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process among those of all machines. boot_id, pid_namespace: "" where not known.
    start_ticks: clock ticks from the boot to its start."""

    pid: int
    boot_id: str = ""
    pid_namespace: str = ""
    start_ticks: int = 0


class Machine:
    """The machine that this process runs on, as /proc describes it."""

    def host(self) -> str:
        """Its name, for people: several machines may share one."""
        return socket.gethostname()

    def this_process(self) -> ProcessId:
        """This process; with its pid alone where /proc does not show it under that pid."""
        try:
            with open(f"{_PROC}/sys/kernel/random/boot_id") as file:
                boot_id = file.read().strip()
            namespace = os.readlink(f"{_PROC}/self/ns/pid")
            shown_pid, _, ticks = _read_stat("self")
        except (OSError, ValueError):
            return ProcessId(os.getpid())
        if shown_pid != os.getpid():  # a /proc of another pid namespace
            return ProcessId(os.getpid())
        return ProcessId(shown_pid, boot_id, namespace, ticks)

    def alive(self, process: ProcessId) -> bool | None:
        """Whether a process still runs; None where that cannot be known from here. A zombie does
        not: it will never write again."""
        here = self.this_process()
        where = (process.boot_id, process.pid_namespace)
        if not here.boot_id or where != (here.boot_id, here.pid_namespace):
            return None
        try:
            _, state, ticks = _read_stat(str(process.pid))
        except (FileNotFoundError, ProcessLookupError):
            return _hidden(process.pid)
        except (OSError, ValueError):
            return None
        return ticks == process.start_ticks and state not in "ZXx"


THIS_MACHINE = Machine()


def _read_stat(pid: str) -> tuple[int, str, int]:
    """Pid, state and start ticks from `/proc/PID/stat`. Raises OSError, ValueError."""
    with open(f"{_PROC}/{pid}/stat", "rb") as file:
        text = file.read().decode("ascii", "replace")
    # The second field is the program's name, which may hold spaces and parentheses.
    first, rest = text[: text.index(" ")], text[text.rindex(")") + 1 :].split()
    return int(first), rest[0], int(rest[19])


def _hidden(pid: int) -> bool | None:
    """False where there is no such process, None where there is one that /proc does not show, as
    with the mount option `hidepid`."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)  # signal 0 is sent to nobody
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return None
    # It ended between the two calls, or it began there and is another.
    return False
