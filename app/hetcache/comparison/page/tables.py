"""A comparison's table: as Markdown, as CSV and for the terminal."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict

from hetcache.comparison.page.plots import write_plots
from hetcache.comparison.results.columns import Column, columns_of_table, footnotes, method
from hetcache.comparison.results.summary import Line, Setting, Speed, Summary
from hetcache.running.cells import to_cell
from hetcache_core.files import write_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["as_csv", "as_markdown", "print_tables", "write_all"]

MISSING: Final = re.compile(r"needs .*|no .*|not measured")
"""What a cell says that has no value."""

PAIRS: Final = ["policy", "ran on", "refused by", "why"]
"""Columns of the table of all models."""

BORDERS: Final = 3
"""Characters of a column in the terminal beside its text."""


def as_markdown(summary: Summary, *, sort: Speed = "flops") -> str:
    """Write the tables as Markdown: one for every model and size, then what was refused.

    Args:
        summary: What was summed up.
        sort: Which speed-up the methods are sorted by, within the same number of steps.
    """
    parts = []
    if len(summary.settings) > 1:
        rows = [[f"`{_plain(a)}`", b, c, _escaped(d)] for a, b, c, d in _pair_rows(summary)]
        parts += ["## All models", "", _counted(summary), "", *_markdown(PAIRS, rows), ""]
    columns = columns_of_table(summary)
    for setting in summary.settings:
        parts += [f"## {_escaped(str(setting))}", ""]
        lines = summary.at(setting, sort=sort)
        if lines:
            rows = [[f"`{_plain(method(line))}`", *_cells(line, columns)] for line in lines]
            titles = [column.title for column in columns]
            parts += _markdown(["method", *titles], rows)
            parts.append("")
        refused = [refusal for refusal in summary.refused if refusal.setting == setting]
        if refused:
            parts += ["Refused, and why:", ""]
            parts += [f"- {_escaped(str(refusal))}" for refusal in refused]
            parts.append("")
    parts += [f"- {_escaped(note)}" for note in footnotes(summary)]
    return "\n".join(parts) + "\n"


def as_csv(summary: Summary) -> str:
    """Write one row for every line, with all numbers in full."""
    records = [_record(line) for line in summary.lines]
    names = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def print_tables(summary: Summary, console: Console, *, sort: Speed = "flops") -> None:
    """Print what a comparison found: for each model and size, as many tables as the width takes.

    Metrics that no line has are named below with the reason, instead of filling a column each.

    Args:
        summary: What was summed up.
        console: Where to.
        sort: Which speed-up the methods are sorted by, within the same number of steps.
    """
    from rich.table import Table
    from rich.text import Text

    for setting in summary.settings:
        lines = summary.at(setting, sort=sort)
        console.print(Text(str(setting), style="bold"), soft_wrap=True)
        if lines:
            shown, absent = _shown(lines, columns_of_table(summary))
            for columns in _fitting(lines, shown, console.width):
                console.print(_rich(lines, columns))
            for reason, titles in absent.items():
                console.print(Text(f"{reason}: {'; '.join(titles)}"), soft_wrap=True)
        _print_refused(summary, setting, console)
    if len(summary.settings) > 1:
        table = Table(*PAIRS)
        for row in _pair_rows(summary):
            table.add_row(*(Text(cell) for cell in row))
        console.print(_counted(summary), soft_wrap=True)
        console.print(table)


def write_all(summary: Summary, folder: Path) -> dict[str, Path]:
    """Write everything that is made of a comparison's rows into its folder.

    Args:
        summary: What was summed up.
        folder: The comparison's folder.

    Returns:
        The files by what they are: "table", "summary", and those of
        :func:`hetcache.comparison.page.plots.write_plots`.

    Raises:
        ConfigError: A file cannot be written.
    """
    files = {"table": folder / "table.md", "summary": folder / "summary.csv"}
    write_text(files["table"], as_markdown(summary))
    write_text(files["summary"], as_csv(summary))
    return files | write_plots(summary, folder)


def _counted(summary: Summary) -> str:
    """Say how many pairs of a policy and a model ran."""
    ran = sum(pair.ran for pair in summary.pairs)
    refused = sum(sum(pair.refused.values()) for pair in summary.pairs)
    return (
        f"{ran} pairs of a policy and a model ran, {refused} were refused "
        f"({len(summary.settings)} models and sizes)."
    )


def _pair_rows(summary: Summary) -> list[list[str]]:
    return [
        [pair.label, str(pair.ran), str(sum(pair.refused.values())), pair.why]
        for pair in summary.pairs
    ]


def _cells(line: Line, columns: Iterable[Column]) -> list[str]:
    return [_escaped(column.text(line)) for column in columns]


def _plain(text: str) -> str:
    """Make text fit between backticks in a cell."""
    return " ".join(text.split()).replace("`", "'").replace("|", "\\|")


def _escaped(text: str) -> str:
    """Take their meaning from the characters that Markdown and HTML give one."""
    joined = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", joined)


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    marks = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (header, marks, *rows)]


def _shown(
    lines: list[Line], columns: Iterable[Column]
) -> tuple[list[Column], dict[str, list[str]]]:
    """Part the columns from those that no line but the uncached one has a value for."""
    shown: list[Column] = []
    absent: dict[str, list[str]] = {}
    for column in columns:
        texts = {column.text(line) for line in lines} - {"reference"}
        (reason, *others) = texts or {""}
        if column.kind == "quality" and not others and MISSING.fullmatch(reason):
            absent.setdefault(reason, []).append(column.title)
        else:
            shown.append(column)
    return shown, absent


def _fitting(lines: list[Line], columns: list[Column], width: int) -> list[list[Column]]:
    """Part columns into tables that are no wider than the terminal; quality begins a new one."""
    parts: list[list[Column]] = []
    left = 0
    for column in columns:
        need = _width(column, lines) + BORDERS
        if not parts or need > left or column.kind != parts[-1][-1].kind:
            parts.append([])
            left = width - max(len(method(line)) for line in lines) - BORDERS - 1
        parts[-1].append(column)
        left -= need
    return parts


def _width(column: Column, lines: list[Line]) -> int:
    """Return how many characters wide a column is whose title is broken between words."""
    parts = [part for line in lines for part in _lined(column.text(line)).split("\n")]
    return max(map(len, [*parts, *column.title.split()]))


def _lined(text: str) -> str:
    """Put what is counted below the value."""
    return text.replace(" (", "\n(")


def _rich(lines: list[Line], columns: list[Column]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("method", overflow="fold")
    for column in columns:
        title = textwrap.fill(column.title, _width(column, lines))
        table.add_column(title, justify="right", no_wrap=True)
    for line in lines:
        texts = (Text(_lined(column.text(line)), justify="right") for column in columns)
        table.add_row(Text(method(line)), *texts)
    return table


def _print_refused(summary: Summary, setting: Setting, console: Console) -> None:
    from rich.text import Text

    for refusal in summary.refused:
        if refusal.setting == setting:
            console.print(Text(f"refused: {refusal}"), soft_wrap=True)


def _record(line: Line) -> dict[str, Any]:
    """Flatten a line: what a name stands for is told by its end."""
    record: dict[str, Any] = {
        **{k: to_cell(v) if isinstance(v, str) else v for k, v in asdict(line.setting).items()},
        "policy": to_cell(line.policy),
        "variant": to_cell(line.variant),
        "steps": line.steps,
        "target_speedup": line.target_speedup,
        "cases": line.cases,
        "runs": line.runs,
        "modes": line.modes,
        "steps_full": line.mode_counts["f"],
        "steps_partial": line.mode_counts["p"],
        "steps_reused": line.mode_counts["r"],
        "efficiency": line.efficiency,
        "peak_cache_bytes": line.peak_cache_bytes,
    }
    for name in ("clock_speedup", "flops_speedup"):
        ratio = getattr(line, name)
        for part in ("value", "low", "high"):
            record[f"{name}_{part}"] = None if ratio is None else getattr(ratio, part)
    for name in ("flops", "denoise_seconds", "total_seconds"):
        spread = getattr(line, name)
        record |= {f"{name}_mean": spread.mean, f"{name}_std": spread.std}
    for name, metric in line.metrics.items():
        values = metric.spread
        record[f"{name}_mean"] = None if values is None else values.mean
        record[f"{name}_std"] = None if values is None else values.std
        record[f"{name}_count"] = 0 if values is None else values.count
        record[f"{name}_identical"] = metric.identical
        record[f"{name}_note"] = "; ".join([*metric.missing, *([metric.note] * bool(metric.note))])
    return record
