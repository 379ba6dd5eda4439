"""HetCache: steps of three kinds, and tokens of three kinds.

A step runs in full, only for the tokens of the edit (partial), or not at all (reuse). In a partial step
masked tokens, a margin around them and a chosen share of the context go through the blocks.

Source: HetCache (CVPR 2026). What its code does differently from its paper, what both leave open and why
the defaults are what they are: docs/policies/hetcache.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, Literal, final

from attrs import frozen

from hetcache_core import (
    CachePolicy,
    ConfigError,
    ContextSelector,
    ControlMode,
    Guards,
    Hold,
    KeySettings,
    KVMode,
    ModelInfo,
    PartialSettings,
    PolicyRecipe,
    Predictor,
    Signal,
    StepPolicy,
    TokenPartitioner,
    piece,
    setting,
)
from hetcache_policies.fits.teacache_fits import find_fit
from hetcache_policies.shared.drift import DriftSettings, RescaleName
from hetcache_policies.shared.partition import MarginShape, MaskPartitioner
from hetcache_policies.shared.pattern import PatternSteps, check_pattern
from hetcache_policies.shared.selectors import GuidedClusterSelector
from hetcache_policies.shared.signals import Modulation, name_of
from hetcache_policies.shared.tiers import TieredSteps
from hetcache_policies.teacache import LONGEST_REUSE, RAW_THRESHOLD

__all__ = ["HetCache"]

RHO: Final = 2.0
"""Our design; HetCache, section 3, has 1.5. Two average steps, the sum at which the default threshold is
first passed, are 1.3 thresholds, and 1.5 leaves too little for steps that are not quite average."""

FIRST_STEPS: Final = 2
"""Source: HetCache's code."""

MAX_PARTIALS: Final = 2
"""Our design: bounds the age of what inactive tokens hold. Two were the most that prototype runs tried in
mixed schedules; HetCache's code drops its caches at every 5th computed step."""

MARGIN: Final = 1
"""Our design: in prototype runs of Fpp, two tokens of margin raised the fidelity from 50.0 to 55.3 dB and
the FLOPs from .53 to .71; "quality" has two, HetCache's code five."""

PRUNED_CONTEXT: Final = 0.3
"""Context kept where keys are pruned. Between the paper's 0.7 and the 0.05 of its benchmark script: in
prototype runs, 0 to 50 % raised the fidelity from 29.5 to 36.9 dB and the FLOPs from .66 to .82."""

CACHED_CONTEXT: Final = 0.0
"""Context kept where the keys of all tokens are seen. In the same runs, partial steps with cached keys and
no context reached 55.3 dB: context is seen by its keys, and needs no tokens of its own."""

THRESHOLDS: Final[Mapping[RescaleName, float]] = {
    "normalized": 1.5,
    "none": RAW_THRESHOLD,
    "poly": 0.05,
}
"""Thresholds of each unit, which mean nothing in another.

Source: our design for "normalized", half a step off the point at which an evenly moving signal runs
every step; prototype runs for "none"; HetCache's "slow" for "poly", the unit of its code.
"""

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"rescale": "normalized", "threshold": 1.5, "max_partials": 1, "margin": 2},
    "balanced": {
        "rescale": "normalized",
        "threshold": 1.5,
        "max_partials": MAX_PARTIALS,
        "margin": MARGIN,
    },
    "fast": {
        "rescale": "normalized",
        "threshold": 2.5,
        "max_partials": MAX_PARTIALS,
        "margin": MARGIN,
    },
}
"""Where the signal moves evenly: full (F), partial (p) and reused (s) steps as Fsps, Fspsps, Fsspsspss.

Our design: mixed schedules with cached keys were the best at their cost in prototype runs of a small
Wan-VACE-architecture model trained on synthetic clips (docs/policies/hetcache.md). "balanced" is the default.
"""

UNLIMITED: Final = 1000
"""Partial steps between two full ones where nothing but the sum of changes ends them."""

PAPER: Final[Mapping[str, object]] = {
    "signal": "modulated_input",
    "rescale": "none",
    "threshold": 0.05,
    "rho": 1.5,
    "reset_on_partial": False,
    "max_partials": UNLIMITED,
    "margin": 5,
    "context_ratio": 0.7,
    "selector": "both",
    "kv_mode": "pruned",
    "max_active_share": 1.0,
    "refresh_after": 1,
    "longest_reuse": 1.0,
}
"""Source: HetCache, section 3. The margin's width, of which it says nothing, is that of the code."""

