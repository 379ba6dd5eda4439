"""What ``hetcache evaluate`` shows and writes: a table for people, and a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import evolve
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hetcache.media.files import write_text
from hetcache.quality.evaluate import EVALUATED
from hetcache.quality.types import METRICS, Value

if TYPE_CHECKING:
    from hetcache.quality.evaluate import Evaluation

__all__ = ["print_evaluation", "write_csv"]

ALL: Final = "mean"
"""Name of the row over all clips; its VFID is that of the sets."""

ARROWS: Final = {"higher": "↑", "lower": "↓"}


def print_evaluation(found: Evaluation) -> None:
    """Print the values for people: a table, and below it what could not be measured.

    Args:
        found: The values.
    """
    console = Console()
    overall = found.clips[0].metrics if len(found.clips) == 1 else found.mean
    measured = [name for name in EVALUATED if overall[name].value is not None]
    composited = ", with compositing" if found.composite else ""
    frames = sum(clip.frames for clip in found.clips)
    heading = f"{_count(len(found.clips), 'clip')}, {_count(frames, 'frame')}{composited}"
    console.print(Text(heading, style="bold"), soft_wrap=True)
    console.print(_table(found, measured))
    for name, info in EVALUATED.items():
        if name not in measured:
            console.print(Text(f"{info.title}: {overall[name].note}"), soft_wrap=True)
    info = METRICS["vfid"]
    console.print(Text(f"{info.title}: {info.show(found.vfid)}"), soft_wrap=True)


def _table(found: Evaluation, measured: Sequence[str]) -> Table:
    """Put clips into rows and metrics into columns, with the units in their headings."""
    table = Table()
    table.add_column("")
    for info in (EVALUATED[name] for name in measured):
        heading = "\n".join(info.title.split(", "))
        table.add_column(f"{heading}\n{ARROWS[info.better]} {info.unit}".rstrip(), justify="right")
    rows = [(clip.name, clip.metrics) for clip in found.clips]
    if len(rows) > 1:
        rows.append((ALL, found.mean))
    for name, metrics in rows:
        if metrics is found.mean:
            table.add_section()
        cells = (evolve(EVALUATED[key], unit="").show(metrics[key]) for key in measured)
        table.add_row(name, *cells)
    return table


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def write_csv(found: Evaluation, path: Path) -> None:
    """Write a row for every clip, and one over all; a metric without a value says why.

    Args:
        found: The values.
        path: The file.

    Raises:
        ConfigError: It cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["clip", "frames", *EVALUATED, "vfid"])
    for clip in found.clips:
        rows.writerow(
            [clip.name, clip.frames, *(_cell(clip.metrics[name]) for name in EVALUATED), ""]
        )
    frames = sum(clip.frames for clip in found.clips)
    means = (_cell(found.mean[name]) for name in EVALUATED)
    rows.writerow([ALL, frames, *means, _cell(found.vfid)])
    write_text(path, text.getvalue())


def _cell(value: Value) -> str:
    return value.note if value.value is None else repr(value.value)
