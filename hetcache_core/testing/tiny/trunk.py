"""The trunk of one ``TinyDiT`` call as the engine sees it: rows, sub-layers, attention, FLOPs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast, final

import torch
from attrs import define, field
from torch import Tensor, nn
from torch.nn import functional as F

from hetcache_core.backbone.flops import DitFlops
from hetcache_core.backbone.trunk import BlockHooks, Compute, TrunkCall, TrunkView
from hetcache_core.errors import ContractError
from hetcache_core.steps import SubLayer
from hetcache_core.testing.tiny.model import (
    PATCH,
    TinyBlock,
    TinyDiT,
    TinySelfAttention,
    attention,
    sinusoid,
)


@final
@define(eq=False, kw_only=True)
class TinyCall(TrunkCall):
    """What the library's forward hands to its first block, and the control it was called with.

    Attributes:
        model: the real model.
        x: (B, N, D) trunk input.
        text: (B, l, D) embedded text.
        modulation: (B, 6, D) projected timestep.
        rotary: (N, d / 2) rotations.
        control: (B, C + 1, T, H, W) control video and mask, or None.
    """

    model: TinyDiT
    x: Tensor
    text: Tensor
    modulation: Tensor
    rotary: Tensor
    control: Tensor | None

    @property
    def layers(self) -> int:
        """Number of main blocks."""
        return self.model.config.layers

    @property
    def control_layers(self) -> tuple[int, ...]:
        """Main block that each hint belongs to."""
        return self.model.config.control_layers if self.control is not None else ()

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.model.config.heads

    @property
    def flops(self) -> DitFlops:
        """Cost of the pieces of this call: matrix products and convolutions."""
        c, (batch, tokens, width) = self.model.config, self.x.shape
        volume = math.prod(PATCH) * width
        timestep = 2 * width**2 + 6 * width**2 + 2 * width**2  # embedding, blocks, head
        text = c.text_tokens * c.text_width * width
        return DitFlops.of_blocks(
            self.x,
            around=batch * (2 * tokens * c.channels * volume + timestep + text),
            ffn=c.feed_forward,
            text=c.text_tokens,
            control_batch=batch,
            # The control video is embedded whole and gathered afterwards.
            control_call=batch * tokens * (c.channels + 1) * volume,
        )

    def view(self, rows: Tensor | None) -> TinyView:
        """Gather the trunk input and the rotations at the rows."""
        if rows is None:
            return TinyView(call=self, rows=None, x=self.x, rotary=self.rotary)
        x = self.x.index_select(1, rows)  # (B, n, D)
        return TinyView(call=self, rows=rows, x=x, rotary=self.rotary.index_select(0, rows))

    def timestep_embeddings(self, timesteps: Sequence[float]) -> Tensor:
        """Embed timesteps in fp32: (S, D)."""
        at = torch.tensor(timesteps, dtype=torch.float32, device=self.x.device)
        return _in_fp32(self.model.time_embedding, sinusoid(at, self.model.config.width))

    def timestep_modulations(self, timesteps: Sequence[float]) -> Tensor:
        """Project their embeddings in fp32: (S, 6 * D)."""
        return _in_fp32(self.model.time_projection, self.timestep_embeddings(timesteps))

    def modulated_input(self, modulation: Tensor) -> Tensor:
        """First block's normalized input (B, N, D) in fp32, modulated by one row (6 * D,)."""
        own = cast("TinyBlock", self.model.blocks[0]).modulation
        shift, scale, *_ = (own.float() + modulation.unflatten(0, (6, -1))).unbind()  # (D,) each
        normalized = F.layer_norm(self.x.float(), self.x.shape[-1:])
        modulated: Tensor = normalized * (1 + scale) + shift
        return modulated  # (B, N, D)


def _in_fp32(layers: nn.Sequential, x: Tensor) -> Tensor:
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = F.linear(x, layer.weight.float(), layer.bias.float())
        else:
            x = layer(x)
    return x


@final
@define(eq=False, kw_only=True)
class TinyView(TrunkView):
    """The trunk over some rows.

    Attributes:
        call: the whole call.
        rows: (n,) token indices, or None for all.
        x: (B, n, D) trunk input at the rows.
        rotary: (n, d / 2) rotations at the rows.
    """

    call: TinyCall
    rows: Tensor | None
    x: Tensor
    rotary: Tensor
    _control_state: Tensor | None = field(default=None, init=False)

    def block(
        self, index: int, hidden: Tensor, hint: Tensor | None, hooks: BlockHooks | None
    ) -> Tensor:
        """Run one main block and add its hint: (B, n, D)."""
        block = cast("TinyBlock", self.call.model.blocks[index])
        output = self._run(block, hidden, hooks)
        return output if hint is None else output + hint

    def control(self, index: int, hooks: BlockHooks | None) -> Tensor:
        """Run the next control block: (B, n, D)."""
        branch, control = self.call.model.control, self.call.control
        if branch is None or control is None:
            raise ContractError("this call has no control branch", subject="TinyView.control")
        if self._control_state is None:
            embedded = branch.embed(control)  # (B, N, D)
            if self.rows is not None:
                embedded = embedded.index_select(1, self.rows)  # (B, n, D)
            self._control_state = branch.before(embedded) + self.x
        block = cast("TinyBlock", branch.blocks[index])
        self._control_state = self._run(block, self._control_state, hooks)
        hint: Tensor = branch.after[index](self._control_state)
        return hint

    def _run(self, block: TinyBlock, x: Tensor, hooks: BlockHooks | None) -> Tensor:
        text, modulation = self.call.text, self.call.modulation
        if hooks is None:
            output: Tensor = block(x, text, modulation, self.rotary)
            return output
        # The block's own forward once more, since the hooks want to see the parts of it.
        shift1, scale1, gate1, shift2, scale2, gate2 = block.modulate(modulation)
        for_self = block.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * _part(
            hooks,
            SubLayer.SELF_ATTENTION,
            lambda rows=None: self._self_attention(block.self_attention, for_self, rows, hooks),
        )
        for_cross = block.norm2(x)
        x = x + _part(
            hooks,
            SubLayer.CROSS_ATTENTION,
            lambda rows=None: block.cross_attention(_at(for_cross, rows), text),
        )
        for_feed = block.norm3(x) * (1 + scale2) + shift2
        return x + gate2 * _part(
            hooks, SubLayer.FEED_FORWARD, lambda rows=None: block.feed_forward(_at(for_feed, rows))
        )

    def _self_attention(
        self, layer: TinySelfAttention, x: Tensor, rows: Tensor | None, hooks: BlockHooks
    ) -> Tensor:
        rotary = self.rotary if rows is None else self.rotary.index_select(0, rows)
        q = layer.query(_at(x, rows), rotary)
        k, v = layer.key(x, self.rotary), layer.to_v(x)
        attended = hooks.attend(q, k, v, self._attend) if hooks.attends else self._attend(q, k, v)
        output: Tensor = layer.to_out(attended)
        return output

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, self.call.heads)


def _part(hooks: BlockHooks, part: SubLayer, compute: Compute) -> Tensor:
    return hooks.sub_layer(part, compute) if part in hooks.parts else compute()


def _at(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(1, rows)
