"""diffusers' Wan-VACE transformer as a trunk: rows, hooks, control hints and FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, final

import torch
from attrs import define, field
from torch import Tensor

from hetcache_backends.diffusers.blocks import apply_fp32, conv_macs, linear_macs, run_block
from hetcache_backends.wan.trunk import WanFlops
from hetcache_core import BlockHooks, SubLayer, TrunkCall, TrunkView
from hetcache_core.backbone.compiling import BlockCompiler

PARTS: Final[Mapping[str, SubLayer]] = {
    "attn1": SubLayer.SELF_ATTENTION,
    "attn2": SubLayer.CROSS_ATTENTION,
    "ffn": SubLayer.FEED_FORWARD,
}

TEXT_TOKENS: Final = 512
"""Text tokens behind the image tokens of a model that has image keys of its own.
Source: diffusers 0.42.1, ``transformer_wan.WanAttnProcessor``."""


@final
@define(eq=False, kw_only=True)
class WanVaceTrunk(TrunkCall):
    """One call of the trunk with the arguments that diffusers gave to its first block.

    Attributes:
        model: the ``WanVACETransformer3DModel``.
        inputs: (B, N, D) trunk input.
        context: (B, L, D) embedded text, image tokens first where the model has them.
        modulation: (B, 6, D), or per token (B, N, 6, D).
        rotary: cosines and sines, each (1, N, 1, head_dim).
        control_latents: (B, C, T, H, W) input of the control branch.
        control_scales: factor of each hint, scalars.
        compiler: what blocks are run with, or None to run them as they are.
    """

    model: Any
    inputs: Tensor
    context: Tensor
    modulation: Tensor
    rotary: tuple[Tensor, Tensor]
    control_latents: Tensor
    control_scales: Sequence[Tensor]
    compiler: BlockCompiler | None = None
    _flops: WanFlops | None = field(default=None, init=False)

    @property
    def x(self) -> Tensor:
        """Trunk input (B, N, D)."""
        return self.inputs

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

    @property
    def flops(self) -> WanFlops:
        """Costs of this call."""
        if self._flops is None:
            model, (batch, tokens, width) = self.model, self.inputs.shape
            embedder, read = model.condition_embedder, self.context.shape[1]
            has_image = model.blocks[0].attn2.add_k_proj is not None
            image = read - TEXT_TOKENS if has_image else 0
            control = self.control_latents
            self._flops = WanFlops(
                batch=batch,
                tokens=tokens,
                width=width,
                ffn=int(model.blocks[0].ffn.net[2].in_features),
                text=read - image,
                image=image,
                embed=batch * tokens * conv_macs(model.patch_embedding)
                + batch * tokens * linear_macs(model.proj_out)
                + batch * (read - image) * linear_macs(embedder.text_embedder)
                + batch * linear_macs(embedder.time_embedder, embedder.time_proj),
                control_embed=control.shape[0] * tokens * conv_macs(model.vace_patch_embedding),
                control_batch=control.shape[0],
            )
        return self._flops

    def view(self, rows: Tensor | None) -> WanVaceView:
        """Gather input, rotary table and per-token modulation at the rows."""
        if rows is None:
            return WanVaceView(
                trunk=self,
                rows=None,
                inputs=self.inputs,
                modulation=self.modulation,
                rotary=self.rotary,
            )
        modulation = self.modulation
        if modulation.dim() > self.inputs.dim():
            modulation = modulation.index_select(1, rows)  # (B, n, 6, D)
        cos, sin = self.rotary
        return WanVaceView(
            trunk=self,
            rows=rows,
            inputs=self.inputs.index_select(1, rows),  # (B, n, D)
            modulation=modulation,
            rotary=(cos.index_select(1, rows), sin.index_select(1, rows)),  # (1, n, 1, head_dim)
        )

    def timestep_embeddings(self, timesteps: Sequence[float]) -> Tensor:
        """Embed timesteps in fp32: (S, D)."""
        embedder = self.model.condition_embedder
        times = torch.tensor(timesteps, dtype=torch.float32, device=self.inputs.device)
        inner = embedder.time_embedder
        layers = (inner.linear_1, inner.act, inner.linear_2)
        return apply_fp32(layers, embedder.timesteps_proj(times))

    def timestep_modulations(self, timesteps: Sequence[float]) -> Tensor:
        """Project embedded timesteps in fp32: (S, 6 * D)."""
        embedder = self.model.condition_embedder
        layers = (embedder.act_fn, embedder.time_proj)
        return apply_fp32(layers, self.timestep_embeddings(timesteps))

    def modulated_input(self, modulation: Tensor) -> Tensor:
        """First block's normalized, modulated input (B, N, D) in fp32."""
        block = self.model.blocks[0]
        table = block.scale_shift_table[0].to(self.inputs.device, torch.float32)  # (6, D)
        shift, scale = (table + modulation.view(6, -1))[:2]
        normed = torch.nn.functional.layer_norm(
            self.inputs.float(), (self.inputs.shape[2],), eps=block.norm1.eps
        )
        modulated: Tensor = normed * (1 + scale) + shift
        return modulated


@final
@define(eq=False, kw_only=True)
class WanVaceView(TrunkView):
    """The trunk over some rows; see ``WanVaceTrunk.view``."""

    trunk: WanVaceTrunk
    rows: Tensor | None
    inputs: Tensor
    modulation: Tensor
    rotary: tuple[Tensor, Tensor]
    _control: Tensor | None = field(default=None, init=False)

    @property
    def x(self) -> Tensor:
        """Trunk input (B, n, D) at the rows."""
        return self.inputs

    def block(
        self, index: int, hidden: Tensor, hint: Tensor | None, hooks: BlockHooks | None
    ) -> Tensor:
        """Run main block ``index`` and add its hint as the library does."""
        trunk = self.trunk
        out: Tensor = run_block(
            trunk.model.blocks[index],
            hooks,
            PARTS,
            hidden,
            trunk.context,
            self.modulation,
            self.rotary,
            compiler=trunk.compiler,
        )
        if hint is None:
            return out
        scaled: Tensor = hint * trunk.control_scales[trunk.control_layers.index(index)]
        return out + scaled

    def control(self, index: int, hooks: BlockHooks | None) -> Tensor:
        """Run control block ``index`` on the state of the one before it."""
        state = self._embed_control() if self._control is None else self._control
        hint: Tensor
        hint, self._control = run_block(
            self.trunk.model.vace_blocks[index],
            hooks,
            PARTS,
            self.inputs,
            self.trunk.context,
            state,
            self.modulation,
            self.rotary,
            compiler=self.trunk.compiler,
        )
        return hint

    def _embed_control(self) -> Tensor:
        """Embed the control latents: (B, n, D), zeros where the trunk has more tokens."""
        embedding = self.trunk.model.vace_patch_embedding
        flat = embedding(self.trunk.control_latents).flatten(2).transpose(1, 2)
        missing = self.trunk.inputs.shape[1] - flat.shape[1]
        padding = flat.new_zeros(self.trunk.inputs.shape[0], missing, flat.shape[2])
        state = torch.cat([flat, padding], dim=1)  # (B, N, D)
        return state if self.rows is None else state.index_select(1, self.rows)
