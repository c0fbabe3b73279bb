"""A disk that dies at one of its operations: what a kill there leaves behind."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from chiasm.pipeline.storage.disk import Disk


class Killed(BaseException):
    """The process is gone."""


class DyingDisk(Disk):
    """Lets `lives` changes of the file system pass, then none. `changes` counts them."""

    def __init__(self, lives: int) -> None:
        self.lives, self.changes = lives, 0
        self._files: list[io.FileIO] = []

    def _change(self) -> None:
        self.changes += 1
        if self.changes > self.lives:
            for file in self._files:
                file.close()  # as the system does for a process that is gone
            raise Killed

    def create(self, path: str) -> io.FileIO:
        self._change()
        self._files.append(super().create(path))
        return self._files[-1]

    def flush_file(self, file: io.FileIO) -> None:
        self._change()
        super().flush_file(file)

    def rename(self, old: str, new: str) -> None:
        self._change()
        super().rename(old, new)

    def link(self, old: str, new: str) -> None:
        self._change()
        super().link(old, new)

    def remove(self, path: str) -> None:
        self._change()
        super().remove(path)


def bury(collection: Path) -> None:
    """Mark every run as killed. A test's own process lives on after its run was killed."""
    for path in (collection / "runs").glob("[!.]*.json"):
        record: dict[str, Any] = json.loads(path.read_bytes())
        if record["state"] == "running":
            path.write_text(json.dumps({**record, "state": "killed"}))
