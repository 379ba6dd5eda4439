"""The trunk of an LTX-Video model whose parts are graphs: blocks, signals and FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from attrs import define
from torch import Tensor

from hetcache_backends.diffusers.ltx_trunk import LtxCall, LtxView
from hetcache_backends.onnx.ltx_model import OnnxLtxModel, bias_of, rows_of
from hetcache_backends.wan.trunk import WanFlops
from hetcache_core import BlockHooks


@final
@define(eq=False, kw_only=True)
class OnnxLtxTrunk(LtxCall):
    """A call whose ``model`` is an ``OnnxLtxModel``."""

    model: OnnxLtxModel

    @property
    def layers(self) -> int:
        """Main blocks ``L``."""
        return self.model.config.layers

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.model.config.heads

    @property
    def flops(self) -> WanFlops:
        """Costs of this call, those of the model that was exported."""
        sizes, (batch, tokens, width) = self.model.config, self.inputs.shape
        text, times = self.context.shape[1], batch * self.modulation.shape[1]
        around = (sizes.in_channels + sizes.head_channels) * width
        words = sizes.text_width * width + width * width
        time = sizes.freq_dim * width + width * width + 6 * width * width
        return WanFlops(
            batch=batch,
            tokens=tokens,
            width=width,
            ffn=sizes.ffn,
            text=text,
            embed=batch * tokens * around + batch * text * words + times * time,
        )

    def timestep_embeddings(self, timesteps: Sequence[float]) -> Tensor:
        """Embed timesteps in fp32: (S, D)."""
        times = torch.tensor(timesteps, dtype=torch.float32, device=self.inputs.device)
        embedded: Tensor = self.model.time(self.model.waves(times))
        return embedded

    def timestep_modulations(self, timesteps: Sequence[float]) -> Tensor:
        """Project embedded timesteps in fp32: (S, 6 * D)."""
        projected: Tensor = self.model.time_projection(self.timestep_embeddings(timesteps))
        return projected

    def modulated_input(self, modulation: Tensor) -> Tensor:
        """First block's normalized, modulated input (B, N, D) in fp32."""
        sizes, first = self.model.config, self.model.transformer_blocks[0]
        shift, scale = first.modulate(modulation.view(1, 1, 6, sizes.width))[0, 0, :2]
        normed = torch.nn.functional.rms_norm(self.inputs, (sizes.width,), eps=sizes.eps)
        modulated: Tensor = normed * (1 + scale) + shift
        return modulated

    def run_block(
        self, index: int, hidden: Tensor, view: LtxView, hooks: BlockHooks | None
    ) -> Tensor:
        """Run the graphs of block ``index``."""
        text = (self.context, bias_of(self.context, self.context_bias))
        modulation = rows_of(view.modulation, hidden.shape[1])
        output: Tensor = self.model.transformer_blocks[index].run(
            hidden, text, modulation, view.rotary, hooks
        )
        return output
