"""How far the attention of blocks moves from one computed step to the next, for AdaCache.

Source: AdaCache (ICCV 2025, arXiv:2411.02397) and its reference code. Different from that code:
attention is compared before its gate, on evenly spaced tokens, a change is divided by the steps it
really took, and the branch that is run first is looked at for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

import torch
from attrs import define, field, frozen
from torch import Tensor

from hetcache_core import BranchRows, Grid, StepInfo, SubLayer, relative_l1
from hetcache_policies.fits.adacache_codebooks import CodeBook, find_book

__all__ = ["Meter", "RateRule"]

SKETCH_TOKENS: Final = 512
"""At most about this many tokens of an attention output are kept and compared.

Our design: a mean over 512 tokens of a video model's width is steady to its third digit, and blocks
that are rated one by one keep a sketch each.
"""

MOTION_SCALE: Final = 0.385
MOTION_POWER: Final = 8
MOTION_GRADIENT: Final = 10.0
MOTION_STRIDES: Final = (1,)
MOTION_WINDOW: Final = (0.1, 0.9)
# Source: moreg_hyp, mograd_mul, moreg_strides and, as shares of the steps, moreg_steps of the reference
# code's 100-step setting. Its paper has another formula (not normalized, signed); the code made its
# results.


@final
@frozen(kw_only=True)
class RateRule:
    """How a change of attention becomes a number of steps.

    Attributes:
        book: name of a published book, or a book of one's own.
        part: the sub-layer that is compared.
        motion: whether changes are weighed by how much the frames differ.
    """

    book: str | CodeBook
    part: SubLayer
    motion: bool

    def rate(self, change: float, steps: int) -> int:
        """Return the steps from a computed step to the next."""
        book = find_book(self.book, steps) if isinstance(self.book, str) else self.book
        return book.rate(change, steps)


@final
@define(eq=False)
class Meter:
    """Compares outputs of blocks with what they were when these were last computed.

    Attributes:
        kept: by block, a sketch (b, n, D) and the step that it is of.
    """

    _rule: RateRule
    _grid: Grid
    _first: str | None = field(default=None, init=False)
    _rows: slice | None = field(default=None, init=False)
    kept: dict[int, tuple[Tensor, int]] = field(factory=dict, init=False)
    _pending: dict[int, tuple[Tensor, StepInfo, int]] = field(factory=dict, init=False)
    _motion: dict[int, float] = field(factory=dict, init=False)

    @property
    def watches(self) -> bool:
        """Whether the call under way holds the branch that decides: the one that is run first."""
        return self._rows is not None

    def enter(self, branches: tuple[BranchRows, ...]) -> None:
        """Take note of the branches of a call."""
        self._first = self._first or branches[0].name
        self._rows = branches[0].rows if branches[0].name == self._first else None

    def take(self, step: StepInfo, block: int, output: Tensor) -> None:
        """Measure one output (B, N, D) of a watched call; nothing waits for the device."""
        rows = output[self._rows]  # (b, N, D)
        stride = -(-rows.shape[1] // SKETCH_TOKENS)
        sketch = rows[:, ::stride].clone()  # (b, n, D)
        if block in self.kept:
            old, at = self.kept[block]
            measured = torch.stack([relative_l1(sketch, old), self._differ(rows)])  # (2,)
            self._pending[block] = (measured, step, step.index - at)
        self.kept[block] = (sketch, step.index)

    def changes(self, read: Callable[[Tensor], list[float]]) -> dict[int, float]:
        """Bring what was measured to the host at once: by block, the change per step."""
        pending, self._pending = self._pending, {}
        if not pending:
            return {}
        values = iter(read(torch.cat([measured for measured, _, _ in pending.values()])))
        return {
            block: self._regularized(block, next(values) / gap, next(values), step, gap)
            for block, (_, step, gap) in pending.items()
        }

    def _differ(self, output: Tensor) -> Tensor:
        """Say how much the frames of an output (b, N, D) differ: 0 alike, 1 nothing in common."""
        grid = self._grid
        strides = [stride for stride in MOTION_STRIDES if stride < grid.frames]
        if not self._rule.motion or not strides:
            return output.new_ones((), dtype=torch.float32)
        video = output[:, grid.prefix :].unflatten(1, (grid.frames, -1)).float()  # (b, T, hw, D)
        found = []
        for stride in strides:
            late, early = video[:, stride:], video[:, :-stride]
            found.append((late - early).abs().sum() / (late.abs().sum() + early.abs().sum()))
        return torch.stack(found).mean()

    def _regularized(
        self, block: int, change: float, differ: float, step: StepInfo, gap: int
    ) -> float:
        if not self._rule.motion:
            return change
        low, high = MOTION_WINDOW
        inside = low <= (step.index + 1) / step.total <= high
        motion = (differ / MOTION_SCALE) ** MOTION_POWER if inside else 1.0
        gradient = MOTION_GRADIENT * (motion - self._motion.get(block, 1.0)) / gap
        self._motion[block] = motion
        return change * (motion + abs(gradient))
