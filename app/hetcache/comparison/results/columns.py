"""Columns of a comparison's table, the same on paper, in the terminal and in the browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from attrs import frozen

from hetcache.comparison.results.summary import Line, MetricSummary, Ratio, Spread, Summary
from hetcache.quality.metric import MetricColumn

__all__ = ["Column", "columns_of_table", "footnotes", "method"]

Better = Literal["higher", "lower", ""]


@frozen(kw_only=True)
class Column:
    """One column.

    Attributes:
        name: A name for it: letters, digits and "_".
        title: What is written above it, with the unit.
        kind: Whether it says what a policy cost or how good its output is.
        better: Whether higher or lower values are better, or "".
        text: Writes a line's cell.
        number: What a line is sorted by; None where it has no value.
    """

    name: str
    title: str
    kind: Literal["cost", "quality"] = "cost"
    better: Better = ""
    text: Callable[[Line], str]
    number: Callable[[Line], float | None]


def method(line: Line) -> str:
    """Return what a line is called: the policy and its variant, or "uncached"."""
    return "uncached" if line.is_reference else line.label


def _spread(values: Spread, form: str, scale: float = 1.0, std_form: str = "") -> str:
    mean = format(values.mean / scale, form)
    return mean if not values.std else f"{mean} ± {format(values.std / scale, std_form or form)}"


def _ratio(ratio: Ratio | None) -> str:
    return "no uncached run" if ratio is None else f"{ratio.value:.2f}x"


def _modes(line: Line) -> str:
    return " / ".join(f"{round(count, 1):g}" for count in line.mode_counts.values())


def _metric_text(metric: MetricSummary, digits: int) -> str:
    """Write a metric: its value, or why there is none, and of how many videos that holds."""
    reasons = {"identical": metric.identical, **metric.missing}
    reasons = {reason: count for reason, count in reasons.items() if count}
    total = sum(reasons.values()) + (metric.spread.count if metric.spread else 0)
    if metric.spread is None and len(reasons) <= 1:
        return next(iter(reasons), "")
    counted = ", ".join(f"{count} of {total} {reason}" for reason, count in reasons.items())
    if metric.spread is None:
        return counted
    value = _spread(metric.spread, f".{digits}f")
    return f"{value} ({counted})" if counted else value


def _quality(column: MetricColumn) -> Column:
    def text(line: Line) -> str:
        if line.is_reference and column.against == "reference":
            return "reference"
        return _metric_text(line.metrics[column.name], column.metric.digits)

    return Column(
        name=column.name,
        title=column.heading,
        kind="quality",
        better=column.better,
        text=text,
        number=lambda line: line.value(column),
    )


def columns_of_table(summary: Summary) -> tuple[Column, ...]:
    """Return all columns but the first, which is the method."""
    return (*COSTS, *(_quality(column) for column in summary.columns))


COSTS: Final = (
    Column(
        name="steps",
        title="steps",
        text=lambda line: str(line.steps),
        number=lambda line: line.steps,
    ),
    Column(
        name="modes",
        title="full / partial / reused",
        better="lower",
        text=_modes,
        number=lambda line: line.mode_counts["f"] + line.mode_counts["p"] / 2,
    ),
    Column(
        name="tflops",
        title="TFLOPs",
        better="lower",
        text=lambda line: _spread(line.flops, ".4g", 1e12, ".2g"),
        number=lambda line: line.flops.mean,
    ),
    Column(
        name="denoise_seconds",
        title="denoising, s",
        better="lower",
        text=lambda line: _spread(line.denoise_seconds, ".2f"),
        number=lambda line: line.denoise_seconds.mean,
    ),
    Column(
        name="total_seconds",
        title="total, s",
        better="lower",
        text=lambda line: _spread(line.total_seconds, ".2f"),
        number=lambda line: line.total_seconds.mean,
    ),
    Column(
        name="clock_speedup",
        title="speed-up, clock",
        better="higher",
        text=lambda line: _ratio(line.clock_speedup),
        number=lambda line: line.speedup("clock"),
    ),
    Column(
        name="flops_speedup",
        title="speed-up, FLOPs",
        better="higher",
        text=lambda line: _ratio(line.flops_speedup),
        number=lambda line: line.speedup("flops"),
    ),
    Column(
        name="efficiency",
        title="clock / FLOPs",
        better="higher",
        text=lambda line: "" if line.efficiency is None else f"{line.efficiency:.2f}",
        number=lambda line: line.efficiency,
    ),
    Column(
        name="cache_mib",
        title="cache, MiB",
        better="lower",
        text=lambda line: f"{line.peak_cache_bytes / 2**20:.1f}",
        number=lambda line: line.peak_cache_bytes,
    ),
    Column(
        name="cases",
        title="clips x seeds",
        text=lambda line: str(line.cases),
        number=lambda line: line.cases,
    ),
    Column(
        name="runs",
        title="runs",
        text=lambda line: str(line.runs),
        number=lambda line: line.runs,
    ),
)
"""What every policy cost."""

HOW_AVERAGED: Final = (
    "FLOPs, seconds and metrics: the median over repetitions of one clip and seed, then mean "
    "± sample standard deviation over clips and seeds. Cache: the most that any run stored."
)
HOW_DIVIDED: Final = (
    "Speed-up on the clock: uncached seconds of denoising over those of the policy, of the same "
    "clip, seed and repetition; in FLOPs: those without caching over those computed. The median "
    "over repetitions, then the geometric mean over clips and seeds."
)


def footnotes(summary: Summary) -> list[str]:
    """Return the sentences that belong below a comparison's tables.

    Args:
        summary: What the tables show.
    """
    of_metrics = (column.metric.footnote for column in summary.columns)
    noted = {
        f"{column.label} of {method(line)}: {line.metrics[column.name].note}."
        for line in summary.lines
        for column in summary.columns
        if line.metrics[column.name].note
    }
    return [
        HOW_AVERAGED,
        HOW_DIVIDED,
        *dict.fromkeys(filter(None, of_metrics)),
        *sorted(noted),
    ]
