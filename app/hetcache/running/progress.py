"""A bar on a terminal with what every step does; nothing where stderr is no terminal."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from attrs import define, field
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from hetcache_core import CallRecord, StepInfo
    from hetcache_core.session import StepCallback

__all__ = ["Steps", "row_bar", "step_bars"]

STYLES: Final = {"full": "red", "partial": "yellow", "reuse": "green", "predict": "green"}
"""From what costs most to what costs least."""


BAR: Final = 10
"""Characters of a bar: with the longest of what stands beside it, 80 columns hold a line."""


@define(eq=False)
class Steps:
    """The bars of one command; without a terminal, it has none."""

    _progress: Progress | None = None

    def track(self, title: str) -> StepCallback | None:
        """Begin the bar of a run.

        Args:
            title: What is run.

        Returns:
            What is to be called after every step, or None where nothing is shown.
        """
        if self._progress is None:
            return None
        return _Bar(self._progress, self._progress.add_task(title, total=None, detail="")).advance


@define(eq=False)
class _Bar:
    _progress: Progress
    _task: TaskID
    _modes: Counter[str] = field(factory=Counter)

    def advance(self, step: StepInfo, records: Sequence[CallRecord]) -> None:
        """Show what a step did, and how many did the same."""
        mode = str(records[0].mode)
        self._modes[mode] += 1
        counts = " ".join(
            f"[{style}]{self._modes[name]} {name}[/]"
            for name, style in STYLES.items()
            if self._modes[name]
        )
        self._progress.update(
            self._task,
            total=step.total,
            completed=step.index + 1,
            detail=f"[{STYLES[mode]}]{mode}[/] ({counts})",
        )


@contextmanager
def step_bars() -> Iterator[Steps]:
    """Show bars on stderr while the block lasts, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield Steps()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=BAR),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Steps(progress)


@contextmanager
def row_bar(total: int, done: int) -> Iterator[Callable[[str], None]]:
    """Show on stderr how many runs are finished while the block lasts, if stderr is a terminal.

    Args:
        total: All runs.
        done: Those that are finished already.

    Yields:
        What is to be called with the name of every run that is finished.
    """
    if not sys.stderr.isatty():
        yield lambda _name: None
        return
    columns = (
        TextColumn("runs"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("runs", total=total, completed=done, detail="")
        yield lambda name: progress.update(task, advance=1, detail=name)
