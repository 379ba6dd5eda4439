"""What stands in for a feature that was not computed: lines and series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, final

from attrs import frozen
from torch import Tensor

from hetcache_core import Measured, Predictor, Stored, setting

__all__ = ["Blend", "Linear", "Taylor"]


@final
@frozen
class Linear(Predictor):
    """The straight line through the last two computed values.

    A decision's gain says where on the line: 0 is the older value, 1 the newer one. Without a gain
    the line is followed to the step itself.

    Source: with a gain, DiCache's ``r_2 + g * (r_1 - r_2)``; without, the first order of TaylorSeer.
    """

    name: ClassVar[str] = "linear"
    summary: ClassVar[str] = "the straight line through the last two computed values"

    @property
    def history(self) -> int:
        """Two values."""
        return 2

    def predict(
        self, values: Sequence[Stored], *, step: int, gain: float | Tensor | None
    ) -> Tensor:
        """Return a point on the line; with one value so far, that value."""
        newest = values[-1]
        if len(values) == 1:
            return newest.value
        older = values[-2]
        if gain is None:
            gain = 1 + (step - newest.step) / (newest.step - older.step)
        line = older.value.float().lerp(newest.value.float(), gain)  # fp32: differences are small
        return line.to(newest.value.dtype)


@final
@frozen
class Blend(Predictor):
    """A point between the last computed value and the straight line through the last two.

    How far along it lies (0: the value, 1: the line) is measured in the run, after guidance. In the residual
    of one branch it cannot be seen that a line fails: guidance multiplies the difference of the branches,
    in which it does.

    Source: our design.

    Attributes:
        first: the share of the line before anything was measured.
        most: the largest share.
    """

    name: ClassVar[str] = "blend"
    summary: ClassVar[str] = "as much of a straight line as the run has shown to be right"

    first: float = setting(0.5, ge=0, le=1, doc="share of the line before anything was measured")
    most: float = setting(1.0, ge=0, le=2, doc="the largest share of the line; 0 holds")

    @property
    def history(self) -> int:
        """Two values."""
        return 2

    @property
    def measured(self) -> Measured:
        """The share of the line."""
        return Measured(first=min(self.first, self.most), high=self.most)

    def predict(
        self, values: Sequence[Stored], *, step: int, gain: float | Tensor | None
    ) -> Tensor:
        """Return the point; with one value so far, that value."""
        newest = values[-1]
        if len(values) == 1:
            return newest.value
        older, share = values[-2], self.measured.first if gain is None else gain
        reach = share * ((step - newest.step) / (newest.step - older.step))
        line = older.value.float().lerp(newest.value.float(), 1 + reach)
        return line.to(newest.value.dtype)


@final
@frozen
class Taylor(Predictor):
    """A Taylor series whose derivatives are backward differences of the computed values.

    At every computed step ``F_0 = F`` and ``F_j+1 = (F_j - F_j of the last computed step) / gap``;
    ``u`` steps later the feature is taken to be ``sum_j F_j * u**j / j!``. Backward differences lag
    behind the derivative from the second order on, so the series is exact for straight lines only.

    Source: TaylorSeer (arXiv:2503.06923), the formula of its reference implementation.

    Attributes:
        order: highest derivative.
    """

    name: ClassVar[str] = "taylor"
    summary: ClassVar[str] = "a Taylor series of backward differences"

    order: int = setting(1, ge=1, doc="highest derivative of the series")

    @property
    def history(self) -> int:
        """One value more than the order."""
        return self.order + 1

    def predict(
        self, values: Sequence[Stored], *, step: int, gain: float | Tensor | None
    ) -> Tensor:
        """Return the series' value, of a lower order while values are few; the gain is not used."""
        newest = values[-1]
        distance = step - newest.step
        gaps = [late.step - early.step for early, late in pairwise(values)]
        differences = [kept.value.float() for kept in values]  # fp32: differences are small
        series = differences[-1].clone()
        for degree in range(1, len(values)):
            differences = [
                (late - early) / gap
                for (early, late), gap in zip(
                    pairwise(differences), gaps[degree - 1 :], strict=True
                )
            ]
            series += differences[-1] * (distance**degree / math.factorial(degree))
        return series.to(newest.value.dtype)
