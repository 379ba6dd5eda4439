"""Uniform skipping: every n-th step runs, the others reuse the trunk's residual.

It looks at nothing, so its schedule is known before the run. It is the floor that others are measured
against: a method that decides by a signal has to beat it at the same share of computed steps.

Source: DeepCache (CVPR 2024, arXiv:2312.00858), section 3.3, has this schedule ("1:N inference"); here, as
in Delta-DiT (arXiv:2406.01125), it is the residual that is reused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Final, final

from attrs import frozen

from hetcache_core import (
    CachePolicy,
    Decision,
    Mode,
    ModelInfo,
    PolicyRecipe,
    RunInfo,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
    setting,
)
from hetcache_policies.shared.presets import find_preset

__all__ = ["EveryNth", "UniformSteps", "first_part"]

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"every": 2},
    "balanced": {"every": 3},
    "fast": {"every": 4},
}
"""About 50, 36 and 28 % of the steps, the last one included."""


def first_part(share: float, steps: int) -> int:
    """Return how many steps the first part of a run has; at least one."""
    return max(1, math.floor(share * steps))


@final
@frozen(kw_only=True)
class UniformSteps(StepPolicy):
    """Computes every n-th step.

    Attributes:
        every: distance ``n`` of computed steps; an asked speed-up stretches it.
        first_steps: steps that are computed first; the distance counts from the last of them.
        force_last: whether the last step is computed.
    """

    every: int
    first_steps: int = 1
    force_last: bool = True

    @property
    def schedule_only(self) -> bool:
        """Nothing of the run is looked at."""
        return True

    def begin(self, run: RunInfo) -> StepDecider:
        """Make the decider, which has no state."""
        return _Decider(self)

    def decision(self, index: int, steps: int, stretch: float = 1.0) -> Decision:
        """Say what a step does.

        Args:
            index: the step.
            steps: steps ``S`` of the run.
            stretch: what the distance is multiplied with.
        """
        if index < self.first_steps:
            return Decision(Mode.FULL, "first steps")
        if self.force_last and index == steps - 1:
            return Decision(Mode.FULL, "last step")
        gap, since = max(1.0, self.every * stretch), index - self.first_steps + 1
        if math.floor(since / gap) > math.floor((since - 1) / gap):
            return Decision(Mode.FULL, f"every {gap:.3g} steps")
        return Decision(Mode.REUSE, f"every {gap:.3g} steps, not yet")


@final
@frozen
class _Decider(StepDecider):
    _policy: UniformSteps

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        return self._policy.decision(step.index, step.total, signals.threshold_factor)


@final
@frozen(kw_only=True)
class EveryNth(PolicyRecipe):
    """Settings of uniform skipping."""

    name: ClassVar[str] = "every-nth"
    summary: ClassVar[str] = "compute every n-th step: the floor that every signal has to beat"
    source: ClassVar[str] = "DeepCache, CVPR 2024, arXiv:2312.00858 (1:N inference)"
    decides_on: ClassVar[str] = "the step's index"
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.50, "balanced": 0.36, "fast": 0.28}

    every: int = setting(2, ge=1, doc="every n-th step is computed; 1 computes all")
    first_steps: int = setting(1, ge=1, doc="steps always computed first")
    force_last: bool = setting(True, doc="always compute the last step")

    @classmethod
    def preset(cls, preset: str, model: ModelInfo) -> Mapping[str, object]:
        """Return the distance of computed steps; the same for every model.

        Raises:
            ConfigError: There is no such preset.
        """
        return find_preset(cls.name, preset, PRESETS)

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the step policy; it is the same for every model."""
        return CachePolicy(
            name=self.name,
            step=UniformSteps(
                every=self.every, first_steps=self.first_steps, force_last=self.force_last
            ),
        )
