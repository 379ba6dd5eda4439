"""What a comparison is summed up to: lines for tables, points for plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, geometric_mean, stdev
from typing import Any, Final, Literal

from attrs import asdict, field, frozen

from hetcache.comparison.results.folder import Row
from hetcache.running.specs import REFERENCE

__all__ = [
    "FIDELITY",
    "Line",
    "MetricSummary",
    "Ratio",
    "Refusal",
    "Setting",
    "Speed",
    "Spread",
    "Summary",
]

FIDELITY: Final = "psnr_uncached_mask"
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
        metrics: By the names of ``METRICS``.
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

    @property
    def fidelity(self) -> float | None:
        """Mean PSNR to uncached in the mask in dB; infinite where every video is identical."""
        metric = self.metrics.get(FIDELITY, MetricSummary())
        if metric.spread is not None:
            return metric.spread.mean
        return math.inf if metric.identical else None

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
class Summary:
    """Everything that the tables and plots of a comparison are made of.

    Attributes:
        lines: In the order of their first rows.
        refused: Likewise.
    """

    lines: tuple[Line, ...]
    refused: tuple[Refusal, ...]

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Models and sizes, in the order of their first rows: one table each."""
        used = [line.setting for line in self.lines]
        used += [refusal.setting for refusal in self.refused]
        return tuple(dict.fromkeys(used))

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
        }
