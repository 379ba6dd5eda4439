"""Pyramid attention broadcast: reuse attention outputs for a few steps in the middle of a run.

Source: PAB (ICLR 2025, arXiv:2408.12588) and the reference code in VideoSys. Wan and LTX have one kind
of self-attention, over space and time together, so the pyramid has two storeys: self- and
cross-attention. Outputs are kept before their gate, and the current step's gate is applied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import ClassVar, Final, final

from attrs import define, field, frozen
from torch import Tensor

from hetcache_core import (
    BlockAction,
    BlockDecider,
    BlockKey,
    BlockPolicy,
    CachePolicy,
    ConfigError,
    ModelInfo,
    PartAction,
    PolicyRecipe,
    RunInfo,
    StepInfo,
    SubLayer,
    Use,
    setting,
)

__all__ = ["Broadcast", "FeedForwardReuse", "PyramidBroadcast"]

SELF_RANGE: Final = 2
"""Source: Open-Sora, Latte and CogVideoX settings of the reference code (2 throughout)."""

CROSS_RANGE: Final = 6
"""Source: the same settings (6 for all models that have cross-attention)."""

WINDOW: Final = (0.15, 0.85)
"""Fractions of the steps between which outputs are reused.

The reference gives timesteps ((450, 930) for Open-Sora, (100, 800) and (100, 850) for others), which
lie elsewhere in every shifted flow schedule. Our design: the same middle part, in steps.
"""

FEED_FORWARD_SKIP: Final = 2
"""Source: ``skip_count`` of the reference's Open-Sora setting."""

FEED_FORWARD_BLOCKS: Final = 5
"""Source: blocks 0 to 4, of the same setting."""

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"self_attention": 2, "cross_attention": 2, "window": WINDOW},
    "balanced": {"self_attention": SELF_RANGE, "cross_attention": CROSS_RANGE, "window": WINDOW},
    "fast": {"self_attention": 4, "cross_attention": 6, "window": (0.1, 0.9)},
}
"""Our design: nothing is published for Wan or LTX. The 4 is the reference's for temporal attention."""


@final
@frozen(kw_only=True)
class FeedForwardReuse:
    """Where feed-forward outputs are reused.

    Attributes:
        starts: fractions of the steps at which outputs are computed and kept.
        skip: following steps that reuse them.
        blocks: the first that many blocks of a stack do so.
    """

    starts: tuple[float, ...]
    skip: int
    blocks: int


@final
@frozen(kw_only=True)
class Broadcast(BlockPolicy):
    """Computes a sub-layer at every ``range``-th of its calls and reuses its output in between.

    Attributes:
        ranges: the range of each sub-layer; 1 computes it always.
        window: fractions of the steps between which outputs are reused.
        feed_forward: where feed-forward outputs are reused.
    """

    looks_at_hidden: ClassVar[bool] = False

    ranges: Mapping[SubLayer, int]
    window: tuple[float, float]
    feed_forward: FeedForwardReuse

    def begin(self, run: RunInfo) -> BlockDecider:
        """Start all counters at 0."""
        last = run.steps - 1
        low, high = self.window
        return _Decider(
            self,
            window=frozenset(i for i in range(run.steps) if low * last < i < high * last),
            starts=frozenset(round(start * last) for start in self.feed_forward.starts),
        )


