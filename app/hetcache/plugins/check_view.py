"""What ``hetcache plugins check`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Final

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from hetcache.plugins.check import CheckedDistribution, Result

__all__ = ["print_checked"]

STYLES: Final[Mapping[Result, str]] = {
    "ok": "green",
    "failed": "red",
    "failed as expected": "yellow",
    "not applicable": "dim",
}


def print_checked(checked: CheckedDistribution) -> None:
    """Print the checks for people, by what is checked and what it ran on."""
    parts: list[Text | Table] = [
        Text(f"{checked.distribution} {checked.version}".rstrip(), style="bold")
    ]
    for (kind, name, on), rows in groupby(checked.rows, lambda r: (r.kind, r.name, r.on)):
        parts.append(Text(f"\n{kind} {name}" + (f" on {on}" if on else "")))
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for row in rows:
            said = " ".join(text for text in (_sentence(row.reason), row.remedy) if text)
            check = row.check.removeprefix("check_").replace("_", " ")
            table.add_row(
                Text(f"  {row.result}", style=STYLES[row.result]),
                Text(f"{check}: {said}" if said else check),
            )
        parts.append(table)
    counts = ", ".join(f"{checked.counts[result]} {result}" for result in STYLES)
    Console().print(Group(*parts, Text(f"\n{len(checked.rows)} checks: {counts}")))


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", "?", "!")) else f"{text}."
