"""A comparison's table: what stands in it, and that names stay names."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
from attrs import evolve

pytest.importorskip("rich")

from rich.console import Console

from hetcache.comparison.page.tables import as_csv, as_markdown, print_tables, write_all
from hetcache.comparison.results.columns import columns_of_table
from hetcache.comparison.results.folder import Results, Row, RowKey
from hetcache.comparison.results.summary import Summary, summarize
from hetcache.quality.metric import find_metrics
from hetcache_core import discover

METRICS = find_metrics(discover())

KEY = RowKey(
    backbone="tiny-vace", clip="a", seed=0, policy="none", steps=4, frames=9, height=64, width=96
)
NEEDS = {"lpips_reference": "needs --lpips FILE", "lpips_truth": "needs --lpips FILE"}
REFERENCE = Row(
    key=KEY, modes="ffff", flops=4 * 10**12, flops_full=4 * 10**12, denoise_seconds=8.0,
    total_seconds=9.0, metrics={"psnr_truth": 30.0}, metric_notes=NEEDS,
)  # fmt: skip


def run(policy: str, speed: float, seconds: float, **values: object) -> Row:
    return Row(
        **{
            "key": evolve(KEY, policy=policy),
            "modes": "fprr",
            "flops": int(4e12 / speed),
            "flops_full": 4 * 10**12,
            "denoise_seconds": seconds,
            "total_seconds": seconds + 1,
            "peak_cache_bytes": 3 * 2**20,
            "metrics": {"psnr_reference_mask": 40.0, "psnr_truth": 29.5},
            "metric_notes": NEEDS,
            **values,
        }
    )


def summary_of(folder: Path, *rows: Row) -> Summary:
    results = Results(folder=folder)
    for row in rows:
        results.append(row)
    return summarize(results, METRICS)


def cells(text: str) -> list[dict[str, str]]:
    """The rows of the first table of a Markdown text, by the titles of their columns."""
    lines = [line for line in text.split("\n\n")[1].splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.split(" | ")] for line in lines)
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_the_table_says_what_each_policy_cost_and_how_good_it_was(tmp_path: Path) -> None:
    text = as_markdown(summary_of(tmp_path, REFERENCE, run("teacache", 2, 4.0)))
    uncached, cached = cells(text)
    assert text.startswith("## tiny-vace, 9 frames of 64x96\n")
    assert cached["| method"] == "| `teacache`"
    assert cached["full / partial / reused"] == "1 / 1 / 2"
    assert cached["TFLOPs"] == "2"
    assert cached["denoising, s"] == "4.00"
    assert (cached["speed-up, clock"], cached["speed-up, FLOPs"]) == ("2.00x", "2.00x")
    assert cached["clock / FLOPs"] == "1.00"
    assert cached["cache, MiB"] == "3.0"
    assert cached["PSNR to uncached, mask, dB"] == "40.00"
    assert uncached["| method"] == "| `uncached`"
    assert uncached["PSNR to uncached, mask, dB"] == "reference"
    assert uncached["PSNR, dB"] == "30.00"


def test_a_metric_without_weights_says_what_it_needs_in_every_cell(tmp_path: Path) -> None:
    rows = cells(as_markdown(summary_of(tmp_path, REFERENCE, run("teacache", 2, 4.0))))
    assert {row["LPIPS"] for row in rows} == {"needs --lpips FILE"}
    assert {row["VFID"] for row in rows} == {"needs --video-features FILE"}


def test_a_spread_and_what_is_missing_are_counted_in_the_cell(tmp_path: Path) -> None:
    rows = [
        run("pab", 2, 4.0, key=evolve(KEY, policy="pab", clip=clip), metrics=metrics, metric_notes=notes)
        for clip, metrics, notes in (
            ("a", {"psnr_reference_mask": 40.0}, {"psnr_reference": "identical"}),
            ("b", {"psnr_reference_mask": 44.0}, {"psnr_reference": "identical"}),
            ("c", {}, {"psnr_reference_mask": "identical", "psnr_reference": "no pixels"}),
            ("d", {}, {"psnr_reference_mask": "no pixels", "psnr_reference": "identical"}),
        )
    ]  # fmt: skip
    (row,) = cells(as_markdown(summary_of(tmp_path, *rows)))
    assert row["PSNR to uncached, mask, dB"] == (
        "42.00 ± 2.83 (1 of 4 identical, 1 of 4 no pixels)"
    )
    assert row["PSNR to uncached, dB"] == "3 of 4 identical, 1 of 4 no pixels"
    assert row["speed-up, clock"] == "no uncached run"


@pytest.mark.parametrize(("sort", "first"), [("flops", "slow"), ("clock", "quick")])
def test_methods_are_sorted_by_the_speedup_that_is_asked_for(
    tmp_path: Path, sort: str, first: str
) -> None:
    summary = summary_of(tmp_path, run("quick", 4, 8.0), run("slow", 2, 2.0), REFERENCE)
    methods = [row["| method"] for row in cells(as_markdown(summary, sort=sort))]
    assert methods[:2] == ["| `uncached`", f"| `{first}`"]


def test_names_do_not_break_the_table(tmp_path: Path) -> None:
    key = evolve(KEY, backbone="<b>*tiny*", policy="a|b`c", variant="x=<i>")
    text = as_markdown(summary_of(tmp_path, run("", 2, 4.0, key=key)))
    assert "## &lt;b>\\*tiny\\*, 9 frames" in text
    assert "| `a\\|b'c x=<i>` |" in text


def test_refused_policies_are_listed_with_their_reason(tmp_path: Path) -> None:
    refused = Row(key=evolve(KEY, policy="fbcache"), status="refused", note="has no <blocks>")
    text = as_markdown(summary_of(tmp_path, REFERENCE, refused))
    assert "- fbcache, 4 steps, 1 run: has no &lt;blocks>" in text


def test_the_csv_has_every_number_in_full(tmp_path: Path) -> None:
    row = run("teacache", 3, 8 / 3)
    (record,) = csv.DictReader(io.StringIO(as_csv(summary_of(tmp_path, row))))
    assert float(record["denoise_seconds_mean"]) == 8 / 3
    assert record["lpips_reference_mean"] == ""
    assert record["lpips_reference_note"] == "needs --lpips FILE"
    assert record["psnr_reference_mask_count"] == "1"
    assert as_csv(Summary(lines=(), refused=())) == "\n"


@pytest.mark.parametrize("width", [80, 120, 400])
def test_the_terminals_tables_are_no_wider_than_it(tmp_path: Path, width: int) -> None:
    rows = (REFERENCE, run("teacache", 2, 4.0), run("hetcache", 3, 2.5))
    text = io.StringIO()
    print_tables(summary_of(tmp_path, *rows), Console(file=text, width=width))
    printed = text.getvalue()
    tables = [line for line in printed.splitlines() if line.startswith(("│", "┃"))]
    assert max(map(len, tables)) <= width
    assert "…" not in printed
    assert not [line for line in tables if line.startswith("│    ")], "a method's cells are whole"
    assert "needs --lpips FILE: LPIPS to uncached; LPIPS\n" in printed


def test_the_terminal_says_what_was_refused(tmp_path: Path) -> None:
    refused = Row(key=evolve(KEY, policy="[red]x"), status="refused", note="no blocks")
    text = io.StringIO()
    print_tables(summary_of(tmp_path, refused), Console(file=text, width=80))
    assert "refused: [red]x, 4 steps, 1 run: no blocks" in text.getvalue()


def test_every_column_orders_numbers_or_says_that_there_is_none(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, REFERENCE, run("teacache", 2, 4.0))
    for line in summary.lines:
        for column in columns_of_table(summary):
            number = column.number(line)
            assert number is None or not math.isnan(number)
            assert column.text(line)


def test_everything_is_written_into_the_folder_and_nothing_else(tmp_path: Path) -> None:
    results = Results(folder=tmp_path)
    for row in (REFERENCE, run("teacache", 2, 4.0)):
        results.append(row)
    files = write_all(summarize(results, METRICS), tmp_path)
    assert set(files) == {
        "table", "summary", "pareto", "pareto_svg", "pareto_clock", "pareto_clock_svg",
        "timelines", "timelines_svg", "metrics",
    }  # fmt: skip
    assert [path.name for path in files["metrics"].iterdir()] == ["psnr_truth.svg"]
    assert {*files.values(), results.rows_path} == set(tmp_path.iterdir())
    assert files["table"].read_text() == as_markdown(summarize(results, METRICS))


def test_with_only_the_uncached_run_there_is_a_table_and_no_plot(tmp_path: Path) -> None:
    results = Results(folder=tmp_path)
    results.append(REFERENCE)
    assert set(write_all(summarize(results, METRICS), tmp_path)) == {"table", "summary"}
