"""One DiT call as the engine sees it; a backbone implements these two classes.

``TrunkCall`` is the call, ``TrunkView`` the same call over some of its token rows with everything
that follows the rows (rotary table, per-token modulation) gathered once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from hetcache_core.steps import SubLayer

if TYPE_CHECKING:
    from torch import Tensor

    from hetcache_core.backbone.adapter import FlopModel

RunTrunk = Callable[["TrunkCall"], "Tensor"]
"""Answers the trunk inside a model call, (B, N, D); the engine gives it to each call's forward."""

Attend = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""The library's own attention on post-norm, post-rotary q, k and v, each (B, n, D)."""


KeyLoan = tuple["Tensor", "Tensor", "Tensor"]
"""Kept keys and values (B, N, D) to be written at some rows (n,) and attended over."""


class Compute(Protocol):
    """Runs a sub-layer on its current input, on all rows of the view or on some of them."""

    def __call__(self, rows: Tensor | None = None) -> Tensor:
        """Return the output before the gate: (B, n, D), or (B, k, D) for ``rows`` (k,)."""
        ...


class BlockHooks(Protocol):
    """What the engine wants to see or replace inside one block."""

    parts: frozenset[SubLayer]
    """Sub-layers for which ``sub_layer`` is called."""
    attends: bool
    """Whether ``attend`` is called for the block's self-attention."""

    @property
    def needs_keys(self) -> bool:
        """Whether ``attend`` attends over other keys than the ones it is given."""
        ...

    def sub_layer(self, part: SubLayer, compute: Compute) -> Tensor:
        """Return the sub-layer's output before its gate, computed or not."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        """Return the self-attention of q (B, n, D) over keys of the engine's choice."""
        ...

    def lend_keys(self, like: Tensor) -> KeyLoan | None:
        """Lend the keys and values to attend over to a block that is compiled as one graph.

        Such a block writes its own into them and attends, in place of ``attend``.

        Args:
            like: (B, n, D) input of the block, for its dtype and device.

        Returns:
            None where ``attend`` attends over what it is given, or keys are kept in another way.
        """
        ...

    def take(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Take q, k and v (B, n, D) of a compiled block, which has attended over them itself."""
        ...


class TrunkView(ABC):
    """The trunk over a set of rows."""

    @property
    @abstractmethod
    def x(self) -> Tensor:
        """Trunk input (B, n, D) at the rows."""

    @abstractmethod
    def block(
        self, index: int, hidden: Tensor, hint: Tensor | None, hooks: BlockHooks | None
    ) -> Tensor:
        """Run one main block.

        Args:
            index: the block.
            hidden: (B, n, D) its input.
            hint: (B, n, D) control hint that belongs to this block, or None.
            hooks: what to see or replace; None runs the library's block as it is.

        Returns:
            (B, n, D), the hint added.
        """

    @abstractmethod
    def control(self, index: int, hooks: BlockHooks | None) -> Tensor:
        """Run the next control block and return its hint (B, n, D).

        Args:
            index: the control block; calls come in order 0, 1, 2, …
            hooks: as in ``block``.
        """


class TrunkCall(ABC):
    """One call of the trunk."""

    @property
    @abstractmethod
    def x(self) -> Tensor:
        """Trunk input (B, N, D), after patch embedding."""

    @property
    @abstractmethod
    def layers(self) -> int:
        """Number ``L`` of main blocks."""

    @property
    @abstractmethod
    def control_layers(self) -> tuple[int, ...]:
        """Main block that each control hint belongs to, ascending; empty without control."""

    @property
    @abstractmethod
    def heads(self) -> int:
        """Attention heads of the main blocks."""

    @property
    def leading(self) -> int | None:
        """Tokens before the video's in this call, or None where they are always the grid's ``prefix``.

        Texts of two branches may differ in length. All of these tokens are among the rows of each step.
        """
        return None

    @property
    @abstractmethod
    def flops(self) -> FlopModel:
        """Cost of the pieces of this call."""

    @abstractmethod
    def view(self, rows: Tensor | None) -> TrunkView:
        """Gather everything that follows the rows, once.

        Args:
            rows: (n,) ascending token indices, or None for all.
        """

    @abstractmethod
    def timestep_embeddings(self, timesteps: Sequence[float]) -> Tensor:
        """Embed timesteps, of any step and unrounded, in fp32: (S, D) on the trunk's device."""

    @abstractmethod
    def timestep_modulations(self, timesteps: Sequence[float]) -> Tensor:
        """Project their embeddings to the blocks' modulation in fp32: (S, 6 * D)."""

    @abstractmethod
    def modulated_input(self, modulation: Tensor) -> Tensor:
        """First block's normalized input (B, N, D) in fp32, modulated by one row (6 * D,)."""
