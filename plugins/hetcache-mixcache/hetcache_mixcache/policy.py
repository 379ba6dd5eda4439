"""MixCache: reuse a step, a guidance branch or a range of blocks, whichever will show least.

Source: MixCache (arXiv:2508.12691), from descriptions of it. What is known of the method, and what is
our choice, is said in ``mixed`` and ``interval``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, final

from attrs import frozen

from hetcache_core import (
    CachePolicy,
    Calibration,
    Calibrator,
    ConfigError,
    Guards,
    Hold,
    ModelInfo,
    PolicyRecipe,
    Predictor,
    Span,
    piece,
    setting,
)
from hetcache_mixcache.calibrating import IntervalCalibrator
from hetcache_mixcache.mixed import MixedSteps

__all__ = ["MixCache"]

FIRST_STEPS: Final = 0.15
"""Share of the run. Our choice."""

EDGE: Final = 6
"""A sixth of the blocks, at either end, runs in a block step. Our choice."""

LONGEST: Final[Mapping[str, int]] = {"quality": 2, "balanced": 4, "fast": 6}
"""Our choice."""


@final
@frozen(kw_only=True)
class MixCache(PolicyRecipe):
    """Settings of MixCache."""

    name: ClassVar[str] = "mixcache"
    summary: ClassVar[str] = (
        "reuse a step, a guidance branch or a range of blocks, whichever will show least"
    )
    source: ClassVar[str] = "MixCache, arXiv:2508.12691"
    default_guards: ClassVar[Guards] = Guards(first_steps=FIRST_STEPS, last_steps=1)
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        preset: {"longest": value} for preset, value in LONGEST.items()
    }
    expected_failures: ClassVar[Mapping[str, str]] = {
        "check_branches_do_not_mix": "it decides by the difference of the branches, which the "
        "deciding one has not alone",
        "check_guidance_layouts_decide_alike": "a branch can be predicted only where it has a call "
        "of its own",
    }

    longest: int = setting(LONGEST["balanced"], ge=1, doc="most cheaper steps between full ones")
    low: float | None = setting(
        None,
        ge=0,
        doc="change of the output per step below which they become more; null follows the run",
    )
    high: float | None = setting(
        None, ge=0, doc="change of the output per step above which they become fewer; null likewise"
    )
    calibration: str | None = setting(
        None, doc="file of hetcache calibrate with both of these; low and high go before it"
    )
    step_impact: float = setting(1.0, gt=0, doc="how much a reused step's error shows")
    cfg_impact: float = setting(1.0, gt=0, doc="how much a predicted branch's error shows")
    block_impact: float = setting(1.0, gt=0, doc="how much reused blocks' error shows")
    weigh_savings: bool = setting(False, doc="divide priorities by the share of FLOPs saved")
    predictor: Predictor = piece(
        "predictor", Hold(), doc="what stands in for what a step or its middle blocks leave out"
    )

    def __attrs_post_init__(self) -> None:
        """Refuse an interval that would grow and shrink at once.

        Raises:
            ConfigError: it would.
        """
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ConfigError(
                f"low must not be above high, got {self.low} and {self.high}",
                setting="low",
                given=self.low,
            )

    @classmethod
    def calibrator(cls) -> Calibrator:
        """Measure how far the output moves in a step."""
        return IntervalCalibrator()

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the one piece that decides steps and branches, and the spans that it may reuse."""
        edge = max(1, model.layers // EDGE)
        inner = model.layers - 2 * edge
        middle = Span(edge, edge) if inner > 0 else None
        # A step saves all blocks of all branches, cfg those of one of two, block the middle ones.
        saved = (1.0, 0.5, max(inner, 1) / model.layers) if self.weigh_savings else (1.0, 1.0, 1.0)
        low, high, calibration = self.low, self.high, None
        if self.calibration is not None:
            calibration = Calibration.load(self.calibration, policy=self.name, model=model)
            low = calibration.data.get("low") if low is None else low
            high = calibration.data.get("high") if high is None else high
        mixed = MixedSteps(
            impacts=(
                self.step_impact / saved[0],
                self.cfg_impact / saved[1],
                self.block_impact / saved[2],
            ),
            middle=middle,
            longest=self.longest,
            low=low,
            high=high,
            calibration=calibration,
        )
        spans = (Span(),) if middle is None else (Span(), middle)
        return CachePolicy(
            name=self.name,
            step=mixed,
            guidance=mixed,
            predictor=self.predictor,
            spans=spans,
        )
