"""Numbers of bytes as people read them."""

from __future__ import annotations

UNITS = ("B", "KB", "MB", "GB", "TB")  # of 1000, as `--memory` takes them


def format_size(count: float) -> str:
    """A number of bytes with three digits and the unit that fits: `128 KB`, `4.5 GB`. Rounded up,
    so that a limit of memory of that size suffices."""
    whole = round(count)
    step = 10 ** max(0, len(str(whole)) - 3)
    whole = -(-whole // step) * step
    power = min((len(str(whole)) - 1) // 3, len(UNITS) - 1)
    return f"{whole / 1000**power:.12g} {UNITS[power]}"