CODE: Final[Mapping[str, object]] = {
    "signal": "modulation",
    "threshold": 0.1,
    "rho": 1.5,
    "max_partials": UNLIMITED,
    "margin": 5,
    "margin_shape": "disk",
    "margin_ratio": 0.7,
    "context_ratio": 0.05,
    "selector": "random",
    "max_active_share": 1.0,
    "refresh_after": 1,
    "residual_ema": 0.99,
    "longest_reuse": 1.0,
}
"""Source: HetCache's code (33bdada) with what its command line leaves as it is. What of it is left out, and
why: docs/policies/hetcache.md."""


@final
@frozen(kw_only=True)
class HetCache(PolicyRecipe):
    """Settings of HetCache."""

    name: ClassVar[str] = "hetcache"
    summary: ClassVar[str] = (
        "full, partial or reused steps; partial ones run the tokens of the edit only"
    )
    source: ClassVar[str] = "HetCache, CVPR 2026"
    decides_on: ClassVar[str] = "changes of the timestep's modulation; the mask"
    default_guards: ClassVar[Guards] = Guards(
        first_steps=FIRST_STEPS, last_steps=1, longest_reuse=LONGEST_REUSE
    )
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.38, "balanced": 0.30, "fast": 0.22}

    threshold: float | None = setting(
        None, ge=0, doc="sum of changes up to which a step is reused; null takes the unit's own"
    )
    rho: float = setting(RHO, ge=1, doc="a step runs in full above rho times the threshold")
    rescale: Literal["auto", "normalized", "none", "poly"] = setting(
        "auto",
        doc="unit of changes: average steps (normalized), relative L1 (none) or TeaCache's polynomial "
        "(poly); auto is normalized, and none where the signal depends on the content",
    )
    signal: Signal = piece("signal", Modulation(), doc="what is looked at")
    reset_on_partial: bool = setting(
        True,
        doc="a partial step starts the sum again; false lets partial steps follow on one another",
    )
    pattern: str | None = setting(
        None,
        doc="steps by a pattern instead of the signal: F full, p partial, s reused, such as Fsspss",
    )
    max_partials: int = setting(MAX_PARTIALS, ge=0, doc="partial steps between two full ones")
    partitioner: TokenPartitioner | None = piece(
        "partitioner", None, doc="gives tokens their roles; null goes by the mask and its margin"
    )
    margin: int = setting(MARGIN, ge=0, doc="width of the margin around the mask, in tokens")
    temporal_margin: int = setting(0, ge=0, doc="width of the margin, in latent frames")
    margin_shape: MarginShape = setting(
        "square", doc="whether that width counts diagonals as rows and columns, or is a distance"
    )
    margin_ratio: float = setting(1.0, ge=0, le=1, doc="share of the margin that stays active")
    context_ratio: float | None = setting(
        None,
        ge=0,
        le=1,
        doc="share of the context that stays active; null is 0 with cached keys, 0.3 with pruned ones",
    )
    selector: ContextSelector = piece(
        "selector", GuidedClusterSelector(), doc="how the active context is chosen"
    )
    kv_mode: KVMode = setting(
        KVMode.CACHED, doc="keys that active tokens see: of all tokens, or of each other only"
    )
    kv_dtype: Literal["bfloat16", "float8_e4m3fn"] | None = setting(
        None, doc="dtype to keep keys and values in; null is that of the cache"
    )
    kv_layers: tuple[int, ...] | None = setting(
        None,
        doc="main blocks whose keys are kept, negative ones from the end; null is all. In the others "
        "active tokens see each other only",
    )
    kv_stride: int = setting(
        1, ge=1, doc="keys of every n-th token are kept and stand in for those after it"
    )
    kv_predictor: Predictor = piece(
        "predictor", Hold(), doc="what stands in for the keys of tokens that are not run"
    )
    control_mode: ControlMode = setting(
        ControlMode.RECOMPUTE,
        doc="control hints in partial steps: of the last full step, or fresh ones",
    )
    max_active_share: float = setting(
        0.85, gt=0, le=1, doc="above this share of active tokens a partial step runs in full"
    )
    pad_to: int | None = setting(
        None, ge=1, doc="active tokens are a multiple of this; null picks one for the grid"
    )
    refresh_after: int = setting(
        4, ge=1, doc="full steps after which the active context is chosen again"
    )
    score_layers: tuple[int, ...] = setting(
        (-1,), doc="blocks whose attention is scored; negative ones count from the end"
    )
    score_queries: int = setting(512, ge=1, doc="at most this many masked tokens are scored")
    residual_ema: float = setting(
        0.0, ge=0, lt=1, doc="weight of the old residual where a partial step writes a new one"
    )
    seed: int = setting(0, ge=0, doc="seed of the selector's choices")
    predictor: Predictor = piece(
        "predictor", Hold(), doc="what stands in for what a reused step leaves out"
    )

    def __attrs_post_init__(self) -> None:
        """Refuse what is no pattern, and to keep keys in some way where none are kept.

        Raises:
            ConfigError: One of the two.
        """
        if self.pattern is not None:
            check_pattern(self.pattern)
        given = [
            name
            for name, default in (
                ("kv_dtype", None), ("kv_layers", None), ("kv_stride", 1), ("kv_predictor", Hold())
            )
            if getattr(self, name) != default
        ]  # fmt: skip
        if given and self.kv_mode is KVMode.PRUNED:
            raise ConfigError(
                f"{given[0]} says how keys are kept, but with kv_mode=pruned none are",
                where=f"policy {self.name}",
                setting=given[0],
                given=getattr(self, given[0]),
                remedy="Leave it out, or use kv_mode=cached.",
            )

    @classmethod
    def presets_for(cls, model: ModelInfo) -> Mapping[str, Mapping[str, object]]:
        """Return the three presets, and what was published: by its text, and by its code."""
        unit = "none" if find_fit(model.variant, Modulation.name) is None else "poly"
        return {**PRESETS, "paper": PAPER, "code": {**CODE, "rescale": unit}}

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Put the pieces together for a model.

        Raises:
            ConfigError: No polynomial is known for the model, the unit does not go with the signal, or
                a scored layer does not exist.
        """
        for name in ("score_layers", "kv_layers"):
            layers = getattr(self, name) or ()
            outside = [i for i in layers if not -model.layers <= i < model.layers]
            if outside:
                raise ConfigError(
                    f"{name} names block {outside[0]}, but the model has {model.layers}",
                    where=f"policy {self.name}",
                    setting=name,
                    given=layers,
                )
        ratio = self._context_ratio()
        return CachePolicy(
            name=self.name,
            step=self._steps(model),
            predictor=self.predictor,
            partitioner=self.partitioner
            or MaskPartitioner(
                margin=self.margin, temporal_margin=self.temporal_margin, shape=self.margin_shape
            ),
            selector=self.selector if ratio > 0 else None,
            partial=PartialSettings(
                kv_mode=self.kv_mode,
                keys=KeySettings(
                    dtype=self.kv_dtype,
                    layers=self.kv_layers,
                    stride=self.kv_stride,
                    predictor=self.kv_predictor,
                ),
                control_mode=self.control_mode,
                context_ratio=ratio,
                margin_ratio=self.margin_ratio,
                max_active_share=self.max_active_share,
                pad_to=self.pad_to,
                refresh_after=self.refresh_after,
                score_layers=self.score_layers,
                score_queries=self.score_queries,
                residual_ema=self.residual_ema,
                seed=self.seed,
            ),
            # Whoever writes a pattern down has said how many are reused in a row.
            guards=Guards() if self.pattern is None else Guards(longest_reuse=1.0),
        )

    def _steps(self, model: ModelInfo) -> StepPolicy:
        if self.pattern is not None:
            return PatternSteps(pattern=self.pattern)
        drift = self._drift(model)
        return TieredSteps(
            drift=drift,
            threshold=THRESHOLDS[drift.rescale] if self.threshold is None else self.threshold,
            rho=self.rho,
            reset_on_partial=self.reset_on_partial,
            max_partials=self.max_partials,
        )

    def _drift(self, model: ModelInfo) -> DriftSettings:
        if self.rescale == "poly":
            fit = find_fit(model.variant, name_of(self.signal))
            if fit is None:
                raise ConfigError(
                    f"no polynomial of {name_of(self.signal)} is known for "
                    f"{model.variant or f'this {model.backbone} model'}",
                    where=f"policy {self.name}",
                    remedy="Use rescale=normalized.",
                    setting="rescale",
                    given=self.rescale,
                )
            return DriftSettings(signal=self.signal, rescale="poly", fit=fit)
        if self.rescale == "auto":
            normal = self.signal.sigmas_only
            return DriftSettings(signal=self.signal, rescale="normalized" if normal else "none")
        return DriftSettings(signal=self.signal, rescale=self.rescale)

    def _context_ratio(self) -> float:
        if self.context_ratio is not None:
            return self.context_ratio
        return CACHED_CONTEXT if self.kv_mode is KVMode.CACHED else PRUNED_CONTEXT
