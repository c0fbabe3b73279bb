"""Where log lines go: to stderr as far as `--log-level` asks, and to the run's log file.

Modules log to `logging.getLogger(__name__)` and set no handler; this is the one place that does.
The log file is `chiasm/logs/<time>-<pid>.jsonl` below $XDG_STATE_HOME (`~/.local/state`): one JSON
object a line, from level info up, workers' lines too. It is made by the first line; the newest
KEPT_FILES stay.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from enum import StrEnum
from pathlib import Path

from chiasm.jobs.console import printable

KEPT_FILES = 50
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogLevel(StrEnum):
    """Levels of `--log-level`."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class LogFormat(StrEnum):
    """Formats of `--log-format`."""

    text = "text"
    json = "json"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (seconds since the epoch), level, logger, message, and the
    fields passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {
            name: value
            for name, value in vars(record).items()
            if name not in _PLAIN and not name.startswith("_")  # Ray's own
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # ASCII: it may be a terminal that reads it


class TextFormatter(logging.Formatter):
    """`12:03:44 info jobs.cluster.pool: ...`, safe to print on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        name = record.name.removeprefix("chiasm.")
        line = f"{clock} {record.levelname.lower()} {name}: {printable(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class LogFile(logging.FileHandler):
    """The run's log file, made by its first line; a folder that cannot be written means no log
    file, not a failed run."""

    def __init__(self, folder: Path) -> None:
        name = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.jsonl"
        super().__init__(folder / name, encoding="utf-8", errors="backslashreplace", delay=True)
        self.folder = folder

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                remove_old_files(self.folder)
                self.stream = self._open()
            except OSError:
                logging.getLogger("chiasm").removeHandler(self)
                return
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """A disk that is full ends the log file, not the run."""
        logging.getLogger("chiasm").removeHandler(self)


def log_folder() -> Path:
    """Where log files are kept."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(os.path.expanduser(state)) / "chiasm" / "logs"


def set_up_logging(level: LogLevel, log_format: LogFormat) -> None:
    """Send log lines of chiasm to stderr and to the log file. A second call replaces the first."""
    logger = logging.getLogger("chiasm")
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setLevel(level.upper())
    to_stderr.setFormatter(JsonFormatter() if log_format == LogFormat.json else TextFormatter())
    to_file = LogFile(log_folder())
    to_file.setLevel(logging.INFO)
    to_file.setFormatter(JsonFormatter())
    logger.setLevel(min(logging.INFO, to_stderr.level))
    logger.propagate = False
    logger.addHandler(to_stderr)
    logger.addHandler(to_file)


def unseen_log_file() -> Path | None:
    """The run's log file; None where it has no line, or stderr showed the same lines."""
    handlers = logging.getLogger("chiasm").handlers
    visible = [handler.level for handler in handlers if not isinstance(handler, LogFile)]
    files = [handler for handler in handlers if isinstance(handler, LogFile) and handler.stream]
    if not files or min(visible, default=logging.WARNING) <= logging.INFO:
        return None
    return Path(files[0].baseFilename)


def remove_old_files(folder: Path) -> None:
    """Keep the newest log files; names begin with the time."""
    for old in sorted(folder.glob("*.jsonl"))[: -(KEPT_FILES - 1)]:
        with contextlib.suppress(OSError):
            old.unlink()
