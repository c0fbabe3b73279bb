"""Answers as one picture."""

from chiasm.index.sheet.sheet import contact_sheet, sheet_format, write_sheet

__all__ = ["contact_sheet", "sheet_format", "write_sheet"]
