"""A ready trunk for models whose blocks run whole, one after the other, without a control branch.

An adapter says how one block is called and what its timestep does; rows, attention and costs are
handled here. Self-attention is seen where the block calls torch's ``scaled_dot_product_attention``,
so that norms, rotary embedding and projections stay the library's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Final, final

import torch
from attrs import define, evolve, field
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from hetcache_core.backbone.adapter import FlopModel
from hetcache_core.backbone.trunk import BlockHooks, TrunkCall, TrunkView
from hetcache_core.errors import ContractError, UnsupportedBackboneError

ATTENTION_ARGUMENTS: Final = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""Arguments of ``scaled_dot_product_attention`` that may come without their names."""


@final
@define(eq=False, kw_only=True)
class BlockTrunk(TrunkCall, TrunkView):
    """One call of the trunk, over all of its tokens or over some.

    Its backbone has ``Features(sub_layers=False, control=False)``.

    Attributes:
        x: (B, n, D) trunk input.
        blocks: the library's blocks.
        heads: attention heads of a block.
        run_block: runs a block as ``run_block(block, hidden, follow)`` on hidden (B, n, D) and
            returns (B, n, D).
        embed: embeds timesteps (S,) fp32: (S, E) fp32; see ``in_fp32``.
        project: projects them to the modulation of the first block: (S, 6 * D) fp32.
        modulate: normalizes and modulates x (B, N, D) fp32 by six rows (6, D), as the first block
            does before its self-attention: (B, N, D) fp32.
        flops: cost of the pieces of this call.
        follow: what has one row a token, each (N - prefix, ...), such as rotary tables; gathered
            with the rows before ``run_block`` gets it.
        prefix: tokens that ``follow`` does not describe, such as those of a text. They come first
            and are not the video's (``Grid.prefix``), so they are among the rows of every step.
        attention: which call of ``scaled_dot_product_attention`` within a block is its
            self-attention, counted from 0.
    """

    x: Tensor
    blocks: Sequence[nn.Module]
    heads: int
    run_block: Callable[[Any, Tensor, tuple[Tensor, ...]], Tensor]
    embed: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    modulate: Callable[[Tensor, Tensor], Tensor]
    flops: FlopModel
    follow: tuple[Tensor, ...] = ()
    prefix: int = 0
    attention: int = 0

    @property
    def layers(self) -> int:
        """Number ``L`` of blocks."""
        return len(self.blocks)

    @property
    def control_layers(self) -> tuple[int, ...]:
        """There is no control branch."""
        return ()

    def view(self, rows: Tensor | None) -> BlockTrunk:
        """Gather the input and what follows the rows."""
        if rows is None:
            return self
        followed = rows[self.prefix :] - self.prefix
        follow = tuple(each.index_select(0, followed) for each in self.follow)  # (n - prefix, ...)
        return evolve(self, x=self.x.index_select(1, rows), follow=follow)

    def block(
        self, index: int, hidden: Tensor, hint: Tensor | None, hooks: BlockHooks | None
    ) -> Tensor:
        """Run one block: (B, n, D)."""
        if hooks is None:
            return self.run_block(self.blocks[index], hidden, self.follow)
        if hooks.parts:
            raise ContractError(
                "sub-layers of a BlockTrunk cannot be seen",
                remedy="Its backbone's features say sub_layers=False.",
            )
        seen = SeenAttention(hooks, self.attention)
        with seen if hooks.attends else nullcontext():
            output = self.run_block(self.blocks[index], hidden, self.follow)
        if hooks.attends and seen.calls <= self.attention:
            raise UnsupportedBackboneError(
                f"This policy looks into self-attention, which a {type(self.blocks[index]).__name__} "
                "does without torch's scaled_dot_product_attention",
                remedy="Choose torch's own attention kernels, or a policy that runs whole blocks, "
                "such as teacache",
            )
        return output

    def control(self, index: int, hooks: BlockHooks | None) -> Tensor:
        """Refuse: there is no control branch.

        Raises:
            ContractError: always.
        """
        raise ContractError("This call has no control branch.")

    def timestep_embeddings(self, timesteps: Sequence[float]) -> Tensor:
        """Embed timesteps in fp32: (S, E)."""
        return self.embed(torch.tensor(timesteps, dtype=torch.float32, device=self.x.device))

    def timestep_modulations(self, timesteps: Sequence[float]) -> Tensor:
        """Project their embeddings in fp32: (S, 6 * D)."""
        return self.project(self.timestep_embeddings(timesteps))

    def modulated_input(self, modulation: Tensor) -> Tensor:
        """First block's normalized input (B, N, D) in fp32, modulated by one row (6 * D,)."""
        return self.modulate(self.x.float(), modulation.view(6, -1))


@define(eq=False)
class SeenAttention(TorchFunctionMode):
    """Hands one call of ``scaled_dot_product_attention`` to the hooks, as long as the context lasts.

    Attributes:
        hooks: what wants to see q, k and v.
        which: the call that is meant, counted from 0.
        rows: (n,) tokens that q is of, where a mask of attention is for all of them.
        calls: calls so far.
    """

    hooks: BlockHooks
    which: int
    rows: Tensor | None = None
    calls: int = field(default=0, init=False)

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.calls += 1
        if self.calls != self.which + 1:
            return func(*args, **kwargs)
        given = {**dict(zip(ATTENTION_ARGUMENTS, args, strict=False)), **kwargs}
        query, key, value = (
            given.pop(name) for name in ATTENTION_ARGUMENTS[:3]
        )  # (B, heads, n, d)
        heads = query.shape[1]
        if self.rows is not None and (mask := given.get("attn_mask")) is not None:
            # What is said of each key holds for all rows alike.
            given["attn_mask"] = mask if mask.shape[-2] == 1 else mask.index_select(-2, self.rows)

        def attend(*joined: Tensor) -> Tensor:
            split = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in joined)
            out: Tensor = func(*split, **given).transpose(1, 2).flatten(2)
            return out  # (B, n, D)

        q, k, v = (t.transpose(1, 2).flatten(2) for t in (query, key, value))  # (B, n, D)
        attended = self.hooks.attend(q, k, v, attend)
        return attended.unflatten(2, (heads, -1)).transpose(1, 2)  # (B, heads, n, d)
