"""What do a full, a partial and a reused step cost, in seconds and in FLOPs?

Runs the library's own loop, without a session and with each share of active tokens, in alternation; in a
session full, partial and reused steps follow one another:

    python benchmarks/step_cost.py --output benchmarks/results/step-cost.csv

The shares are of a full step of the bare pipeline. `efficiency` is the share of FLOPs over the share of
seconds: at 1 all that is saved on paper is saved on the clock.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Final

from attrs import define, field, frozen
from harness import Benchmark, Better, Bound, Report, Row, Watched, alternate, at_most, main, option
from harness.loads import ModelOptions, steps_policy
from harness.options import choices, shares
from harness.subjects import Denoised, Subject

from hetcache_core import KVMode, Mode

TURN: Final = (Mode.FULL, Mode.PARTIAL, Mode.REUSE)
TURNS: Final = 2
"""Turns in one run. A full step before them warms up, and one after them is the last, which keeps nothing."""

REUSE_LIMIT: Final = 0.01
PARTIAL_LIMIT: Final = 1.10
"""Of seconds share over FLOPs share. Both are issue 5's."""


@frozen(kw_only=True)
class StepCostOptions(ModelOptions):
    """Options of this benchmark."""

    shares: tuple[float, ...] = option(
        tuple(tenth / 10 for tenth in range(1, 11)),
        doc="shares of active tokens, by commas",
        parse=shares,
    )
    keys: tuple[str, ...] = option(
        ("pruned", "cached"),
        doc="keys that active tokens see, by commas",
        parse=choices(*(mode.value for mode in KVMode)),
    )


@define(eq=False)
class _Samples:
    """What was seen of one kind of step."""

    laps_s: list[float] = field(factory=list)
    flops: int = 0
    peak_mib: float = 0.0

    def add(self, lap_s: float, flops: int, peak_mib: float) -> None:
        self.laps_s.append(lap_s)
        self.flops, self.peak_mib = flops, max(self.peak_mib, peak_mib)


def run(options: StepCostOptions) -> Report:
    """Measure every model."""
    rows: list[Row] = []
    bounds: list[Bound] = []
    for subject in options.subjects():
        found = _measured(subject, options)
        rows += found
        bounds += _bounds(f"{subject.name} {subject.size}", found)
    return Report(rows=rows, bounds=bounds)


def _measured(subject: Subject, options: StepCostOptions) -> list[Row]:
    calls: dict[tuple[str, float], Callable[[], Denoised]] = {
        ("", 1.0): lambda: subject.denoise(1 + TURNS)
    }
    for keys in options.keys:
        for share in options.shares:
            policy = steps_policy(*TURN, share=share, keys=KVMode(keys))
            calls[keys, share] = partial(subject.denoise, len(TURN) * TURNS + 2, policy)
    subject.denoise(2)
    runs = alternate(calls, options.repeats, warm_up=False)
    samples: dict[tuple[str, str, float], _Samples] = defaultdict(_Samples)
    tokens, full_flops = 0, 0
    for (keys, share), done in runs.items():
        for each in done:
            if each.trace is None:
                for lap in each.laps_s[1:]:
                    samples["bare", "", 1.0].add(lap, 0, each.peak_mib)
                continue
            for record, lap in list(zip(each.trace.records, each.laps_s, strict=True))[1:-1]:
                tokens, full_flops = record.tokens, record.flops_full
                place = (keys, share) if record.mode is Mode.PARTIAL else (keys, 1.0)
                place = ("", 0.0) if record.mode is Mode.REUSE else place
                samples[(record.mode.value, *place)].add(lap, record.flops, each.peak_mib)
    bare = samples["bare", "", 1.0]
    bare.flops, full_s = full_flops, median(bare.laps_s)
    return [
        {
            "backbone": subject.name,
            "scale": subject.scale,
            "size": str(subject.size),
            "tokens": tokens,
            "step": step,
            "keys": keys,
            "share": share,
            "seconds": median(seen.laps_s),
            "TFLOP": seen.flops / 1e12,
            "seconds share": median(seen.laps_s) / full_s,
            "FLOPs share": seen.flops / full_flops,
            "efficiency": seen.flops / full_flops * full_s / median(seen.laps_s),
            "peak MiB": seen.peak_mib,
        }
        for (step, keys, share), seen in samples.items()
    ]


def _bounds(where: str, rows: list[Row]) -> list[Bound]:
    partials = [1 / float(row["efficiency"] or 0) for row in rows if row["step"] == "partial"]
    reused = [float(row["seconds share"] or 0) for row in rows if row["step"] == "reuse"]
    return [
        *(at_most(f"reused step / full step, {where}", share, REUSE_LIMIT) for share in reused),
        at_most(
            f"seconds share / FLOPs share of partial steps, worst, {where}",
            max(partials),
            PARTIAL_LIMIT,
        ),
        at_most(
            f"seconds share / FLOPs share of partial steps, median, {where}",
            median(partials),
            PARTIAL_LIMIT,
        ),
    ]


BENCHMARK: Final = Benchmark(
    name="step_cost",
    question="What do a full, a partial and a reused step cost, in seconds and in FLOPs?",
    options=StepCostOptions,
    run=run,
    keys=("backbone", "scale", "size", "step", "keys", "share"),
    watched={
        "seconds share": Watched(better=Better.LOWER, floor=0.01),
        "FLOPs share": Watched(better=Better.SAME, floor=0.001),
    },
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
