"""Answers, or an explanation, as one picture."""

from chiasm.index.sheet.heat import explanation_sheet, heat_over
from chiasm.index.sheet.sheet import (
    Heading,
    contact_sheet,
    sheet_format,
    text_to_explain,
    write_explanation,
    write_sheet,
)

__all__ = [
    "Heading",
    "contact_sheet",
    "explanation_sheet",
    "heat_over",
    "sheet_format",
    "text_to_explain",
    "write_explanation",
    "write_sheet",
]
