"""Reaching an asked speed-up: how many FLOPs a run may spend, and what that makes of a decision.

Costs are in units of one step without caching. The budget of ``S`` steps at speed-up ``s`` is
``S / s``. Policies stay in charge of *where* it is spent: their thresholds are multiplied by a
factor (``Signals.threshold_factor``), which is solved ahead of the run where decisions depend on the
noise levels alone and follows the spending otherwise. Only where the factor cannot keep the budget is a
decision replaced, and its reason says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from attrs import define, evolve, field, frozen

from hetcache_core.engine.gate import Gate
from hetcache_core.policy.recipe import CachePolicy
from hetcache_core.records.trace import Trace
from hetcache_core.steps import Decision, Mode, StepInfo

GAIN: Final = 0.5
"""How strongly one step's cost, off its share of the budget, moves the factor (its logarithm)."""

FACTOR_RANGE: Final = (1 / 256, 256.0)
"""Bounds of the factor, wide enough for thresholds in any unit."""

SOLVER_ROUNDS: Final = 20
"""Halvings of the factor's range, in logarithms: 11 / 2**20 is finer than any threshold needs."""

TOLERANCE: Final = 0.05
"""A budget counts as met within this share of it, or within ``HALF_STEP`` where that is more."""

RECENT: Final = 4
"""The mean of so many last steps says what the next step of their mode will cost."""

HALF_STEP: Final = 0.5
"""A run spends whole steps, so what is left or missing at its end is up to half of one."""


@frozen(kw_only=True)
class Costs:
    """What a step of each kind costs, in steps without caching."""

    partial: float
    reuse: float

    def of(self, mode: Mode) -> float:
        """Return the cost of a mode."""
        return {Mode.PARTIAL: self.partial, Mode.REUSE: self.reuse}.get(mode, 1.0)


@define(eq=False)
class Budget:
    """What one run may spend.

    Attributes:
        target_speedup: FLOPs without caching over FLOPs with it; at least 1.
        gate: the guards of the run, within which it is kept.
        steady: whether all full steps cost the same, since nothing inside of them is decided.
        factor: what thresholds are multiplied with now.
        follows: whether the factor follows the spending; False once it was solved ahead.
    """

    target_speedup: float
    gate: Gate
    steady: bool = True
    factor: float = field(default=1.0, init=False)
    follows: bool = field(default=True, init=False)
    _spent: float = field(default=0.0, init=False)
    _seen: dict[Mode, list[float]] = field(factory=dict, init=False)

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self.gate.steps

    @property
    def total(self) -> float:
        """Steps' worth of FLOPs that the run may spend."""
        return self.steps / self.target_speedup

    def computed(self, costs: Costs) -> float:
        """Steps that may be computed in full where all others are reused."""
        reuse = self._cost(Mode.REUSE, costs)  # with what the policy runs to decide
        return (self.total - self.steps * reuse) / max(1 - reuse, TOLERANCE)

    def apply(
        self, step: StepInfo, decision: Decision, costs: Costs, reused_in_row: int
    ) -> Decision:
        """Keep the budget: no more than it, and no less, where the guards leave a choice.

        A decision is replaced where the other mode brings the run nearer to its budget even if all
        later steps were as cheap as the guards allow, or as dear as they can be. So a budget that can
        be met is met within half the difference of a full and a reused step.

        Args:
            step: the step.
            decision: what the policy wants.
            costs: what the modes cost, as far as it is known ahead.
            reused_in_row: steps that were reused directly before this one.
        """
        if step.is_first or not self.gate.may_reuse(step.index, reused_in_row):
            return decision
        left = self.steps - step.index  # this step and those after it
        spare = self.total - self._spent
        full, reuse = self._cost(Mode.FULL, costs), self._cost(Mode.REUSE, costs)
        wanted = reuse if decision.mode is Mode.REUSE else costs.of(decision.mode)
        # Steps that the guards compute later on cost a full step each, all others at least a reuse.
        after = [self.gate.fewest(step.index + 1, row) for row in (0, reused_in_row + 1)]
        computed, reused = (count + reuse * (left - 1 - count) for count in after)
        cheapest = reuse + reused
        affordable = 1 + computed + cheapest <= 2 * spare
        too_little = spare >= full * left - (full - wanted) / 2
        if decision.mode is not Mode.FULL and too_little and affordable:
            return evolve(decision, mode=Mode.FULL, reason="budget: to be spent")
        dearer = wanted + computed
        too_much = cheapest < dearer and dearer + cheapest > 2 * spare and not step.is_last
        if decision.mode is not Mode.REUSE and too_much:
            return evolve(decision, mode=Mode.REUSE, reason="budget: spent")
        return decision

    def spend(self, step: StepInfo, mode: Mode | None, cost: float) -> None:
        """Book what a step has cost and let the factor follow.

        Args:
            step: the step.
            mode: what its deciding call did, or None where nothing was decided.
            cost: of all of its calls.
        """
        left = self.steps - step.index - 1
        self._spent += cost
        if mode is not None and not step.is_first:  # nothing can be reused in the first step
            self._seen.setdefault(mode, []).append(cost)
        if not self.follows or left <= 1:
            return
        share = max(0.0, self.total - self._spent - 1) / (left - 1)
        low, high = FACTOR_RANGE
        self.factor = min(high, max(low, self.factor * math.exp(GAIN * (cost - share))))

    def _cost(self, mode: Mode, costs: Costs) -> float:
        """Return what the last steps of a mode have cost, or else what is known ahead."""
        seen = self._seen.get(mode, [])[-RECENT:]
        return sum(seen) / len(seen) if seen else costs.of(mode)

    def solve(self, cost_at: Callable[[float], float]) -> None:
        """Find the factor whose whole run costs what may be spent.

        Args:
            cost_at: cost of a run at a factor; falls as the factor grows.
        """
        low, high = (math.log(bound) for bound in FACTOR_RANGE)
        best = (math.inf, 1.0)
        for _ in range(SOLVER_ROUNDS):
            middle = (low + high) / 2
            cost = cost_at(math.exp(middle))
            best = min(best, (abs(cost - self.total), math.exp(middle)))
            low, high = (middle, high) if cost > self.total else (low, middle)
        self.factor, self.follows = best[1], not self.steady


def outcome(trace: Trace, policy: CachePolicy, gate: Gate) -> str:
    """Say in words which speed-up a whole run was asked for and reached, and why it is another.

    Args:
        trace: of the run, which was asked for a speed-up.
        policy: what was done.
        gate: its guards.
    """
    totals, asked = trace.totals(), trace.target_speedup or 1.0
    said = f"Asked for {asked:g}x fewer FLOPs, reached {totals.flops_speedup:.2f}x."
    allowed = trace.requested_steps / asked
    spent = trace.requested_steps / totals.flops_speedup
    if abs(spent - allowed) <= max(TOLERANCE * allowed, HALF_STEP):
        return said
    if policy.step is None and policy.blocks is None:
        return f"{said} Policy {policy.name} decides nothing that could be adjusted."
    if spent < allowed:
        return f"{said} With these settings policy {policy.name} computes no more."
    if policy.step is None:
        return f"{said} Policy {policy.name} leaves out no whole steps, and no more inside of them."
    obstacles = gate.obstacles()
    if obstacles and gate.fewest(0) > allowed:
        return (
            f"{said} What was set stands in the way: with {' and '.join(obstacles)}, at least "
            f"{gate.fewest(0)} of {gate.steps} steps are computed, and the target leaves {allowed:.1f}."
        )
    return f"{said} Policy {policy.name} cannot leave out more with these settings and guards."
