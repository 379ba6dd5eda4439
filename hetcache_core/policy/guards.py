"""Guards: steps that are computed whatever a policy proposes, the same for every policy and every run."""

from __future__ import annotations

import math
from typing import Any, Final, final

from attrs import evolve, fields, frozen

from hetcache_core.settings.declare import setting

__all__ = ["GuardSettings", "Guards", "count_of"]

ROUNDING: Final = 1e-9
"""A share that comes to a whole number of steps counts as that many: 0.55 * 20 is 11.000000000000002."""


@frozen(kw_only=True)
class GuardSettings:
    """The settings of guards: of a policy, of a run and on the command line.

    A whole number counts steps, a number with a point is a share of the run: 1 is one step, 1.0 are all.
    A share is rounded down, and never comes to less than one step. None leaves a guard to whoever else
    sets it: the run goes before the policy's settings, and these before the policy's own defaults.
    """

    first_steps: int | float | None = setting(
        None, ge=0, share=True, doc="steps computed first: a count, or a share of the run (0.1)"
    )
    last_steps: int | float | None = setting(
        None, ge=0, share=True, doc="steps computed last: a count, or a share of the run (0.1)"
    )
    longest_reuse: int | float | None = setting(
        None,
        gt=0,
        share=True,
        doc="most steps reused in a row: a count, or a share of the run; 1.0 sets no limit",
    )
    full_steps: tuple[int, ...] = setting(
        (), ge=0, doc="further steps computed in full, counted from 0 ([3, 7]; as an option 3,7)"
    )


@final
@frozen(kw_only=True)
class Guards(GuardSettings):
    """Guards as values: what a policy brings, or what a user has set."""

    @classmethod
    def of(cls, settings: GuardSettings) -> Guards:
        """Take the guards out of a policy's settings, or of a command's."""
        return cls(**{name: getattr(settings, name) for name in GUARDS})

    @property
    def named(self) -> dict[str, Any]:
        """Those that say something, by name."""
        values = {name: getattr(self, name) for name in GUARDS}
        return {name: value for name, value in values.items() if value not in (None, ())}

    def over(self, others: Guards) -> Guards:
        """Put these on top of others, guard by guard."""
        return evolve(others, **self.named)


GUARDS: Final = tuple(field.name for field in fields(GuardSettings))
"""Names of the guards."""


def count_of(extent: float, steps: int) -> int:
    """Return how many steps a guard means.

    Args:
        extent: a count, or a share (float) of the run.
        steps: steps ``S`` of the run.
    """
    if isinstance(extent, int):
        return extent
    return max(1, math.floor(extent * steps + ROUNDING)) if extent > 0 else 0
