"""The trunks of diffusers' Wan-VACE and LTX-Video transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, final

import torch
from attrs import define, evolve
from torch import Tensor

from hetcache_backends.diffusers.blocks import run_block
from hetcache_backends.trunk import DitBlocks, DitTrunk, apply_fp32, at_rows, padded_rows
from hetcache_core import (
    BlockCompiler,
    BlockHooks,
    DitFlops,
    Ranks,
    SubLayer,
    in_fp32,
    matrix_macs,
    own_parameter,
)

WAN_PARTS: Final[Mapping[str, SubLayer]] = {
    "attn1": SubLayer.SELF_ATTENTION,
    "attn2": SubLayer.CROSS_ATTENTION,
    "ffn": SubLayer.FEED_FORWARD,
}

LTX_PARTS: Final[Mapping[str, SubLayer]] = {
    "attn1": SubLayer.SELF_ATTENTION,
    "attn2": SubLayer.CROSS_ATTENTION,
    "ff": SubLayer.FEED_FORWARD,
}

TEXT_TOKENS: Final = 512
"""Text tokens behind the image tokens of a model that has image keys of its own.
Source: diffusers 0.42.1, ``transformer_wan.WanAttnProcessor``."""


def wan_vace_trunk(*, inputs: Tensor, **given: Any) -> DitTrunk:
    """Make a call of the trunk of a Wan-VACE transformer.

    Args:
        inputs: (B, N, D) trunk input, of all processes.
        **given: of ``WanVaceBlocks``.
    """
    blocks = WanVaceBlocks(**given)
    model, (batch, tokens, _) = blocks.model, inputs.shape
    embedder, read = model.condition_embedder, blocks.context.shape[1]
    text = TEXT_TOKENS if model.blocks[0].attn2.add_k_proj is not None else read
    branches = blocks.control_latents.shape[0]
    flops = DitFlops.of_blocks(
        inputs,
        around=batch * tokens * matrix_macs(model.patch_embedding, model.proj_out)
        + batch * text * matrix_macs(embedder.text_embedder)
        + batch * matrix_macs(embedder.time_embedder, embedder.time_proj),
        ffn=int(model.blocks[0].ffn.net[2].in_features),
        text=read,
        control_batch=branches,
        control_call=branches * tokens * matrix_macs(model.vace_patch_embedding),
    )
    own = inputs if blocks.ranks is None else blocks.ranks.share(inputs)
    return DitTrunk(x=own, blocks=blocks, flops=flops, tokens=tokens)


def ltx_trunk(*, inputs: Tensor, **given: Any) -> DitTrunk:
    """Make a call of the trunk of an LTX-Video transformer.

    Args:
        inputs: (B, N, D) trunk input.
        **given: of ``LtxBlocks``.
    """
    blocks = LtxBlocks(**given)
    model, (batch, tokens, _) = blocks.model, inputs.shape
    text, times = blocks.context.shape[1], batch * blocks.modulation.shape[1]
    flops = DitFlops.of_blocks(
        inputs,
        around=batch * tokens * matrix_macs(model.proj_in, model.proj_out)
        + batch * text * matrix_macs(model.caption_projection)
        + times * matrix_macs(model.time_embed),
        ffn=int(model.transformer_blocks[0].ff.net[2].in_features),
        text=text,
    )
    return DitTrunk(x=inputs, blocks=blocks, flops=flops)


@final
@define(eq=False, kw_only=True)
class WanVaceBlocks(DitBlocks):
    """The arguments that diffusers gave to the first block of a Wan-VACE transformer.

    Attributes:
        model: the ``WanVACETransformer3DModel``.
        context: (B, L, D) embedded text, image tokens first where the model has them.
        modulation: (B, 6, D), or per token (B, n, 6, D).
        rotary: cosines and sines, each (1, n, 1, head_dim).
        control_latents: (B, C, T, H, W) input of the control branch.
        control_scales: factor of each hint, scalars.
        compiler: what blocks are run with, or None to run them as they are.
        ranks: processes that share the rows, or None.
    """

    model: Any
    context: Tensor
    modulation: Tensor
    rotary: tuple[Tensor, Tensor]
    control_latents: Tensor
    control_scales: Sequence[Tensor]
    compiler: BlockCompiler | None = None
    ranks: Ranks | None = None

    @property
    def layers(self) -> int:
        """Main blocks ``L``."""
        return len(self.model.blocks)

    @property
    def control_layers(self) -> tuple[int, ...]:
        """Main block of each hint, from the model's own list."""
        return tuple(sorted(self.model.config.vace_layers))

    @property
    def heads(self) -> int:
        """Attention heads."""
        return int(self.model.blocks[0].attn1.heads)

    def at(self, rows: Tensor) -> WanVaceBlocks:
        """Gather rotary table and per-token modulation."""
        modulation, (cos, sin) = self.modulation, self.rotary
        if modulation.dim() > self.context.dim():
            modulation = at_rows(modulation, rows)  # (B, n, 6, D)
        rotary = (at_rows(cos, rows), at_rows(sin, rows))  # (1, n, 1, head_dim)
        return evolve(self, modulation=modulation, rotary=rotary)

    def run(self, index: int, hidden: Tensor, hooks: BlockHooks | None) -> Tensor:
        """Run main block ``index``."""
        output: Tensor = self._run(self.model.blocks[index], hooks, hidden, self.context)
        return output

    def scaled(self, index: int, hint: Tensor) -> Tensor:
        """Scale a hint by its own factor."""
        return hint * self.control_scales[self.control_layers.index(index)]

    def control(
        self, index: int, state: Tensor | None, view: DitTrunk, hooks: BlockHooks | None
    ) -> tuple[Tensor, Tensor]:
        """Run control block ``index``."""
        if state is None:
            embedded = self.model.vace_patch_embedding(self.control_latents)
            flat = embedded.flatten(2).transpose(1, 2)
            state = padded_rows(flat, view.tokens, view.rows)  # (B, n, D)
            if self.ranks is not None and view.rows is None:
                state = self.ranks.share(state)
        block = self.model.vace_blocks[index]
        hint, state = self._run(block, hooks, view.x, self.context, state)
        return hint, state

    def embed(self, timesteps: Sequence[float], device: torch.device) -> Tensor:
        """Embed timesteps in fp32: (S, D)."""
        embedder = self.model.condition_embedder
        times = torch.tensor(timesteps, dtype=torch.float32, device=device)
        inner = embedder.time_embedder
        layers = (inner.linear_1, inner.act, inner.linear_2)
        return apply_fp32(layers, embedder.timesteps_proj(times))

    def project(self, embedded: Tensor) -> Tensor:
        """Project embedded timesteps in fp32: (S, 6 * D)."""
        embedder = self.model.condition_embedder
        return apply_fp32((embedder.act_fn, embedder.time_proj), embedded)

    def first_norm(self, x: Tensor) -> Tensor:
        """Normalize x (B, N, D)."""
        return torch.nn.functional.layer_norm(x, x.shape[2:], eps=self.model.blocks[0].norm1.eps)

    def first_modulation(self, rows: Tensor) -> Tensor:
        """Add the first block's own table (6, D)."""
        table = own_parameter(self.model.blocks[0], "scale_shift_table")[0]
        return table.to(rows.device) + rows

    def _run(self, block: Any, hooks: BlockHooks | None, *given: Tensor) -> Any:
        given_to_all = (self.modulation, self.rotary)
        return run_block(block, hooks, WAN_PARTS, *given, *given_to_all, compiler=self.compiler)


