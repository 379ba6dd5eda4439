"""Tables of comparisons by clip."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import by_clip
import pytest

from hetcache.comparison.results.folder import Results, Row, RowKey

FULL = 1000


def row(policy: str, clip: str, decibels: float | None, share: float, speedup: float) -> Row:
    note = {} if decibels is not None else {by_clip.METRIC: "identical"}
    return Row(
        key=RowKey(
            backbone="tiny-vace", clip=clip, seed=0, policy=policy, variant=f"{speedup:g}x",
            steps=30, frames=9, height=128, width=128,
        ),
        target_speedup=speedup,
        flops=round(share * FULL),
        flops_full=FULL,
        metrics={by_clip.METRIC: decibels, "psnr_truth_mask": 20.0},
        metric_notes=note,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    results = Results(folder=tmp_path)
    for each in (
        row("auto", "small-still-object-0", 50.0, 0.5, 2.0),
        row("auto", "small-still-object-1", 52.0, 0.5, 2.0),
        row("auto", "large-still-background-0", None, 1.0, 2.0),
        row("auto", "small-still-object-0", 40.0, 0.25, 4.0),
        row("every-nth", "small-still-object-0", 45.0, 0.5, 2.0),
        row("every-nth", "small-still-object-1", 53.5, 0.5, 2.0),
        row("every-nth", "small-still-object-0", 30.0, 0.25, 4.0),
    ):
        results.append(each)
    return tmp_path


Print = Callable[[str], str]


@pytest.fixture
def printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Print:
    """Run the script on the folder with some arguments, and return what it prints."""

    def run(arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["by_clip.py", str(folder), *arguments.split()])
        by_clip.main()
        return capsys.readouterr().out

    return run


def test_means_are_over_the_runs_of_a_kind(printed: Print) -> None:
    text = printed("--speedup 2")
    (auto,) = (line for line in text.splitlines() if line.startswith("| `auto`"))
    cells = [cell.strip() for cell in auto.strip("|").split("|")]
    assert cells[1] == "51.0 ± 1.0 at 0.67 (1 identical)"
    assert cells[2] == "51.0 ± 1.0 at 0.50"
    assert cells[4] == "identical at 1.00"
    assert cells[5] == ""


def test_speed_ups_are_columns(printed: Print) -> None:
    text = printed("--columns speedups --group small")
    assert "| policy | 2x | 4x |" in text
    assert "| `every-nth` | 49.2 ± 4.2 at 0.50 | 30.0 ± 0.0 at 0.25 |" in text


def test_runs_are_compared_one_by_one(printed: Print) -> None:
    text = printed("--columns speedups --against auto")
    assert "| `every-nth` | 1 of 2, behind by at most 1.5 | 1 of 1 |" in text


def test_measures_are_columns(printed: Print) -> None:
    text = printed("--columns measures --speedup 4")
    assert "| `auto` | 40.0 ± 0.0 at 0.25 |" in text
    assert "| 20.0 ± 0.0 at 0.25 |" in text


def test_no_rows_are_an_error(printed: Print, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        printed("--speedup 9")
    assert "no such run" in capsys.readouterr().err
