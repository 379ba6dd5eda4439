"""Steps of three kinds: reused while little has changed, then run in part, then in full.

Source: HetCache (CVPR 2026), section 3.
"""

from __future__ import annotations

from typing import final

from attrs import define, field, frozen

from hetcache_core import Decision, Mode, RunInfo, Signals, StepDecider, StepInfo, StepPolicy
from hetcache_policies.shared.drift import Drift, DriftSettings
from hetcache_policies.teacache import longest_run

__all__ = ["TieredSteps"]


@final
@frozen(kw_only=True)
class TieredSteps(StepPolicy):
    """Reuses while the summed changes are small, then runs in part, then in full.

    Attributes:
        drift: what is looked at, and the unit of its changes.
        threshold: up to this sum a step is reused; in that unit.
        rho: above ``rho * threshold`` it runs in full; in between, in part.
        reset_on_partial: whether a partial step starts the sum again, as a full one does.
        warmup_steps: steps that always run in full first.
        max_partials: partial steps between two full ones; one more runs in full.
        longest_reuse: most steps reused in a row, as a share of the run.
    """

    drift: DriftSettings
    threshold: float
    rho: float
    reset_on_partial: bool
    warmup_steps: int
    max_partials: int
    longest_reuse: float

    @property
    def schedule_only(self) -> bool:
        """Whether the signal depends on the schedule alone."""
        return self.drift.schedule_only

    def begin(self, run: RunInfo) -> StepDecider:
        """Start with nothing added up."""
        return _Decider(self, Drift(self.drift), longest_run(self.longest_reuse, run.steps))


@final
@define(eq=False)
class _Decider(StepDecider):
    _policy: TieredSteps
    _drift: Drift
    _longest: int
    _sum: float = field(default=0.0, init=False)
    _partials: int = field(default=0, init=False)
    _reused: int = field(default=0, init=False)
    _begun: int | None = field(default=None, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        policy = self._policy
        # Steps of a model that takes over in mid-run are counted from there.
        self._begun = step.index if self._begun is None else self._begun
        self._sum += self._drift.change(step, signals)
        if step.index - self._begun < policy.warmup_steps:
            return Decision(Mode.FULL, "warm-up")
        if step.is_last:
            return Decision(Mode.FULL, "last step")
        low, signal = policy.threshold * signals.threshold_factor, self._sum
        high = policy.rho * low
        if signal > high or low == 0:
            return Decision(Mode.FULL, f"signal {signal:.3f} > {high:.3f}", signal)
        if signal <= low and self._reused < self._longest:
            return Decision(Mode.REUSE, f"signal {signal:.3f} <= {low:.3f}", signal)
        if self._partials >= policy.max_partials:
            return Decision(Mode.FULL, f"{self._partials} partial steps since a full one", signal)
        if signal <= low:
            return Decision(Mode.PARTIAL, f"{self._reused} steps reused in a row", signal)
        return Decision(Mode.PARTIAL, f"{low:.3f} < signal {signal:.3f} <= {high:.3f}", signal)

    def settle(self, step: StepInfo, mode: Mode) -> None:
        self._reused = self._reused + 1 if mode is Mode.REUSE else 0
        if mode is Mode.PARTIAL:
            self._partials += 1
        if mode is Mode.FULL:
            self._partials = 0
        if mode is Mode.FULL or (mode is Mode.PARTIAL and self._policy.reset_on_partial):
            self._sum = 0.0
