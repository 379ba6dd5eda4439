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
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean, median
from typing import Final

from hetcache.comparison.results.folder import Results, Row, RowKey
from hetcache.comparison.results.lines import (
    Line,
    MetricSummary,
    Ratio,
    Refusal,
    Setting,
    Speed,
    Spread,
    Summary,
)
from hetcache.quality.types import METRICS
from hetcache.running.specs import REFERENCE

__all__ = ["IDENTICAL", "front", "summarize"]

IDENTICAL: Final = "identical"
"""Note of a PSNR that does not exist because no value differs."""

FEATURES: Final = "features.npy"
"""Features of a video for VFID, in the folder of its run, and of a truth in that of its clip."""


def summarize(results: Results) -> Summary:
    """Sum up the rows of a comparison.

    Args:
        results: The comparison's folder.

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
    return Summary(
        lines=tuple(
            _line(group, references, results)
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


def front(lines: Iterable[Line], speed: Speed = "flops") -> list[Line]:
    """Return the lines than which no other is both faster and closer to uncached.

    Args:
        lines: Any lines; the uncached one, and those without both values, are left out.
        speed: Which speed-up counts.

    Returns:
        The Pareto front, slowest first.
    """
    points = [
        (gain, closeness, line)
        for line in lines
        if not line.is_reference
        and (gain := line.speedup(speed)) is not None
        and (closeness := line.fidelity) is not None
    ]
    best = -math.inf
    found = []
    for _, closeness, line in sorted(points, key=lambda point: (point[0], point[1]), reverse=True):
        if closeness > best:
            best = closeness
            found.append(line)
    return found[::-1]


def _setting(key: RowKey) -> Setting:
    return Setting(
        backbone=key.backbone,
        model=key.model,
        frames=key.frames,
        height=key.height,
        width=key.width,
    )


def _line(rows: list[Row], references: Mapping[RowKey, Row], results: Results) -> Line:
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

    metrics = {name: _metric(name, groups) for name in METRICS if METRICS[name].level == "clip"}
    metrics |= {"vfid": _vfid(groups, results)}
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
        metrics={name: metrics[name] for name in METRICS},
        rows=tuple(rows),
    )


def _clock(row: Row, references: Mapping[RowKey, Row]) -> float | None:
    """Divide the uncached seconds of the same clip, seed and repetition by those of a run."""
    reference = references.get(row.key.reference())
    if reference is None or reference.status != "ok" or row.denoise_seconds <= 0:
        return None
    return reference.denoise_seconds / row.denoise_seconds


def _metric(name: str, groups: list[list[Row]]) -> MetricSummary:
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


def _vfid(groups: list[list[Row]], results: Results) -> MetricSummary:
    """Measure one distance for all videos of a line, the first repetition of each."""
    keys = [group[0].key for group in groups]
    known = {key.clip for key in keys if (results.clip_folder(key.clip) / FEATURES).exists()}
    judged = [results.run_folder(key) / FEATURES for key in keys if key.clip in known]
    if not all((results.run_folder(key) / FEATURES).exists() for key in keys):
        return MetricSummary(missing={f"needs {METRICS['vfid'].needs}": len(keys)})
    untold = {"no ground truth": len(keys) - len(judged)} if len(judged) < len(keys) else {}
    if not judged:
        return MetricSummary(missing=untold)

    import numpy as np

    from hetcache.quality.measure import frechet_distance

    true = [results.clip_folder(clip) / FEATURES for clip in sorted(known)]
    one, other = (np.stack([np.load(path) for path in paths]) for paths in (judged, true))  # (n, D)
    found = frechet_distance(one, other)
    if found.value is None:
        return MetricSummary(missing={**untold, found.note: len(judged)})
    spread = Spread(mean=found.value, std=None, count=len(judged))
    return MetricSummary(spread=spread, missing=untold, note=found.note)
