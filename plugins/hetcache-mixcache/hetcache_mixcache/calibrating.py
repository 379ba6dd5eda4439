"""Thresholds of the interval, measured on reference runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, final

import torch
from attrs import define, field, frozen
from torch import Tensor

from hetcache_core import (
    CachePolicy,
    Calibrator,
    ConfigError,
    Decision,
    Mode,
    RunInfo,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
    relative_l1,
)
from hetcache_mixcache.interval import QUANTILES

__all__ = ["IntervalCalibrator"]

WATCHING: Final = Decision(Mode.FULL, "calibrating")


@final
@define(eq=False)
class IntervalCalibrator(Calibrator):
    """Measures how far the model's output moves in a step.

    The impacts of the three ways stay as they are set: measuring them takes runs with noise added at
    each of them.
    """

    _deviations: list[float] = field(factory=list, init=False)

    def watch(self) -> CachePolicy:
        """Return the policy that looks on."""
        return CachePolicy(name="calibrating", step=_Watch(self._deviations))

    def result(self) -> Mapping[str, Any]:
        """Return both thresholds and how many changes they sum up.

        Raises:
            ConfigError: no run was watched.
        """
        if not self._deviations:
            raise ConfigError(
                "no run of at least two steps was watched",
                where="calibration",
                remedy="Run whole clips.",
            )
        seen = torch.tensor(self._deviations)
        low, high = (float(seen.quantile(share)) for share in QUANTILES)
        return {"low": low, "high": high, "changes": len(self._deviations)}


@final
@frozen(eq=False)
class _Watch(StepPolicy):
    deviations: list[float]

    def begin(self, run: RunInfo) -> StepDecider:
        return _Decider(self.deviations)


@final
@define(eq=False)
class _Decider(StepDecider):
    _deviations: list[float]
    _changes: list[Tensor] = field(factory=list, init=False)
    _last: Tensor | None = field(default=None, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        return WATCHING

    def output(self, step: StepInfo, latents: Tensor, output: Tensor) -> None:
        if self._last is not None:
            self._changes.append(relative_l1(output, self._last))
        self._last = output
        if step.is_last and self._changes:
            self._deviations.extend(torch.stack(self._changes).tolist())
