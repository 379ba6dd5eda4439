"""Steps that are computed until an asked quality is met, and the line that says what that takes.

After every gap the run knows what it did to the latents inside the mask (``Signals.gap_error``). The next
gap is longer or shorter by the third root of how far that is from what is allowed. What is allowed follows
from the quality that is asked for by one line, ``dB = base - slope * log10(allowed)``, which differs between
models: ``hetcache calibrate --policy auto`` fits it by real runs.

Source: our design.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from statistics import fmean
from typing import Any, Final, final

from attrs import define, field, frozen

from hetcache_core import (
    CachePolicy,
    Calibration,
    Calibrator,
    ConfigError,
    Corrector,
    Decision,
    Mode,
    Predictor,
    RunInfo,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
)

__all__ = ["QualityCalibrator", "QualityLine", "QualitySteps", "positions"]

FIRST_GAP: Final = 2
"""Steps to the second computed one, whose error is the first that is known."""

SHORTEST, LONGEST, UNKNOWN = 1 / 3, 2.0, 1.5
"""By how much a gap may shrink and grow, and by how much it grows where nothing was skipped."""

EXPONENT: Final = 2 / 3
"""Of the way along which gaps are counted (``positions``): the error of a gap grows more evenly with it than
along ``auto``'s own, by which too little is asked of the last gap."""

MARGIN: Final = 6.0
"""Decibels to aim above the asked quality where nobody has fitted the line to the model."""

SURE: Final = 1.28
"""With so many standard deviations of margin, nine of ten runs are above the asked quality."""

ALLOWED: Final = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Errors that a calibration runs with."""


def positions(sigmas: Sequence[float], exponent: float) -> tuple[float, ...]:
    """Return where each step lies on the way, in average steps: from 0 to less than ``S``.

    Args:
        sigmas: Noise levels of the ``S`` steps; the run ends at 0.
        exponent: Of the distances; 0 counts steps, 1 is proportional to the noise that is removed.
    """
    moved = [abs(a - b) for a, b in pairwise((*sigmas, 0.0))]
    if exponent == 0 or not all(math.isfinite(d) for d in moved) or not any(moved):
        return tuple(float(index) for index in range(len(moved)))
    weights = [distance**exponent for distance in moved]
    whole = sum(weights)
    summed = accumulate(weights[:-1], initial=0.0)
    return tuple(len(weights) * part / whole for part in summed)


@frozen(kw_only=True)
class QualityLine:
    """What the allowed error of a gap makes of the quality: ``dB = base - slope * log10(allowed)``.

    Attributes:
        base: decibels at an allowed error of 1.
        slope: decibels for a tenth of it.
        margin: decibels to aim above what is asked.

    The defaults are of the embedded model: four clips, 20 and 30 steps, guidance 2.
    """

    base: float = 28.2
    slope: float = 10.3
    margin: float = MARGIN

    def allowed(self, quality: float) -> float:
        """Return the error that a gap may make, root mean square in the latents inside the mask."""
        return float(10 ** ((self.base - quality - self.margin) / self.slope))

    @classmethod
    def of(cls, calibration: Calibration) -> QualityLine:
        """Read the line of a calibration."""
        data = calibration.data
        return cls(base=data["base"], slope=data["slope"], margin=SURE * data["spread"])


@final
@frozen(kw_only=True)
class QualitySteps(StepPolicy):
    """Computes steps so that no gap does more to the latents than is allowed.

    Attributes:
        allowed: root mean square of what a gap may do to the latents inside the mask.
        calibration: where the allowed error comes from, to refuse runs of other steps, or None.
    """

    allowed: float
    calibration: Calibration | None = field(default=None, eq=False)

    def begin(self, run: RunInfo) -> StepDecider:
        """Measure the way.

        Raises:
            ConfigError: the calibration is of another schedule.
        """
        if self.calibration is not None:
            self.calibration.check_run(run)
        return _Decider(self, positions(run.sigmas, EXPONENT))


@final
@define(eq=False)
class _Decider(StepDecider):
    _policy: QualitySteps
    _positions: tuple[float, ...]
    _last: int | None = field(default=None, init=False)
    _done: float = field(default=0.0, init=False)
    _gap: float = field(default=0.0, init=False)
    _skipped: bool = field(default=False, init=False)
    _asked: bool = field(default=True, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        if self._last is None or step.computed:
            return Decision(Mode.FULL, "gaps count from here")
        if not self._asked:
            self._asked = True
            self._follow(signals.gap_error() if self._skipped else None)
        way = self._positions[step.index] - self._positions[self._last]
        if way >= self._gap or (self._last == 0 and step.index >= FIRST_GAP):
            return Decision(Mode.FULL, f"a gap of {self._gap:.3g} average steps is over", self._gap)
        return Decision(Mode.REUSE, f"a gap of {self._gap:.3g} average steps goes on", self._gap)

    def _follow(self, error: float | None) -> None:
        """Set the next gap by what the last one did."""
        factor = UNKNOWN
        if error is not None:
            ratio = self._policy.allowed / error if error else math.inf
            factor = min(LONGEST, max(SHORTEST, ratio ** (1 / 3)))
        self._gap = self._done * factor

    def settle(self, step: StepInfo, mode: Mode) -> None:
        if mode is Mode.REUSE:
            return
        if self._last is None:
            self._gap = math.inf
        else:
            self._done = self._positions[step.index] - self._positions[self._last]
            self._skipped, self._asked = step.index - self._last > 1, False
        self._last = step.index


@final
@define(eq=False)
class QualityCalibrator(Calibrator):
    """Fits the line to a model: runs with several allowed errors, each held against the reference."""

    _predictor: Predictor
    _corrector: Corrector
    _points: list[tuple[float, float]] = field(factory=list, init=False)

    def watch(self) -> CachePolicy:
        """Nothing is looked at in the reference but its frames."""
        return CachePolicy(name="calibrating")

    def trials(self) -> Mapping[float, CachePolicy]:
        """Return a policy for each allowed error."""
        return {
            allowed: CachePolicy(
                name="calibrating",
                step=QualitySteps(allowed=allowed),
                predictor=self._predictor,
                corrector=self._corrector,
            )
            for allowed in ALLOWED
        }

    def tried(self, trial: float, quality: float) -> None:
        """Take the quality that a trial came to."""
        self._points.append((math.log10(trial), quality))

    def result(self) -> Mapping[str, Any]:
        """Fit the line by least squares.

        Raises:
            ConfigError: the runs do not lie on a falling line.
        """
        middle, level = (fmean(column) for column in zip(*self._points, strict=True))
        width = sum((x - middle) ** 2 for x, _ in self._points)
        slope = -sum((x - middle) * (y - level) for x, y in self._points) / width
        base = level + slope * middle
        if slope <= 0:
            raise ConfigError(
                "the quality does not fall with the error that is allowed",
                where="hetcache calibrate",
                remedy="Calibrate with more --steps, or with more --clips",
            )
        off = sum((y - base + slope * x) ** 2 for x, y in self._points)
        spread = math.sqrt(off / max(1, len(self._points) - 2))
        return {"base": base, "slope": slope, "spread": spread, "runs": len(self._points)}
