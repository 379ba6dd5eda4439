"""What ``hetcache evaluate`` shows and writes: a table for people, and a CSV file."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hetcache_app.evaluate import EVALUATED
from hetcache_app.files import write_text
from hetcache_app.quality_types import METRICS, Value

if TYPE_CHECKING:
    from hetcache_app.evaluate import Evaluation

__all__ = ["print_evaluation", "write_csv"]

ALL: Final = "mean"
"""Name of the row over all clips; its VFID is that of the sets."""

ARROWS: Final = {"higher": "↑", "lower": "↓"}


def print_evaluation(found: Evaluation) -> None:
    """Print the values for people: a column for every clip group, and what could not be measured.

    Args:
        found: The values.
    """
    console = Console()
    infos = {**EVALUATED, "vfid": METRICS["vfid"]}
    one = len(found.clips) == 1
    overall = {**(found.clips[0].metrics if one else found.mean), "vfid": found.vfid}
    measured = [name for name in infos if overall[name].value is not None]
    composited = ", with compositing" if found.composite else ""
    clips = f"{found.clips[0].frames} frames" if one else f"{len(found.clips)} clips"
    console.print(Text(f"{clips}{composited}", style="bold"), soft_wrap=True)
    table = Table()
    table.add_column("")
    for name in () if one else (clip.name for clip in found.clips):
        table.add_column(name, justify="right")
    table.add_column("value" if one else ALL, justify="right")
    for name in measured:
        info = infos[name]
        title = f"{info.title} {ARROWS[info.better]}"
        each = () if one else (clip.metrics.get(name) for clip in found.clips)
        cells = ["" if value is None else info.show(value) for value in each]
        table.add_row(title, *cells, info.show(overall[name]))
    console.print(table)
    for name, info in infos.items():
        if name not in measured:
            console.print(Text(f"{info.title}: {overall[name].note}"), soft_wrap=True)


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
