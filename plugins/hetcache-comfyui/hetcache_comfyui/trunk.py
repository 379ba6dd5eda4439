"""The trunk of ComfyUI's video models: rows, sub-layers, control hints and signals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from attrs import Factory, define, evolve, field
from torch import Tensor

from hetcache_core import (
    BlockHooks,
    ContractError,
    FlopModel,
    SubLayer,
    TrunkCall,
    TrunkView,
    UnsupportedBackboneError,
    call_inside,
)


class Blocks(ABC):
    """A model's blocks, with what its call handed to the first one of them."""

    layers: int
    heads: int
    control_layers: tuple[int, ...] = ()

    @abstractmethod
    def at(self, rows: Tensor, tokens: int) -> Blocks:
        """Gather what follows the rows (n,) of so many tokens."""

    @abstractmethod
    def run(self, index: int, hidden: Tensor, hooks: BlockHooks | None) -> Tensor:
        """Run block ``index`` on (B, n, D), as a node that replaces it wants it run."""

    def control(
        self, index: int, state: list[Tensor], view: VideoTrunk, hooks: BlockHooks | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run a control block.

        Args:
            index: the control block.
            state: what the one before it left, (B, n, D) a control input; empty before the first.
            view: the trunk at the rows.
            hooks: what to see or replace.

        Returns:
            Its scaled hint (B, n, D), and its state.

        Raises:
            ContractError: there is no control branch.
        """
        raise ContractError("This call has no control branch.")

    @abstractmethod
    def embed(self, timesteps: Tensor) -> Tensor:
        """Embed timesteps (S,) fp32: (S, D) fp32."""

    @abstractmethod
    def project(self, embedded: Tensor) -> Tensor:
        """Project embedded timesteps: (S, 6 * D) fp32."""

    @abstractmethod
    def modulate(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Normalize x (B, N, D) fp32 and modulate it by six rows (6, D), as the first block does."""


@final
@define(eq=False, kw_only=True)
class VideoTrunk(TrunkCall, TrunkView):
    """One call of the trunk, over all of its tokens or over some.

    Attributes:
        x: (B, n, D) trunk input.
        blocks: the model's blocks at the rows.
        flops: costs of the call.
        rows: (n,) the rows, or None for all.
        tokens: tokens ``N`` of the whole call.
    """

    x: Tensor
    blocks: Blocks
    flops: FlopModel
    rows: Tensor | None = None
    tokens: int = field(default=Factory(lambda trunk: trunk.x.shape[1], takes_self=True))
    _state: list[Tensor] = field(factory=list, init=False)

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

    def view(self, rows: Tensor | None) -> VideoTrunk:
        """Gather the input and what follows the rows."""
        if rows is None:
            return evolve(self)  # its control branch begins anew
        blocks = self.blocks.at(rows, self.tokens)
        return evolve(self, x=self.x.index_select(1, rows), blocks=blocks, rows=rows)

    def block(
        self, index: int, hidden: Tensor, hint: Tensor | None, hooks: BlockHooks | None
    ) -> Tensor:
        """Run a block and add its hint."""
        hidden = self.blocks.run(index, hidden, hooks)
        return hidden if hint is None else hidden + hint

    def control(self, index: int, hooks: BlockHooks | None) -> Tensor:
        """Run control block ``index``."""
        hint, self._state = self.blocks.control(index, self._state, self, hooks)
        return hint

    def timestep_embeddings(self, timesteps: Sequence[float]) -> Tensor:
        """Embed timesteps in fp32: (S, D)."""
        return self.blocks.embed(torch.tensor(timesteps, device=self.x.device))

    def timestep_modulations(self, timesteps: Sequence[float]) -> Tensor:
        """Project embedded timesteps in fp32: (S, 6 * D)."""
        return self.blocks.project(self.timestep_embeddings(timesteps))

    def modulated_input(self, modulation: Tensor) -> Tensor:
        """First block's normalized, modulated input (B, N, D) in fp32."""
        return self.blocks.modulate(self.x.float(), modulation.view(6, -1))


def call_looking(
    block: Any, parts: Mapping[SubLayer, str], hooks: BlockHooks, *args: Any, **kwargs: Any
) -> Any:
    """Call a block with something inside it seen or replaced, within whatever is wrapped around it.

    Args:
        block: the library's block.
        parts: attributes of its sub-layers.
        hooks: what to see or replace.
        *args: of the call.
        **kwargs: of the call.
    """
    replaced = {name: _Part(getattr(block, name), part, hooks) for part, name in parts.items()}
    return call_inside(block, replaced, *args, **kwargs)


@final
@define(eq=False)
class _Part:
    """A sub-layer as its block sees it."""

    module: Any
    part: SubLayer
    hooks: BlockHooks
    OVERRIDE: ClassVar[str] = "optimized_attention_override"

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        attention = self.part is SubLayer.SELF_ATTENTION

        def compute(rows: Tensor | None = None) -> Tensor:
            if attention and rows is not None:
                raise ContractError("Self-attention cannot be recomputed on some rows only.")
            if attention and self.hooks.attends:
                return self._attending(x, *args, **kwargs)
            given = x if rows is None else x.index_select(1, rows)
            out: Tensor = self.module(given, *args, **kwargs)
            return out

        if self.part in self.hooks.parts:
            return self.hooks.sub_layer(self.part, compute)
        return compute()

    def _attending(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Hand q, k and v to the hooks, at the place that ComfyUI keeps for other kernels."""
        options = kwargs.pop("transformer_options", {})
        others, seen = options.get(self.OVERRIDE), False

        def override(kernel: Any, q: Any, k: Any, v: Any, *rest: Any, **given: Any) -> Tensor:
            nonlocal seen
            run = (
                kernel if others is None else lambda *call, **named: others(kernel, *call, **named)
            )
            if given.get("skip_reshape") or not all(isinstance(t, Tensor) for t in (q, k, v)):
                raise _no_attention(self.module)
            seen = True
            return self.hooks.attend(q, k, v, lambda *qkv: run(*qkv, *rest, **given))

        out: Tensor = self.module(
            x, *args, **kwargs, transformer_options={**options, self.OVERRIDE: override}
        )
        if not seen:
            raise _no_attention(self.module)
        return out


def _no_attention(module: Any) -> UnsupportedBackboneError:
    return UnsupportedBackboneError(
        f"This policy looks into attention, and a {type(module).__name__} of this release of ComfyUI does "
        "not show its q, k and v",
        remedy="Choose a policy that runs whole blocks, such as 'auto' or 'teacache'",
    )
