"""Rows of results: Markdown for people, CSV for keeping and comparing."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from hetcache_core import ConfigError
from hetcache_core.files import write_text

Value = str | int | float | None
Row = dict[str, Value]

SHOWN_DIGITS: Final = 3
KEPT_DIGITS: Final = 6
LARGE: Final = 1000


def markdown(rows: Sequence[Row]) -> str:
    """Lay rows out as a table; columns are those of the first row."""
    if not rows:
        return "(no rows)"
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(shown(row.get(name)) for name in rows[0]) + " |" for row in rows]
    return "\n".join(lines)


def shown(value: Value) -> str:
    """Write a value for people."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= LARGE else f"{value:.{SHOWN_DIGITS}g}"
    return str(value)


def kept(value: Value) -> str:
    """Write a value for a file."""
    if value is None:
        return ""
    return f"{value:.{KEPT_DIGITS}g}" if isinstance(value, float) else str(value)


def write_csv(path: Path, rows: Sequence[Row], environment: Mapping[str, str]) -> None:
    """Write rows, each with the environment behind it; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, csv_text(rows, environment))


def csv_text(rows: Sequence[Row], environment: Mapping[str, str]) -> str:
    """Lay out rows as CSV, each with the environment behind it."""
    text = io.StringIO()
    names = [*rows[0], *environment] if rows else list(environment)
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**{name: kept(value) for name, value in row.items()}, **environment})
    return text.getvalue()


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read rows that ``write_csv`` wrote.

    Raises:
        ConfigError: there is no such file, or it holds no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(
            f"{path} cannot be read as a table: {error}",
            remedy="Name a CSV file that this benchmark wrote with --output.",
        ) from error
    if not rows:
        raise ConfigError(f"{path} holds no rows", remedy="Measure again with --output.")
    return rows
