"""The default: computed steps where the sampler moves most, and straight lines between them.

Nothing is looked at but the noise levels, so the schedule and its cost are known before the run, and it
runs on every backbone, masked or not. Two things make it better than uniform skipping at the same cost:

- *Where steps are computed.* A wrong answer at step ``i`` moves the result by the distance that the sampler
  goes with it, ``|sigma_i - sigma_i+1|``. With a shift of 5 it goes a fifth of an average step at the
  beginning and nearly five at the end. With ``n`` steps from one computed step to the next, the error of a
  straight line is about ``n**2`` times the curvature, so the sum of errors is smallest where computed steps
  lie as ``|sigma_i - sigma_i+1|**(1/3)``.
- *What stands in for a step that is not computed*: the straight line through the last two computed residuals
  instead of the last one.

Source: our design. The line is TaylorSeer's first order (arXiv:2503.06923) on the residual of the trunk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import ClassVar, Final, final

from attrs import define, field, frozen

from hetcache_core.backbone import RunInfo
from hetcache_core.policy import CachePolicy, PolicyRecipe, StepDecider, StepPolicy
from hetcache_core.settings import setting
from hetcache_core.signals import Signals
from hetcache_core.steps import Decision, Mode, ModelInfo, StepInfo
from hetcache_policies.predictors import Linear
from hetcache_policies.presets import find_preset

__all__ = ["Auto", "SpacedSteps", "positions"]

EXPONENT: Final = 1 / 3
FIRST_STEPS: Final = 1
"""Two would give a line at once, but one from the two steps that are nearest to noise and to each other: it
is worse than holding, by 3 dB at a quarter of 20 steps."""

ROUNDING: Final = 1e-9
"""A step that lies on a whole number of gaps counts as on it."""

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"every": 2.0},
    "balanced": {"every": 3.0},
    "fast": {"every": 5.0},
}
SHARES: Final[Mapping[str, float]] = {"quality": 0.50, "balanced": 0.34, "fast": 0.22}


def positions(sigmas: Sequence[float], exponent: float) -> tuple[float, ...]:
    """Return where each step lies on the way, in average steps: from 0 to less than ``S``.

    Args:
        sigmas: Noise levels of the ``S`` steps; the run ends at 0.
        exponent: Of the distances; 0 counts steps, 1 is proportional to the noise that is removed.
    """
    moved = [abs(a - b) for a, b in pairwise((*sigmas, 0.0))]
    if exponent == 0 or not all(math.isfinite(d) for d in moved) or not any(moved):
        return tuple(float(index) for index in range(len(moved)))
    weights = [distance**exponent for distance in moved]
    whole = sum(weights)
    summed = accumulate(weights[:-1], initial=0.0)
    return tuple(len(weights) * part / whole for part in summed)


@final
@frozen(kw_only=True)
class SpacedSteps(StepPolicy):
    """Computes steps at even distances along the way that the sampler goes.

    Attributes:
        every: distance of computed steps, in average steps; an asked speed-up stretches it.
        exponent: see ``positions``.
        first_steps: steps that are computed first; distances count from the last of them.
    """

    every: float
    exponent: float = EXPONENT
    first_steps: int = FIRST_STEPS

    @property
    def schedule_only(self) -> bool:
        """Nothing of the run is looked at but its noise levels."""
        return True

    def begin(self, run: RunInfo) -> StepDecider:
        """Measure the way."""
        return _Decider(self, positions(run.sigmas, self.exponent))


@final
@define(eq=False)
class _Decider(StepDecider):
    _policy: SpacedSteps
    _positions: tuple[float, ...]
    _begun: int | None = field(default=None, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        # Steps of a model that takes over in mid-run are counted from there.
        self._begun = step.index if self._begun is None else self._begun
        last_of_first = self._begun + self._policy.first_steps - 1
        if step.index <= last_of_first:
            return Decision(Mode.FULL, "first steps")
        if step.is_last:
            return Decision(Mode.FULL, "last step")
        # The first and the last step are computed in any case, with whole gaps of one size between.
        end = self._positions[-1]
        way = end - self._positions[last_of_first]
        gap = max(1.0, self._policy.every * signals.threshold_factor)
        gap = way / max(1, round(way / gap))
        left = [(end - self._positions[at]) / gap for at in (step.index - 1, step.index)]
        if math.ceil(left[0] - ROUNDING) > math.ceil(left[1] - ROUNDING):
            return Decision(Mode.FULL, f"every {gap:.3g} average steps")
        return Decision(Mode.REUSE, f"every {gap:.3g} average steps, not yet")


@final
@frozen(kw_only=True)
class Auto(PolicyRecipe):
    """Settings of the default policy."""

    name: ClassVar[str] = "auto"
    summary: ClassVar[str] = "the default: steps where the sampler moves most, lines between them"
    source: ClassVar[str] = "hetcache; the line is TaylorSeer's first order, arXiv:2503.06923"
    decides_on: ClassVar[str] = "the noise levels of the schedule"
    preset_shares: ClassVar[Mapping[str, float]] = SHARES

    every: float = setting(
        3.0, ge=1, doc="distance of computed steps, in average steps along the way of the sampler"
    )
    exponent: float = setting(
        EXPONENT,
        ge=0,
        le=1,
        doc="how much of the way a step counts for: 0 all alike, 1 by its noise",
    )
    first_steps: int = setting(FIRST_STEPS, ge=1, doc="steps always computed first")

    @classmethod
    def preset(cls, preset: str, model: ModelInfo) -> Mapping[str, object]:
        """Return the distance of computed steps; the same for every model.

        Raises:
            ConfigError: There is no such preset.
        """
        return find_preset(cls.name, preset, PRESETS)

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the policy; it is the same for every model."""
        return CachePolicy(
            name=self.name,
            step=SpacedSteps(
                every=self.every, exponent=self.exponent, first_steps=self.first_steps
            ),
            predictor=Linear(),
        )
