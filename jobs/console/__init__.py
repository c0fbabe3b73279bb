"""What a person sees while a command runs."""

from chiasm.jobs.console.c_output import divert_c_output
from chiasm.jobs.console.progress import Progress, showing
from chiasm.jobs.console.streams import lines_of, open_closed_streams, take_any_text
from chiasm.jobs.console.terminal import json_line, printable, printable_columns

__all__ = [
    "Progress",
    "divert_c_output",
    "json_line",
    "lines_of",
    "open_closed_streams",
    "printable",
    "printable_columns",
    "showing",
    "take_any_text",
]
