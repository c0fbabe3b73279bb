"""Items in; what several threads make of them out, in the order of the items.

No thread only reads and none only distributes: on cores that are all at work, handing over costs a
core and Python's lock for a moment, item by item. Instead the threads take turns at reading a chunk
of consecutive items, and each works on its own. The caller's thread takes the chunks in their
order. Memory is bounded by the chunks that are in flight. The cost of order: a slow chunk holds
back those behind it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

from chiasm.pipeline.timing import Stopwatch

PATIENCE = 5.0  # seconds; a batch of a model takes less, as a rule

T = TypeVar("T")
R = TypeVar("R")


class Source(Generic[T]):
    """An iterator of which the next item can be seen before it is taken. For one thread at a time.

    Raises what the iterator raises, StopIteration at its end, from `peek` as from `take`."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._seen: list[T] = []

    def peek(self) -> T:
        """The next item, which stays."""
        if not self._seen:
            self._seen.append(next(self._items))
        return self._seen[0]

    def take(self) -> T:
        """The next item."""
        self.peek()
        return self._seen.pop()

    def close(self) -> None:
        """End the iterator now, not when it is collected: it may have a file open."""
        self._seen.clear()
        if isinstance(self._items, Generator):
            self._items.close()


class Chunk(Generic[T, R]):
    """Consecutive items, and what was made of them; after that, perhaps, an error."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self.made: list[R] = []
        self.error: BaseException | None = None
        self._done = threading.Lock()  # held until all is made
        self._done.acquire()

    def end(self) -> None:
        self.items.clear()
        self._done.release()

    def wait(self) -> None:
        self._done.acquire()


Read = Callable[[Source[T], list[T], threading.Event], None]
"""Take items of the source into the list, of one chunk. Called in turn; StopIteration ends all."""

Work = Callable[[list[T], list[R], threading.Event], None]
"""Make something of the items of a chunk, in the second list; return early once the event is set.
It may drop items from the first list, to free their memory."""


class InOrder(Generic[T, R]):
    """Threads that read and work; iterated over once, in a `with`, they give the chunks in order.
    Leaving the `with` ends them, waiting for what is at work, and closes `items`; by
    KeyboardInterrupt or SystemExit, it waits for PATIENCE at most.

    threads: how many. ahead: the most chunks that are read before they are taken. begin: called
    once in each thread.
    """

    def __init__(
        self,
        items: Iterator[T],
        read: Read[T],
        work: Work[T, R],
        *,
        threads: int,
        ahead: int,
        clock: Stopwatch,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = Source(items)
        self._read_items, self._work, self._begin, self._clock = read, work, begin, clock
        self._room = threading.Semaphore(ahead)
        self._turn = threading.Lock()  # held by the thread that reads
        self._over = False  # nothing more is there
        self._unwanted = threading.Event()  # and what is there is not to be read or made
        self._line: SimpleQueue[Chunk[T, R] | None] = SimpleQueue()
        self._threads = [
            # Daemons: a program that ends without closing its batches must not wait for them.
            threading.Thread(target=self._run, name=f"chiasm-decode-{number}", daemon=True)
            for number in range(threads)
        ]

    def __enter__(self) -> InOrder[T, R]:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self._end()  # those that did start
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A person who stops the program does not wait for a model that hangs.
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit)
        self._end(PATIENCE if stopped else None)

    def _end(self, seconds: float | None = None) -> None:
        """seconds: to wait for what is at work, None for no limit. What goes on behind that ends
        with the process, since its threads are daemons."""
        self._unwanted.set()
        self._room.release()  # one may wait for it
        last = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            if thread.ident is not None:  # was started
                thread.join(None if last is None else max(0, last - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            self._source.close()

    def __iter__(self) -> Iterator[Chunk[T, R]]:
        while (chunk := self._line.get()) is not None:
            chunk.wait()
            self._room.release()
            yield chunk

    def _run(self) -> None:
        begun = False
        while True:
            with self._turn:
                chunk = self._read()
            if chunk is None:
                return
            try:
                if not begun:
                    self._begin()
                    begun = True
                self._work(chunk.items, chunk.made, self._unwanted)
            except BaseException as error:  # noqa: BLE001  raised again in the thread that takes it
                chunk.error = error
            finally:
                chunk.end()
            del chunk  # or what was made stays while this thread waits for its next turn

    def _read(self) -> Chunk[T, R] | None:
        """The next chunk, put in line; None where the items, or the demand, have come to an end."""
        if self._over or self._unwanted.is_set():
            return None
        self._room.acquire()
        if self._unwanted.is_set():
            return None
        chunk: Chunk[T, R] = Chunk()
        try:
            with self._clock.stage("read"):
                self._read_items(self._source, chunk.items, self._unwanted)
        except StopIteration:
            self._over = True
        except BaseException as error:  # noqa: BLE001  raised again in the thread that takes it
            chunk.error = error
            self._over = True
        self._line.put(chunk)
        if self._over:
            self._line.put(None)
        return chunk
