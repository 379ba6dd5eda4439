"""Reaching an asked speed-up: how many FLOPs a run may spend, and what that makes of a decision.

Costs are in units of one step without caching. The budget of ``S`` steps at speed-up ``s`` is
``S / s``. Policies stay in charge of *where* it is spent: their thresholds are multiplied by a
factor (``Signals.threshold_factor``), which is solved ahead of the run where decisions depend on the
schedule alone and follows the spending otherwise. Only where the factor cannot keep the budget is a
decision replaced, and its reason says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from attrs import define, evolve, field, frozen

from hetcache_core.errors import ConfigError
from hetcache_core.steps import Decision, Mode, StepInfo

GAIN: Final = 0.5
"""How strongly one step's cost, off its share of the budget, moves the factor (its logarithm)."""

FACTOR_RANGE: Final = (1 / 256, 256.0)
"""Bounds of the factor, wide enough for thresholds in any unit."""

SOLVER_ROUNDS: Final = 20
"""Halvings of the factor's range, in logarithms: 11 / 2**20 is finer than any threshold needs."""


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
        steps: steps of the run.
        factor: what thresholds are multiplied with now.
        follows: whether the factor follows the spending; False once it was solved ahead.
    """

    target_speedup: float
    steps: int
    factor: float = field(default=1.0, init=False)
    follows: bool = field(default=True, init=False)
    _spent: float = field(default=0.0, init=False)

    @property
    def total(self) -> float:
        """Steps' worth of FLOPs that the run may spend."""
        return self.steps / self.target_speedup

    def apply(self, step: StepInfo, decision: Decision, costs: Costs) -> Decision:
        """Keep the budget: no more than it, and no less.

        Args:
            step: the step.
            decision: what the policy wants.
            costs: what the modes cost.
        """
        if step.is_first or step.is_last:
            return decision
        left = self.steps - step.index  # this step and those after it
        spare = self.total - self._spent
        # The last step runs in full, the others cost at least a reuse.
        for_this = spare - 1 - costs.reuse * (left - 2)
        wanted = costs.of(decision.mode)
        if decision.mode is not Mode.FULL and spare >= left - (1 - wanted) / 2:
            return evolve(decision, mode=Mode.FULL, reason="budget: to be spent")
        if decision.mode is not Mode.REUSE and for_this < (wanted + costs.reuse) / 2:
            return evolve(decision, mode=Mode.REUSE, reason="budget: spent")
        return decision

    def spend(self, step: StepInfo, cost: float) -> None:
        """Book what a step has cost and let the factor follow."""
        left = self.steps - step.index - 1
        self._spent += cost
        if not self.follows or left <= 1:
            return
        share = max(0.0, self.total - self._spent - 1) / (left - 1)
        low, high = FACTOR_RANGE
        self.factor = min(high, max(low, self.factor * math.exp(GAIN * (cost - share))))

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
        self.factor, self.follows = best[1], False


def check_target(target_speedup: float) -> float:
    """Return the target, checked.

    Raises:
        ConfigError: it is not a number of at least 1.
    """
    if not target_speedup >= 1 or math.isinf(target_speedup):
        raise ConfigError(
            f"the target speed-up is {target_speedup}",
            where="target_speedup",
            remedy="Give how many times fewer FLOPs there should be, at least 1, such as 2.5",
        )
    return target_speedup
