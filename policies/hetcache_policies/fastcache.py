"""FastCache: leave out the blocks whose input has hardly moved since they were last computed.

Source: FastCache (arXiv:2505.20353) and its code in xDiT. There, a block is left out when
``d = ||h - h_prev|| / ||h_prev||`` is at most ``max(0.05, min(tau_stat, tau_ad))``; ``tau_stat`` is near
1 and ``tau_ad`` admits about 0.02 at video sizes, so the rule is ``d <= 0.05``, and is that here. Also
different from that code:

- A block that is left out adds the residual of its last run. (There it is a linear map that nobody
  trained, in HetCache's copy the identity, which drops the block.)
- Inputs are compared with those of the block's last run, so that small drifts add up; a block is left
  out a few times in a row at most; the first and the last third of the blocks always run.
- No block waits for the device. Distances are measured where they arise, brought to the host together
  one computed step later, and taken on to that step as growing evenly since the block's last run.
- The branch that is run first decides for all; every branch adds its own residuals.
"""

from __future__ import annotations

import math
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
    ConfigError,
    Guards,
    ModelInfo,
    PolicyRecipe,
    RunInfo,
    Signals,
    StepInfo,
    Use,
    setting,
)

__all__ = ["FastCache", "SimilarBlocks"]

THRESHOLD: Final = 0.05
"""Source: xDiT, the lower bound of its threshold, which is what decides (see above)."""

MAX_HITS: Final = 3
BLOCKS: Final = (1 / 3, 2 / 3)
# Source: HetCache's FastCache: consecutive hits, and the middle third of the blocks.

SKETCH_TOKENS: Final = 512
"""At most about this many tokens of a block's input are kept and compared.

Our design: whole inputs of all blocks would be as large as the residuals.
"""

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"threshold": THRESHOLD},
    "balanced": {"threshold": 2 * THRESHOLD},
    "fast": {"threshold": 3 * THRESHOLD, "blocks": (0.1, 0.9)},
}
"""Our design: nothing is published for video."""


@final
@frozen(kw_only=True)
class SimilarBlocks(BlockPolicy):
    """Leaves blocks out while their input stays near that of their last run.

    Attributes:
        threshold: relative distance up to which a block is left out.
        max_hits: how often in a row.
        blocks: which blocks may be left out.
    """

    threshold: float
    max_hits: int
    blocks: range

    @property
    def needs_sub_layers(self) -> bool:
        """Blocks are left out whole."""
        return False

    def begin(self, run: RunInfo) -> BlockDecider:
        """Start with no block computed."""
        return _Decider(self)


@define(eq=False)
class _Block:
    """What is known of one block.

    Attributes:
        sketch: (b, n, D) its input when it last ran.
        ran: the step at which it last ran.
        drift: relative distance per step, infinite before it was measured.
        hits: how often in a row it has been left out.
    """

    sketch: Tensor
    ran: int
    drift: float = math.inf
    hits: int = 0


@final
@define(eq=False)
class _Decider(BlockDecider):
    _policy: SimilarBlocks
    _first: str | None = field(default=None, init=False)
    _rows: slice | None = field(default=None, init=False)
    _known: dict[int, _Block] = field(factory=dict, init=False)
    _pending: dict[int, tuple[Tensor, int]] = field(factory=dict, init=False)
    _ran: dict[tuple[str, int], int] = field(factory=dict, init=False)
    _step: int = field(default=-1, init=False)
    _hits: frozenset[int] = field(factory=frozenset, init=False)

    def enter_call(self, step: StepInfo, branches: tuple[BranchRows, ...]) -> None:
        self._first = self._first or branches[0].name
        self._rows = branches[0].rows if branches[0].name == self._first else None

    def prepare(self, step: StepInfo, signals: Signals) -> None:
        """Choose the blocks that this step leaves out: the only place that waits for the device."""
        self._step = step.index
        pending, self._pending = self._pending, {}
        if pending:
            distances = signals.read_many(torch.stack([d for d, _ in pending.values()]))
            for (index, (_, gap)), distance in zip(pending.items(), distances, strict=True):
                self._known[index].drift = distance / gap
        threshold = self._policy.threshold * signals.threshold_factor
        self._hits = frozenset(
            index
            for index, known in self._known.items()
            if known.drift * (step.index - known.ran) <= threshold
            and known.hits < self._policy.max_hits
            and not step.computed
        )

    def block(self, step: StepInfo, branch: str, key: BlockKey, hidden: Tensor) -> BlockAction:
        index = key.index
        if index not in self._policy.blocks:
            return BlockAction()
        known = self._known.get(index)
        # A branch that was left out when the block last ran has a residual of another step.
        alike = known is not None and self._ran.get((branch, index)) == known.ran
        # The probe of a step policy asks before anything was planned.
        hit = step.index == self._step and index in self._hits and alike
        if not hit:
            self._ran[branch, index] = step.index
        if self._rows is not None:
            self._look(step, index, hidden[self._rows], hit=hit)
        return BlockAction(use=Use.REUSE if hit else Use.RUN, store=not step.is_last)

    def _look(self, step: StepInfo, index: int, rows: Tensor, *, hit: bool) -> None:
        """Measure the input (b, N, D) of a block; nothing waits for the device."""
        sketch = rows[:, :: -(-rows.shape[1] // SKETCH_TOKENS)]  # (b, n, D)
        known = self._known.get(index)
        if known is None:
            self._known[index] = _Block(sketch.clone(), step.index)
            return
        self._pending[index] = (_distance(sketch, known.sketch), step.index - known.ran)
        if hit:
            known.hits += 1
        else:
            known.sketch, known.ran, known.hits = sketch.clone(), step.index, 0


def _distance(new: Tensor, old: Tensor) -> Tensor:
    """Return ``||new - old|| / ||old||`` as an fp32 scalar tensor."""
    old = old.float()
    norm: Tensor = torch.linalg.vector_norm(old).clamp_min(torch.finfo(old.dtype).tiny)
    moved: Tensor = torch.linalg.vector_norm(new.float() - old)
    return moved / norm


@final
@frozen(kw_only=True)
class FastCache(PolicyRecipe):
    """Settings of FastCache."""

    name: ClassVar[str] = "fastcache"
    summary: ClassVar[str] = "leave out middle blocks while their input has hardly moved"
    source: ClassVar[str] = "FastCache, arXiv:2505.20353"
    decides_on: ClassVar[str] = "distances of the blocks' inputs"
    default_guards: ClassVar[Guards] = Guards(last_steps=1)
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = PRESETS
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.81, "balanced": 0.78, "fast": 0.35}

    threshold: float = setting(
        THRESHOLD, ge=0, doc="relative distance of a block's input up to which it is left out"
    )
    max_hits: int = setting(MAX_HITS, ge=1, doc="how often in a row a block is left out at most")
    blocks: tuple[float, float] = setting(
        BLOCKS, ge=0, le=1, doc="shares of the depth between which blocks may be left out"
    )

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Choose the blocks that may be left out.

        Raises:
            ConfigError: There are none.
        """
        low = math.floor(self.blocks[0] * model.layers)
        high = math.ceil(self.blocks[1] * model.layers)
        if low >= high:
            raise ConfigError(
                f"between {self.blocks[0]:.2f} and {self.blocks[1]:.2f} of the depth the model has "
                "no block to leave out",
                setting="blocks",
                given=self.blocks,
                remedy=f"It has {model.layers} blocks; give shares that are further apart.",
            )
        blocks = SimilarBlocks(
            threshold=self.threshold, max_hits=self.max_hits, blocks=range(low, high)
        )
        return CachePolicy(name=self.name, blocks=blocks)
