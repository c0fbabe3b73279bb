"""Log lines of a worker, on their way to the driver.

A worker has no log file and no terminal of its own: its lines wait in a buffer, the driver takes
them with each progress report and logs them as its own, so that they reach the run's log file from
any machine. A worker that is killed takes with it what it logged since the last report, at most
about half a second; its loss is logged by the driver.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from typing import Any

MOST_LINES = 1000  # that wait; older ones give way

Line = dict[str, Any]


class LogBuffer(logging.Handler):
    """Keeps log lines as plain values that pickle anywhere."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[Line] = deque(maxlen=MOST_LINES)
        self._worker = f"{socket.gethostname()}/{os.getpid()}"

    def install(self) -> None:
        """Take the lines of chiasm in this process, from level info up."""
        logger = logging.getLogger("chiasm")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        line = {
            name: value
            for name, value in vars(record).items()
            if isinstance(value, str | int | float) and name not in ("msg", "args")
        }
        self._lines.append(line | {"msg": record.getMessage(), "worker": self._worker})

    def drain(self) -> list[Line]:
        """The lines that came since the last call."""
        taken: list[Line] = []
        while self._lines:
            taken.append(self._lines.popleft())
        return taken


def relog(lines: list[Line]) -> None:
    """Log a worker's lines in this process, under their own loggers, levels and times."""
    for line in lines:
        logger = logging.getLogger(line["name"])
        if logger.isEnabledFor(line["levelno"]):
            logger.handle(logging.makeLogRecord(line))
