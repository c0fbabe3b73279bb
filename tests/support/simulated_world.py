"""Processes on several machines as steps of one thread, with a virtual clock.

Each process is a greenlet that runs the product's own code. It gives way at every request to the
simulated store and whenever it sleeps; the world then goes on with the one that wakes first. So one
seed is one order of events, whatever the real machine does, and a failing seed replays. Faults:
requests and answers that are lost, requests that take long, a store that answers nobody for a
while, processes that stop for a while or are killed, and wall clocks that are wrong or are set.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from greenlet import getcurrent, greenlet
from simulated_store import SimulatedStore, area

from chiasm.pipeline.storage.store_errors import TransientError

# A process whose record was not renewed for so long may be taken for dead: others wait for 60 s,
# and a heartbeat comes late by its interval and by the requests that were lost.
PATIENCE = 50.0
Moment = tuple[str, str, str]  # before or after, kind of request, area of the store


class Killed(BaseException):
    """The process is killed: nothing it does from here on has an effect."""


@dataclass(eq=False)
class Process:
    """A simulated process. start_ticks: as in /proc. plans: what happens at its n-th request of a
    kind. stands_since: when it stopped, None while it goes on. silent: seconds for which it stood,
    or the store did not answer, since its record was renewed. doubted: whether others may have
    taken it for dead; woke: when it went on after that."""

    name: str
    start_ticks: int = 0
    plans: dict[Moment, tuple[int, Callable[[], None]]] = field(default_factory=dict)
    seen: Counter[Moment] = field(default_factory=Counter)
    stands_since: float | None = None
    parked: list[greenlet] = field(default_factory=list)
    silent: float = 0.0
    doubted: bool = False
    woke: float = 0.0
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
    silent_until: float = 0.0  # the store answers nobody
    is_calm: bool = False

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.store = SimulatedStore(self._step)
        self._hub = getcurrent()
        self._order = itertools.count()
        self._waiting: list[tuple[float, int, Any]] = []
        self.last: Process | None = None  # the process that went on last
        self._by_glet: dict[greenlet, Process] = {}
        self._changes = 0
        self._limit = float("inf")
        self._awaited: dict[Moment, list[tuple[Process, float]]] = {}

    def start(self, name: str, command: Callable[[], Any], *, of: Process | None = None) -> Process:
        """A new process, or a thread `of` one; `command` runs when its turn comes."""

        def body() -> None:
            try:
                if not process.killed:
                    command()
            except Killed:
                pass
            except Exception as error:  # noqa: BLE001  # checked by whoever started it
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
        if process.stands_since is None and process.alive:
            self._trace(f"{process.name} stands still for {seconds:g} s")
            process.stands_since = began = self.now
            self.at(seconds, lambda: self._resume(process, began))

    def stall_until(self, process: Process, moment: Moment, seconds: float, other: float) -> None:
        """It stands still until another process comes to `moment`, which then stands still for
        `other` seconds; at most for so many seconds."""
        self._awaited.setdefault(moment, []).append((process, other))
        self.stall(process, seconds)

    def _resume(self, process: Process, began: float) -> None:
        if process.stands_since != began:
            return  # it went on before
        self._trace(f"{process.name} goes on")
        self.be_silent(process, self.now - began)
        process.stands_since, process.woke = None, self.now
        for glet in process.parked:
            self._push(self.now, glet)
        process.parked.clear()

    def be_silent(self, process: Process, seconds: float) -> None:
        """It could not renew its record for so long."""
        process.silent += seconds
        process.doubted |= process.silent >= PATIENCE

    def may_be_dead(self, process: Process) -> bool:
        """Whether others may have taken it for dead."""
        stood = 0.0 if process.stands_since is None else self.now - process.stands_since
        return process.doubted or process.silent + stood >= PATIENCE

    def be_calm(self) -> None:
        """From now on no request is lost, and the store answers."""
        self.loss, self.silent_until, self.is_calm = 0.0, self.now, True

    def be_unreachable(self, seconds: float) -> None:
        """The store answers nobody for a while."""
        if self.is_calm:
            return
        self._trace(f"the store does not answer for {seconds:g} s")
        self.silent_until = self.now + seconds
        for process in self.processes:
            self.be_silent(process, seconds)

    @property
    def current(self) -> Process:
        """The process whose turn it is."""
        return self._by_glet[getcurrent()]

    def pause(self, seconds: float) -> None:
        """The current process gives way and goes on so much later."""
        glet, moment = getcurrent(), self.now + seconds
        process = self._by_glet[glet]
        waiting = self._waiting
        alone = not waiting or waiting[0][0] > moment
        if alone and moment <= self._limit and process.stands_since is None and not process.killed:
            self.now = self.store.now = moment  # nobody else's turn comes before
            self.last = process
            self._check_changes()
            return
        self._push(moment, glet)
        self.wait()

    def wait(self) -> None:
        """The current process gives way until it is woken."""
        self._hub.switch()
        if self._by_glet[getcurrent()].killed:
            raise Killed

    def run(self, seconds: float) -> None:
        """Go on until nobody waits any more; for so many seconds at most."""
        self._limit = self.now + seconds
        while self._waiting and self._waiting[0][0] <= self._limit:
            moment, _, waiting = heapq.heappop(self._waiting)
            self.now = self.store.now = max(self.now, moment)
            if not isinstance(waiting, greenlet):
                waiting()
                continue
            process = self._by_glet[waiting]
            if process.stands_since is not None and not process.killed:
                process.parked.append(waiting)
            elif not waiting.dead:
                self.last = process
                waiting.switch()
                self._check_changes()

    def _check_changes(self) -> None:
        if len(self.store.log) != self._changes:
            self._changes = len(self.store.log)
            self.on_change()

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
        glet = getcurrent()
        if glet is self._hub:
            return
        process = self._by_glet[glet]
        if process.killed:
            raise Killed
        if self.trace is not None and kind in ("put", "remove") and "/runs/" not in path:
            self._trace(f"{process.name}: {kind} {path}, {when}")
        if process.plans or self._awaited:
            self._meet(process, (when, kind, area(path)))
        rng = self.rng
        self.pause(rng.random() ** 3 * self.longest_delay)
        if rng.random() < self.loss or self.now < self.silent_until:
            raise TransientError(f"the {'request' if when == 'before' else 'answer'} was lost")

    def _meet(self, process: Process, moment: Moment) -> None:
        if moment in process.plans:
            process.seen[moment] += 1
            count, action = process.plans[moment]
            if process.seen[moment] == count:
                action()
        for waiting, seconds in self._awaited.get(moment, ()):
            if waiting is not process and waiting.stands_since is not None:
                self._resume(waiting, waiting.stands_since)
                self._awaited[moment].remove((waiting, seconds))
                self.stall(process, seconds)
                break


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
