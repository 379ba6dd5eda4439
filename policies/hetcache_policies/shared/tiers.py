"""Steps of three kinds: reused while little has changed, then run in part, then in full.

Source: HetCache (CVPR 2026), section 3.
"""

from __future__ import annotations

from typing import final

from attrs import define, field, frozen

from hetcache_core import Decision, Mode, RunInfo, Signals, StepDecider, StepInfo, StepPolicy
from hetcache_policies.shared.drift import Drift, DriftSettings

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
        max_partials: partial steps between two full ones; one more runs in full.
    """

    drift: DriftSettings
    threshold: float
    rho: float
    reset_on_partial: bool
    max_partials: int

    @property
    def sigmas_only(self) -> bool:
        """Whether the signal depends on the noise levels alone."""
        return self.drift.sigmas_only

    def begin(self, run: RunInfo) -> StepDecider:
        """Start with nothing added up."""
        return _Decider(self, Drift(self.drift))


@final
@define(eq=False)
class _Decider(StepDecider):
    _policy: TieredSteps
    _drift: Drift
    _sum: float = field(default=0.0, init=False)
    _partials: int = field(default=0, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        policy = self._policy
        self._sum += self._drift.change(step, signals)
        low, signal = policy.threshold * signals.threshold_factor, self._sum
        high = policy.rho * low
        if signal > high or low == 0:
            return Decision(Mode.FULL, f"signal {signal:.3f} > {high:.3f}", signal)
        partial = self._partials < policy.max_partials
        if signal <= low:
            reason = f"signal {signal:.3f} <= {low:.3f}"
            instead = Mode.PARTIAL if partial else Mode.FULL
            return Decision(Mode.REUSE, reason, signal, instead=instead)
        if not partial:
            return Decision(Mode.FULL, f"{self._partials} partial steps since a full one", signal)
        return Decision(Mode.PARTIAL, f"{low:.3f} < signal {signal:.3f} <= {high:.3f}", signal)

    def settle(self, step: StepInfo, mode: Mode) -> None:
        if mode is Mode.PARTIAL:
            self._partials += 1
        if mode is Mode.FULL:
            self._partials = 0
        if mode is Mode.FULL or (mode is Mode.PARTIAL and self._policy.reset_on_partial):
            self._sum = 0.0
