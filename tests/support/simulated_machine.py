"""Machines of a simulated world, and what stands for threads' locks and events there."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from greenlet import getcurrent, greenlet
from simulated_world import Process, SimulatedClock, World

from chiasm.pipeline.collection.processes import Machine

NAMESPACE = "pid:[4026531836]"  # of the first namespace of every Linux


@dataclass
class SimulatedMachine(Machine):
    """A machine: what /proc would show of its processes. Several may have one name."""

    world: World
    boot: str
    name: str
    clock: SimulatedClock
    processes: dict[int, Process] = field(default_factory=dict)

    def read(self, name: str) -> str:
        if name == "sys/kernel/random/boot_id":
            return self.boot + "\n"
        pid = self.pid() if name == "self/stat" else int(name.partition("/")[0])
        process = self.processes.get(pid)
        if process is None or not process.alive:
            raise FileNotFoundError(name)
        return f"{pid} (a (b) c) S " + "0 " * 18 + f"{process.start_ticks} 0\n"

    def link(self, name: str) -> str:
        return NAMESPACE

    def pid(self) -> int:
        current = self.world.current
        return next(pid for pid, process in self.processes.items() if process is current)

    def probe(self, pid: int) -> None:
        raise ProcessLookupError

    def host(self) -> str:
        return self.name

    def start(self, name: str, command: Callable[[], Any]) -> Process:
        """A new process, under the first pid that is free: that of one that has ended, perhaps."""
        pid = next(
            pid
            for pid in itertools.count(7)
            if pid not in self.processes or not self.processes[pid].alive
        )
        process = self.world.start(name, command)
        process.start_ticks = int(self.world.now * 100) + 1
        self.processes[pid] = process
        return process

    def reboot(self) -> None:
        """All its processes are killed, and it begins to count ticks anew."""
        for process in self.processes.values():
            if process.alive:
                self.world.kill(process)
        self.processes.clear()
        self.boot += "+"


class GreenletLock:
    """What `threading.RLock` is between threads, between greenlets of one thread."""

    def __init__(self, world: World) -> None:
        self._world, self._depth = world, 0
        self._owner: greenlet | None = None
        self._waiting: deque[greenlet] = deque()

    def __enter__(self) -> None:
        while self._owner not in (None, getcurrent()):
            self._waiting.append(getcurrent())
            self._world.wait()
        self._owner = getcurrent()
        self._depth += 1

    def __exit__(self, *raised: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            if self._waiting:
                self._world.wake(self._waiting.popleft())


@dataclass
class GreenletEvent:
    """What `threading.Event` is; whoever waits for it learns of it when the time is over."""

    clock: SimulatedClock
    is_set: bool = False

    def set(self) -> None:
        self.is_set = True

    def wait(self, seconds: float) -> bool:
        if not self.is_set:
            self.clock.sleep(seconds)
        return self.is_set
