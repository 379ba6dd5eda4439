"""Spectrum: Chebyshev polynomials over the run, fitted to what was computed at ever wider gaps.

A polynomial that is fitted to all of a run that is known gets better with every computed step, so the gap to
the next one may grow by a constant each time. What stands in for a reused step is the fit's value
(``Chebyshev``).

Source: Spectrum (CVPR 2026, arXiv:2603.01623) and its reference code. Different from that code: it is the
trunk's residual that is fitted, its last six values, and the difference to the last of them; the last
step runs in full; and the fit is not mixed with a line, which the authors recommend since.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Final, final

from attrs import define, field, frozen

from hetcache_core import (
    CachePolicy,
    Decision,
    Guards,
    Mode,
    ModelInfo,
    PolicyRecipe,
    Predictor,
    RunInfo,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
    piece,
    setting,
)
from hetcache_policies.shared.predictors import Chebyshev

__all__ = ["GrowingSteps", "Spectrum"]

WINDOW, GROWTH = 2.0, 0.75
"""Source: Spectrum's code, the setting that it shows for FLUX.1 and HunyuanVideo."""

FIRST_STEPS: Final = 5
"""Source: the same."""

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"window": WINDOW, "growth": 0.0},
    "balanced": {"window": WINDOW, "growth": 0.25},
    "fast": {"window": WINDOW, "growth": GROWTH},
}
"""Our design: the published growth, a third of it, and none."""


@final
@frozen(kw_only=True)
class GrowingSteps(StepPolicy):
    """Computes steps at gaps that grow with each of them.

    Attributes:
        window: the first gap after the steps that guards compute, rounded down to whole steps.
        growth: what every computed step adds to it; an asked speed-up stretches both.
    """

    window: float
    growth: float

    @property
    def sigmas_only(self) -> bool:
        """Nothing of the run is looked at."""
        return True

    def begin(self, run: RunInfo) -> StepDecider:
        """Start with the first gap."""
        return _Decider(self)


@final
@define(eq=False)
class _Decider(StepDecider):
    _policy: GrowingSteps
    _last: int = field(default=0, init=False)
    _gaps: int = field(default=0, init=False)
    """How many are over."""

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        window = self._policy.window + self._policy.growth * self._gaps
        gap = max(1, math.floor(window * signals.threshold_factor))
        since = step.index - self._last
        if since >= gap or step.computed:
            return Decision(Mode.FULL, f"a gap of {gap} steps is over")
        return Decision(Mode.REUSE, f"step {since} of a gap of {gap}")

    def settle(self, step: StepInfo, mode: Mode) -> None:
        if mode is Mode.FULL:
            self._last = step.index
            self._gaps = 0 if step.computed else self._gaps + 1


@final
@frozen(kw_only=True)
class Spectrum(PolicyRecipe):
    """Settings of Spectrum."""

    name: ClassVar[str] = "spectrum"
    summary: ClassVar[str] = "predict by Chebyshev polynomials over the run, at gaps that grow"
    source: ClassVar[str] = "Spectrum, CVPR 2026, arXiv:2603.01623"
    decides_on: ClassVar[str] = "the step's index"
    default_guards: ClassVar[Guards] = Guards(first_steps=FIRST_STEPS, last_steps=1)
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = PRESETS
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.50, "balanced": 0.36, "fast": 0.28}

    window: float = setting(
        WINDOW, ge=1, doc="the first gap from one computed step to the next, in steps"
    )
    growth: float = setting(GROWTH, ge=0, doc="what every computed step adds to the gap")
    predictor: Predictor = piece(
        "predictor", Chebyshev(), doc="what stands in for what a reused step leaves out"
    )

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the step policy; it is the same for every model."""
        return CachePolicy(
            name=self.name,
            step=GrowingSteps(window=self.window, growth=self.growth),
            predictor=self.predictor,
        )
