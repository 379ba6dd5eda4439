"""Fewer sampler steps: the baseline that caches nothing and takes larger steps instead.

What a cache saves can also be saved by asking the sampler for fewer steps, so every table of results needs
this row: HetCache's own has the uncached model at 50 of 100 steps.

Source: the "50-step" row of HetCache (CVPR 2026), table 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, final

from attrs import frozen

from hetcache_core import CachePolicy, ModelInfo, PolicyRecipe, setting

__all__ = ["FewerSteps"]

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"share": 0.50},
    "balanced": {"share": 0.36},
    "fast": {"share": 0.28},
}
"""The shares that uniform skipping computes (``every_nth.PRESETS``), to compare at equal cost."""


@final
@frozen(kw_only=True)
class FewerSteps(PolicyRecipe):
    """Settings of the run with fewer steps."""

    name: ClassVar[str] = "fewer-steps"
    summary: ClassVar[str] = "take fewer sampler steps and cache nothing: the baseline of caches"
    source: ClassVar[str] = "HetCache, CVPR 2026, table 1 (its 50-step row)"
    decides_on: ClassVar[str] = "nothing: the sampler takes larger steps"
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = PRESETS
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.50, "balanced": 0.36, "fast": 0.28}

    share: float = setting(
        0.5, gt=0, le=1, doc="share of the steps asked for that the sampler takes"
    )

    @classmethod
    def at_speedup(cls, speedup: float) -> Mapping[str, object]:
        """Return the share of steps, which are all that costs."""
        return {"share": 1 / speedup}

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make a policy that only tells the sampler; it is the same for every model."""
        return CachePolicy(name=self.name, sampler_share=self.share)
