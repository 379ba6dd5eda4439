"""Rows of a comparison, summed up: what is averaged over what, and what is never made up."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import stdev

import numpy as np
import pytest
from attrs import evolve

pytest.importorskip("rich")

from hetcache.comparison.results.folder import Results, Row, RowKey
from hetcache.comparison.results.summary import MetricSummary, Spread, Summary, front
from hetcache.comparison.results.summary import summarize as sum_up
from hetcache.quality.metric import columns_of, find_metrics
from hetcache_core import discover

METRICS = find_metrics(discover())
FEATURES = "features.npy"


KEY = RowKey(
    backbone="tiny-vace", clip="a", seed=0, policy="teacache", variant="fast", steps=4,
    frames=9, height=64, width=96,
)  # fmt: skip
ROW = Row(
    key=KEY, modes="ffrr", flops=50, flops_full=100, denoise_seconds=2.0, total_seconds=3.0,
    peak_cache_bytes=7, metrics={"psnr_reference_mask": 40.0, "ssim_reference": 0.9},
)  # fmt: skip


def summarize(results: Results) -> Summary:
    return sum_up(results, METRICS)


def uncached(row: Row, seconds: float) -> Row:
    key = row.key.reference()
    return Row(
        key=key, modes="ffff", flops=100, flops_full=100, denoise_seconds=seconds, total_seconds=9
    )


def changed(row: Row, *, key: dict[str, object] | None = None, **values: object) -> Row:
    return evolve(row, key=evolve(row.key, **(key or {})), **values)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(folder=tmp_path / "results")


def fill(results: Results, *rows: Row) -> Results:
    for row in rows:
        results.append(row)
    return results


def test_repetitions_give_their_median_and_clips_and_seeds_the_mean_of_these(
    results: Results,
) -> None:
    fast = [
        changed(ROW, key={"repeat": repeat}, denoise_seconds=seconds)
        for repeat, seconds in enumerate((2.0, 100.0, 3.0))  # median 3
    ]
    other = changed(ROW, key={"seed": 1}, denoise_seconds=5.0)
    (line,) = summarize(fill(results, *fast, other)).lines
    assert line.denoise_seconds == Spread(mean=4.0, std=stdev([3.0, 5.0]), count=2)
    assert (line.cases, line.runs, line.clips) == (2, 4, ("a",))


def test_the_speedup_on_the_clock_pairs_runs_of_one_clip_seed_and_repetition(
    results: Results,
) -> None:
    rows = []
    for seed, ratios in ((0, (2.0, 4.0, 50.0)), (1, (9.0,))):  # medians 4 and 9
        for repeat, ratio in enumerate(ratios):
            row = changed(ROW, key={"seed": seed, "repeat": repeat}, denoise_seconds=1.0 + repeat)
            rows += [row, uncached(row, ratio * (1.0 + repeat))]
    lines = summarize(fill(results, *rows)).lines
    line = next(line for line in lines if not line.is_reference)
    assert line.clock_speedup is not None
    assert line.clock_speedup.value == pytest.approx(math.sqrt(4 * 9))
    assert (line.clock_speedup.low, line.clock_speedup.high) == (4.0, 9.0)
    assert line.speedup("flops") == pytest.approx(2.0)
    assert line.efficiency == pytest.approx(3.0)


def test_without_an_uncached_run_there_is_no_speedup_on_the_clock(results: Results) -> None:
    (line,) = summarize(fill(results, ROW)).lines
    assert line.clock_speedup is None
    assert line.efficiency is None
    assert line.flops_speedup is not None


def test_identical_videos_are_counted_and_left_out_of_the_mean(results: Results) -> None:
    same = changed(
        ROW,
        key={"clip": "b"},
        metrics={"psnr_reference_mask": None},
        metric_notes={"psnr_reference_mask": "identical"},
    )
    summary = summarize(fill(results, ROW, same))
    (line,) = summary.lines
    found = line.metrics["psnr_reference_mask"]
    assert found == MetricSummary(spread=Spread(mean=40.0, std=None, count=1), identical=1)
    assert found.partly
    assert summary.fidelity is not None
    assert line.value(summary.fidelity) == 40.0


def test_a_line_of_identical_videos_is_infinitely_close(results: Results) -> None:
    row = changed(ROW, metrics={}, metric_notes={"psnr_reference_mask": "identical"})
    summary = summarize(fill(results, row))
    (line,) = summary.lines
    assert summary.fidelity is not None
    assert line.value(summary.fidelity) == math.inf
    assert line.metrics["psnr_reference_mask"].spread is None


def test_a_value_that_does_not_exist_keeps_its_reason(results: Results) -> None:
    row = changed(ROW, metric_notes={"lpips_reference": "needs --lpips FILE"})
    nan = changed(ROW, key={"seed": 1}, metrics={"ssim_reference": math.nan})
    (line,) = summarize(fill(results, row, nan)).lines
    assert line.metrics["lpips_reference"].missing == {"needs --lpips FILE": 1, "not measured": 1}
    assert line.metrics["ssim_reference"].spread == Spread(mean=0.9, std=None, count=1)
    assert line.metrics["vfid"].missing == {"needs --video-features FILE": 2}
    assert tuple(line.metrics) == tuple(column.name for column in columns_of(METRICS))


def save_features(folder: Path, values: list[float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / FEATURES, np.asarray(values))


def test_vfid_is_one_distance_over_all_videos_of_a_line(results: Results) -> None:
    pytest.importorskip("torchmetrics")
    rows = [changed(ROW, key={"clip": clip}) for clip in "abcd"]
    for number, row in enumerate(rows):
        save_features(results.run_folder(row.key), [float(number), 0.0])
        save_features(results.clip_folder(row.key.clip), [float(number), 3.0])
    (line,) = summarize(fill(results, *rows)).lines
    found = line.metrics["vfid"]
    assert found.spread is not None
    assert found.spread.mean == pytest.approx(9.0, abs=1e-4)  # equal but for a shift by 3
    assert found.spread.count == 4


def test_vfid_leaves_clips_without_a_truth_out_and_counts_them(results: Results) -> None:
    pytest.importorskip("torchmetrics")
    rows = [changed(ROW, key={"clip": clip}) for clip in "abc"]
    for number, row in enumerate(rows):
        save_features(results.run_folder(row.key), [float(number), 0.0])
    assert summarize(fill(results, *rows)).lines[0].metrics["vfid"].missing == {
        "no ground truth": 3
    }
    for number, clip in enumerate("ab"):
        save_features(results.clip_folder(clip), [float(number), 2.0])
    found = summarize(results).lines[0].metrics["vfid"]
    assert found.spread is not None
    assert found.spread.mean == pytest.approx(4.0, abs=1e-4)
    assert found.spread.count == 2
    assert found.missing == {"no ground truth": 1}
    assert found.note == "2 clips for 2 features"


def test_vfid_of_a_single_video_is_not_made_up(results: Results) -> None:
    pytest.importorskip("torchmetrics")
    save_features(results.run_folder(KEY), [1.0, 2.0])
    save_features(results.clip_folder("a"), [1.0, 2.0])
    (line,) = summarize(fill(results, ROW)).lines
    assert line.metrics["vfid"].missing == {"needs 2 clips": 1}


def test_refused_runs_are_listed_with_their_reason_and_in_no_line(results: Results) -> None:
    refused = [
        Row(key=evolve(KEY, policy="fbcache", seed=seed), status="refused", note="no blocks")
        for seed in (0, 1)
    ]
    other = evolve(refused[0], key=evolve(refused[0].key, seed=2), note="too large")
    summary = summarize(fill(results, ROW, *refused, other))
    assert [line.policy for line in summary.lines] == ["teacache"]
    assert [str(refusal) for refusal in summary.refused] == [
        "fbcache fast, 4 steps, 2 runs: no blocks", "fbcache fast, 4 steps, 1 run: too large",
    ]  # fmt: skip


def test_lines_are_parted_by_variant_steps_model_and_size(results: Results) -> None:
    keys: list[dict[str, object]] = [
        {},
        {"variant": ""},
        {"steps": 5},
        {"model": "m"},
        {"width": 1},
    ]
    summary = summarize(fill(results, *(changed(ROW, key=key) for key in keys)))
    assert len(summary.lines) == 5
    assert len(summary.settings) == 3


def test_a_run_that_was_done_twice_counts_once_with_its_last_row(results: Results) -> None:
    (line,) = summarize(fill(results, ROW, changed(ROW, denoise_seconds=4.0))).lines
    assert (line.runs, line.denoise_seconds.mean) == (1, 4.0)


def test_a_table_starts_with_the_uncached_run_and_goes_on_by_speedup(results: Results) -> None:
    rows = [changed(ROW, key={"variant": f"{x}"}, flops=100 // x) for x in (5, 2, 4)]
    summary = summarize(fill(results, *rows, uncached(ROW, 4.0)))
    (setting,) = summary.settings
    assert [line.label for line in summary.at(setting)] == [
        "none", "teacache 2", "teacache 4", "teacache 5",
    ]  # fmt: skip


def test_the_front_holds_what_nothing_else_beats_in_both(results: Results) -> None:
    points = {"a": (1, 50.0), "b": (2, 45.0), "c": (2, 40.0), "d": (4, 44.0), "e": (3, 30.0)}
    points["equal to d"] = points["d"]
    rows = [
        changed(
            ROW,
            key={"variant": name},
            flops=100 // speed,
            flops_full=100,
            metrics={"psnr_reference_mask": db},
        )
        for name, (speed, db) in points.items()
    ]
    summary = summarize(fill(results, *rows, uncached(ROW, 4.0)))
    best = [line.variant for line in front(summary.lines, summary.fidelity)]
    assert best[:2] == ["a", "b"]
    assert sorted(best[2:]) == ["d", "equal to d"]
    by_clock = front(
        summary.lines, summary.fidelity, "clock"
    )  # all took equally long: the closest is left
    assert [line.variant for line in by_clock] == ["a"]


def test_the_summary_of_nothing_is_empty(results: Results) -> None:
    summary = summarize(results)
    assert (summary.lines, summary.refused, summary.settings) == ((), (), ())
