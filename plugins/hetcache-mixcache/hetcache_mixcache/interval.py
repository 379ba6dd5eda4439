"""How many steps may follow a full one: more where the model's output moves slowly."""

from __future__ import annotations

from typing import Final, final

from attrs import define, field

__all__ = ["Interval"]

QUANTILES: Final = (0.3, 0.7)
"""Of the deviations seen so far; below the first the interval grows, above the second it shrinks.

Our choice: the thresholds of the paper are not known, and have another scale on every model.
"""

ENOUGH: Final = 3
"""Deviations from which on their quantiles say something."""


@final
@define(eq=False)
class Interval:
    """The interval of one run.

    Attributes:
        longest: it is never longer.
        low: deviation below which it grows, or None for the quantile of those seen so far.
        high: deviation above which it shrinks, or None likewise.
        steps: steps after a full one that need not be full.
    """

    longest: int
    low: float | None
    high: float | None
    steps: int = field(default=1, init=False)
    _seen: list[float] = field(factory=list, init=False)

    def follow(self, deviation: float, factor: float) -> None:
        """Adapt to how far the output has moved per step.

        Args:
            deviation: relative L1 change of the output from one full step to the next, per step.
            factor: both thresholds are multiplied with it.
        """
        self._seen.append(deviation)
        low = self._threshold(self.low, QUANTILES[0])
        high = self._threshold(self.high, QUANTILES[1])
        if high is not None and deviation > high * factor:
            self.steps = max(1, self.steps - 1)
        elif low is not None and deviation < low * factor:
            self.steps = min(self.longest, self.steps + 1)

    def _threshold(self, given: float | None, quantile: float) -> float | None:
        if given is not None:
            return given
        if len(self._seen) < ENOUGH:
            return None
        ordered = sorted(self._seen)
        return ordered[round(quantile * (len(ordered) - 1))]
