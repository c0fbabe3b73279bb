"""Which process is which: a process id alone is soon another's, and a start time moves with the
clock.

A process is known by the boot of its machine, its pid namespace, its id and the ticks between that
boot and its start, as its time namespace counts them. They are compared for equality, so a clock
that is set changes nothing. Where boot or a namespace is another's, or not known (other systems
than Linux), nothing is claimed.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

_PROC = "/proc"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process among those of all machines. boot_id, pid_namespace, time_namespace: "" where not
    known. start_ticks: clock ticks from the boot to its start."""

    pid: int
    boot_id: str = ""
    pid_namespace: str = ""
    start_ticks: int = 0
    time_namespace: str = ""


class Machine:
    """The machine that this process runs on, as /proc describes it. `read` to `probe` are what it
    asks of the system."""

    def read(self, name: str) -> str:
        """The text of a file of /proc; OSError where there is none."""
        with open(f"{_PROC}/{name}", "rb") as file:
            return file.read().decode("ascii", "replace")

    def link(self, name: str) -> str:
        """What a link of /proc leads to; OSError where there is none."""
        return os.readlink(f"{_PROC}/{name}")

    def pid(self) -> int:
        return os.getpid()

    def probe(self, pid: int) -> None:
        """Raises ProcessLookupError where no process has this id."""
        os.kill(pid, 0)  # signal 0 is sent to nobody

    def host(self) -> str:
        """Its name, for people: several machines may share one."""
        return socket.gethostname()

    def this_process(self) -> ProcessId:
        """This process; with its pid alone where /proc does not show it under that pid."""
        try:
            boot_id = self.read("sys/kernel/random/boot_id").strip()
            namespace, times = self.link("self/ns/pid"), self._time_namespace()
            shown_pid, _, ticks = _parse_stat(self.read("self/stat"))
        except (OSError, ValueError):
            return ProcessId(self.pid())
        if shown_pid != self.pid():  # a /proc of another pid namespace
            return ProcessId(self.pid())
        return ProcessId(shown_pid, boot_id, namespace, ticks, times)

    def _time_namespace(self) -> str:
        try:
            return self.link("self/ns/time")
        except OSError:
            return ""  # Linux before 5.6

    def alive(self, process: ProcessId) -> bool | None:
        """Whether a process still runs; None where that cannot be known from here. A zombie does
        not: it will never write again."""
        here = self.this_process()
        # Start ticks are shown as the reader's time namespace has them.
        where = (process.boot_id, process.pid_namespace, process.time_namespace)
        if not here.boot_id or where != (here.boot_id, here.pid_namespace, here.time_namespace):
            return None
        try:
            _, state, ticks = _parse_stat(self.read(f"{process.pid}/stat"))
        except (FileNotFoundError, ProcessLookupError):
            return self._hidden(process.pid)
        except (OSError, ValueError):
            return None
        return ticks == process.start_ticks and state not in "ZXx"

    def _hidden(self, pid: int) -> bool | None:
        """False where there is no such process, None where there is one that /proc does not show,
        as with the mount option `hidepid`."""
        if pid <= 0:
            return False
        try:
            self.probe(pid)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            return None
        # It ended between the two calls, or it began there and is another.
        return False


THIS_MACHINE = Machine()


def _parse_stat(text: str) -> tuple[int, str, int]:
    """Pid, state and start ticks of the content of `/proc/PID/stat`; ValueError for another."""
    # The second field is the program's name, which may hold spaces and parentheses.
    first, rest = text[: text.index(" ")], text[text.rindex(")") + 1 :].split()
    try:
        return int(first), rest[0], int(rest[19])
    except IndexError as error:
        raise ValueError("too few fields") from error
