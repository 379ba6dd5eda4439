"""First-block caches: run a few blocks, and leave the others out if those did what they last did.

Every step runs its first blocks. What they add is compared with what they added in the last step that was
computed in full; while it is nearly the same, so will be what the following blocks add, and the kept residual
of those is taken. ``fbcache`` looks at one block. ``dbcache`` looks at more, can run the last blocks too, and
has more limits.

Source: FBCache is ParaAttention's First Block Cache, also diffusers' ``FirstBlockCacheConfig``; DBCache is
cache-dit's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, final

from attrs import frozen

from hetcache_core import (
    CachePolicy,
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
from hetcache_policies.shared.probe import ProbeSteps
from hetcache_policies.teacache import LONGEST_REUSE

__all__ = ["DBCache", "FBCache"]

FB_THRESHOLD: Final = 0.05
"""Source: diffusers, ``FirstBlockCacheConfig``."""

FB_THRESHOLDS: Final[Mapping[str, float]] = {"wan2.1-1.3b": 0.035, "wan2.1-14b": 0.06}
"""Thresholds of a ``ModelInfo.variant``. Source: settings that users of ParaAttention and its ports report
for Wan2.1 (0.03 to 0.04 for the smaller model)."""

FB_PRESETS: Final[Mapping[str, float]] = {"quality": 0.6, "balanced": 1.0, "fast": 1.5}
"""Thresholds in units of the model's own; our design. 0.6 of it is LightX2V's 0.02 for Wan2.1-1.3B."""

DB_THRESHOLD: Final = 0.08
"""Source: cache-dit, ``residual_diff_threshold``."""

DB_FRONT: Final = 8
"""Source: cache-dit, ``Fn_compute_blocks``, for models of 28 blocks and more."""

DB_FRONT_SHARE: Final = 3
"""Our design: at most one block in so many is a front block, so that small models have a middle."""

DB_FIRST_STEPS: Final = 0.16
"""Source: cache-dit, 8 warm-up steps, taken as a share of 50."""

DB_PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"threshold": 0.03},
    "balanced": {"threshold": DB_THRESHOLD},
    "fast": {"threshold": 0.12},
}
"""Source: LightX2V's setting for Wan2.1-1.3B, cache-dit's default, and its example in SGLang's manual."""


@final
@frozen(kw_only=True)
class FBCache(PolicyRecipe):
    """Settings of the first-block cache."""

    name: ClassVar[str] = "fbcache"
    summary: ClassVar[str] = "run the first block, and the others only if it does something new"
    source: ClassVar[str] = "First Block Cache of ParaAttention and diffusers"
    decides_on: ClassVar[str] = "what the first block adds"
    default_guards: ClassVar[Guards] = Guards(
        first_steps=1, last_steps=1, longest_reuse=LONGEST_REUSE
    )
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.50, "balanced": 0.40, "fast": 0.32}

    threshold: float | None = setting(
        None,
        ge=0,
        doc="relative difference at which a step is computed; null takes the model's own",
    )
    blocks: int = setting(1, ge=1, doc="blocks that every step runs first")
    predictor: Predictor = piece(
        "predictor", Hold(), doc="what stands in for what a reused step leaves out"
    )

    @classmethod
    def presets_for(cls, model: ModelInfo) -> Mapping[str, Mapping[str, object]]:
        """Return thresholds around the model's own."""
        own = FB_THRESHOLDS.get(model.variant, FB_THRESHOLD)
        return {preset: {"threshold": factor * own} for preset, factor in FB_PRESETS.items()}

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Find the threshold.

        Raises:
            ConfigError: The model has not so many blocks.
        """
        threshold = FB_THRESHOLDS.get(model.variant, FB_THRESHOLD)
        span = _span(self.name, "blocks", model, front=self.blocks, back=0)
        return CachePolicy(
            name=self.name,
            step=ProbeSteps(
                span=span,
                threshold=threshold if self.threshold is None else self.threshold,
            ),
            spans=(span,),
            predictor=self.predictor,
        )


@final
@frozen(kw_only=True)
class DBCache(PolicyRecipe):
    """Settings of the dual-block cache."""

    name: ClassVar[str] = "dbcache"
    summary: ClassVar[str] = "run the first and last blocks, and the middle only if it will change"
    source: ClassVar[str] = "DBCache of cache-dit (vipshop)"
    decides_on: ClassVar[str] = "what the first blocks add"
    default_guards: ClassVar[Guards] = Guards(
        first_steps=DB_FIRST_STEPS, last_steps=1, longest_reuse=LONGEST_REUSE
    )
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = DB_PRESETS
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.70, "balanced": 0.58, "fast": 0.48}

    threshold: float = setting(
        DB_THRESHOLD, ge=0, doc="relative difference at which a step is computed"
    )
    front: int | None = setting(
        None, ge=1, doc="blocks that every step runs first; null is 8, at most a third of all"
    )
    back: int = setting(
        0, ge=0, doc="blocks that every step runs last; these need the whole control branch"
    )
    most_reuse: float = setting(
        1.0, gt=0, le=1, doc="most steps reused in all, as a share of the run"
    )
    max_sum: float | None = setting(
        None, gt=0, doc="sum of differences since a computed step that is still reused; null: any"
    )
    predictor: Predictor = piece("predictor", Hold(), doc="what stands in for the middle")

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Choose the blocks.

        Raises:
            ConfigError: Front and back leave no block in the middle.
        """
        front = self.front or min(DB_FRONT, max(1, model.layers // DB_FRONT_SHARE))
        span = _span(self.name, "front", model, front=front, back=self.back)
        return CachePolicy(
            name=self.name,
            step=ProbeSteps(
                span=span,
                threshold=self.threshold,
                most_reuse=self.most_reuse,
                max_sum=self.max_sum,
            ),
            spans=(span,),
            predictor=self.predictor,
        )


def _span(policy: str, setting_name: str, model: ModelInfo, *, front: int, back: int) -> Span:
    if front + back < model.layers:
        return Span(front=front, back=back)
    raise ConfigError(
        f"{front} first and {back} last of the model's {model.layers} blocks leave none to reuse",
        where=f"policy {policy}",
        setting=setting_name,
        given=front,
        remedy=f"Give fewer than {model.layers} in all.",
    )
