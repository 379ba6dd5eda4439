"""EasyCache: reuse the model's change of the latents while its output is expected to have changed little.

Between two computed steps, how far the output moved for how far the latents moved is the model's rate of
change. In the following steps the latents alone say how far the output would have moved at that rate;
these estimates add up until they reach a threshold. Nothing inside the model is looked at, and a reused step
leaves the whole call out: it is answered by the latents plus what was last computed of output minus latents.

Source: EasyCache (arXiv:2507.02860) and its reference code. Different from that code: the first steps are a
share of the run (there 10 of 50, whatever the flag says), the first branch decides for all, runs of reused
steps are limited, and the estimate is read from the device once a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, final

from attrs import define, field, frozen
from torch import Tensor

from hetcache_core import (
    CachePolicy,
    Decision,
    Guards,
    Hold,
    Mode,
    ModelInfo,
    PolicyRecipe,
    Predictor,
    ReusePoint,
    RunInfo,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
    piece,
    setting,
)
from hetcache_policies.teacache import LONGEST_REUSE

__all__ = ["EasyCache", "RateSteps"]

THRESHOLD: Final = 0.05
"""Source: EasyCache, the setting for Wan2.1, 2.54 times faster with the 1.3B model."""

FIRST_STEPS: Final = 0.2
"""Source: the first 10 of 50 steps of its code."""

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"threshold": 0.025},
    "balanced": {"threshold": THRESHOLD},
    "fast": {"threshold": 0.1},
}
"""Our design around the published threshold, which computes about 39 % of the steps of Wan2.1-1.3B."""

NEAR_ZERO: Final = 1e-12
"""Keeps a division by no change at all finite."""


@final
@frozen(kw_only=True)
class RateSteps(StepPolicy):
    """Computes a step when the estimated changes of the output add up to a threshold.

    Attributes:
        threshold: sum of relative changes at which a step is computed.
    """

    threshold: float

    def begin(self, run: RunInfo) -> StepDecider:
        """Start without a rate of change."""
        return _Decider(self)


@final
@define(eq=False)
class _Decider(StepDecider):
    _policy: RateSteps
    _rate: Tensor | None = field(default=None, init=False)
    """Relative change of the output for one unit of change of the latents; a scalar, on the device."""
    _signals: Signals | None = field(default=None, init=False)
    """Those of the step under way, which know where things are kept."""
    _sum: float = field(default=0.0, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        self._signals = signals
        threshold = self._policy.threshold * signals.threshold_factor
        latents, previous = signals.latent(), signals.kept("latents of the last step")
        signals.keep("latents of the last step", latents.clone())
        if self._rate is None or previous is None:
            return Decision(Mode.FULL, "no rate of change yet")
        self._sum += signals.read(self._rate * _distance(latents, previous))
        if not self._sum < threshold:  # "not": a sum that is not a number must not reuse
            reason = f"change {self._sum:.3f} >= {threshold:.3f}"
            return Decision(Mode.FULL, reason, self._sum)
        reason = f"change {self._sum:.3f} < {threshold:.3f}"
        return Decision(Mode.REUSE, reason, self._sum)

    def output(self, step: StepInfo, latents: Tensor, output: Tensor) -> None:
        signals, self._signals = self._signals, None
        if signals is None or step.is_last:
            return
        old_output, old_latents = signals.kept("computed output"), signals.kept("computed latents")
        if old_output is not None and old_latents is not None:
            moved = _distance(output, old_output)
            size = output.float().abs().mean()
            rate = moved / _distance(latents, old_latents).clamp_min(NEAR_ZERO)
            self._rate = rate / size.clamp_min(NEAR_ZERO)
        signals.keep("computed output", output.clone())
        signals.keep("computed latents", latents.clone())

    def settle(self, step: StepInfo, mode: Mode) -> None:
        self._signals = None
        if mode is Mode.FULL:
            self._sum = 0.0


def _distance(new: Tensor, old: Tensor) -> Tensor:
    return (new.float() - old.float()).abs().mean()


@final
@frozen(kw_only=True)
class EasyCache(PolicyRecipe):
    """Settings of EasyCache."""

    name: ClassVar[str] = "easycache"
    summary: ClassVar[str] = "reuse whole model calls while the latents say that little has changed"
    source: ClassVar[str] = "EasyCache, arXiv:2507.02860"
    decides_on: ClassVar[str] = "changes of the latents, at the model's rate"
    default_guards: ClassVar[Guards] = Guards(
        first_steps=FIRST_STEPS, last_steps=1, longest_reuse=LONGEST_REUSE
    )
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = PRESETS
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.50, "balanced": 0.36, "fast": 0.28}

    threshold: float = setting(
        THRESHOLD, ge=0, doc="sum of estimated relative changes at which a step is computed"
    )
    predictor: Predictor = piece(
        "predictor", Hold(), doc="what stands in for what a reused step leaves out"
    )

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the step policy; it is the same for every model."""
        return CachePolicy(
            name=self.name,
            step=RateSteps(threshold=self.threshold),
            reuse_point=ReusePoint.OUTPUT,
            predictor=self.predictor,
        )
