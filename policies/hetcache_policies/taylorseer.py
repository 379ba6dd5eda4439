"""TaylorSeer: predict what is not computed by a Taylor series of what was.

Every n-th step runs; in the steps between, features are taken from the series whose derivatives are the
differences of the computed ones. By default the feature is the trunk's residual: ``order + 1`` tensors a
branch. At the level of sub-layers it is the output, before its gate, of every attention and feed-forward
layer, as published; that takes ``3 * L`` times as much, 36 GB for Wan2.1-1.3B at 81 frames.

Beside a policy that decides steps ("hetcache+taylorseer") it only predicts, and the other one says when.

Source: TaylorSeer (ICCV 2025, arXiv:2503.06923) and its reference code for Wan2.1. Different from that code:
the level, and the last step runs in full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Literal, final

from attrs import define, evolve, field, frozen
from torch import Tensor

from hetcache_core import (
    BlockAction,
    BlockDecider,
    BlockKey,
    BlockPolicy,
    CachePolicy,
    ConfigError,
    Guards,
    Mode,
    ModelInfo,
    PartAction,
    PolicyRecipe,
    Predictor,
    RunInfo,
    StepInfo,
    SubLayer,
    Use,
    piece,
    setting,
)
from hetcache_policies.every_nth import UniformSteps
from hetcache_policies.shared.predictors import Taylor

__all__ = ["PredictedParts", "TaylorSeer"]

INTERVAL: Final = 5
"""Source: TaylorSeer's code for Wan2.1."""

ORDER: Final = 1
"""Source: the same."""

FIRST_STEPS: Final = 1
"""Source: the same. diffusers starts with three, so that the second step is not already a guess."""

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"interval": 2},
    "balanced": {"interval": 3},
    "fast": {"interval": 4},
}
"""About 50, 36 and 28 % of the steps, as uniform skipping has them, to compare at equal cost."""


@final
@frozen
class PredictedParts(BlockPolicy):
    """Runs all sub-layers in some steps, and in the others has all of them predicted.

    Attributes:
        steps: the schedule.
    """

    looks_at_hidden: ClassVar[bool] = False

    steps: UniformSteps

    def begin(self, run: RunInfo) -> BlockDecider:
        """Start counting."""
        return _Decider(self.steps)


@final
@define(eq=False)
class _Decider(BlockDecider):
    _steps: UniformSteps
    _counted_from: int | None = field(default=None, init=False)

    def block(self, step: StepInfo, branch: str, key: BlockKey, hidden: Tensor) -> BlockAction:
        return self.control(step, branch, key)

    def control(self, step: StepInfo, branch: str, key: BlockKey) -> BlockAction:
        if self._counted_from is None or step.computed:
            self._counted_from = step.index
        since = step.index - self._counted_from
        if since == 0 or self._steps.decision(since).mode is Mode.FULL:
            action = PartAction(store=not step.is_last)
        else:
            # A part of which nothing is kept yet runs after all, and is kept then.
            action = PartAction(Use.REUSE, store=True)
        return BlockAction(parts=dict.fromkeys(SubLayer, action))


@final
@frozen(kw_only=True)
class TaylorSeer(PolicyRecipe):
    """Settings of TaylorSeer."""

    name: ClassVar[str] = "taylorseer"
    summary: ClassVar[str] = "predict features by a Taylor series instead of holding them"
    source: ClassVar[str] = "TaylorSeer, ICCV 2025, arXiv:2503.06923"
    decides_on: ClassVar[str] = "the step's index"
    default_guards: ClassVar[Guards] = Guards(first_steps=FIRST_STEPS, last_steps=1)
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = PRESETS
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.50, "balanced": 0.36, "fast": 0.28}

    interval: int | None = setting(
        INTERVAL, ge=1, doc="every n-th step is computed; null leaves that to the policy beside it"
    )
    predictor: Predictor = piece(
        "predictor", Taylor(order=ORDER), doc="what stands in for what a reused step leaves out"
    )
    level: Literal["trunk", "sub_layer"] = setting(
        "trunk", doc="what is predicted: the trunk's residual, or the output of every sub-layer"
    )

    def beside(self, others: Sequence[CachePolicy]) -> TaylorSeer:
        """Leave the steps to another policy that decides them."""
        decided = self.level == "trunk" and any(other.step is not None for other in others)
        return evolve(self, interval=None) if decided else self

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the predictor and, with an interval, what decides.

        Raises:
            ConfigError: Sub-layers are to be predicted without an interval.
        """
        if self.interval is None:
            if self.level == "sub_layer":
                raise ConfigError(
                    "level=sub_layer needs an interval: no other policy says when sub-layers run",
                    where=f"policy {self.name}",
                    setting="interval",
                    given=self.interval,
                    remedy=f"Give one, such as interval={INTERVAL}, or use level=trunk.",
                )
            return CachePolicy(name=self.name, predictor=self.predictor)
        steps = UniformSteps(every=self.interval)
        if self.level == "sub_layer":
            return CachePolicy(
                name=self.name, blocks=PredictedParts(steps), predictor=self.predictor
            )
        return CachePolicy(name=self.name, step=steps, predictor=self.predictor)