@final
@define(eq=False, kw_only=True)
class LtxBlocks(DitBlocks):
    """The arguments that diffusers gave to the first block of an LTX-Video transformer.

    The guidance branches are rows of one batch. Where tokens are conditioned, each has a timestep of
    its own, so the modulation has a token axis and is gathered with the rows.

    Attributes:
        model: the ``LTXVideoTransformer3DModel``.
        context: (B, L, D) embedded text.
        context_bias: (B, 1, L) added to the attention to the text, or None.
        modulation: (B, 1, 6 * D), or per token (B, n, 6 * D).
        rotary: cosines and sines, each (B, n, D).
        compiler: what blocks are run with, or None to run them as they are.
    """

    model: Any
    context: Tensor
    context_bias: Tensor | None
    modulation: Tensor
    rotary: tuple[Tensor, Tensor]
    compiler: BlockCompiler | None = None

    @property
    def layers(self) -> int:
        """Main blocks ``L``."""
        return len(self.model.transformer_blocks)

    @property
    def heads(self) -> int:
        """Attention heads."""
        return int(self.model.transformer_blocks[0].attn1.heads)

    def at(self, rows: Tensor) -> LtxBlocks:
        """Gather rotary table and per-token modulation."""
        modulation, (cos, sin) = self.modulation, self.rotary
        if modulation.shape[1] > 1:
            modulation = at_rows(modulation, rows)  # (B, n, 6 * D)
        rotary = (at_rows(cos, rows), at_rows(sin, rows))  # (B, n, D)
        return evolve(self, modulation=modulation, rotary=rotary)

    def run(self, index: int, hidden: Tensor, hooks: BlockHooks | None) -> Tensor:
        """Run block ``index`` as the library calls it."""
        out: Tensor = run_block(
            self.model.transformer_blocks[index],
            hooks,
            LTX_PARTS,
            hidden_states=hidden,
            encoder_hidden_states=self.context,
            temb=self.modulation,
            image_rotary_emb=self.rotary,
            encoder_attention_mask=self.context_bias,
            compiler=self.compiler,
        )
        return out

    def embed(self, timesteps: Sequence[float], device: torch.device) -> Tensor:
        """Embed timesteps in fp32: (S, D)."""
        embedding = self.model.time_embed.emb
        times = torch.tensor(timesteps, dtype=torch.float32, device=device)
        inner = embedding.timestep_embedder
        return apply_fp32((inner.linear_1, inner.act, inner.linear_2), embedding.time_proj(times))

    def project(self, embedded: Tensor) -> Tensor:
        """Project embedded timesteps in fp32: (S, 6 * D)."""
        outer = self.model.time_embed
        return apply_fp32((outer.silu, outer.linear), embedded)

    def first_norm(self, x: Tensor) -> Tensor:
        """Normalize x (B, N, D)."""
        return in_fp32(self.model.transformer_blocks[0].norm1, x)

    def first_modulation(self, rows: Tensor) -> Tensor:
        """Add the first block's own table (6, D)."""
        table = own_parameter(self.model.transformer_blocks[0], "scale_shift_table")
        return table.to(rows.device) + rows
