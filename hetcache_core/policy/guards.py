"""Guard rails of a session, the same for every policy."""

from __future__ import annotations

import math
from collections.abc import Iterable

from attrs import evolve, field, frozen

from hetcache_core.errors import ConfigError
from hetcache_core.steps import Decision, Mode, StepInfo


def _indices(values: Iterable[int]) -> frozenset[int]:
    return frozenset(values)


@frozen(kw_only=True)
class Guards:
    """Steps that run in full whatever the policy says.

    Attributes:
        warmup: share of the run, from its start, that is computed.
        tail: share of the run, up to its end, that is computed.
        max_reuse: at most this many steps in a row are reused, or None.
        full_steps: indices of further steps that are computed.
    """

    warmup: float = 0.0
    tail: float = 0.0
    max_reuse: int | None = None
    full_steps: frozenset[int] = field(factory=frozenset, converter=_indices)

    def __attrs_post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: a share outside 0 to 1, or a negative count.
        """
        for name in ("warmup", "tail"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(
                    f"{name} is {value}",
                    where="guards",
                    remedy="Give a share of the run between 0 and 1",
                )
        if self.max_reuse is not None and self.max_reuse < 1:
            raise ConfigError(
                f"max_reuse is {self.max_reuse}",
                where="guards",
                remedy="Give the number of steps in a row that may be reused, at least 1",
            )

    def computes(self, step: StepInfo) -> str | None:
        """Return the reason for which all of a step is computed, blocks too, or None."""
        if step.index < math.ceil(self.warmup * step.total):
            return "guard: warm-up"
        if step.index >= step.total - math.ceil(self.tail * step.total):
            return "guard: tail"
        return "guard: listed step" if step.index in self.full_steps else None

    def apply(self, step: StepInfo, decision: Decision, reused_in_row: int) -> Decision:
        """Turn the decision into FULL, with the reason, where a guard says so.

        Args:
            step: the step.
            decision: what the policy wants.
            reused_in_row: steps that were reused directly before this one.
        """
        if decision.mode is Mode.FULL:
            return decision
        reason = self.computes(step)
        if (
            reason is None
            and self.max_reuse is not None
            and decision.mode is Mode.REUSE
            and reused_in_row >= self.max_reuse
        ):
            reason = f"guard: {reused_in_row} reused in a row"
        return decision if reason is None else evolve(decision, mode=Mode.FULL, reason=reason)
