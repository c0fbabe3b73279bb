"""What is asked of a training, whatever its preset."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.fusion import FUSIONS


@dataclass(frozen=True)
class TrainRequest:
    """The options of `chiasm train`; None and () where they were not given."""

    to: Path
    shards: tuple[str, ...]
    image_encoder: str | None
    text_encoder: str | None
    caption_field: str | None
    steps: int | None
    fusion_steps: int | None
    how: str | None
    towers: Path | None
    seed: int
    device: str
    precision: str
    workers: int
    gallery: int | None
    processes: int
    address: str | None

    def require_sound(self) -> None:
        """UsageError for a target that is a file, and for a way to fuse that there is not."""
        if self.to.exists() and not self.to.is_dir():
            expected = "a folder, or a name that is free"
            raise UsageError(f"--to {self.to}", expected=expected, found="a file")
        if self.how is not None and self.how not in FUSIONS:
            raise UsageError(f"--how {self.how!r}", expected=" or ".join(FUSIONS))

    def require_none_of(self, preset: str, *names: str) -> None:
        """UsageError where an option was given that says nothing to the preset."""
        for name in names:
            value = getattr(self, name)
            # No steps of fusion are asked for by 0; no processes are what there is by default.
            if value not in (None, ()) and (value or name != "processes"):
                shown = "SHARDS" if name == "shards" else "--" + name.replace("_", "-")
                raise UsageError(
                    shown, expected=f"nothing, with --preset {preset}", found="a value",
                    do="leave it out",
                )  # fmt: skip


def tell(line: str) -> None:
    """Progress, to stderr."""
    print(line, file=sys.stderr, flush=True)
