"""The cycle of ToCa and DuCa: full steps, and in between them some tokens' sub-layers.

Source: ToCa (ICLR 2025, arXiv:2410.05317) and DuCa (arXiv:2412.18911) with their reference code. A
cycle begins with a full step that keeps the outputs of all sub-layers. In the other steps sub-layers
reuse them, but for the tokens of highest score some recompute theirs; DuCa makes every second one of
these steps cheaper still and reuses the whole trunk.

A token's score is its importance, plus a bonus for the steps since it was last computed. The
reference takes importance from attention maps, which fused attention does not give; DuCa found the
norm of values as good, and random choice hardly worse. Here it is ``1 - norm`` of the token's
self-attention output, or random. Tokens are chosen block by block, once a step, by the branch that is
run first for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final, Literal, final

import torch
from attrs import define, field, frozen
from torch import Tensor

from hetcache_core import (
    BlockAction,
    BlockDecider,
    BlockKey,
    BlockPolicy,
    BranchRows,
    Decision,
    Mode,
    PartAction,
    RunInfo,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
    SubLayer,
    Use,
)

__all__ = ["ScoreName", "TokenCycle"]

STALENESS_WEIGHT: Final = 0.25
"""Source: soft_fresh_weight of the reference code."""

ScoreName = Literal["norm", "random"]
"""What a token's importance is."""


class _Kind(Enum):
    FULL = auto()
    TOKENS = auto()
    REUSE = auto()


@final
@frozen(kw_only=True)
class TokenCycle(StepPolicy, BlockPolicy):
    """Full steps in a cycle, and some tokens in between.

    Attributes:
        cycle: steps from one full step to the next.
        cross_cycle: steps from which on a full step computes cross-attention again.
        shares: sub-layers that are recomputed in part, and for which share of the tokens.
        score: what a token's importance is.
        dual: whether every second step in between reuses the whole trunk (DuCa).
        seed: seed of random scores.
    """

    cycle: int
    cross_cycle: int
    shares: Mapping[SubLayer, float]
    score: ScoreName
    dual: bool
    seed: int

    def begin(self, run: RunInfo) -> _Decider:
        """Start with no token computed."""
        return _Decider(
            self,
            tokens=run.grid.tokens,
            generator=torch.Generator(run.device).manual_seed(self.seed),
        )


@final
@define(eq=False)
class _Decider(StepDecider, BlockDecider):
    _policy: TokenCycle
    _tokens: int = field(kw_only=True)
    _generator: torch.Generator = field(kw_only=True)
    _first_branch: str | None = field(default=None, init=False)
    _batch_rows: slice | None = field(default=None, init=False)
    _step: int = field(default=-1, init=False)
    _kind: _Kind = field(default=_Kind.FULL, init=False)
    _full: int | None = field(default=None, init=False)
    _cross: int | None = field(default=None, init=False)
    _importance: dict[BlockKey, Tensor] = field(factory=dict, init=False)
    _staleness: dict[tuple[BlockKey, SubLayer], Tensor] = field(factory=dict, init=False)
    _rows: dict[tuple[BlockKey, SubLayer], Tensor] = field(factory=dict, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        self._enter(step)
        if self._kind is _Kind.REUSE:
            return Decision(Mode.REUSE, "aggressive step of the cycle")
        kind = "full" if self._kind is _Kind.FULL else "conservative"
        return Decision(Mode.FULL, f"{kind} step of the cycle")

    def enter_call(self, step: StepInfo, branches: tuple[BranchRows, ...]) -> None:
        self._first_branch = self._first_branch or branches[0].name
        first = branches[0].name == self._first_branch
        self._batch_rows = branches[0].rows if first else None

    def block(self, step: StepInfo, branch: str, key: BlockKey, hidden: Tensor) -> BlockAction:
        return self.control(step, branch, key)

    def control(self, step: StepInfo, branch: str, key: BlockKey) -> BlockAction:
        self._enter(step)
        if self._kind is _Kind.REUSE:
            self._kind = _Kind.FULL  # a guard wants this step computed
        if self._kind is _Kind.FULL:
            return self._full_action(step)
        return BlockAction(
            parts={
                part: PartAction(Use.REUSE, store=True, rows=self._choose(key, part))
                for part in SubLayer
            }
        )

    def observe(
        self, step: StepInfo, branch: str, key: BlockKey, part: SubLayer | None, output: Tensor
    ) -> None:
        norms: Tensor = output[self._batch_rows].float().norm(dim=-1).mean(0)  # (N,)
        self._importance[key] = 1 - norms / norms.max().clamp_min(torch.finfo(norms.dtype).tiny)

    def _enter(self, step: StepInfo) -> None:
        """Say what the step is; asked at its decision or, without one, at its first block."""
        if step.index == self._step:
            return
        self._step, policy = step.index, self._policy
        passed = policy.cycle if self._full is None else step.index - self._full
        if step.computed or passed >= policy.cycle:
            self._kind = _Kind.FULL
        else:
            self._kind = _Kind.REUSE if policy.dual and passed % 2 else _Kind.TOKENS
        self._rows.clear()

    def _full_action(self, step: StepInfo) -> BlockAction:
        if self._full != step.index:
            self._full = step.index
            self._staleness.clear()
            aged = self._cross is None or step.index - self._cross >= self._policy.cross_cycle
            if step.computed or aged:
                self._cross = step.index
        parts = {part: PartAction(store=not step.is_last) for part in SubLayer}
        if self._cross != step.index:
            parts[SubLayer.CROSS_ATTENTION] = PartAction(Use.REUSE, store=True)
        watched = self._policy.score == "norm" and self._batch_rows is not None
        observe = frozenset({SubLayer.SELF_ATTENTION} if watched else ())
        return BlockAction(parts=parts, observe=observe)

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
