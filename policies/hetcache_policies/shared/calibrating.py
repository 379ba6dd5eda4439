"""Watching reference runs: residual magnitudes for MagCache, signal and output for TeaCache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, final

import torch
from attrs import define, field, frozen
from torch import Tensor

from hetcache_core import (
    CachePolicy,
    Calibrator,
    ConfigError,
    Decision,
    Mode,
    RunInfo,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
    relative_l1,
)

if TYPE_CHECKING:
    import numpy as np

__all__ = ["FIT_DEGREE", "MagnitudeCalibrator", "PolynomialCalibrator"]

FIT_DEGREE: Final = 4
"""Source: TeaCache, whose published polynomials have it."""

PREVIOUS: Final = "residual of the last step"
WATCHING = Decision(Mode.FULL, "calibrating")


@final
@define(eq=False)
class MagnitudeCalibrator(Calibrator):
    """Measures how the residual's magnitude changes from step to step.

    Source: MagCache, section 3: the mean over tokens of ``|r_i| / |r_(i-1)|``.
    """

    _runs: list[list[float]] = field(factory=list, init=False)

    def watch(self) -> CachePolicy:
        """Return the policy that looks on."""
        return CachePolicy(name="calibrating", step=_Watch(_Magnitudes, self._runs))

    def result(self) -> Mapping[str, Any]:
        """Return the mean ratios of all runs, one a step."""
        ratios = _rows(self._runs)  # (runs, S - 2)
        mean = ratios.mean(0)
        # The last step's residual is never needed and not kept; its ratio is that of the one before.
        values = [1.0, *mean.tolist(), float(mean[-1])]
        return {"ratios": values, "spread": float(ratios.std(0).max())}


@final
@define(eq=False)
class PolynomialCalibrator(Calibrator):
    """Fits how far the model's output moves when its timestep modulation moves.

    Source: TeaCache, section 3.3: a polynomial of degree 4 over reference runs.
    """

    _runs: list[list[float]] = field(factory=list, init=False)

    def watch(self) -> CachePolicy:
        """Return the policy that looks on."""
        return CachePolicy(name="calibrating", step=_Watch(_Changes, self._runs))

    def result(self) -> Mapping[str, Any]:
        """Return the polynomial, its range, and the root mean square of what it misses."""
        import numpy as np

        pairs = _rows(self._runs)  # (runs, 2 * (S - 1)), signal changes first
        steps = pairs.shape[1] // 2
        if steps <= FIT_DEGREE:
            raise ConfigError(
                f"{steps + 1} steps are too few to fit a polynomial of degree {FIT_DEGREE}",
                where="calibration",
                remedy=f"Calibrate with at least {FIT_DEGREE + 2} steps.",
            )
        x, y = pairs[:, :steps].ravel(), pairs[:, steps:].ravel()
        # Standardized for the solver; the changes are small and their fourth power is tiny.
        fitted = np.polynomial.Polynomial.fit(x, y, FIT_DEGREE).convert()
        coefficients = np.zeros(FIT_DEGREE + 1)
        coefficients[: len(fitted.coef)] = fitted.coef
        missed = y - fitted(x)
        return {
            "signal": "modulation",
            "coefficients": coefficients[::-1].tolist(),
            "low": float(x.min()),
            "high": float(x.max()),
            "residual_rms": float(np.sqrt((missed**2).mean())),
            "mean_change": float(y.mean()),
        }


def _rows(runs: list[list[float]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    import numpy as np

    lengths = {len(run) for run in runs}
    if len(lengths) != 1 or 0 in lengths:
        found = "no run" if not runs else "runs of different or too few steps"
        raise ConfigError(
            f"it has watched {found}",
            where="calibration",
            remedy="Run whole clips, at least 3 steps each and all of the same number.",
        )
    return np.array(runs)


@final
@frozen(eq=False)
class _Watch(StepPolicy):
    decider: type[_Magnitudes | _Changes]
    runs: list[list[float]]

    def begin(self, run: RunInfo) -> StepDecider:
        return self.decider(self.runs)


@final
@define(eq=False)
class _Magnitudes(StepDecider):
    _runs: list[list[float]]
    _ratios: list[Tensor] = field(factory=list, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        residual = signals.residual()  # of the step before
        if residual is not None:
            fresh = residual.float().norm(dim=-1)  # (b, N)
            previous = signals.kept(PREVIOUS)
            if previous is not None:
                floor = torch.finfo(fresh.dtype).tiny
                self._ratios.append((fresh / previous.clamp_min(floor)).mean())
            signals.keep(PREVIOUS, fresh)
        if step.is_last and self._ratios:
            self._runs.append(signals.read_many(torch.stack(self._ratios)))
        return WATCHING


@final
@define(eq=False)
class _Changes(StepDecider):
    _runs: list[list[float]]
    _inputs: list[Tensor] = field(factory=list, init=False)
    _outputs: list[Tensor] = field(factory=list, init=False)
    _last: Tensor | None = field(default=None, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        if not step.is_first:
            fresh, old = signals.timestep_modulation(), signals.timestep_modulation(step.index - 1)
            self._inputs.append(relative_l1(fresh, old))
        return WATCHING

    def output(self, step: StepInfo, latents: Tensor, output: Tensor) -> None:
        if self._last is not None:
            self._outputs.append(relative_l1(output, self._last))
        self._last = output
        if step.is_last and self._inputs:
            self._runs.append(torch.stack(self._inputs + self._outputs).tolist())
