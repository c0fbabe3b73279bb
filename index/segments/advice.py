"""What error messages tell people to run."""

from __future__ import annotations

import shlex

from chiasm.pipeline.storage import Folder, display_name


def build_command(folder: Folder) -> str:
    """The command that builds the index of the collection in `folder`, quoted for a shell."""
    return f"chiasm index build {shlex.quote(display_name(folder.url))}"
