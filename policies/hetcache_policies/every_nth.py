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

from attrs import define, field, frozen

from hetcache_core import (
    CachePolicy,
    Decision,
    Guards,
    Hold,
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

__all__ = ["EveryNth", "UniformSteps"]

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"every": 2},
    "balanced": {"every": 3},
    "fast": {"every": 4},
}
"""About 50, 36 and 28 % of the steps, the last one included."""


ROUNDING: Final = 1e-9
"""A step that lies on a whole number of gaps counts as on it."""


@final
@frozen(kw_only=True)
class UniformSteps(StepPolicy):
    """Computes every n-th step, counted from the last one that a guard computed.

    Attributes:
        every: distance ``n`` of computed steps; an asked speed-up stretches it.
    """

    every: int

    @property
    def sigmas_only(self) -> bool:
        """Nothing of the run is looked at."""
        return True

    def begin(self, run: RunInfo) -> StepDecider:
        """Start counting."""
        return _Decider(self)

    def decision(self, since: int, stretch: float = 1.0) -> Decision:
        """Say what a step does.

        Args:
            since: steps since the one from which distances are counted.
            stretch: what the distance is multiplied with.
        """
        gap = max(1.0, self.every * stretch)
        done, before = (math.floor(count / gap + ROUNDING) for count in (since, since - 1))
        if done > before:
            return Decision(Mode.FULL, f"every {gap:.3g} steps")
        return Decision(Mode.REUSE, f"every {gap:.3g} steps, not yet")


@final
@define(eq=False)
class _Decider(StepDecider):
    _policy: UniformSteps
    _counted_from: int | None = field(default=None, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        if self._counted_from is None or step.computed:
            self._counted_from = step.index
            return Decision(Mode.FULL, "distances count from here")
        since, stretch = step.index - self._counted_from, signals.threshold_factor
        if stretch != 1.0:
            # Gaps of one size to the last step, which is computed anyway: one just before it is wasted.
            way, every = step.total - 1 - self._counted_from, self._policy.every
            stretch = way / max(1, round(way / max(1.0, every * stretch))) / every
        return self._policy.decision(since, stretch)


@final
@frozen(kw_only=True)
class EveryNth(PolicyRecipe):
    """Settings of uniform skipping."""

    name: ClassVar[str] = "every-nth"
    summary: ClassVar[str] = "compute every n-th step: the floor that every signal has to beat"
    source: ClassVar[str] = "DeepCache, CVPR 2024, arXiv:2312.00858 (1:N inference)"
    decides_on: ClassVar[str] = "the step's index"
    default_guards: ClassVar[Guards] = Guards(first_steps=1, last_steps=1)
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = PRESETS
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.50, "balanced": 0.36, "fast": 0.28}

    every: int = setting(2, ge=1, doc="every n-th step is computed; 1 computes all")
    predictor: Predictor = piece(
        "predictor", Hold(), doc="what stands in for what a reused step leaves out"
    )

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the step policy; it is the same for every model."""
        return CachePolicy(
            name=self.name,
            step=UniformSteps(every=self.every),
            predictor=self.predictor,
        )
