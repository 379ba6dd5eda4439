"""A comparison's rows, summed up: one line for every policy at a model, number of steps and size.

Three averages are taken, in this order, and every table says so:

* over repetitions of the same clip and seed: the median;
* over clips and seeds: the mean, with the sample standard deviation, and for speed-ups, which are
  ratios, the geometric mean;
* the Fréchet distance is one value for all videos of a line.

A value that does not exist is counted with its reason, and never stands in for a number: PSNR is
infinite where nothing differs, so "identical" is counted and left out of the mean.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, geometric_mean, median, stdev
from typing import Any, Final, Literal

import numpy as np
from attrs import asdict, field, frozen

from hetcache.comparison.results.folder import Results, Row, RowKey
from hetcache.quality.metric import Metric, MetricColumn, SetMetric, columns_of
from hetcache.running.specs import REFERENCE
from hetcache_core import ConfigError

__all__ = [
    "FIDELITY",
    "IDENTICAL",
    "Line",
    "MetricSummary",
    "Pairs",
    "Ratio",
    "Refusal",
    "Setting",
    "Speed",
    "Spread",
    "Summary",
    "front",
    "summarize",
]

IDENTICAL: Final = "identical"
"""Note of a PSNR that does not exist because no value differs."""

FIDELITY: Final = "psnr_reference_mask"
"""What speed-up is held against: PSNR to the uncached output, inside the mask."""

Speed = Literal["flops", "clock"]
"""Which speed-up: in FLOPs, or in seconds."""


@frozen(kw_only=True)
class Setting:
    """What all lines of one table have in common.

    Attributes:
        backbone: Name of the backbone.
        model: Checkpoint, or "" for the backbone's own.
        frames: Frames of the clips.
        height: Height that the model worked at.
        width: Width that the model worked at.
    """

    backbone: str
    model: str
    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        """Write it as the title of a table."""
        model = f" ({self.model})" if self.model else ""
        return f"{self.backbone}{model}, {self.frames} frames of {self.height}x{self.width}"


@frozen(kw_only=True)
class Spread:
    """Several values as one.

    Attributes:
        mean: Their mean.
        std: Their sample standard deviation; None of a single value.
        count: How many there are.
    """

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up at least one value."""
        std = stdev(values) if len(values) > 1 else None
        return cls(mean=fmean(values), std=std, count=len(values))


@frozen(kw_only=True)
class Ratio:
    """Several ratios as one.

    Attributes:
        value: Their geometric mean.
        low: The smallest.
        high: The largest.
        count: How many there are.
    """

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Ratio | None:
        """Sum up positive ratios; None where there are none."""
        if not values:
            return None
        return cls(
            value=geometric_mean(values), low=min(values), high=max(values), count=len(values)
        )


@frozen(kw_only=True)
class MetricSummary:
    """One metric of a line.

    Attributes:
        spread: Over the clips and seeds that have a value; None where none has.
        identical: Clips and seeds whose PSNR is infinite, because no value differs.
        missing: Why the others have none, and how many they are: "needs --lpips FILE" -> 4.
        note: What to know about the value that there is.
    """

    spread: Spread | None = None
    identical: int = 0
    missing: Mapping[str, int] = field(factory=dict)
    note: str = ""

    @property
    def partly(self) -> bool:
        """Whether some clips and seeds have a value and others have none."""
        return self.spread is not None and bool(self.identical or self.missing)


