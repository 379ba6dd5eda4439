"""Texts in CSV files, which spreadsheets open."""

from __future__ import annotations

from typing import Final

__all__ = ["from_cell", "to_cell"]

FORMULAS: Final = tuple("=+-@\t\r")
"""What makes a spreadsheet take a text for a formula. Source: OWASP, CSV Injection."""

MARK: Final = "'"
"""Stands before such a text; spreadsheets show what follows as it is."""


def to_cell(text: str) -> str:
    """Write a text so that no spreadsheet runs it; numbers are written as they are, without this."""
    return MARK + text if text.lstrip(MARK).startswith(FORMULAS) else text


def from_cell(cell: str) -> str:
    """Read what ``to_cell`` has written."""
    marked = cell.startswith(MARK) and cell.lstrip(MARK).startswith(FORMULAS)
    return cell.removeprefix(MARK) if marked else cell
