"""The trunk of a model whose parts are graphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import torch
from attrs import define, evolve
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm

from hetcache_backends.onnx.block import ONE_ROW_A_TOKEN, OnnxBlock
from hetcache_backends.onnx.folder import LtxSizes, WanSizes
from hetcache_backends.trunk import DitBlocks, DitTrunk, at_rows
from hetcache_backends.wan.trunk import WanControl, waves
from hetcache_core import BlockHooks, ContractError, DitFlops


@final
@define(eq=False, kw_only=True)
class OnnxBlocks(DitBlocks):
    """Blocks of graphs, with what the library's call handed to the first of them.

    Attributes:
        main: the main blocks.
        text: what cross-attention reads, as its graph takes it.
        modulation: (1, 6, D) for all tokens, or (B, 1 or n, 6, D).
        angles: cosines and sines of the rows, as the graphs take them.
        angle_axis: their axis of rows.
        waves: makes cosines and sines of timesteps: (S, W) fp32.
        time: embeds those: (S, D).
        time_projection: projects that: (S, 6 * D).
        norm: of the first block, before it modulates.
        control_branch: the control branch's arguments, or None.
    """

    main: Sequence[OnnxBlock]
    text: tuple[Tensor, ...]
    modulation: Tensor
    angles: tuple[Tensor, Tensor]
    angle_axis: int
    waves: Callable[[Sequence[float], torch.device], Tensor]
    time: Callable[[Tensor], Tensor]
    time_projection: Callable[[Tensor], Tensor]
    norm: Callable[[Tensor], Tensor]
    control_branch: WanControl | None = None

    @property
    def layers(self) -> int:
        """Main blocks ``L``."""
        return len(self.main)

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.main[0].num_heads

    @property
    def control_layers(self) -> tuple[int, ...]:
        """Main block of each hint."""
        return tuple(self.control_branch.model.vace_layers) if self.control_branch else ()

    def at(self, rows: Tensor) -> OnnxBlocks:
        """Gather angles and per-token modulation."""
        modulation, (cos, sin) = self.modulation, self.angles
        if modulation.dim() == ONE_ROW_A_TOKEN and modulation.shape[1] > 1:
            modulation = at_rows(modulation, rows)  # (B, n, 6, D)
        axis = self.angle_axis
        angles = (cos.index_select(axis, rows), sin.index_select(axis, rows))
        return evolve(self, modulation=modulation, angles=angles)

    def run(self, index: int, hidden: Tensor, hooks: BlockHooks | None) -> Tensor:
        """Run main block ``index``."""
        return self._run(self.main[index], hidden, hooks)

    def scaled(self, index: int, hint: Tensor) -> Tensor:
        """Scale a hint by the branch's factor."""
        return hint if self.control_branch is None else self.control_branch.scaled(hint)

    def control(
        self, index: int, state: Tensor | None, view: DitTrunk, hooks: BlockHooks | None
    ) -> tuple[Tensor, Tensor]:
        """Run control block ``index``."""
        branch = self.control_branch
        if branch is None:
            raise ContractError("This call has no control branch.")
        if state is None:
            state = branch.model.embed(branch.context, view.x, tokens=view.tokens, rows=view.rows)
        block = branch.model.vace_blocks[index]
        state = self._run(block, state, hooks)
        return block.hint(state), state

    def embed(self, timesteps: Sequence[float], device: torch.device) -> Tensor:
        """Embed timesteps in fp32: (S, D)."""
        return self.time(self.waves(timesteps, device))

    def project(self, embedded: Tensor) -> Tensor:
        """Project embedded timesteps in fp32: (S, 6 * D)."""
        return self.time_projection(embedded)

    def first_norm(self, x: Tensor) -> Tensor:
        """Normalize x (B, N, D)."""
        return self.norm(x)

    def first_modulation(self, rows: Tensor) -> Tensor:
        """Add the first block's own table (6, D)."""
        axes = (1,) * (self.modulation.dim() - rows.dim())
        total: Tensor = self.main[0].modulate(rows.view(*axes, *rows.shape))
        return total.view(rows.shape)

    def _run(self, block: Any, hidden: Tensor, hooks: BlockHooks | None) -> Tensor:
        modulation = self.modulation
        if modulation.dim() == ONE_ROW_A_TOKEN:
            modulation = modulation.expand(-1, hidden.shape[1], -1, -1)  # (B, n, 6, D)
        output: Tensor = block.run(hidden, self.text, modulation, self.angles, hooks)
        return output


def onnx_wan_trunk(
    *,
    dit: Any,
    inputs: Tensor,
    context: Tensor,
    modulation: Tensor,
    freqs: Tensor,
    control_branch: WanControl | None,
) -> DitTrunk:
    """Make a call of the trunk of an ``OnnxWanModel``; arguments as of ``wan_trunk``."""
    from hetcache_backends.onnx.wan_model import rotary

    sizes: WanSizes = dit.sizes
    volume, branches = (
        math.prod(sizes.patch_size),
        len(control_branch.context) if control_branch else 0,
    )
    blocks = OnnxBlocks(
        main=dit.blocks,
        text=(context,),
        modulation=modulation,
        angles=rotary(freqs),
        angle_axis=0,
        waves=partial(waves, dit.freq_dim),
        time=dit.time_embedding,
        time_projection=dit.time_projection,
        norm=partial(layer_norm, normalized_shape=(sizes.width,), eps=sizes.eps),
        control_branch=control_branch,
    )
    flops = _flops(
        sizes,
        inputs,
        context,
        patch=sizes.in_channels * volume,
        times=1,
        control_batch=branches,
        control_call=branches * inputs.shape[1] * sizes.control_channels * sizes.width * volume,
    )
    return DitTrunk(x=inputs, blocks=blocks, flops=flops)


def onnx_ltx_trunk(
    *,
    model: Any,
    inputs: Tensor,
    context: Tensor,
    context_bias: Tensor | None,
    modulation: Tensor,
    rotary: tuple[Tensor, Tensor],
) -> DitTrunk:
    """Make a call of the trunk of an ``OnnxLtxModel``; arguments as of ``ltx_trunk``."""
    from hetcache_backends.onnx.ltx_model import bias_of

    sizes: LtxSizes = model.config

    def wave(timesteps: Sequence[float], device: torch.device) -> Tensor:
        made: Tensor = model.waves(torch.tensor(timesteps, dtype=torch.float32, device=device))
        return made

    blocks = OnnxBlocks(
        main=model.transformer_blocks,
        text=(context, bias_of(context, context_bias)),
        modulation=modulation.unflatten(2, (6, -1)),
        angles=rotary,
        angle_axis=1,
        waves=wave,
        time=model.time,
        time_projection=model.time_projection,
        norm=partial(rms_norm, normalized_shape=(sizes.width,), eps=sizes.eps),
    )
    times = inputs.shape[0] * modulation.shape[1]
    flops = _flops(sizes, inputs, context, patch=sizes.in_channels, times=times)
    return DitTrunk(x=inputs, blocks=blocks, flops=flops)


def _flops(
    sizes: WanSizes | LtxSizes,
    inputs: Tensor,
    context: Tensor,
    *,
    patch: int,
    times: int,
    **control: int,
) -> DitFlops:
    """Count what the model costs that was exported, its patches of so many numbers."""
    (batch, tokens, width), text = inputs.shape, context.shape[1]
    around = batch * tokens * width * (patch + sizes.head_channels)
    around += batch * text * (sizes.text_width * width + width**2)
    around += times * (sizes.freq_dim * width + 7 * width**2)
    return DitFlops.of_blocks(inputs, around=around, ffn=sizes.ffn, text=text, **control)