@frozen(kw_only=True)
class Line:
    """One policy at one setting.

    Attributes:
        setting: Model and size.
        policy: Name of the policy, or several joined by "+".
        variant: What sets it apart from other lines of the same policy.
        steps: Steps of the sampler that were asked for.
        target_speedup: How many times fewer FLOPs were asked for, or None.
        cases: Clips and seeds.
        runs: Finished runs, repetitions included.
        clips: Names of the clips.
        modes: One letter a step (f full, p partial, r reused), of the first clip and seed.
        mode_counts: Mean number of steps by letter.
        flops: FLOPs of the model's calls.
        denoise_seconds: From the first call of the model to the end of the last step.
        total_seconds: The whole call, encoding and decoding included.
        peak_cache_bytes: Most bytes stored at once by any run.
        clock_speedup: Uncached denoise seconds over those of this line, run by run; None where no
            uncached run was made.
        flops_speedup: FLOPs without caching over those that were computed.
        metrics: By the names of the summary's ``columns``.
        rows: The runs.
    """

    setting: Setting
    policy: str
    variant: str
    steps: int
    target_speedup: float | None
    cases: int
    runs: int
    clips: tuple[str, ...]
    modes: str
    mode_counts: Mapping[str, float]
    flops: Spread
    denoise_seconds: Spread
    total_seconds: Spread
    peak_cache_bytes: int
    clock_speedup: Ratio | None
    flops_speedup: Ratio | None
    metrics: Mapping[str, MetricSummary]
    rows: tuple[Row, ...] = field(repr=False)

    @property
    def label(self) -> str:
        """Policy and variant, as tables show them: "teacache 3x"."""
        return self.rows[0].key.label

    @property
    def is_reference(self) -> bool:
        """Whether it is what the others are held against."""
        return self.policy == REFERENCE

    @property
    def efficiency(self) -> float | None:
        """Speed-up on the clock over that in FLOPs: how much of what was saved arrives."""
        if self.clock_speedup is None or self.flops_speedup is None:
            return None
        return self.clock_speedup.value / self.flops_speedup.value

    def speedup(self, speed: Speed) -> float | None:
        """Return one of the two speed-ups."""
        ratio = self.flops_speedup if speed == "flops" else self.clock_speedup
        return None if ratio is None else ratio.value

    def value(self, column: MetricColumn) -> float | None:
        """Return the mean of a metric; the best there is where every video is identical."""
        metric = self.metrics[column.name]
        if metric.spread is not None:
            return metric.spread.mean
        if metric.identical or (self.is_reference and column.against == "reference"):
            return math.inf if column.better == "higher" else 0.0
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON; the rows are left out."""
        plain = asdict(self, filter=lambda attribute, _: attribute.name != "rows")
        return {"label": self.label, "efficiency": self.efficiency, **plain}


@frozen(kw_only=True)
class Refusal:
    """A policy that a backbone could not carry.

    Attributes:
        setting: Model and size.
        label: Policy and variant.
        steps: Steps of the sampler that were asked for.
        reason: Why.
        runs: How many runs it would have been.
    """

    setting: Setting
    label: str
    steps: int
    reason: str
    runs: int

    def __str__(self) -> str:
        """Write it as an entry of a list."""
        runs = "1 run" if self.runs == 1 else f"{self.runs} runs"
        return f"{self.label}, {self.steps} steps, {runs}: {self.reason}"


@frozen(kw_only=True)
class Pairs:
    """One policy on all models.

    Attributes:
        label: Policy and variant.
        ran: On how many models it ran.
        refused: How many refused it, by the reason, the most frequent first.
    """

    label: str
    ran: int
    refused: Mapping[str, int]

    @property
    def why(self) -> str:
        """Write the reasons as a cell."""
        return "; ".join(f"{reason} ({count})" for reason, count in self.refused.items())


@frozen(kw_only=True)
class Summary:
    """Everything that the tables and plots of a comparison are made of.

    Attributes:
        lines: In the order of their first rows.
        refused: Likewise.
        columns: What was measured.
    """

    lines: tuple[Line, ...]
    refused: tuple[Refusal, ...]
    columns: tuple[MetricColumn, ...] = ()

    @property
    def fidelity(self) -> MetricColumn | None:
        """What speed-up is held against if nothing else is said; None where it was not measured."""
        return next((column for column in self.columns if column.name == FIDELITY), None)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Models and sizes, in the order of their first rows: one table each."""
        used = [line.setting for line in self.lines]
        used += [refusal.setting for refusal in self.refused]
        return tuple(dict.fromkeys(used))

    @property
    def pairs(self) -> tuple[Pairs, ...]:
        """On how many models each policy ran; the uncached runs are left out."""
        ran = {(line.setting, line.label) for line in self.lines if not line.is_reference}
        refused = {(each.setting, each.label): _short(each.reason) for each in self.refused}
        labels = dict.fromkeys(label for _, label in (*ran, *refused))
        return tuple(
            Pairs(
                label=label,
                ran=sum(each == label for _, each in ran),
                refused=dict(
                    Counter(
                        why for (_, each), why in refused.items() if each == label
                    ).most_common()
                ),
            )
            for label in sorted(labels)
        )

    def at(self, setting: Setting, *, sort: Speed = "flops") -> list[Line]:
        """Return the lines of one table, by steps, the uncached first, then by speed-up."""
        lines = [line for line in self.lines if line.setting == setting]
        return sorted(
            lines, key=lambda line: (line.steps, not line.is_reference, line.speedup(sort) or 0.0)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON."""
        return {
            "lines": [line.to_dict() for line in self.lines],
            "refused": [asdict(refusal) for refusal in self.refused],
            "pairs": [asdict(pair) for pair in self.pairs],
        }


def summarize(results: Results, metrics: Sequence[Metric]) -> Summary:
    """Sum up the rows of a comparison.

    Args:
        results: The comparison's folder.
        metrics: What is shown of what the rows hold, as ``find_metrics`` loads them.

    Raises:
        ConfigError: A whole line of ``rows.csv`` cannot be understood.
    """
    rows = {row.key.id: row for row in results.rows()}  # a run that was done twice counts once
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows.values():
        key = row.key
        reason = row.note if row.status == "refused" else ""
        group = (_setting(key), key.policy, key.variant, key.steps, row.status, reason)
        groups.setdefault(group, []).append(row)
    references = {row.key: row for row in rows.values() if row.key.policy == REFERENCE}
    columns = columns_of(metrics)
    return Summary(
        columns=columns,
        lines=tuple(
            _line(group, references, results, columns)
            for group in groups.values()
            if group[0].status == "ok"
        ),
        refused=tuple(
            Refusal(
                setting=_setting(group[0].key),
                label=group[0].key.label,
                steps=group[0].key.steps,
                reason=group[0].note,
                runs=len(group),
            )
            for group in groups.values()
            if group[0].status == "refused"
        ),
    )


def front(lines: Iterable[Line], column: MetricColumn | None, speed: Speed = "flops") -> list[Line]:
    """Return the lines than which no other is both faster and better.

    Args:
        lines: Any lines; the uncached one, and those without both values, are left out.
        column: What "better" is; without one, nothing is.
        speed: Which speed-up counts.

    Returns:
        The Pareto front, slowest first.
    """
    if column is None:
        return []
    sign = 1 if column.better == "higher" else -1
    points = [
        (gain, sign * value, line)
        for line in lines
        if not line.is_reference
        and (gain := line.speedup(speed)) is not None
        and (value := line.value(column)) is not None
    ]
    best, fastest, found = -math.inf, -math.inf, []
    for gain, value, line in sorted(points, key=lambda point: (point[0], point[1]), reverse=True):
        if value > best or (gain, value) == (fastest, best):  # equal ones are both on it
            best, fastest = value, gain
            found.append(line)
    return found[::-1]


def _short(reason: str) -> str:
    """Take from a refusal what it is: its first sentence, without the names of what is paired."""
    sentence = reason.split(". ", maxsplit=1)[0].rstrip(".")
    return re.sub(
        r"^(Policy '[^']+' cannot run on backbone '[^']+', which |backbone [^:]+: )", "", sentence
    )


def _setting(key: RowKey) -> Setting:
    return Setting(
        backbone=key.backbone,
        model=key.model,
        frames=key.frames,
        height=key.height,
        width=key.width,
    )


def _line(
    rows: list[Row],
    references: Mapping[RowKey, Row],
    results: Results,
    columns: Iterable[MetricColumn],
) -> Line:
    key = rows[0].key
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row.key.case_id, []).append(row)
    groups = list(cases.values())

    def spread(value: Callable[[Row], float]) -> Spread:
        return Spread.of([median(map(value, group)) for group in groups])

    def ratio(value: Callable[[Row], float | None]) -> Ratio | None:
        found = ([v for row in group if (v := value(row)) is not None] for group in groups)
        return Ratio.of([median(values) for values in found if values])

    return Line(
        setting=_setting(key),
        policy=key.policy,
        variant=key.variant,
        steps=key.steps,
        target_speedup=rows[0].target_speedup,
        cases=len(groups),
        runs=len(rows),
        clips=tuple(dict.fromkeys(row.key.clip for row in rows)),
        modes=rows[0].modes,
        mode_counts={
            letter: fmean(group[0].modes.count(letter) for group in groups) for letter in "fpr"
        },
        flops=spread(lambda row: row.flops),
        denoise_seconds=spread(lambda row: row.denoise_seconds),
        total_seconds=spread(lambda row: row.total_seconds),
        peak_cache_bytes=max(row.peak_cache_bytes for row in rows),
        clock_speedup=ratio(lambda row: _clock(row, references)),
        flops_speedup=ratio(lambda row: row.flops_full / row.flops if row.flops else None),
        metrics={
            column.name: _of_set(column.metric, groups, results)
            if isinstance(column.metric, SetMetric)
            else _of_clips(column.name, groups)
            for column in columns
        },
        rows=tuple(rows),
    )


def _clock(row: Row, references: Mapping[RowKey, Row]) -> float | None:
    """Divide the uncached seconds of the same clip, seed and repetition by those of a run."""
    reference = references.get(row.key.reference())
    if reference is None or reference.status != "ok" or row.denoise_seconds <= 0:
        return None
    return reference.denoise_seconds / row.denoise_seconds


def _of_clips(name: str, groups: list[list[Row]]) -> MetricSummary:
    values: list[float] = []
    reasons: Counter[str] = Counter()
    for group in groups:
        found = [row.metrics.get(name) for row in group]
        finite = [value for value in found if value is not None and math.isfinite(value)]
        if finite:
            values.append(median(finite))
        else:
            reasons[group[0].metric_notes.get(name, "") or "not measured"] += 1
    identical = reasons.pop(IDENTICAL, 0)
    return MetricSummary(
        spread=Spread.of(values) if values else None, identical=identical, missing=dict(reasons)
    )


def _of_set(metric: SetMetric, groups: list[list[Row]], results: Results) -> MetricSummary:
    """Measure one distance for all videos of a line, the first repetition of each."""
    keys = [group[0].key for group in groups]
    known = {key.clip for key in keys if (results.clip_folder(key.clip) / metric.file).exists()}
    with_truth = [key for key in keys if key.clip in known]
    if not all((results.run_folder(key) / metric.file).exists() for key in keys):
        return MetricSummary(missing={f"needs {metric.needs}": len(keys)})
    untold = {"no ground truth": len(keys) - len(with_truth)} if len(with_truth) < len(keys) else {}
    if not with_truth:
        return MetricSummary(missing=untold)
    judged = [results.features(metric.file, key=key) for key in with_truth]
    true = [results.features(metric.file, clip=clip) for clip in sorted(known)]
    if len({vector.shape for vector in (*judged, *true)}) > 1:
        raise ConfigError(
            f"the files {metric.file} in {results.folder} hold different numbers of features",
            remedy="Delete them with their lines in rows.csv, and `hetcache compare --resume` makes "
            "them again.",
        )
    one, other = np.stack(judged), np.stack(true)  # (n, D)
    found = metric.distance(one, other)
    if found.value is None:
        return MetricSummary(missing={**untold, found.note: len(judged)})
    spread = Spread(mean=found.value, std=None, count=len(judged))
    return MetricSummary(spread=spread, missing=untold, note=found.note)
