"""BWCache: reuse the trunk for some steps when the outputs of all blocks have hardly changed.

Source: BWCache (ICLR 2026, arXiv:2509.13789), from descriptions; neither its formula nor its code was at
hand. At every computed step the relative L1 changes of all blocks' outputs are averaged. Below a
threshold, the next steps, a tenth of the run, are reused; then one is computed and the test is made
again. When it is first passed, the last half of the steps that are left is set aside to be computed.

Different from what is described: outputs are compared on a fixed random sixteenth of the tokens (whole
ones are 6 to 62 GB), a change over several steps is divided by their number, and the trunk's residual
is reused instead of its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, final

import torch
from attrs import define, field, frozen
from torch import Tensor

from hetcache_core import (
    BlockAction,
    BlockDecider,
    BlockKey,
    BlockPolicy,
    BranchRows,
    CachePolicy,
    Decision,
    Guards,
    Hold,
    Mode,
    ModelInfo,
    PolicyRecipe,
    Predictor,
    RunInfo,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
    SubLayer,
    piece,
    relative_l1,
    setting,
)

__all__ = ["BWCache", "BlockWiseSteps"]

THRESHOLDS: Final[Mapping[str, float]] = {"quality": 0.15, "balanced": 0.20, "fast": 0.25}
"""Source: BWCache, its three settings; 41, 53 and 59 % of the steps reused on Open-Sora."""

LONGEST_REUSE: Final = 0.1
"""Source: BWCache, steps reused in a row as a share of the run."""

SKETCH_SHARE: Final = 1 / 16
"""Our choice: 190 MB for Wan2.1-1.3B at 81 frames of 480x832 in bfloat16."""

_KEPT: Final = "bwcache: outputs of the blocks"


@final
@frozen(kw_only=True)
class BlockWiseSteps(StepPolicy, BlockPolicy):
    """Reuses steps after one whose blocks' outputs have hardly changed.

    As a block policy it lets every block run and looks at what comes out.

    Attributes:
        threshold: mean relative L1 change of all blocks' outputs, per step or in all.
        gap_normalize: whether a change is divided by the steps that it took.
        sketch_share: share of the tokens that is compared.
        seed: seed of their choice.
    """

    threshold: float
    gap_normalize: bool
    sketch_share: float
    seed: int

    @property
    def needs_sub_layers(self) -> bool:
        """Blocks are looked at from outside."""
        return False

    def begin(self, run: RunInfo) -> _Decider:
        """Choose the tokens that are compared."""
        tokens = run.grid.tokens
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(tokens, generator=generator)
        chosen = order[: max(1, round(self.sketch_share * tokens))].sort().values  # (n,)
        return _Decider(self, chosen.to(run.device))


@final
@define(eq=False)
class _Decider(StepDecider, BlockDecider):
    _policy: BlockWiseSteps
    _tokens: Tensor
    _first: str | None = field(default=None, init=False)
    _rows: slice | None = field(default=None, init=False)
    _fresh: list[Tensor] = field(factory=list, init=False)
    _gap: int = field(default=0, init=False)
    _computed: int | None = field(default=None, init=False)
    _change: float | None = field(default=None, init=False)
    _reuses: bool = field(default=False, init=False)
    _tail: int | None = field(default=None, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        threshold = self._policy.threshold * signals.threshold_factor
        if self._fresh:
            self._change = self._measure(signals)
            self._reuses = self._change is not None and self._change < threshold
        if self._reuses and self._tail is None and self._computed is not None:
            self._tail = step.total - (step.total - 1 - self._computed) // 2
        if self._tail is not None and step.index >= self._tail:
            return Decision(Mode.FULL, "last steps")
        if self._change is None:
            return Decision(Mode.FULL, "no change measured yet")
        if not self._reuses:
            reason = f"change {self._change:.3f} >= {threshold:.3f}"
            return Decision(Mode.FULL, reason, self._change)
        return Decision(Mode.REUSE, f"change {self._change:.3f} < {threshold:.3f}", self._change)

    def settle(self, step: StepInfo, mode: Mode) -> None:
        if mode is Mode.FULL:
            self._gap = step.index - (self._computed if self._computed is not None else step.index)
            self._computed = step.index

    def enter_call(self, step: StepInfo, branches: tuple[BranchRows, ...]) -> None:
        # The branch that is run first decides for all, as in every step policy.
        self._first = self._first or branches[0].name
        self._rows = branches[0].rows if branches[0].name == self._first else None

    def block(self, step: StepInfo, branch: str, key: BlockKey, hidden: Tensor) -> BlockAction:
        return BlockAction(observe_block=self._rows is not None)

    def observe(
        self, step: StepInfo, branch: str, key: BlockKey, part: SubLayer | None, output: Tensor
    ) -> None:
        self._fresh.append(output[self._rows].index_select(1, self._tokens))  # (b, n, D)

    def _measure(self, signals: Signals) -> float | None:
        """Compare the outputs of the last computed step with those of the one before."""
        fresh, self._fresh = torch.stack(self._fresh), []  # (L, b, n, D)
        kept = signals.kept(_KEPT)
        signals.keep(_KEPT, fresh)
        if kept is None:
            return None
        changes = [relative_l1(new, old) for new, old in zip(fresh, kept, strict=True)]
        change = signals.read(torch.stack(changes).mean())
        return change / max(1, self._gap) if self._policy.gap_normalize else change


@final
@frozen(kw_only=True)
class BWCache(PolicyRecipe):
    """Settings of BWCache."""

    name: ClassVar[str] = "bwcache"
    summary: ClassVar[str] = "reuse steps while the outputs of all blocks have hardly changed"
    source: ClassVar[str] = "BWCache, ICLR 2026, arXiv:2509.13789"
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        preset: {"threshold": value} for preset, value in THRESHOLDS.items()
    }
    default_guards: ClassVar[Guards] = Guards(
        first_steps=1, last_steps=1, longest_reuse=LONGEST_REUSE
    )

    threshold: float = setting(
        THRESHOLDS["quality"],
        ge=0,
        doc="mean change of the blocks' outputs below which the next steps are reused",
    )
    gap_normalize: bool = setting(True, doc="divide a change by the steps that it took")
    sketch_share: float = setting(
        SKETCH_SHARE, gt=0, le=1, doc="share of the tokens that is compared"
    )
    seed: int = setting(0, ge=0, doc="seed of their choice")
    predictor: Predictor = piece(
        "predictor", Hold(), doc="what stands in for what a reused step leaves out"
    )

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the one piece that decides steps and looks at blocks; the same for every model."""
        steps = BlockWiseSteps(
            threshold=self.threshold,
            gap_normalize=self.gap_normalize,
            sketch_share=self.sketch_share,
            seed=self.seed,
        )
        return CachePolicy(name=self.name, step=steps, blocks=steps, predictor=self.predictor)
