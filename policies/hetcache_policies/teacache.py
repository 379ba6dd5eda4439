"""TeaCache: reuse the trunk's residual until a signal has drifted far enough from the last full step.

Source: TeaCache (CVPR 2025, arXiv:2411.19108) and its reference code. Different from that code: the
decision is taken in fp32 from the unrounded timestep, the residual is that of the trunk on every
model, polynomials are kept within their range and brought to the run's number of steps, runs of
reused steps are limited, and the last step runs in full. Models without a polynomial get changes in
units of the run's average step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, final

from attrs import define, field, frozen

from hetcache_core import (
    CachePolicy,
    Calibration,
    Calibrator,
    Decision,
    Guards,
    Hold,
    Mode,
    ModelInfo,
    PolicyRecipe,
    Predictor,
    RunInfo,
    Signal,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
    piece,
    setting,
)
from hetcache_policies.fits.teacache_fits import FITS, find_fit, fit_of
from hetcache_policies.shared.calibrating import PolynomialCalibrator
from hetcache_policies.shared.drift import Drift, DriftSettings
from hetcache_policies.shared.signals import SIGNALS, Modulation, name_of

__all__ = ["LONGEST_REUSE", "RAW_THRESHOLD", "DriftSteps", "TeaCache"]

NO_FIT: Final = (
    "No TeaCache polynomial is known for this model: changes count in average steps. "
    "hetcache calibrate --backbone {backbone} --policy teacache fits one."
)

RAW_THRESHOLD: Final = 0.1
"""Threshold for changes as they are (``rescale=none``).

Source: prototype runs of a small Wan-VACE-architecture model trained on synthetic clips, 30 steps:
36 % of the FLOPs and 46 dB to the reference inside the mask. Other models differ in scale.
"""

LONGEST_REUSE: Final = 0.2
"""Most steps reused in a row, as a share of the run.

Our design, after MagCache's limit on consecutive reuse: where a signal hardly moves, nothing but this
ends a run of reused steps.
"""

NORMALIZED_THRESHOLDS: Final[Mapping[str, float]] = {"quality": 1.5, "balanced": 2.5, "fast": 3.5}
"""Thresholds in average steps: about every 2nd, 3rd and 4th step is computed.

Our design, for models without a polynomial. Each is half a step off the point at which an evenly
moving signal is computed one step later.
"""


@final
@frozen(kw_only=True)
class DriftSteps(StepPolicy):
    """Computes a step when the changes since the last computed one add up to a threshold.

    Attributes:
        drift: what is looked at, and the unit of its changes.
        threshold: in that unit.
    """

    drift: DriftSettings
    threshold: float

    @property
    def sigmas_only(self) -> bool:
        """Whether the signal depends on the noise levels alone."""
        return self.drift.sigmas_only

    def begin(self, run: RunInfo) -> StepDecider:
        """Start with nothing added up."""
        if self.drift.calibration is not None:
            self.drift.calibration.check_run(run)
        return _Decider(self, Drift(self.drift))


@final
@define(eq=False)
class _Decider(StepDecider):
    _policy: DriftSteps
    _drift: Drift
    _sum: float = field(default=0.0, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        self._sum += self._drift.change(step, signals)
        threshold = self._policy.threshold * signals.threshold_factor
        if self._sum >= threshold:
            reason = f"signal {self._sum:.3f} >= {threshold:.3f}"
            return Decision(Mode.FULL, reason, self._sum)
        reason = f"signal {self._sum:.3f} < {threshold:.3f}"
        return Decision(Mode.REUSE, reason, self._sum)

    def settle(self, step: StepInfo, mode: Mode) -> None:
        if mode is Mode.FULL:
            self._sum = 0.0


@final
@frozen(kw_only=True)
class TeaCache(PolicyRecipe):
    """Settings of TeaCache."""

    name: ClassVar[str] = "teacache"
    summary: ClassVar[str] = (
        "reuse the trunk's residual until a timestep signal has drifted far enough"
    )
    source: ClassVar[str] = "TeaCache, CVPR 2025, arXiv:2411.19108"
    decides_on: ClassVar[str] = "changes of the timestep's modulation"
    default_guards: ClassVar[Guards] = Guards(
        first_steps=1, last_steps=1, longest_reuse=LONGEST_REUSE
    )
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.50, "balanced": 0.36, "fast": 0.28}

    threshold: float | None = setting(
        None, ge=0, doc="sum of changes at which a step is computed; null takes the unit's own"
    )
    coefficients: str = setting(
        "auto",
        choices=("auto", "normalized", "none", *FITS),
        doc="unit of changes: a published polynomial, average steps (normalized), relative L1 (none); "
        "auto takes the model's polynomial, or normalized where there is none",
    )
    signal: Signal | None = piece(
        "signal", None, doc="what is looked at; null takes the polynomial's own, or modulation"
    )
    calibration: str | None = setting(
        None,
        doc="file of hetcache calibrate whose polynomial is used; it goes before coefficients",
    )
    predictor: Predictor = piece(
        "predictor", Hold(), doc="what stands in for what a reused step leaves out"
    )

    @classmethod
    def presets_for(cls, model: ModelInfo) -> Mapping[str, Mapping[str, object]]:
        """Return thresholds in the unit that the model gets by default."""
        fit = find_fit(model.variant, None)
        thresholds = NORMALIZED_THRESHOLDS
        if fit is not None:
            # Two are published; the third is in their middle.
            middle = (fit.safe + fit.fast) / 2
            thresholds = {"quality": fit.safe, "balanced": middle, "fast": fit.fast}
        return {preset: {"threshold": threshold} for preset, threshold in thresholds.items()}

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Choose unit and signal for the model.

        Raises:
            ConfigError: The signal does not go with the coefficients.
        """
        drift = self._drift(model)
        without_fit = self.coefficients == "auto" and drift.fit is None
        return CachePolicy(
            name=self.name,
            notes=(NO_FIT.format(backbone=model.backbone),) if without_fit else (),
            step=DriftSteps(
                drift=drift,
                threshold=_threshold(drift) if self.threshold is None else self.threshold,
            ),
            guards=Guards(first_steps=drift.fit.first_steps) if drift.fit else Guards(),
            predictor=self.predictor,
        )

    @classmethod
    def calibrator(cls) -> Calibrator:
        """Fit the model's own polynomial."""
        return PolynomialCalibrator()

    def _drift(self, model: ModelInfo) -> DriftSettings:
        if self.calibration is not None:
            calibration = Calibration.load(self.calibration, policy=self.name, model=model)
            own = fit_of(calibration)
            signal = SIGNALS[own.signal]
            return DriftSettings(signal=signal, rescale="poly", fit=own, calibration=calibration)
        wanted = None if self.signal is None else name_of(self.signal)
        automatic = self.coefficients == "auto"
        fit = find_fit(model.variant, wanted) if automatic else FITS.get(self.coefficients)
        if fit is not None:
            return DriftSettings(signal=self.signal or SIGNALS[fit.signal], rescale="poly", fit=fit)
        signal = self.signal or Modulation()
        raw = self.coefficients == "none" or (automatic and not signal.sigmas_only)
        return DriftSettings(signal=signal, rescale="none" if raw else "normalized")


def _threshold(drift: DriftSettings) -> float:
    if drift.fit is not None:
        return drift.fit.safe
    return NORMALIZED_THRESHOLDS["quality"] if drift.rescale == "normalized" else RAW_THRESHOLD
