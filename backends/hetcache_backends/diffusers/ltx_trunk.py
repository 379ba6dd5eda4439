"""diffusers' LTX-Video transformer as a trunk: rows, hooks and FLOPs.

The guidance branches are rows of one batch. Where tokens are conditioned, each has a timestep of its
own, so the modulation has a token axis and is gathered with the rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final, final

import torch
from attrs import define, field
from torch import Tensor

from hetcache_backends.diffusers.blocks import apply_fp32, linear_macs, run_block
from hetcache_backends.wan.trunk import WanFlops
from hetcache_core import BlockHooks, ContractError, SubLayer, TrunkCall, TrunkView
from hetcache_core.backbone.compiling import BlockCompiler

PARTS: Final[Mapping[str, SubLayer]] = {
    "attn1": SubLayer.SELF_ATTENTION,
    "attn2": SubLayer.CROSS_ATTENTION,
    "ff": SubLayer.FEED_FORWARD,
}


@define(eq=False, kw_only=True)
class LtxCall(TrunkCall):
    """One call of the trunk with the arguments that diffusers gave to its first block.

    Attributes:
        model: the transformer.
        inputs: (B, N, D) trunk input.
        context: (B, L, D) embedded text.
        context_bias: (B, 1, L) added to the attention to the text, or None.
        modulation: (B, 1, 6 * D), or per token (B, N, 6 * D).
        rotary: cosines and sines, each (B, N, D).
    """

    model: Any
    inputs: Tensor
    context: Tensor
    context_bias: Tensor | None
    modulation: Tensor
    rotary: tuple[Tensor, Tensor]

    @property
    def x(self) -> Tensor:
        """Trunk input (B, N, D)."""
        return self.inputs

    @property
    def control_layers(self) -> tuple[int, ...]:
        """LTX has no control branch."""
        return ()

    def view(self, rows: Tensor | None) -> LtxView:
        """Gather input, rotary table and per-token modulation at the rows."""
        if rows is None:
            return LtxView(
                trunk=self, inputs=self.inputs, modulation=self.modulation, rotary=self.rotary
            )
        modulation = self.modulation
        if modulation.shape[1] > 1:
            modulation = modulation.index_select(1, rows)  # (B, n, 6 * D)
        cos, sin = self.rotary
        return LtxView(
            trunk=self,
            inputs=self.inputs.index_select(1, rows),  # (B, n, D)
            modulation=modulation,
            rotary=(cos.index_select(1, rows), sin.index_select(1, rows)),  # (B, n, D)
        )

    @abstractmethod
    def run_block(
        self, index: int, hidden: Tensor, view: LtxView, hooks: BlockHooks | None
    ) -> Tensor:
        """Run block ``index`` on hidden (B, n, D) at the rows of a view."""


@final
@define(eq=False, kw_only=True)
class LtxTrunk(LtxCall):
    """A call whose ``model`` is the library's ``LTXVideoTransformer3DModel``.

    Attributes:
        compiler: what blocks are run with, or None to run them as they are.
    """

    compiler: BlockCompiler | None = None
    _flops: WanFlops | None = field(default=None, init=False)

    @property
    def layers(self) -> int:
        """Main blocks ``L``."""
        return len(self.model.transformer_blocks)

    @property
    def heads(self) -> int:
        """Attention heads."""
        return int(self.model.transformer_blocks[0].attn1.heads)

    @property
    def flops(self) -> WanFlops:
        """Costs of this call; LTX blocks hold the same matrix products as Wan's."""
        if self._flops is None:
            model, (batch, tokens, width) = self.model, self.inputs.shape
            text, times = self.context.shape[1], batch * self.modulation.shape[1]
            self._flops = WanFlops(
                batch=batch,
                tokens=tokens,
                width=width,
                ffn=int(model.transformer_blocks[0].ff.net[2].in_features),
                text=text,
                embed=batch * tokens * linear_macs(model.proj_in, model.proj_out)
                + batch * text * linear_macs(model.caption_projection)
                + times * linear_macs(model.time_embed),
            )
        return self._flops

    def timestep_embeddings(self, timesteps: Sequence[float]) -> Tensor:
        """Embed timesteps in fp32: (S, D)."""
        embedding = self.model.time_embed.emb
        times = torch.tensor(timesteps, dtype=torch.float32, device=self.inputs.device)
        inner = embedding.timestep_embedder
        return apply_fp32((inner.linear_1, inner.act, inner.linear_2), embedding.time_proj(times))

    def timestep_modulations(self, timesteps: Sequence[float]) -> Tensor:
        """Project embedded timesteps in fp32: (S, 6 * D)."""
        outer = self.model.time_embed
        return apply_fp32((outer.silu, outer.linear), self.timestep_embeddings(timesteps))

    def modulated_input(self, modulation: Tensor) -> Tensor:
        """First block's normalized, modulated input (B, N, D) in fp32."""
        block = self.model.transformer_blocks[0]
        table = block.scale_shift_table.to(self.inputs.device, torch.float32)  # (6, D)
        shift, scale = (table + modulation.view(6, -1))[:2]
        weight = block.norm1.weight
        if weight is not None:
            weight = weight.to(self.inputs.device, torch.float32)
        normed = torch.nn.functional.rms_norm(
            self.inputs.float(), (self.inputs.shape[2],), weight, block.norm1.eps
        )
        modulated: Tensor = normed * (1 + scale) + shift
        return modulated

    def run_block(
        self, index: int, hidden: Tensor, view: LtxView, hooks: BlockHooks | None
    ) -> Tensor:
        """Run block ``index`` as the library calls it."""
        out: Tensor = run_block(
            self.model.transformer_blocks[index],
            hooks,
            PARTS,
            hidden_states=hidden,
            encoder_hidden_states=self.context,
            temb=view.modulation,
            image_rotary_emb=view.rotary,
            encoder_attention_mask=self.context_bias,
            compiler=self.compiler,
        )
        return out


@final
@define(eq=False, kw_only=True)
class LtxView(TrunkView):
    """The trunk over some rows; see ``LtxCall.view``."""

    trunk: LtxCall
    inputs: Tensor
    modulation: Tensor
    rotary: tuple[Tensor, Tensor]

    @property
    def x(self) -> Tensor:
        """Trunk input (B, n, D) at the rows."""
        return self.inputs

    def block(
        self, index: int, hidden: Tensor, hint: Tensor | None, hooks: BlockHooks | None
    ) -> Tensor:
        """Run main block ``index``; LTX has no hints."""
        return self.trunk.run_block(index, hidden, self, hooks)

    def control(self, index: int, hooks: BlockHooks | None) -> Tensor:
        """Refuse: LTX has no control branch."""
        raise ContractError("This call has no control branch.")
