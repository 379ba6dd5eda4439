"""What stands in for a feature that was not computed: lines and series."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import ClassVar, Final, final

import numpy as np
import torch
from attrs import frozen
from numpy.polynomial import chebyshev
from torch import Tensor

from hetcache_core import Measured, Predictor, Stored, setting

__all__ = ["Blend", "Chebyshev", "Exponentials", "Foca", "Hermite", "Linear", "Taylor"]


SMALLEST: Final = 1e-6
"""Of the largest squared size: directions that are smaller are noise."""


def backward_differences(values: Sequence[Stored]) -> Iterator[Tensor]:
    """Yield the last value, its slope, the slope of slopes and so on, in fp32: differences are small."""
    gaps = [late.step - early.step for early, late in pairwise(values)]
    differences = [kept.value.float() for kept in values]
    yield differences[-1]
    for degree in range(1, len(values)):
        differences = [
            (late - early) / gap
            for (early, late), gap in zip(pairwise(differences), gaps[degree - 1 :], strict=True)
        ]
        yield differences[-1]


def between(older: Tensor, newest: Tensor, weight: float | Tensor) -> Tensor:
    """Return a point on the line through two values, computed in fp32: differences are small.

    torch computes ``lerp`` of narrow dtypes in fp32 as well and rounds once, so that nothing has to be cast
    where it takes the weight as it is.
    """
    if isinstance(weight, float | int):
        return older.lerp(newest, weight)
    return older.float().lerp(newest.float(), weight).to(newest.dtype)


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
        return between(older.value, newest.value, gain)


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
        return between(older.value, newest.value, 1 + reach)


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
        series = torch.zeros_like(newest.value, dtype=torch.float32)
        for degree, difference in enumerate(backward_differences(values)):
            series += difference * (distance**degree / math.factorial(degree))
        return series.to(newest.value.dtype)


@final
@frozen
class Hermite(Predictor):
    """Taylor's series with scaled Hermite polynomials in place of the powers.

    ``u`` steps after the last value the feature is ``sum_j F_j * scale**j H_j(scale * u) / j!``, with the
    backward differences ``F_j`` of ``Taylor`` and the physicists' polynomials ``H_j``. A line is followed to
    ``2 * scale**2`` of its slope, so a scale of 0.5 goes half as far.

    Source: HiCache (arXiv:2508.16984).

    Attributes:
        order: highest polynomial.
        scale: contraction of the polynomials.
    """

    name: ClassVar[str] = "hermite"
    summary: ClassVar[str] = "a series of scaled Hermite polynomials"

    order: int = setting(2, ge=1, doc="highest polynomial of the series")
    scale: float = setting(0.5, gt=0, le=1, doc="contraction of the polynomials")

    @property
    def history(self) -> int:
        """One value more than the order."""
        return self.order + 1

    def predict(
        self, values: Sequence[Stored], *, step: int, gain: float | Tensor | None
    ) -> Tensor:
        """Return the series' value, of a lower order while values are few; the gain is not used."""
        at = self.scale * (step - values[-1].step)
        polynomials = [1.0, 2 * at]
        for degree in range(1, self.order):
            polynomials.append(2 * at * polynomials[degree] - 2 * degree * polynomials[degree - 1])
        series = torch.zeros_like(values[-1].value, dtype=torch.float32)
        for degree, difference in enumerate(backward_differences(values)):
            factor = self.scale**degree * polynomials[degree] / math.factorial(degree)
            series += difference * factor
        return series.to(values[-1].value.dtype)


@final
@frozen
class Foca(Predictor):
    """Two steps of an ODE solver for every step: BDF2 forecasts, Heun's rule calibrates.

    From the last computed value ``F`` with slope ``D``, step ``e`` is
    ``P_e = F + e / 2 * (D + P_e-1 - P_e-2)``; before ``F`` stands what a line had predicted there. All of
    these are ``F + a_e D + b_e L``, with ``L`` the jump to ``F``, so none is kept. Exact for straight lines.

    Source: FoCa (arXiv:2508.16211), as cache-dit has it. Different: gaps need not be alike, and nothing is
    damped beyond three steps.
    """

    name: ClassVar[str] = "foca"
    summary: ClassVar[str] = "BDF2 forecasts, Heun's rule calibrates"

    @property
    def history(self) -> int:
        """Three values: the last predicted one follows from the older two."""
        return 3

    def predict(
        self, values: Sequence[Stored], *, step: int, gain: float | Tensor | None
    ) -> Tensor:
        """Return the last step's value; with one value so far, that value. The gain is not used."""
        newest = values[-1]
        if len(values) == 1:
            return newest.value
        older, gap = values[-2], newest.step - values[-2].step
        last, before = newest.value.float(), older.value.float()
        slope = jump = (last - before) / gap
        if len(values) > 2:  # noqa: PLR2004 - a value before the slope's two
            earlier = values[-3]
            then = (before - earlier.value.float()) / (older.step - earlier.step)
            jump = last - (before + (gap - 1) * then)
        slopes, jumps = [0.0, 0.0], [-1.0, 0.0]  # before F, and F itself
        for elapsed in range(1, step - newest.step + 1):
            slopes.append(elapsed / 2 * (1 + slopes[-1] - slopes[-2]))
            jumps.append(elapsed / 2 * (jumps[-1] - jumps[-2]))
        return (last + slopes[-1] * slope + jumps[-1] * jump).to(newest.value.dtype)


