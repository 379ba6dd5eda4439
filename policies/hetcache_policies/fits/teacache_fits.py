"""Published TeaCache polynomials: how far the trunk's output moves when a signal moves.

A polynomial was fitted to the steps of one model at one number of steps, and means nothing outside of
the changes it has seen: some fall below zero there, and a sum of negative terms would skip for ever.
So each comes with a range. Over ``low`` to ``high`` it is never negative, and nowhere greater than at
``high``; ``low`` is where it leaves zero, or its lowest point, and ``high`` its first maximum, or the
higher one of two close ones. Changes outside count as those at the nearer end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, final

from attrs import frozen

from hetcache_core import Calibration, ConfigError
from hetcache_policies.shared.signals import SIGNALS

__all__ = ["FITS", "FIT_OF_VARIANT", "Fit", "find_fit", "fit_of"]

SAFE_STEPS: Final = 1.5
FAST_STEPS: Final = 2.5
"""Thresholds of a calibrated polynomial, in mean changes a step; our design, half a step off the
point at which an evenly moving signal is computed one step later."""

RET_STEPS: Final = 5
"""Steps that are always computed first with Wan's modulation.

Source: TeaCache, TeaCache4Wan2.1, ``ret_steps`` with ``use_ret_steps``; without it, one step.
"""

_WAN_T2V_STEPS: Final = 50
_WAN_I2V_STEPS: Final = 40
_LTX_STEPS: Final = 50
_HUNYUAN_STEPS: Final = 50
# Source: the models' own default numbers of steps (Wan2.1 generate.py, HunyuanVideo
# sample_video.py, TeaCache4LTX-Video), with which the polynomials were made.


@final
@frozen(kw_only=True)
class Fit:
    """One polynomial with everything that belongs to it.

    Attributes:
        signal: name of the signal that it was fitted to.
        coefficients: highest power first; fits have degree 4.
        low: smallest relative change that it is evaluated at.
        high: largest one.
        steps: number of steps ``S`` that it was fitted at.
        first_steps: steps that are always computed first.
        safe: published threshold that stays close to the reference.
        fast: published threshold of the faster setting.
    """

    signal: str
    coefficients: tuple[float, ...]
    low: float
    high: float
    steps: int
    first_steps: int
    safe: float
    fast: float

    def value(self, change: float) -> float:
        """Evaluate the polynomial within its range, never below zero."""
        x = min(max(change, self.low), self.high)
        total = 0.0
        for coefficient in self.coefficients:
            total = total * x + coefficient
        return max(total, 0.0)

    def rescale(self, change: float, steps: int) -> float:
        """Estimate how far the output moves in one step of a run.

        A run of other length has shorter or longer steps than those of the fit, so the change is
        brought to their length first, and the estimate back. At the fit's own number of steps this
        is the published rule.

        Args:
            change: relative change of the signal over the step.
            steps: number of steps ``S`` of the run.
        """
        length = self.steps / steps
        return self.value(change / length) * length


# Source of coefficients and thresholds: TeaCache (CVPR 2025, arXiv:2411.19108), TeaCache4Wan2.1,
# TeaCache4LTX-Video and TeaCache4HunyuanVideo in its repository. "/modulation" is what it calls
# use_ret_steps. Ranges are computed from the polynomials; tests/policies/test_teacache.py checks them.
FITS: Final[Mapping[str, Fit]] = {
    "wan2.1-t2v-1.3b/modulation": Fit(
        signal="modulation",
        coefficients=(-5.21862437e04, 9.23041404e03, -5.28275948e02, 1.36987616e01, -4.99875664e-02),
        low=0.0043, high=0.0792,
        steps=_WAN_T2V_STEPS, first_steps=RET_STEPS, safe=0.05, fast=0.10,
    ),
    "wan2.1-t2v-1.3b/timestep": Fit(
        signal="timestep",
        coefficients=(2.39676752e03, -1.31110545e03, 2.01331979e02, -8.29855975e00, 1.37887774e-01),
        low=0.0275, high=0.1196,
        steps=_WAN_T2V_STEPS, first_steps=1, safe=0.05, fast=0.08,
    ),
    "wan2.1-t2v-14b/modulation": Fit(
        signal="modulation",
        coefficients=(-3.03318725e05, 4.90537029e04, -2.65530556e03, 5.87365115e01, -3.15583525e-01),
        low=0.0077, high=0.0663,
        steps=_WAN_T2V_STEPS, first_steps=RET_STEPS, safe=0.10, fast=0.20,
    ),
    "wan2.1-t2v-14b/timestep": Fit(
        signal="timestep",
        coefficients=(-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
        low=0.1296, high=0.3487,
        steps=_WAN_T2V_STEPS, first_steps=1, safe=0.14, fast=0.20,
    ),
    "wan2.1-i2v-480p/modulation": Fit(
        signal="modulation",
        coefficients=(2.57151496e05, -3.54229917e04, 1.40286849e03, -1.35890334e01, 1.32517977e-01),
        low=0.0062, high=0.0333,
        steps=_WAN_I2V_STEPS, first_steps=RET_STEPS, safe=0.20, fast=0.30,
    ),
    "wan2.1-i2v-480p/timestep": Fit(
        signal="timestep",
        coefficients=(-3.02331670e02, 2.23948934e02, -5.25463970e01, 5.87348440e00, -2.01973289e-01),
        low=0.0568, high=0.344,
        steps=_WAN_I2V_STEPS, first_steps=1, safe=0.13, fast=0.26,
    ),
    "wan2.1-i2v-720p/modulation": Fit(
        signal="modulation",
        coefficients=(8.10705460e03, 2.13393892e03, -3.72934672e02, 1.66203073e01, -4.17769401e-02),
        low=0.0027, high=0.0337,
        steps=_WAN_I2V_STEPS, first_steps=RET_STEPS, safe=0.20, fast=0.30,
    ),
    "wan2.1-i2v-720p/timestep": Fit(
        signal="timestep",
        coefficients=(-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683),
        low=0.0583, high=0.2706,
        steps=_WAN_I2V_STEPS, first_steps=1, safe=0.18, fast=0.30,
    ),
    "ltx-video-0.9.1": Fit(
        signal="modulated_input",
        coefficients=(2.14700694e01, -1.28016453e01, 2.31279151e00, 7.92487521e-01, 9.69274326e-03),
        low=0.0, high=math.inf,  # rises from 0 on
        steps=_LTX_STEPS, first_steps=1, safe=0.03, fast=0.05,
    ),
    "hunyuanvideo": Fit(
        signal="modulated_input",
        coefficients=(7.33226126e02, -4.01131952e02, 6.75869174e01, -3.14987800e00, 9.61237896e-02),
        low=0.0314, high=0.1482,
        steps=_HUNYUAN_STEPS, first_steps=1, safe=0.10, fast=0.15,
    ),
}  # fmt: skip

FIT_OF_VARIANT: Final[Mapping[str, tuple[str, ...]]] = {
    # No fit was published for VACE; like HetCache's own code, its models borrow text-to-video's.
    "wan2.1-1.3b": ("wan2.1-t2v-1.3b/modulation", "wan2.1-t2v-1.3b/timestep"),
    "wan2.1-14b": ("wan2.1-t2v-14b/modulation", "wan2.1-t2v-14b/timestep"),
    "ltx-video-2b": ("ltx-video-0.9.1",),
}
"""Fits of a ``ModelInfo.variant``, the preferred one first."""


def find_fit(variant: str, signal: str | None) -> Fit | None:
    """Find the fit of a model.

    Args:
        variant: ``ModelInfo.variant``.
        signal: the signal that it must be of, or None for the preferred one.
    """
    fits = (FITS[name] for name in FIT_OF_VARIANT.get(variant, ()))
    return next((fit for fit in fits if signal in {None, fit.signal}), None)


def fit_of(calibration: Calibration) -> Fit:
    """Turn a calibration of this model into a fit.

    Its thresholds are in units of the model's own mean change a step, as no others are known:
    computing about every second step is called safe, about every third fast.

    Raises:
        ConfigError: the file's values are not those of a polynomial.
    """
    data = calibration.data
    try:
        mean = float(data["mean_change"])
        return Fit(
            signal=SIGNALS[data["signal"]].name,
            coefficients=tuple(float(c) for c in data["coefficients"]),
            low=float(data["low"]),
            high=float(data["high"]),
            steps=calibration.steps,
            first_steps=1,
            safe=SAFE_STEPS * mean,
            fast=FAST_STEPS * mean,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"it holds no polynomial: {error!r}", where=f"calibration for {calibration.policy}"
        ) from error
