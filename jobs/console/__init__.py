"""What a person sees while a command runs."""

from chiasm.jobs.console.c_output import divert_c_output
from chiasm.jobs.console.progress import Progress, showing
from chiasm.jobs.console.streams import lines_of, open_closed_streams, take_any_text
from chiasm.jobs.console.terminal import counted, json_line, printable, printable_columns, shortened

__all__ = [
    "Progress",
    "counted",
    "divert_c_output",
    "json_line",
    "lines_of",
    "open_closed_streams",
    "printable",
    "printable_columns",
    "shortened",
    "showing",
    "take_any_text",
]