@final
@frozen
class Chebyshev(Predictor):
    """A ridge fit of Chebyshev polynomials over the step to the last computed values.

    With ``values=3``, ``degree=2`` and ``ridge=0`` it is the parabola through the last three.

    Source: Spectrum (arXiv:2603.01623). Different: what is fitted is the difference to the last value, so
    that the ridge draws to it and not to zero; and steps are counted over the kept values, not the run.

    Attributes:
        values: computed values that are fitted.
        degree: highest polynomial.
        ridge: penalty on the coefficients.
    """

    name: ClassVar[str] = "chebyshev"
    summary: ClassVar[str] = "a ridge fit of Chebyshev polynomials to the last values"

    values: int = setting(6, ge=2, doc="computed values that are fitted")
    degree: int = setting(4, ge=1, doc="highest polynomial")
    ridge: float = setting(0.1, ge=0, doc="penalty on the coefficients")

    @property
    def history(self) -> int:
        """What is fitted."""
        return self.values

    def predict(
        self, values: Sequence[Stored], *, step: int, gain: float | Tensor | None
    ) -> Tensor:
        """Return the fit's value; with one value so far, that value. The gain is not used."""
        newest = values[-1]
        if len(values) == 1:
            return newest.value
        first, degree = values[0].step, min(self.degree, len(values) - 1)
        at = np.array([kept.step for kept in values] + [step], dtype=np.float64)
        basis = chebyshev.chebvander(
            2 * (at - first) / (step - first) - 1, degree
        )  # (k + 1, d + 1)
        gram = basis[:-1].T @ basis[:-1] + self.ridge * np.eye(degree + 1)
        weights = basis[-1] @ np.linalg.solve(gram, basis[:-1].T)  # (k,)
        total = newest.value.float()
        for weight, kept in zip(weights[:-1], values[:-1], strict=True):
            total = total + float(weight) * (kept.value.float() - newest.value.float())
        return total.to(newest.value.dtype)


@final
@frozen
class Exponentials(Predictor):
    """Growing, falling and swinging exponentials through the last computed values.

    In the space of the values but the last, one gap takes each to the next: ``z' = A z``. The last value
    moves by ``A**k - 1`` where ``k`` gaps go by; what of it lies outside of that space is held.
    ``A`` is as large as there are values and is made on the host, which waits for the device.

    Source: dynamic mode decomposition (Prony's method), as cache-dit's DMD has it.

    Attributes:
        values: computed values that are looked at.
        most: the largest modulus of an eigenvalue: how fast one may grow in a gap.
    """

    name: ClassVar[str] = "exponentials"
    summary: ClassVar[str] = "exponentials through the last values (DMD)"

    values: int = setting(5, ge=3, doc="computed values that are looked at")
    most: float = setting(1.2, ge=1, doc="how fast an exponential may grow in a gap")

    @property
    def history(self) -> int:
        """What is looked at."""
        return self.values

    def predict(
        self, values: Sequence[Stored], *, step: int, gain: float | Tensor | None
    ) -> Tensor:
        """Return the value; with fewer than three so far, the last one. The gain is not used."""
        newest = values[-1]
        if len(values) < 3:  # noqa: PLR2004 - two pairs say how one follows on the other
            return newest.value
        rows = torch.stack([kept.value.float().flatten() for kept in values])  # (m, n)
        gram = (rows @ rows.T).double().cpu().numpy()
        sizes, vectors = np.linalg.eigh(gram[:-1, :-1])
        kept = sizes > SMALLEST * max(sizes[-1], 0.0)
        if not kept.any():
            return newest.value
        within = vectors[:, kept] / np.sqrt(sizes[kept])  # (m - 1, r): values to coordinates
        following = within.T @ gram[:-1, 1:] @ within
        eigenvalues, modes = np.linalg.eig(following)
        moduli = np.maximum(np.abs(eigenvalues), np.finfo(float).tiny)
        eigenvalues = eigenvalues * np.minimum(1.0, self.most / moduli)
        gap = (newest.step - values[0].step) / (len(values) - 1)
        moved = eigenvalues.astype(complex) ** ((step - newest.step) / gap) - 1
        start = within.T @ gram[:-1, -1]
        change = within @ (modes @ (moved * np.linalg.solve(modes, start.astype(complex)))).real
        weights = torch.from_numpy(change).to(rows)  # (m - 1,)
        found = rows[-1] + weights @ rows[:-1]
        return found.view_as(newest.value).to(newest.value.dtype)
