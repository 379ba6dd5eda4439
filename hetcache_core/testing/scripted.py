"""Policies that do what a script says, so that a check knows what must come out."""

from __future__ import annotations

from typing import final

import torch
from attrs import field, frozen
from torch import Tensor

from hetcache_core.backbone.adapter import RunInfo
from hetcache_core.policy.partial import PartialSettings
from hetcache_core.policy.pieces import (
    BlockAction,
    BlockDecider,
    BlockPolicy,
    PartAction,
    StepDecider,
    StepPolicy,
    Use,
)
from hetcache_core.policy.recipe import CachePolicy, ReusePoint
from hetcache_core.policy.signals import Signals
from hetcache_core.steps import (
    ALL_SUB_LAYERS,
    WHOLE_TRUNK,
    BlockKey,
    Decision,
    Mode,
    Span,
    StepInfo,
    SubLayer,
)
from hetcache_core.tokens import (
    ContextSelector,
    Grid,
    Partition,
    Role,
    Selection,
    SelectionRequest,
    TokenPartitioner,
    mask_to_tokens,
)

FULL_STEPS = CachePolicy(name="full steps")
"""Runs every step in full, through the engine."""


class ScriptedError(Exception):
    """Raised on purpose by a check."""


@final
@frozen
class Script(StepPolicy, StepDecider):
    """Says its modes in order, from the beginning again after the last one.

    Attributes:
        modes: what the steps do.
        span: what REUSE leaves out.
        probe: blocks that every decision probes first.
        raises_at: step at which the decision raises ``ScriptedError``, or None.
    """

    modes: tuple[Mode, ...]
    span: Span = WHOLE_TRUNK
    probe: int = 0
    raises_at: int | None = None

    def begin(self, run: RunInfo) -> StepDecider:
        """Return itself: a script has no state."""
        return self

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        """Say the mode of the step."""
        if step.index == self.raises_at:
            raise ScriptedError(f"raised on purpose at step {step.index}")
        if self.probe:
            signals.probe(self.probe)
        return Decision(self.modes[step.index % len(self.modes)], "scripted", span=self.span)


@final
@frozen
class MaskRoles(TokenPartitioner):
    """Masked tokens are generative, the others context; there is no margin."""

    def partition(self, mask: Tensor, grid: Grid) -> Partition:
        """Give every token a role."""
        masked = mask_to_tokens(mask, grid).flatten()  # (T * h * w,)
        prefix = torch.full((grid.prefix,), int(Role.PINNED), device=mask.device)
        video = torch.where(masked, int(Role.GENERATIVE), int(Role.CONTEXT))
        return Partition(torch.cat([prefix, video]).to(torch.uint8), grid)


@final
@frozen
class LastFirst(ContextSelector):
    """Prefers the last context tokens; with ``scored``, those that attention prefers."""

    scored: bool = False

    @property
    def needs_scores(self) -> bool:
        """Whether it asks for attention scores."""
        return self.scored

    def select(self, request: SelectionRequest) -> Selection:
        """Order the context tokens."""
        if self.scored:
            return Selection(request.scores().argsort(descending=True))
        count = request.partition.count(Role.CONTEXT)
        return Selection(torch.arange(count - 1, -1, -1, device=request.partition.roles.device))


@final
@frozen(kw_only=True)
class BlockScript(BlockPolicy, BlockDecider):
    """In even steps everything runs and is stored, in odd steps the stored values are used.

    Attributes:
        whole: reuse whole blocks instead of sub-layers.
        parts: the sub-layers that are stored and reused.
        rows: token rows (k,) that odd steps recompute of the reused sub-layers, or None.
        reuses: whether odd steps reuse at all.
    """

    whole: bool = False
    parts: frozenset[SubLayer] = ALL_SUB_LAYERS
    rows: Tensor | None = field(default=None, eq=False)
    reuses: bool = True

    def begin(self, run: RunInfo) -> BlockDecider:
        """Return itself: a script has no state."""
        return self

    def block(self, step: StepInfo, branch: str, key: BlockKey, hidden: Tensor) -> BlockAction:
        """Say what a main block does."""
        if not self.whole:
            return self.control(step, branch, key)
        if self._stores(step):
            return BlockAction(store=True)
        return BlockAction(use=Use.REUSE)

    def control(self, step: StepInfo, branch: str, key: BlockKey) -> BlockAction:
        """Say what a control block does."""
        reuse = PartAction(use=Use.REUSE, rows=self.rows)
        action = PartAction(store=True) if self._stores(step) else reuse
        return BlockAction(parts=dict.fromkeys(self.parts, action))

    def _stores(self, step: StepInfo) -> bool:
        return step.index % 2 == 0 or not self.reuses


def scripted(
    *modes: Mode,
    span: Span = WHOLE_TRUNK,
    probe: int = 0,
    raises_at: int | None = None,
    partial: PartialSettings | None = None,
    selector: ContextSelector | None = None,
    reuse_point: ReusePoint = ReusePoint.TRUNK,
) -> CachePolicy:
    """Compose a policy of a script.

    Args:
        modes: what the steps do, cyclically.
        span: what REUSE leaves out.
        probe: blocks that every decision probes first.
        raises_at: step at which the decision raises.
        partial: how PARTIAL steps run; needed where ``modes`` has one.
        selector: which context tokens stay active; the last ones where none is given.
        reuse_point: what REUSE leaves out.
    """
    return CachePolicy(
        name="-".join(mode.value for mode in modes),
        step=Script(modes, span, probe, raises_at),
        partitioner=MaskRoles() if partial is not None else None,
        selector=selector or (LastFirst() if partial is not None else None),
        partial=partial,
        reuse_point=reuse_point,
        spans=(span,),
    )