@final
@define(eq=False)
class _Decider(BlockDecider):
    """Counts the calls of every sub-layer of every block, for each branch on its own.

    Steps that another policy reuses whole never get here and are not counted, so that an output is
    never reused for more than ``range - 1`` computed steps.
    """

    _policy: Broadcast
    _window: frozenset[int] = field(kw_only=True)
    _starts: frozenset[int] = field(kw_only=True)
    _calls: Counter[tuple[str, BlockKey, SubLayer]] = field(factory=Counter, init=False)
    _kept: dict[tuple[str, BlockKey], int] = field(factory=dict, init=False)

    def block(self, step: StepInfo, branch: str, key: BlockKey, hidden: Tensor) -> BlockAction:
        return self._action(step, branch, key)

    def control(self, step: StepInfo, branch: str, key: BlockKey) -> BlockAction:
        return self._action(step, branch, key)

    def _action(self, step: StepInfo, branch: str, key: BlockKey) -> BlockAction:
        parts = {
            part: self._broadcast(step, branch, key, part, every)
            for part, every in self._policy.ranges.items()
            if every > 1
        }
        if self._starts and key.index < self._policy.feed_forward.blocks:
            parts[SubLayer.FEED_FORWARD] = self._feed_forward(step, branch, key)
        return BlockAction(parts=parts)

    def _broadcast(
        self, step: StepInfo, branch: str, key: BlockKey, part: SubLayer, every: int
    ) -> PartAction:
        call = self._calls[branch, key, part]
        self._calls[branch, key, part] += 1
        reuse = call % every != 0 and step.index in self._window
        # What is computed is kept only where the next step may reuse it. A reusing step says so
        # too: if the one before the window was left out, nothing is kept yet and it computes.
        return PartAction(Use.REUSE if reuse else Use.RUN, store=step.index + 1 in self._window)

    def _feed_forward(self, step: StepInfo, branch: str, key: BlockKey) -> PartAction:
        if step.index in self._starts:
            self._kept[branch, key] = step.index
            return PartAction(store=True)
        kept = self._kept.get((branch, key))
        if kept is not None and step.index - kept <= self._policy.feed_forward.skip:
            return PartAction(Use.REUSE)
        return PartAction()


@final
@frozen(kw_only=True)
class PyramidBroadcast(PolicyRecipe):
    """Settings of pyramid attention broadcast."""

    name: ClassVar[str] = "pab"
    summary: ClassVar[str] = "reuse the outputs of attention layers for a few steps in mid-run"
    source: ClassVar[str] = "Pyramid Attention Broadcast, ICLR 2025, arXiv:2408.12588"
    decides_on: ClassVar[str] = "the step's index"
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = PRESETS
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.82, "balanced": 0.78, "fast": 0.68}

    self_attention: int = setting(
        SELF_RANGE, ge=1, doc="self-attention is computed at every n-th step of the window"
    )
    cross_attention: int = setting(
        CROSS_RANGE, ge=1, doc="cross-attention is computed at every n-th step of the window"
    )
    window: tuple[float, float] = setting(
        WINDOW, ge=0, le=1, doc="fractions of the steps between which outputs are reused"
    )
    feed_forward_starts: tuple[float, ...] = setting(
        (),
        ge=0,
        le=1,
        doc="fractions of the steps at which feed-forward outputs are kept for reuse",
    )
    feed_forward_skip: int = setting(
        FEED_FORWARD_SKIP, ge=1, doc="steps after each start that reuse feed-forward outputs"
    )
    feed_forward_blocks: int = setting(
        FEED_FORWARD_BLOCKS, ge=1, doc="how many blocks, from the first, do so"
    )

    def __attrs_post_init__(self) -> None:
        """Refuse a window that ends before it begins.

        Raises:
            ConfigError: It does.
        """
        low, high = self.window
        if low >= high:
            raise ConfigError(
                f"window must begin before it ends, got [{low}, {high}]",
                setting="window",
                given=self.window,
            )

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the block policy; it is the same for every model."""
        return CachePolicy(
            name=self.name,
            blocks=Broadcast(
                ranges={
                    SubLayer.SELF_ATTENTION: self.self_attention,
                    SubLayer.CROSS_ATTENTION: self.cross_attention,
                },
                window=self.window,
                feed_forward=FeedForwardReuse(
                    starts=self.feed_forward_starts,
                    skip=self.feed_forward_skip,
                    blocks=self.feed_forward_blocks,
                ),
            ),
        )
