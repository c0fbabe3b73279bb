"""What `chiasm check` says of one thing that is wrong."""

from __future__ import annotations

from dataclasses import dataclass

from chiasm.pipeline.errors import ChiasmError


@dataclass(frozen=True)
class Finding:
    """Something wrong in a collection. where: the file, shard or row. what: the difference between
    expected and found. fix: what to do, "" where nothing is known to help."""

    where: str
    what: str
    fix: str = ""

    @classmethod
    def of(cls, where: str, error: ChiasmError) -> Finding:
        """An error as a finding: its advice is the fix."""
        what = ChiasmError(error.what, expected=error.expected, found=error.found)
        return cls(where, str(what), error.do)

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}"
        return " ".join((f"{line}; {self.fix}" if self.fix else line).split())
