"""The trunk of a Wan model whose parts are graphs: rows, hooks, control hints and FLOPs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from attrs import define, field
from torch import Tensor

from hetcache_backends.onnx.model import OnnxWanModel, Rotary, rotary
from hetcache_backends.wan.trunk import WanControl, WanFlops
from hetcache_core import BlockHooks, ContractError, TrunkCall, TrunkView


@final
@define(eq=False, kw_only=True)
class OnnxTrunk(TrunkCall):
    """One call of the trunk with the arguments that DiffSynth gave to its first block.

    Attributes:
        dit: the model.
        inputs: (B, N, D) trunk input.
        context: (B, L, D) embedded text.
        modulation: (1, 6, D).
        freqs: (N, 1, head_dim / 2) complex rotary table.
        control_branch: the control branch's arguments, or None.
    """

    dit: OnnxWanModel
    inputs: Tensor
    context: Tensor
    modulation: Tensor
    freqs: Tensor
    control_branch: WanControl | None

    @property
    def x(self) -> Tensor:
        """Trunk input (B, N, D)."""
        return self.inputs

    @property
    def layers(self) -> int:
        """Main blocks ``L``."""
        return self.dit.sizes.layers

    @property
    def control_layers(self) -> tuple[int, ...]:
        """Main block of each hint."""
        return self.dit.sizes.control_layers if self.control_branch else ()

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.dit.sizes.heads

    @property
    def flops(self) -> WanFlops:
        """Costs of this call, those of the model that was exported."""
        sizes, control = self.dit.sizes, self.control_branch
        batch, tokens, width = self.inputs.shape
        text, volume = self.context.shape[1], math.prod(sizes.patch_size)
        patch = batch * tokens * sizes.in_channels * width * volume
        words = batch * text * (sizes.text_width * width + width * width)
        time = sizes.freq_dim * width + width * width + 6 * width * width
        head = batch * tokens * width * sizes.head_channels
        branches = len(control.context) if control is not None else 0
        return WanFlops(
            batch=batch,
            tokens=tokens,
            width=width,
            ffn=sizes.ffn,
            text=text,
            embed=patch + words + time + head,
            control_embed=branches * tokens * sizes.control_channels * width * volume,
            control_batch=branches or 1,
        )

    def view(self, rows: Tensor | None) -> OnnxView:
        """Gather input and rotary table at the rows."""
        inputs, freqs = self.inputs, self.freqs
        if rows is not None:
            inputs, freqs = inputs.index_select(1, rows), freqs.index_select(0, rows)  # (B, n, D)
        return OnnxView(trunk=self, rows=rows, inputs=inputs, angles=rotary(freqs))

    def timestep_embeddings(self, timesteps: Sequence[float]) -> Tensor:
        """Embed timesteps in fp32: (S, D)."""
        from diffsynth.models.wan_video_dit import sinusoidal_embedding_1d

        times = torch.tensor(timesteps, dtype=torch.float64, device=self.inputs.device)
        waves = sinusoidal_embedding_1d(self.dit.freq_dim, times).float()  # (S, freq_dim)
        embedded: Tensor = self.dit.time_embedding(waves)
        return embedded

    def timestep_modulations(self, timesteps: Sequence[float]) -> Tensor:
        """Project embedded timesteps in fp32: (S, 6 * D)."""
        projected: Tensor = self.dit.time_projection(self.timestep_embeddings(timesteps))
        return projected

    def modulated_input(self, modulation: Tensor) -> Tensor:
        """First block's normalized, modulated input (B, N, D) in fp32."""
        width, first = self.dit.sizes.width, self.dit.blocks[0]
        shift, scale = first.modulate(modulation.view(1, 6, width))[0, :2]
        normed = torch.nn.functional.layer_norm(self.inputs, (width,), eps=self.dit.sizes.eps)
        modulated: Tensor = normed * (1 + scale) + shift
        return modulated


@final
@define(eq=False, kw_only=True)
class OnnxView(TrunkView):
    """The trunk over some rows; see ``OnnxTrunk.view``."""

    trunk: OnnxTrunk
    rows: Tensor | None
    inputs: Tensor
    angles: Rotary
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
        block = trunk.dit.blocks[index]
        output: Tensor = block.run(hidden, (trunk.context,), trunk.modulation, self.angles, hooks)
        if hint is None or trunk.control_branch is None:
            return output
        scale = trunk.control_branch.scale
        return output + (hint if scale == 1.0 else hint * scale)

    def control(self, index: int, hooks: BlockHooks | None) -> Tensor:
        """Run control block ``index`` on the state of the one before it."""
        trunk, branch = self.trunk, self.trunk.control_branch
        if branch is None:
            raise ContractError("This call has no control branch.")
        state = self._control
        if state is None:
            tokens = trunk.inputs.shape[1]
            state = branch.model.embed(branch.context, self.inputs, tokens=tokens, rows=self.rows)
        block = branch.model.vace_blocks[index]
        self._control = block.run(state, (trunk.context,), trunk.modulation, self.angles, hooks)
        hint: Tensor = block.hint(self._control)
        return hint
