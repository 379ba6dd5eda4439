"""ToCa and DuCa: in between full steps, recompute only the tokens that need it most.

Source: ToCa (ICLR 2025, arXiv:2410.05317) and DuCa (arXiv:2412.18911) with their reference code, whose
settings for Open-Sora these are. A cycle begins with a full step that keeps the outputs of all
sub-layers. ToCa's other steps reuse attention and recompute the feed-forward network for the tokens of
highest score. DuCa makes every second one of them cheaper still and reuses the whole trunk.

A token's score is its importance, plus a bonus for the steps since it was last computed. The
reference takes importance from attention maps, which fused attention does not give; DuCa found the
norm of values as good, and random choice hardly worse. Here it is ``1 - norm`` of the token's
self-attention output, or random. Tokens are chosen block by block, once a step, by the conditional
branch for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import ClassVar, Final, Literal, final

import torch
from attrs import define, field, frozen
from torch import Tensor

from hetcache_core.backbone import RunInfo
from hetcache_core.policy import (
    BlockAction,
    BlockDecider,
    BlockPolicy,
    CachePolicy,
    PartAction,
    PolicyRecipe,
    StepDecider,
    StepPolicy,
    Use,
)
from hetcache_core.settings import setting
from hetcache_core.signals import Signals
from hetcache_core.steps import BlockKey, Decision, Mode, ModelInfo, StepInfo, SubLayer
from hetcache_policies.presets import find_preset

__all__ = ["DuCa", "ToCa", "TokenCycle"]

CYCLE: Final = 3
CROSS_CYCLE: Final = 6
FIRST_STEPS: Final = 3
# Source: the reference code's Open-Sora setting (fresh_threshold, first_enhance).

FEED_FORWARD_SHARE: Final = 0.15
"""Source: likewise: fresh_ratio 0.1, times 1 + 0.33 * 1.5 for feed-forward networks."""

CROSS_SHARE: Final = 0.0
"""Source: likewise: times 1 - 0.67 * 1.5, which is next to nothing, for cross-attention."""

STALENESS_WEIGHT: Final = 0.25
"""Source: soft_fresh_weight of the reference code."""

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"cycle": 2},
    "balanced": {"cycle": CYCLE},
    "fast": {"cycle": 5},
}
"""Our design: nothing is published for Wan or LTX."""

ScoreName = Literal["norm", "random"]
_Kind = Enum("_Kind", ["FULL", "TOKENS", "REUSE"])


@final
@frozen(kw_only=True)
class TokenCycle(StepPolicy, BlockPolicy):
    """Full steps in a cycle, and some tokens in between.

    Attributes:
        cycle: steps from one full step to the next.
        cross_cycle: steps from which on a full step computes cross-attention again.
        first_steps: steps that are always full first.
        shares: sub-layers that are recomputed in part, and for which share of the tokens.
        score: what a token's importance is.
        dual: whether every second step in between reuses the whole trunk (DuCa).
        seed: seed of random scores.
    """

    cycle: int
    cross_cycle: int
    first_steps: int
    shares: Mapping[SubLayer, float]
    score: ScoreName
    dual: bool
    seed: int

    def begin(self, run: RunInfo) -> _Decider:
        """Start with no token computed."""
        return _Decider(
            self,
            tokens=run.grid.tokens,
            branch="cond" if "cond" in run.branches else run.branches[0],
            generator=torch.Generator(run.device).manual_seed(self.seed),
        )


@final
@define(eq=False)
class _Decider(StepDecider, BlockDecider):
    _policy: TokenCycle
    _tokens: int = field(kw_only=True)
    _branch: str = field(kw_only=True)
    _generator: torch.Generator = field(kw_only=True)
    _step: int = field(default=-1, init=False)
    _kind: _Kind = field(default=_Kind.FULL, init=False)
    _begun: int | None = field(default=None, init=False)
    _full: int = field(default=-1, init=False)
    _cross: int = field(default=-1, init=False)
    _importance: dict[BlockKey, Tensor] = field(factory=dict, init=False)
    _staleness: dict[tuple[BlockKey, SubLayer], Tensor] = field(factory=dict, init=False)
    _rows: dict[tuple[BlockKey, SubLayer], Tensor] = field(factory=dict, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        self._enter(step)
        if self._kind is _Kind.REUSE:
            return Decision(Mode.REUSE, "aggressive step of the cycle")
        kind = "full" if self._kind is _Kind.FULL else "conservative"
        return Decision(Mode.FULL, f"{kind} step of the cycle")

    def block(self, step: StepInfo, branch: str, key: BlockKey, hidden: Tensor) -> BlockAction:
        return self.control(step, branch, key)

    def control(self, step: StepInfo, branch: str, key: BlockKey) -> BlockAction:
        self._enter(step)
        if self._kind is _Kind.REUSE:
            self._begin_cycle(step)  # a guard of the session wants this step computed
        if self._kind is _Kind.FULL:
            return self._full_action(step, branch)
        return BlockAction(
            parts={
                part: PartAction(Use.REUSE, store=True, rows=self._choose(key, part))
                for part in SubLayer
            }
        )

    def observe(
        self, step: StepInfo, branch: str, key: BlockKey, part: SubLayer | None, output: Tensor
    ) -> None:
        names = branch.split("+")
        rows = output.chunk(len(names))[names.index(self._branch)]  # (b, N, D)
        norms: Tensor = rows.float().norm(dim=-1).mean(0)  # (N,)
        self._importance[key] = 1 - norms / norms.max().clamp_min(torch.finfo(norms.dtype).tiny)

    def _enter(self, step: StepInfo) -> None:
        """Say what the step is; asked at its decision or, without one, at its first block."""
        if step.index == self._step:
            return
        self._step, policy = step.index, self._policy
        # Steps of a model that takes over in mid-run are counted from there.
        self._begun = step.index if self._begun is None else self._begun
        first = step.index - self._begun < policy.first_steps
        passed = step.index - self._full
        if first or step.is_last or passed >= policy.cycle:
            self._begin_cycle(step)
        else:
            self._kind = _Kind.REUSE if policy.dual and passed % 2 else _Kind.TOKENS
            self._rows.clear()

    def _begin_cycle(self, step: StepInfo) -> None:
        self._kind, self._full = _Kind.FULL, step.index
        self._staleness.clear()
        first = self._begun is None or step.index - self._begun < self._policy.first_steps
        if first or step.index - self._cross >= self._policy.cross_cycle:
            self._cross = step.index

    def _full_action(self, step: StepInfo, branch: str) -> BlockAction:
        parts = {part: PartAction(store=not step.is_last) for part in SubLayer}
        if self._cross != step.index:
            parts[SubLayer.CROSS_ATTENTION] = PartAction(Use.REUSE, store=True)
        watched = self._policy.score == "norm" and self._branch in branch.split("+")
        return BlockAction(
            parts=parts, observe=frozenset({SubLayer.SELF_ATTENTION} if watched else ())
        )

    def _choose(self, key: BlockKey, part: SubLayer) -> Tensor | None:
        """Choose the tokens (k,) that a sub-layer recomputes in this step, for every branch."""
        count = round(self._policy.shares.get(part, 0.0) * self._tokens)
        if count == 0:
            return None
        place = (key, part)
        if place not in self._rows:
            importance = self._importance.get(key)
            if importance is None:
                device = self._generator.device
                importance = torch.rand(self._tokens, generator=self._generator, device=device)
            stale = self._staleness.get(place, torch.zeros_like(importance))  # (N,) steps
            score = importance + STALENESS_WEIGHT * stale / self._policy.cycle
            chosen: Tensor = score.topk(count).indices.sort().values  # (k,)
            self._rows[place] = chosen
            self._staleness[place] = (stale + 1).index_fill(0, chosen, 0.0)
        return self._rows[place]


@final
@frozen(kw_only=True)
class ToCa(PolicyRecipe):
    """Settings of ToCa."""

    name: ClassVar[str] = "toca"
    summary: ClassVar[str] = "reuse attention between full steps and recompute a few tokens' rest"
    source: ClassVar[str] = "ToCa, ICLR 2025, arXiv:2410.05317"

    cycle: int = setting(CYCLE, ge=1, doc="steps from one full step to the next")
    cross_cycle: int = setting(
        CROSS_CYCLE, ge=1, doc="steps from which on a full step computes cross-attention again"
    )
    first_steps: int = setting(FIRST_STEPS, ge=1, doc="steps that are always full first")
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

    @classmethod
    def preset(cls, preset: str, model: ModelInfo) -> Mapping[str, object]:
        """Return the length of the cycle.

        Raises:
            ConfigError: There is no such preset.
        """
        return find_preset(cls.name, preset, PRESETS)

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

    cycle: int = setting(CYCLE, ge=1, doc="steps from one full step to the next")
    cross_cycle: int = setting(
        CROSS_CYCLE, ge=1, doc="steps from which on a full step computes cross-attention again"
    )
    first_steps: int = setting(FIRST_STEPS, ge=1, doc="steps that are always full first")
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

    @classmethod
    def preset(cls, preset: str, model: ModelInfo) -> Mapping[str, object]:
        """Return the length of the cycle.

        Raises:
            ConfigError: There is no such preset.
        """
        return find_preset(cls.name, preset, PRESETS)

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the one piece that decides steps and blocks; it is the same for every model."""
        cycle = _cycle(self)
        return CachePolicy(name=self.name, step=cycle, blocks=cycle)


def _cycle(recipe: ToCa | DuCa) -> TokenCycle:
    return TokenCycle(
        cycle=recipe.cycle,
        cross_cycle=recipe.cross_cycle,
        first_steps=recipe.first_steps,
        shares={
            SubLayer.FEED_FORWARD: recipe.feed_forward_share,
            SubLayer.CROSS_ATTENTION: recipe.cross_attention_share,
        },
        score=recipe.score,
        dual=isinstance(recipe, DuCa),
        seed=recipe.seed,
    )
