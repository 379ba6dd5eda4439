"""The default: steps where the sampler moves most, lines as far as they hold, and errors paid back.

Where steps are computed follows from the noise levels alone, so the schedule and its cost are known before
the run, and it runs on every backbone, masked or not. Three things make it better than uniform skipping at
the same cost:

- *Where steps are computed.* A wrong answer at step ``i`` moves the result by the distance that the sampler
  goes with it, ``|sigma_i - sigma_i+1|``. With a shift of 5 it goes a fifth of an average step at the
  beginning and nearly five at the end. With ``n`` steps from one computed step to the next, the error of a
  straight line is about ``n**2`` times the curvature, so the sum of errors is smallest where computed steps
  lie as ``|sigma_i - sigma_i+1|**(1/3)``.
- *What stands in for a step that is not computed*: a point between the last computed residual and the
  straight line through the last two, as far along as the last gap has shown to be right (``Blend``).
- *What a computed step pays back*: it shows by how much the steps before it were wrong, and takes what
  that did to the latents off them (``Payback``). Where the sampler takes other steps than Euler's, nothing is
  paid back, and the run says so.

With a small mask and memory to spare, ``partials`` adds steps that run the tokens of the edit only, in the
middle of the widest gaps. These see the keys and values of all tokens, predicted by a line.

Source: our design. The line is TaylorSeer's first order (arXiv:2503.06923) on the residual of the trunk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Final, final

from attrs import define, field, frozen

from hetcache_core import (
    CachePolicy,
    Calibration,
    Calibrator,
    ConfigError,
    ControlMode,
    Corrector,
    Decision,
    Guards,
    KeepOutput,
    KeySettings,
    Mode,
    ModelInfo,
    PartialSettings,
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
from hetcache_policies.hetcache import MARGIN
from hetcache_policies.shared.correctors import Payback
from hetcache_policies.shared.partition import MaskPartitioner
from hetcache_policies.shared.predictors import Blend, Linear
from hetcache_policies.shared.quality import (
    QualityCalibrator,
    QualityLine,
    QualitySteps,
    positions,
)

__all__ = ["Auto", "SpacedSteps", "positions"]

EXPONENT: Final = 1 / 3
FIRST_STEPS: Final = 1
"""Two would give a line at once, but one from the two steps that are nearest to noise and to each other: it
is worse than holding, by 3 dB at a quarter of 20 steps."""

PARTIAL: Final = PartialSettings(
    keys=KeySettings(predictor=Linear()), control_mode=ControlMode.RECOMPUTE
)

ROUNDING: Final = 1e-9
"""A step that lies on a whole number of gaps counts as on it."""

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"every": 2.0},
    "balanced": {"every": 3.0},
    "fast": {"every": 5.0},
}
SHARES: Final[Mapping[str, float]] = {"quality": 0.50, "balanced": 0.34, "fast": 0.22}


@final
@frozen(kw_only=True)
class SpacedSteps(StepPolicy):
    """Computes steps at even distances along the way that the sampler goes.

    Distances are counted from the last step that a guard computed to the last one of the run.

    Attributes:
        every: distance of computed steps, in average steps; an asked speed-up stretches it.
        exponent: see ``positions``.
        partials: partial steps for each gap between computed ones.
        first_gap: most steps from the first computed one to the second, or None.
    """

    every: float
    exponent: float = EXPONENT
    partials: float = 0.0
    first_gap: int | None = None

    @property
    def sigmas_only(self) -> bool:
        """Nothing of the run is looked at but its noise levels."""
        return True

    def begin(self, run: RunInfo) -> StepDecider:
        """Measure the way."""
        return _Decider(self, positions(run.sigmas, self.exponent))


@final
@define(eq=False)
class _Decider(StepDecider):
    _policy: SpacedSteps
    _positions: tuple[float, ...]
    _begun: int | None = field(default=None, init=False)
    _partial: dict[tuple[int, int], frozenset[int]] = field(factory=dict, init=False)
    """Partial steps, by the step from which distances are counted and the number of gaps."""

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        ends = self._begun == 0 and step.index == self._policy.first_gap
        if self._begun is None or step.computed or ends:
            self._begun = step.index
            return Decision(Mode.FULL, "distances count from here")
        begun, way = self._begun, self._positions[-1] - self._positions[self._begun]
        # This and the last step are computed in any case, with whole gaps of one size between.
        gap = max(1.0, self._policy.every * signals.threshold_factor)
        gaps = max(1, round(way / gap))
        gap = way / gaps
        if self._is_full(step.index, gap):
            return Decision(Mode.FULL, f"every {gap:.3g} average steps")
        if (begun, gaps) not in self._partial:
            count = round(self._policy.partials * gaps)
            self._partial[begun, gaps] = self._middles(begun, gap, count)
        if step.index in self._partial[begun, gaps]:
            return Decision(Mode.PARTIAL, "in the middle of a wide gap")
        return Decision(Mode.REUSE, f"every {gap:.3g} average steps, not yet")

    def _is_full(self, index: int, gap: float) -> bool:
        """Whether a step is the first one after a whole number of gaps before the end."""
        left = [(self._positions[-1] - self._positions[at]) / gap for at in (index - 1, index)]
        return math.ceil(left[0] - ROUNDING) > math.ceil(left[1] - ROUNDING)

    def _middles(self, begun: int, gap: float, count: int) -> frozenset[int]:
        """Place partial steps one by one, each as near as can be to the middle of the widest gap left."""
        last, places = len(self._positions) - 1, self._positions
        inner = range(begun + 1, last)
        computed = {begun, last, *(i for i in inner if self._is_full(i, gap))}
        full = frozenset(computed)
        for _ in range(count):
            gaps = [(a, b) for a, b in pairwise(sorted(computed)) if b - a > 1]
            if not gaps:
                break
            first, end = max(gaps, key=lambda pair: places[pair[1]] - places[pair[0]])
            middle = (places[first] + places[end]) / 2
            computed.add(min(range(first + 1, end), key=lambda at: abs(places[at] - middle)))
        return frozenset(computed) - full


@final
@frozen(kw_only=True)
class Auto(PolicyRecipe):
    """Settings of the default policy."""

    name: ClassVar[str] = "auto"
    summary: ClassVar[str] = (
        "the default: steps where the sampler moves most, lines between them, errors paid back"
    )
    source: ClassVar[str] = "hetcache; the line is TaylorSeer's first order, arXiv:2503.06923"
    decides_on: ClassVar[str] = "the noise levels"
    default_guards: ClassVar[Guards] = Guards(first_steps=FIRST_STEPS, last_steps=1)
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = PRESETS
    preset_shares: ClassVar[Mapping[str, float]] = SHARES

    target_quality: float | None = setting(
        None,
        gt=0,
        doc="decibels inside the mask to the reference; steps are computed until it is met",
    )
    calibration: str | None = setting(
        None, doc="file of hetcache calibrate that says what a quality takes on the model"
    )
    every: float = setting(
        3.0, ge=1, doc="distance of computed steps, in average steps along the way of the sampler"
    )
    exponent: float = setting(
        EXPONENT,
        ge=0,
        le=1,
        doc="how much of the way a step counts for: 0 all alike, 1 by its noise",
    )
    partials: float = setting(
        0.0,
        ge=0,
        doc="steps on the tokens of the edit only, for each gap between computed ones: better where the "
        "mask is small, for the memory of all keys and values, twice",
    )
    first_gap: int | None = setting(
        None,
        ge=1,
        doc="most steps from the first computed one to the second; null lets the way decide",
    )
    predictor: Predictor = piece(
        "predictor", Blend(), doc="what stands in for what a reused step leaves out"
    )
    corrector: Corrector = piece(
        "corrector",
        Payback(),
        doc="what a computed step pays back for those before it that were not",
    )

    @classmethod
    def calibrator(cls) -> Calibrator:
        """Fit the line from allowed errors to decibels."""
        return QualityCalibrator(Blend(), Payback())

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the policy.

        Raises:
            ConfigError: The calibration is of another model, or a quality is asked for beside what
                contradicts it.
        """
        steps, notes = self._steps(model)
        return CachePolicy(
            name=self.name,
            step=steps,
            predictor=self.predictor,
            corrector=self.corrector,
            partitioner=MaskPartitioner(margin=MARGIN) if self.partials else None,
            partial=PARTIAL if self.partials else None,
            notes=notes,
        )

    def _steps(self, model: ModelInfo) -> tuple[StepPolicy, tuple[str, ...]]:
        if self.target_quality is None:
            spaced = SpacedSteps(
                every=self.every,
                exponent=self.exponent,
                partials=self.partials,
                first_gap=self.first_gap,
            )
            return spaced, ()
        blind = isinstance(self.corrector, KeepOutput) and self.predictor.measured is None
        if self.partials or blind:
            raise ConfigError(
                "a quality is met by what full steps find out, which "
                + ("partial steps would hide" if self.partials else "these settings leave out"),
                where=f"policy {self.name}",
                setting="target_quality",
                given=self.target_quality,
                remedy="Leave partials at 0, and corrector at payback or predictor at blend",
            )
        line, fit, asked = QualityLine(), None, f"{self.target_quality:g} dB in the mask"
        if self.calibration is not None:
            fit = Calibration.load(self.calibration, policy=self.name, model=model)
            line = QualityLine.of(fit)
        note = f"Asked for {asked}, aimed {line.margin:.1f} dB higher: " + (
            f"{fit.data['runs']} runs on this model lie about the line with "
            f"{fit.data['spread']:.1f} dB, and nine of ten are to meet it."
            if fit is not None
            else "nothing is known of this model. `hetcache calibrate --policy auto` finds out."
        )
        steps = QualitySteps(allowed=line.allowed(self.target_quality), calibration=fit)
        return steps, (note,)
