"""What a person sees while a command runs."""

from chiasm.jobs.console.c_output import divert_c_output
from chiasm.jobs.console.progress import Progress, showing
from chiasm.jobs.console.terminal import printable

__all__ = ["Progress", "divert_c_output", "printable", "showing"]
