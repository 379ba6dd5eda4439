"""ToCa and DuCa: between full steps, recompute only the tokens that need it most.

Source: ToCa (ICLR 2025, arXiv:2410.05317) and DuCa (arXiv:2412.18911). What they have in common, and
where it differs from the reference code, is in ``token_cycle``. Settings are the reference's for
Open-Sora, but for that of cross-attention; none were published for Wan or LTX.
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
    SubLayer,
    piece,
    setting,
)
from hetcache_policies.shared.token_cycle import ScoreName, TokenCycle

__all__ = ["DuCa", "ToCa"]

CYCLE: Final = 3
FIRST_STEPS: Final = 3
# Source: the reference code's Open-Sora setting (fresh_threshold, first_enhance).

CROSS_CYCLE: Final = 1
"""Every full step computes cross-attention; in the reference's Open-Sora setting it lasts for 6 steps.

Measured on the embedded trained model (tiny-vace, its sample clip, 20 steps, ToCa): 6 saves 1 % of the
FLOPs and costs 6 dB inside the mask, 33.6 for 39.4 dB to the reference.
"""

FEED_FORWARD_SHARE: Final = 0.15
"""Source: likewise: fresh_ratio 0.1, times 1 + 0.33 * 1.5 for feed-forward networks."""

CROSS_SHARE: Final = 0.0
"""Source: likewise: times 1 - 0.67 * 1.5, which is next to nothing, for cross-attention."""

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"cycle": 2},
    "balanced": {"cycle": CYCLE},
    "fast": {"cycle": 5},
}
"""Our design: nothing is published for Wan or LTX."""


@final
@frozen(kw_only=True)
class ToCa(PolicyRecipe):
    """Settings of ToCa."""

    name: ClassVar[str] = "toca"
    summary: ClassVar[str] = "reuse attention between full steps and recompute a few tokens' rest"
    source: ClassVar[str] = "ToCa, ICLR 2025, arXiv:2410.05317"
    decides_on: ClassVar[str] = "the step's index; norms of attention outputs"
    default_guards: ClassVar[Guards] = Guards(first_steps=FIRST_STEPS, last_steps=1)
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = PRESETS
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.63, "balanced": 0.50, "fast": 0.39}

    cycle: int = setting(CYCLE, ge=1, doc="steps from one full step to the next")
    cross_cycle: int = setting(
        CROSS_CYCLE,
        ge=1,
        doc="steps from which on a full step computes cross-attention again; 1: every one",
    )
    feed_forward_share: float = setting(
        FEED_FORWARD_SHARE, ge=0, le=1, doc="share of the tokens whose feed-forward is recomputed"
    )
    cross_attention_share: float = setting(
        CROSS_SHARE, ge=0, le=1, doc="share of the tokens whose cross-attention is recomputed"
    )
    score: ScoreName = setting(
        "norm", doc="which tokens: those of least self-attention output, or random ones"
    )
    seed: int = setting(0, ge=0, doc="seed of random choice")

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the block policy; it is the same for every model."""
        return CachePolicy(name=self.name, blocks=_cycle(self))


@final
@frozen(kw_only=True)
class DuCa(PolicyRecipe):
    """Settings of DuCa."""

    name: ClassVar[str] = "duca"
    summary: ClassVar[str] = (
        "between full steps, reuse the trunk and recompute a few tokens in turn"
    )
    source: ClassVar[str] = "DuCa, arXiv:2412.18911"
    decides_on: ClassVar[str] = "the step's index; norms of attention outputs"
    default_guards: ClassVar[Guards] = Guards(first_steps=FIRST_STEPS, last_steps=1)
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = PRESETS
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.51, "balanced": 0.42, "fast": 0.33}

    cycle: int = setting(CYCLE, ge=1, doc="steps from one full step to the next")
    cross_cycle: int = setting(
        CROSS_CYCLE,
        ge=1,
        doc="steps from which on a full step computes cross-attention again; 1: every one",
    )
    feed_forward_share: float = setting(
        FEED_FORWARD_SHARE, ge=0, le=1, doc="share of the tokens whose feed-forward is recomputed"
    )
    cross_attention_share: float = setting(
        CROSS_SHARE, ge=0, le=1, doc="share of the tokens whose cross-attention is recomputed"
    )
    score: ScoreName = setting(
        "norm", doc="which tokens: those of least self-attention output, or random ones"
    )
    seed: int = setting(0, ge=0, doc="seed of random choice")
    predictor: Predictor = piece(
        "predictor", Hold(), doc="what stands in for what a reused step leaves out"
    )

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the one piece that decides steps and blocks; it is the same for every model."""
        cycle = _cycle(self)
        return CachePolicy(name=self.name, step=cycle, blocks=cycle, predictor=self.predictor)


def _cycle(recipe: ToCa | DuCa) -> TokenCycle:
    return TokenCycle(
        cycle=recipe.cycle,
        cross_cycle=recipe.cross_cycle,
        shares={
            SubLayer.FEED_FORWARD: recipe.feed_forward_share,
            SubLayer.CROSS_ATTENTION: recipe.cross_attention_share,
        },
        score=recipe.score,
        dual=isinstance(recipe, DuCa),
        seed=recipe.seed,
    )
