"""How MixCache decides: reuse a step, a guidance branch or a range of blocks.

Source: MixCache (arXiv:2508.12691), from descriptions of it; neither its formulas nor its code was at
hand. Each full step is followed by a few cheaper ones. Each of these is made in one of three ways: the
whole trunk is reused (step), the unconditional branch is predicted from the conditional one (cfg), or
the blocks between the first and the last ones are reused (block). The way of lowest priority
``distance * impact`` is taken, where the distance is how far the reused thing moved per step between the
last two full steps, and the way used last counts five times. How many cheaper steps follow a full one
grows and shrinks with how slowly the model's output moves.

Our choices: thresholds (``interval``) and equal impacts until they are calibrated. After a cfg
step the unconditional branch's residuals are older than the other's, so that only cfg steps follow until
the next full one.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, final

import torch
from attrs import define, field, frozen
from torch import Tensor

from hetcache_core import (
    Calibration,
    ContractError,
    Decision,
    GuidanceDecider,
    GuidancePolicy,
    Mode,
    RunInfo,
    Signals,
    Span,
    StepDecider,
    StepInfo,
    StepPolicy,
    relative_l1,
)
from hetcache_mixcache.interval import Interval

__all__ = ["MixedSteps", "Way"]

PENALTY: Final = 5.0
"""Source: MixCache, for the way used last."""

SKETCH_TOKENS: Final = 4096
"""At most about this many tokens of a residual are kept and compared."""

_KEPT: Final = "mixcache: "
_OUTPUT: Final = "output"
_DIFFERENCE: Final = _KEPT + "cfg"


class Way(str, Enum):
    """How a step is made cheaper."""

    STEP = "step"
    CFG = "cfg"
    BLOCK = "block"


_WORDS: Final = {
    Way.STEP: "trunk reused",
    Way.CFG: "uncond predicted",
    Way.BLOCK: "middle blocks reused",
}


@final
@frozen(kw_only=True)
class MixedSteps(StepPolicy, GuidancePolicy):
    """Decides how steps, and the branches in them, are made cheaper.

    Attributes:
        impacts: how much an error of each way shows in the output.
        middle: the blocks that a block step reuses, or None where the model has too few.
        longest: most cheaper steps between two full ones.
        low: deviation below which they become more, or None for one from the run itself.
        high: deviation above which they become fewer, or None likewise.
        calibration: where low and high come from, which the run's steps must match, or None.
    """

    impacts: tuple[float, float, float]
    middle: Span | None
    longest: int
    low: float | None
    high: float | None
    calibration: Calibration | None = None

    def begin(self, run: RunInfo) -> _Decider:
        """Start with nothing computed.

        Raises:
            ConfigError: the calibration is of another number of steps, or of other noise levels.
        """
        if self.calibration is not None:
            self.calibration.check_run(run)
        return _Decider(self, Interval(self.longest, self.low, self.high))


@final
@define(eq=False)
class _Decider(StepDecider, GuidanceDecider):
    _policy: MixedSteps
    _interval: Interval
    _way: Way | None = field(default=None, init=False)
    _last: Way | None = field(default=None, init=False)
    _full: int | None = field(default=None, init=False)
    _gap: int = field(default=1, init=False)
    _stale: bool = field(default=False, init=False)
    _fresh: dict[str, Tensor] = field(factory=dict, init=False)
    _priority: dict[Way, float] = field(factory=dict, init=False)

    # Steps

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        self._measure(signals)
        self._way, policy = None, self._policy
        if self._full is None or step.computed:
            return Decision(Mode.FULL, "a full step")
        passed, steps = step.index - self._full, self._interval.steps
        if passed > steps:
            return Decision(Mode.FULL, f"{steps} cheaper steps since a full one")
        ways = self._ways()
        if not ways:
            return Decision(Mode.FULL, "no distances yet")
        way = self._way = min(ways, key=lambda way: ways[way])
        reason = f"{_WORDS[way]}, {passed} of {steps}"
        if way is Way.CFG:
            return Decision(Mode.FULL, reason, ways[way])
        span = policy.middle if way is Way.BLOCK and policy.middle is not None else Span()
        return Decision(Mode.REUSE, reason, ways[way], span=span)

    def settle(self, step: StepInfo, mode: Mode) -> None:
        if self._way is not None:
            self._last = self._way
            self._stale = self._stale or self._way is Way.CFG
        # A step that was to be reused may have run in full: nothing to reuse yet, or a guard.
        if mode is Mode.FULL and self._way is not Way.CFG:
            self._gap = step.index - self._full if self._full is not None else 1
            self._full, self._way, self._stale = step.index, None, False

    def output(self, step: StepInfo, latents: Tensor, output: Tensor) -> None:
        if self._way is not Way.CFG:
            self._fresh[_OUTPUT] = output.clone()

    # Branches

    def predicts(self, step: StepInfo, branch: str, mode: Mode) -> str | None:
        return "from cond" if self._way is Way.CFG and branch == "uncond" else None

    def predict(
        self, step: StepInfo, branch: str, outputs: Mapping[str, Tensor], signals: Signals
    ) -> Tensor:
        difference = signals.kept(_DIFFERENCE)
        if difference is None:
            raise ContractError("a branch is predicted, but its difference was not kept")
        return outputs["cond"] + difference

    def observe_outputs(
        self, step: StepInfo, outputs: Mapping[str, Tensor], mode: Mode, signals: Signals
    ) -> None:
        # Two calls, the conditional one first: it is the other one that can be predicted.
        if self._full == step.index and list(outputs) == ["cond", "uncond"]:
            self._fresh[Way.CFG] = outputs["uncond"] - outputs["cond"]

    # Distances

    def _measure(self, signals: Signals) -> None:
        """Compare what the last full step computed with the one before; one wait for the device."""
        if not self._fresh:
            return
        fresh, self._fresh = self._fresh, {}
        fresh |= _residuals(signals, self._policy.middle)
        changes = {}
        for name, value in fresh.items():
            kept = signals.kept(_KEPT + name)
            if kept is not None:
                changes[name] = relative_l1(value, kept)
            signals.keep(_KEPT + name, value)
        if not changes:
            return
        numbers = signals.read_many(torch.stack(list(changes.values())))
        found = {name: n / self._gap for name, n in zip(changes, numbers, strict=True)}
        impacts = zip(Way, self._policy.impacts, strict=True)
        self._priority = {way: found[way] * impact for way, impact in impacts if way in found}
        self._interval.follow(found[_OUTPUT], signals.threshold_factor)

    def _ways(self) -> dict[Way, float]:
        """Return the ways that are open, with their priorities: the lowest is the best."""
        return {
            way: priority * (PENALTY if way is self._last else 1.0)
            for way, priority in self._priority.items()
            if way is Way.CFG or not self._stale
        }


def _residuals(signals: Signals, middle: Span | None) -> dict[str, Tensor]:
    """Return what the last full step added, in the whole trunk and in its middle: (b, n, D) each."""
    spans = {Way.STEP: Span(), Way.BLOCK: middle}
    kept = {way: signals.residual(span) for way, span in spans.items() if span is not None}
    # Copies, since the engine writes the next residual into the same memory.
    return {
        way: residual[:, :: -(-residual.shape[1] // SKETCH_TOKENS)].clone()
        for way, residual in kept.items()
        if residual is not None
    }
