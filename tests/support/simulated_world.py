"""Processes on several machines as steps of one thread, with a virtual clock.

Each process is a greenlet that runs the product's own code. It gives way at every request to the
simulated store and whenever it sleeps; the world then goes on with the one that wakes first. So one
seed is one order of events, whatever the real machine does, and a failing seed replays. Faults:
requests and answers that are lost, requests that take long, processes that stop for a while or are
killed, and wall clocks that are wrong, run fast, or are set.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from greenlet import getcurrent, greenlet
from simulated_store import SimulatedStore

from chiasm.pipeline.storage.store_errors import TransientError


class Killed(BaseException):
    """The process is killed: nothing it does from here on has an effect."""


@dataclass
class Process:
    """A simulated process. start_ticks: as in /proc. changes: requests that change
    something, its record excepted, each counted on its way there and on its way back. at_change:
    what happens then."""

    name: str
    start_ticks: int = 0
    stalled_until: float = 0.0
    changes: int = 0
    at_change: dict[int, Callable[[], None]] = field(default_factory=dict)
    killed: bool = False
    ended: bool = False
    error: BaseException | None = None

    @property
    def alive(self) -> bool:
        return not (self.killed or self.ended)


@dataclass
class World:
    """seed: decides all that happens. loss: the share of requests that are lost, and of answers.
    longest_delay: of a request, in seconds."""

    seed: int
    loss: float = 0.02
    longest_delay: float = 0.5
    now: float = 0.0
    store: SimulatedStore = field(init=False)
    processes: list[Process] = field(default_factory=list)
    on_change: Callable[[], None] = lambda: None
    trace: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.store = SimulatedStore(self._step)
        self._hub = getcurrent()
        self._order = itertools.count()
        self._waiting: list[tuple[float, int, Any]] = []
        self.last: Process | None = None  # the process that went on last
        self._by_glet: dict[greenlet, Process] = {}
        self._changes = 0

    def start(self, name: str, command: Callable[[], Any], *, of: Process | None = None) -> Process:
        """A new process, or a thread `of` one; `command` runs when its turn comes."""

        def body() -> None:
            try:
                command()
            except Killed:
                pass
            except Exception as error:  # noqa: BLE001  # looked at by whoever started it
                process.error = error
            if of is None:
                process.ended = True

        glet = greenlet(body, parent=self._hub)
        process = of or Process(name)
        if of is None:
            self.processes.append(process)
        self._by_glet[glet] = process
        self.wake(glet, self.rng.uniform(0, 0.1))
        return process

    def kill(self, process: Process) -> None:
        self._trace(f"{process.name} is killed")
        process.killed = True

    def stall(self, process: Process, seconds: float) -> None:
        """The process stands still for a while, its heartbeats too."""
        self._trace(f"{process.name} stands still for {seconds:g} s")
        process.stalled_until = self.now + seconds

    @property
    def current(self) -> Process:
        """The process whose turn it is."""
        return self._by_glet[getcurrent()]

    def pause(self, seconds: float) -> None:
        """The current process gives way and goes on so much later."""
        self.wake(getcurrent(), seconds)
        self.wait()

    def wait(self) -> None:
        """The current process gives way until it is woken."""
        self._hub.switch()
        if self.current.killed:
            raise Killed

    def run(self, until: float = float("inf")) -> None:
        """Go on until nobody waits any more, or until that moment."""
        while self._waiting and self._waiting[0][0] <= until:
            moment, _, waiting = heapq.heappop(self._waiting)
            self.now = self.store.now = max(self.now, moment)
            if not isinstance(waiting, greenlet):
                waiting()
                continue
            process = self._by_glet[waiting]
            if process.stalled_until > self.now:
                self._push(process.stalled_until, waiting)
            elif not waiting.dead:
                self.last = process
                waiting.switch()
                if len(self.store.log) != self._changes:
                    self._changes = len(self.store.log)
                    self.on_change()
        if until != float("inf"):
            self.now = max(self.now, until)

    def wake(self, glet: greenlet, seconds: float = 0.0) -> None:
        """Let a process that waits go on, so much later."""
        self._push(self.now + seconds, glet)

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """`action` happens so much later."""
        self._push(self.now + seconds, action)

    def _push(self, moment: float, waiting: greenlet | Callable[[], None]) -> None:
        heapq.heappush(self._waiting, (moment, next(self._order), waiting))

    def _trace(self, line: str) -> None:
        if self.trace is not None:
            self.trace(f"{self.now:10.3f} s  {line}")

    def _step(self, when: str, kind: str, path: str) -> None:
        """A request, on its way there or back."""
        if getcurrent() is self._hub:
            return
        process = self.current
        if process.killed:
            raise Killed
        if kind in ("put", "remove") and "/runs/" not in path:
            self._trace(f"{process.name}: {kind} {path}, {when}")
            process.changes += 1
            if process.changes in process.at_change:
                process.at_change[process.changes]()
        self.pause(self.rng.uniform(0, self.longest_delay) ** 3 / self.longest_delay**2)
        if self.rng.random() < self.loss:
            raise TransientError(f"the {'request' if when == 'before' else 'answer'} was lost")


@dataclass
class SimulatedClock:
    """The clocks of one machine of a world. wrong: the wall clock's error in seconds, which a
    person may change at any moment. rate: of its monotonic clock."""

    world: World
    wrong: float = 0.0
    rate: float = 1.0

    def time(self) -> float:
        return 1.8e9 + self.world.now + self.wrong

    def monotonic(self) -> float:
        return self.world.now * self.rate

    def sleep(self, seconds: float, /) -> None:
        self.world.pause(max(0.0, seconds) / self.rate)
