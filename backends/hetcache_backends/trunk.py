"""One trunk for the DiTs of this package: rows, control hints and signals.

How a library runs its blocks, and what it makes of a timestep, is said by a ``DitBlocks``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import final

import torch
from attrs import Factory, define, evolve, field
from torch import Tensor, nn

from hetcache_core import BlockHooks, ContractError, FlopModel, TrunkCall, TrunkView, in_fp32


class DitBlocks(ABC):
    """A library's blocks, with what its call handed to the first one of them."""

    @property
    @abstractmethod
    def layers(self) -> int:
        """Main blocks ``L``."""

    @property
    @abstractmethod
    def heads(self) -> int:
        """Attention heads."""

    @property
    def control_layers(self) -> tuple[int, ...]:
        """Main block of each hint; by default there is no control branch."""
        return ()

    @abstractmethod
    def at(self, rows: Tensor) -> DitBlocks:
        """Gather what follows the rows (n,): rotary table, and modulation that each token has."""

    @abstractmethod
    def run(self, index: int, hidden: Tensor, hooks: BlockHooks | None) -> Tensor:
        """Run main block ``index`` on (B, n, D), without its hint."""

    def scaled(self, index: int, hint: Tensor) -> Tensor:
        """Scale the hint (B, n, D) of main block ``index`` as the library does."""
        return hint

    def control(
        self, index: int, state: Tensor | None, view: DitTrunk, hooks: BlockHooks | None
    ) -> tuple[Tensor, Tensor]:
        """Run a control block.

        Args:
            index: the control block.
            state: (B, n, D) that the one before it left, or None for the first one.
            view: the trunk at the rows.
            hooks: what to see or replace.

        Returns:
            Its hint and its state, (B, n, D) each.

        Raises:
            ContractError: there is no control branch.
        """
        raise ContractError("This call has no control branch.")

    @abstractmethod
    def embed(self, timesteps: Sequence[float], device: torch.device) -> Tensor:
        """Embed timesteps in fp32: (S, D)."""

    @abstractmethod
    def project(self, embedded: Tensor) -> Tensor:
        """Project embedded timesteps in fp32: (S, 6 * D)."""

    @abstractmethod
    def first_norm(self, x: Tensor) -> Tensor:
        """Normalize x (B, N, D) fp32 as the first block does before it modulates."""

    @abstractmethod
    def first_modulation(self, rows: Tensor) -> Tensor:
        """Add the first block's own table to six rows (6, D) fp32."""


@final
@define(eq=False, kw_only=True)
class DitTrunk(TrunkCall, TrunkView):
    """One call of the trunk, over all of its tokens or over some.

    Attributes:
        x: (B, n, D) trunk input.
        blocks: the library's blocks at the rows.
        flops: costs of the call.
        rows: (n,) the rows, or None for all.
        tokens: tokens ``N`` of the whole call.
    """

    x: Tensor
    blocks: DitBlocks
    flops: FlopModel
    rows: Tensor | None = None
    tokens: int = field(default=Factory(lambda trunk: trunk.x.shape[1], takes_self=True))
    _state: Tensor | None = field(default=None, init=False)

    @property
    def layers(self) -> int:
        """Main blocks ``L``."""
        return self.blocks.layers

    @property
    def control_layers(self) -> tuple[int, ...]:
        """Main block of each hint."""
        return self.blocks.control_layers

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.blocks.heads

    def view(self, rows: Tensor | None) -> DitTrunk:
        """Gather the input and what follows the rows."""
        if rows is None:
            return evolve(self)  # its control branch begins anew
        return evolve(self, x=at_rows(self.x, rows), blocks=self.blocks.at(rows), rows=rows)

    def block(
        self, index: int, hidden: Tensor, hint: Tensor | None, hooks: BlockHooks | None
    ) -> Tensor:
        """Run main block ``index`` and add its hint as the library does."""
        hidden = self.blocks.run(index, hidden, hooks)
        return hidden if hint is None else hidden + self.blocks.scaled(index, hint)

    def control(self, index: int, hooks: BlockHooks | None) -> Tensor:
        """Run control block ``index`` on the state of the one before it."""
        hint, self._state = self.blocks.control(index, self._state, self, hooks)
        return hint

    def timestep_embeddings(self, timesteps: Sequence[float]) -> Tensor:
        """Embed timesteps in fp32: (S, D)."""
        return self.blocks.embed(timesteps, self.x.device)

    def timestep_modulations(self, timesteps: Sequence[float]) -> Tensor:
        """Project embedded timesteps in fp32: (S, 6 * D)."""
        return self.blocks.project(self.timestep_embeddings(timesteps))

    def modulated_input(self, modulation: Tensor) -> Tensor:
        """First block's normalized, modulated input (B, N, D) in fp32."""
        shift, scale = self.blocks.first_modulation(modulation.view(6, -1))[:2]
        modulated: Tensor = self.blocks.first_norm(self.x.float()) * (1 + scale) + shift
        return modulated


def at_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """Gather rows (n,) of x (B, N, ...); None gives all."""
    return x if rows is None else x.index_select(1, rows)


def padded_rows(x: Tensor, tokens: int, rows: Tensor | None) -> Tensor:
    """Gather rows (n,) of x (B, m, D), which is zeros from m to the trunk's N tokens."""
    # By concatenation as in the libraries, whose result is contiguous: on other strides, matrix products
    # in bfloat16 round otherwise.
    padding = x.new_zeros(x.shape[0], tokens - x.shape[1], x.shape[2])
    return at_rows(torch.cat([x, padding], dim=1), rows)  # (B, n, D)


def apply_fp32(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Run an embedding's layers in fp32 whatever the dtype of their weights."""
    for layer in layers:
        x = in_fp32(layer, x)
    return x
