"""MagCache: reuse while the magnitude of the residual is known to stay near that of the kept one.

How much the residual grows or shrinks from step to step is a property of the model, measured once. The
product of these ratios since the last computed step says how far the kept residual is off by now, and the sum
of what it has been off by is the error that a threshold bounds. Nothing of the run itself is looked at.

Source: MagCache (NeurIPS 2025, arXiv:2506.09045) and its reference code. Different from that code: the
conditional branch's ratios decide for both branches, the last step runs in full (no published schedule
changes by it), and a model without ratios gets none of another model's unless asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, Literal, final

from attrs import define, field, frozen

from hetcache_core import (
    CachePolicy,
    Calibration,
    Calibrator,
    ConfigError,
    Decision,
    Guards,
    Hold,
    Mode,
    ModelInfo,
    PolicyRecipe,
    Predictor,
    RunInfo,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
    piece,
    setting,
)
from hetcache_policies.fits.magcache_ratios import RATIOS, Ratios, find_ratios, ratios_of
from hetcache_policies.shared.calibrating import MagnitudeCalibrator

__all__ = ["MagCache", "MagnitudeSteps"]

THRESHOLD: Final = 0.12
"""Source: MagCache4Wan2.1, setting E012K2R02."""

LONGEST_REUSE: Final = 2
"""Source: the same setting."""

FIRST_STEPS: Final = 0.2
"""Source: the same setting, ``retention_ratio``."""

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"threshold": THRESHOLD, "longest_reuse": LONGEST_REUSE, "first_steps": FIRST_STEPS},
    "balanced": {"threshold": 0.24, "longest_reuse": 6, "first_steps": FIRST_STEPS},
    "fast": {"threshold": 0.16, "longest_reuse": 6, "first_steps": 0.1},
}
"""About 50, 36 and 28 % of the steps, with each of the published ratios, from 20 to 100 steps.

Source: E012K2R02 and E024K6R02 of MagCache4Wan2.1; our design for "fast".
"""


@final
@frozen(kw_only=True)
class MagnitudeSteps(StepPolicy):
    """Computes a step when the estimated error since the last computed one reaches a threshold.

    Attributes:
        ratios: the residual's ratios.
        threshold: error at which a step is computed.
        calibration: where the ratios come from, which the run's steps must match, or None.
    """

    ratios: Ratios
    threshold: float
    calibration: Calibration | None = None

    @property
    def sigmas_only(self) -> bool:
        """Nothing of the run is looked at."""
        return True

    def begin(self, run: RunInfo) -> StepDecider:
        """Bring the ratios to the run's number of steps.

        Raises:
            ConfigError: they were measured on other steps.
        """
        if self.calibration is not None:
            self.calibration.check_run(run)
        return _Decider(self, self.ratios.at(run.steps))


@final
@define(eq=False)
class _Decider(StepDecider):
    _policy: MagnitudeSteps
    _ratios: tuple[float, ...]
    _ratio: float = field(default=1.0, init=False)
    _error: float = field(default=0.0, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        threshold = self._policy.threshold * signals.threshold_factor
        self._ratio *= self._ratios[step.index]
        self._error += abs(1 - self._ratio)
        if self._error >= threshold:
            reason = f"error {self._error:.3f} >= {threshold:.3f}"
            return Decision(Mode.FULL, reason, self._error)
        reason = f"error {self._error:.3f} < {threshold:.3f}"
        return Decision(Mode.REUSE, reason, self._error)

    def settle(self, step: StepInfo, mode: Mode) -> None:
        if mode is Mode.FULL:
            self._ratio, self._error = 1.0, 0.0


@final
@frozen(kw_only=True)
class MagCache(PolicyRecipe):
    """Settings of MagCache."""

    name: ClassVar[str] = "magcache"
    summary: ClassVar[str] = (
        "reuse the residual by how its magnitude is known to change on this model"
    )
    source: ClassVar[str] = "MagCache, NeurIPS 2025, arXiv:2506.09045"
    decides_on: ClassVar[str] = "how the residual's magnitude is known to change"
    default_guards: ClassVar[Guards] = Guards(
        first_steps=FIRST_STEPS, last_steps=1, longest_reuse=LONGEST_REUSE
    )
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = PRESETS
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.50, "balanced": 0.36, "fast": 0.28}
    anywhere: ClassVar[Mapping[str, object]] = {"ratios": "vace-1.3b"}
    """With its defaults it is refused on a model without ratios of its own."""

    ratios: Literal["auto", "t2v-1.3b", "t2v-14b", "vace-1.3b"] = setting(
        "auto", doc="whose ratios: the model's own published ones (auto), or another model's"
    )
    calibration: str | None = setting(
        None, doc="file of hetcache calibrate whose ratios are used; it goes before ratios"
    )
    values: tuple[float, ...] = setting(
        (), gt=0, doc="ratios given here, one a step; they go before both"
    )
    threshold: float = setting(THRESHOLD, ge=0, doc="estimated error at which a step is computed")
    predictor: Predictor = piece(
        "predictor", Hold(), doc="what stands in for what a reused step leaves out"
    )

    @classmethod
    def calibrator(cls) -> Calibrator:
        """Measure the model's own ratios."""
        return MagnitudeCalibrator()

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Find the ratios.

        Raises:
            ConfigError: There are none for the model, or the calibration is not of this model.
        """
        calibration = None
        if self.calibration is not None and not self.values:
            calibration = Calibration.load(self.calibration, policy=self.name, model=model)
        ratios = self._ratios(model) if calibration is None else ratios_of(calibration)
        return CachePolicy(
            name=self.name,
            step=MagnitudeSteps(
                ratios=ratios,
                threshold=self.threshold,
                calibration=calibration,
            ),
            predictor=self.predictor,
        )

    def _ratios(self, model: ModelInfo) -> Ratios:
        if self.values:
            name = model.variant or model.backbone
            return Ratios(model=name, shift=None, source="given", values=self.values)
        found = find_ratios(model) if self.ratios == "auto" else RATIOS[self.ratios]
        if found is not None:
            return found
        raise ConfigError(
            f"no magnitude ratios are known for {model.variant or f'this {model.backbone} model'}",
            where=f"policy {self.name}",
            setting="ratios",
            given=self.ratios,
            allowed=RATIOS,
            remedy=f"Measure them with hetcache calibrate --backbone {model.backbone} --policy {self.name} "
            "and give the file as calibration=FILE, or borrow another model's with ratios=vace-1.3b "
            f"(known: {', '.join(RATIOS)}).",
        )
