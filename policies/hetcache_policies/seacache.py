"""SeaCache: TeaCache's accumulator on a signal from which the noise has been filtered.

Low frequencies of a video are there early in a run, high ones come late, and what moves in between is noise.
Before two steps are compared, the first block's modulated input goes through the Wiener filter of its noise
level (``FilteredInput``), so no coefficients are needed to make changes of early and late steps comparable.

Source: SeaCache (CVPR 2026, arXiv:2602.18993), its reference code for Wan2.1, and diffusers' port. Different
from that code: the first step is filtered too, the first branch decides for all, and no more than two steps
are reused in a row, as in diffusers, whose line through the last two residuals is ``predictor=linear``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, final

from attrs import frozen

from hetcache_core import (
    CachePolicy,
    Guards,
    Hold,
    ModelInfo,
    PolicyRecipe,
    Predictor,
    Signal,
    piece,
    setting,
)
from hetcache_policies.shared.drift import DriftSettings
from hetcache_policies.shared.signals import FilteredInput
from hetcache_policies.teacache import DriftSteps

__all__ = ["SeaCache"]

THRESHOLD: Final = 0.2
"""Source: SeaCache's code for Wan2.1, 2.1 times faster with the 1.3B model."""

LONGEST_REUSE: Final = 2
"""Source: diffusers."""

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"threshold": THRESHOLD},
    "balanced": {"threshold": 0.3},
    "fast": {"threshold": 0.4},
}
"""The thresholds published for Wan2.1 are 0.2 and 0.35 (1.3B) or 0.4 (14B)."""


@final
@frozen(kw_only=True)
class SeaCache(PolicyRecipe):
    """Settings of SeaCache."""

    name: ClassVar[str] = "seacache"
    summary: ClassVar[str] = "reuse the residual until the input without its noise has drifted"
    source: ClassVar[str] = "SeaCache, CVPR 2026, arXiv:2602.18993"
    decides_on: ClassVar[str] = "changes of the first block's input, noise filtered"
    default_guards: ClassVar[Guards] = Guards(
        first_steps=1, last_steps=1, longest_reuse=LONGEST_REUSE
    )
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = PRESETS
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.50, "balanced": 0.36, "fast": 0.28}

    threshold: float = setting(
        THRESHOLD, ge=0, doc="sum of relative changes at which a step is computed"
    )
    signal: Signal = piece("signal", FilteredInput(), doc="what is looked at")
    predictor: Predictor = piece(
        "predictor", Hold(), doc="what stands in for what a reused step leaves out"
    )

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the step policy; it is the same for every model."""
        drift = DriftSettings(signal=self.signal, rescale="none")
        return CachePolicy(
            name=self.name,
            step=DriftSteps(drift=drift, threshold=self.threshold),
            predictor=self.predictor,
        )
