"""DiffSynth's Wan DiT as a trunk: rows, hooks, control hints and FLOPs.

Blocks run through the library's own code. Where something inside a block has to be seen or
replaced, the library's ``DiTBlock.forward`` is called with a stand-in for ``self`` whose
sub-layers are ours; the block itself is never changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, final

import torch
from attrs import define, field, frozen
from torch import Tensor

from hetcache_core import (
    BlockHooks,
    ContractError,
    FlopModel,
    Stack,
    SubLayer,
    TrunkCall,
    TrunkView,
)
from hetcache_core.backbone.compiling import BlockCompiler


@final
@frozen(kw_only=True)
class WanFlops(FlopModel):
    """FLOPs of one Wan call (2 x multiply-accumulate), by formula.

    Rotary embedding, norms and activations are left out, as ``torch.utils.flop_counter`` does.

    Attributes:
        batch: batch rows ``B``.
        tokens: tokens ``N``.
        width: trunk width ``D``.
        ffn: hidden width of the feed-forward.
        text: text tokens ``L`` of one batch row.
        image: image tokens of one batch row that have their own keys.
        embed: multiply-accumulates of embeddings and head, batch rows included.
        control_embed: multiply-accumulates of the control embedding.
        control_batch: batch rows of the control input.
    """

    batch: int
    tokens: int
    width: int
    ffn: int
    text: int
    image: int = 0
    embed: int = 0
    control_embed: int = 0
    control_batch: int = 1

    def outside(self) -> int:
        """Patch, text and timestep embedding and the head."""
        return 2 * self.embed

    def sub_layer(self, stack: Stack, part: SubLayer, *, rows: int, keys: int) -> int:
        """One sub-layer; both stacks have the same blocks."""
        d = self.width
        if part is SubLayer.SELF_ATTENTION:
            macs = 4 * rows * d * d + 2 * rows * keys * d
        elif part is SubLayer.CROSS_ATTENTION:
            read = self.text + self.image
            macs = 2 * rows * d * d + 2 * read * d * d + 2 * rows * read * d
        else:
            macs = 2 * rows * d * self.ffn
        return 2 * self.batch * macs

    def control_extra(self, index: int, *, rows: int) -> int:
        """Output projection of a control block; the first also embeds and projects its input."""
        macs = self.batch * rows * self.width**2
        if index == 0:
            macs += self.control_batch * rows * self.width**2 + self.control_embed
        return 2 * macs


@frozen(eq=False, kw_only=True)
class WanControl:
    """What the pipeline handed to the control branch.

    Attributes:
        model: the ``VaceWanModel``.
        context: control latents, one (C, T, H, W) a batch row.
        scale: factor of the hints.
    """

    model: Any
    context: Any
    scale: float


@final
@define(eq=False, kw_only=True)
class WanTrunk(TrunkCall):
    """One call of the trunk with the arguments that DiffSynth gave to its first block.

    Attributes:
        dit: the ``WanModel``.
        inputs: (B, N, D) trunk input.
        context: (B, L, D) embedded text, image tokens first where the model has them.
        modulation: (1, 6, D) or per token (1, N, 6, D).
        freqs: (N, 1, head_dim / 2) complex rotary table.
        control_branch: the control branch's arguments, or None.
        compiler: what blocks are run with, or None to run them as they are.
    """

    dit: Any
    inputs: Tensor
    context: Tensor
    modulation: Tensor
    freqs: Tensor
    control_branch: WanControl | None
    compiler: BlockCompiler | None = None

    @property
    def x(self) -> Tensor:
        """Trunk input (B, N, D)."""
        return self.inputs

    @property
    def layers(self) -> int:
        """Main blocks ``L``."""
        return len(self.dit.blocks)

    @property
    def control_layers(self) -> tuple[int, ...]:
        """Main block of each hint, from the model's own list."""
        return tuple(self.control_branch.model.vace_layers) if self.control_branch else ()

    @property
    def heads(self) -> int:
        """Attention heads."""
        return int(self.dit.blocks[0].num_heads)

    @property
    def flops(self) -> WanFlops:
        """Costs of this call."""
        control = self.control_branch
        batch, tokens, width = self.inputs.shape
        image = 257 if self.dit.blocks[0].cross_attn.has_image_input else 0
        macs = embed_macs(self.dit, batch=batch, tokens=tokens, text=self.context.shape[1] - image)
        control_macs = 0
        if control is not None:
            control_macs = (
                len(control.context) * tokens * _conv_macs(control.model.vace_patch_embedding)
            )
        return WanFlops(
            batch=batch,
            tokens=tokens,
            width=width,
            ffn=int(self.dit.blocks[0].ffn_dim),
            text=self.context.shape[1] - image,
            image=image,
            embed=macs,
            control_embed=control_macs,
            control_batch=len(control.context) if control is not None else 1,
        )

    def view(self, rows: Tensor | None) -> WanView:
        """Gather input, rotary table and per-token modulation at the rows."""
        if rows is None:
            return WanView(trunk=self, rows=None, inputs=self.inputs, freqs=self.freqs,
                           modulation=self.modulation)  # fmt: skip
        modulation = self.modulation
        if modulation.dim() > self.inputs.dim():
            modulation = modulation.index_select(1, rows)  # (1, n, 6, D)
        return WanView(
            trunk=self,
            rows=rows,
            inputs=self.inputs.index_select(1, rows),  # (B, n, D)
            freqs=self.freqs.index_select(0, rows),  # (n, 1, head_dim / 2)
            modulation=modulation,
        )

    def timestep_embeddings(self, timesteps: Sequence[float]) -> Tensor:
        """Embed timesteps in fp32: (S, D)."""
        from diffsynth.models.wan_video_dit import sinusoidal_embedding_1d

        times = torch.tensor(timesteps, dtype=torch.float64, device=self.inputs.device)
        waves = sinusoidal_embedding_1d(self.dit.freq_dim, times).float()  # (S, freq_dim)
        return _apply_fp32(self.dit.time_embedding, waves)

    def timestep_modulations(self, timesteps: Sequence[float]) -> Tensor:
        """Project embedded timesteps in fp32: (S, 6 * D)."""
        return _apply_fp32(self.dit.time_projection, self.timestep_embeddings(timesteps))

    def modulated_input(self, modulation: Tensor) -> Tensor:
        """First block's normalized, modulated input (B, N, D) in fp32."""
        block = self.dit.blocks[0]
        table: Tensor = block.modulation[0].to(self.inputs.device, torch.float32)  # (6, D)
        shift, scale = (table + modulation.view(6, -1))[:2]
        normed = torch.nn.functional.layer_norm(
            self.inputs.float(), (self.inputs.shape[2],), eps=block.norm1.eps
        )
        modulated: Tensor = normed * (1 + scale) + shift
        return modulated


@final
@define(eq=False, kw_only=True)
class WanView(TrunkView):
    """The trunk over some rows; see ``WanTrunk.view``."""

    trunk: WanTrunk
    rows: Tensor | None
    inputs: Tensor
    freqs: Tensor
    modulation: Tensor
    _control: Tensor | None = field(default=None, init=False)

    @property
    def x(self) -> Tensor:
        """Trunk input (B, n, D) at the rows."""
        return self.inputs

    def block(
        self, index: int, hidden: Tensor, hint: Tensor | None, hooks: BlockHooks | None
    ) -> Tensor:
        """Run main block ``index`` and add its hint as the library does."""
        hidden = self._run(self.trunk.dit.blocks[index], hidden, hooks)
        if hint is None or self.trunk.control_branch is None:
            return hidden
        scale = self.trunk.control_branch.scale
        return hidden + (hint if scale == 1.0 else hint * scale)

    def control(self, index: int, hooks: BlockHooks | None) -> Tensor:
        """Run control block ``index`` on the state of the one before it."""
        branch = self.trunk.control_branch
        if branch is None:
            raise ContractError("This call has no control branch.")
        block = branch.model.vace_blocks[index]
        state = self._embed_control(branch) if self._control is None else self._control
        compiler = self.trunk.compiler
        if hooks is None and (compiler is None or not compiler.takes(block, None)):
            # The library's block takes earlier hints stacked before its state and hands them on;
            # giving it none spares copying them block after block.
            stacked = state if block.block_id == 0 else state[None]
            arguments = (self.inputs, self.trunk.context, self.modulation, self.freqs)
            states: Tensor = block(stacked, *arguments)  # (2, B, n, D)
            self._control = states[1]
            return states[0]
        inner = _unwrapped(block)
        if block.block_id == 0:
            state = inner.before_proj(state) + self.inputs
        self._control = self._run(block, state, hooks)
        projected: Tensor = inner.after_proj(self._control)
        return projected

    def _embed_control(self, branch: WanControl) -> Tensor:
        """Embed the control latents: (Bc, n, D), zeros where the trunk has more tokens."""
        tokens = self.trunk.inputs.shape[1]
        embedded = []
        for latents in branch.context:
            flat = branch.model.vace_patch_embedding(latents[None]).flatten(2).transpose(1, 2)
            missing = flat.new_zeros(1, tokens - flat.shape[1], flat.shape[2])
            embedded.append(torch.cat([flat, missing], dim=1))
        state = torch.cat(embedded)  # (Bc, N, D)
        return state if self.rows is None else state.index_select(1, self.rows)

    def _run(self, block: Any, hidden: Tensor, hooks: BlockHooks | None) -> Tensor:
        arguments = (hidden, self.trunk.context, self.modulation, self.freqs)
        compiler = self.trunk.compiler
        if compiler is not None and compiler.takes(block, hooks) and _unwrapped(block) is block:
            return compiler.run(_forward, block, hooks, *arguments)
        if hooks is None:
            plain: Tensor = block(*arguments)
            return plain
        return _forward(_unwrapped(block), hooks, *arguments)


def _forward(block: Any, hooks: BlockHooks | None, *arguments: Any) -> Tensor:
    """Run a block's own forward, as it is or with something inside it seen or replaced."""
    from diffsynth.models.wan_video_dit import DiTBlock

    subject = block if hooks is None else _BlockStandIn(block, hooks)
    output: Tensor = DiTBlock.forward(subject, *arguments)
    return output


@final
class _BlockStandIn:
    """A block as ``DiTBlock.forward`` sees it, with sub-layers that ask the hooks."""

    def __init__(self, block: Any, hooks: BlockHooks) -> None:
        self._block = block
        self._hooks = hooks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def self_attn(self, x: Tensor, freqs: Tensor) -> Tensor:
        attention, hooks = self._block.self_attn, self._hooks

        def compute(rows: Tensor | None = None) -> Tensor:
            if rows is not None:
                raise ContractError("Self-attention cannot be recomputed on some rows only.")
            if not hooks.attends:
                plain: Tensor = attention(x, freqs)
                return plain
            hooked: Tensor = type(attention).forward(_AttentionStandIn(attention, hooks), x, freqs)
            return hooked

        return self._part(SubLayer.SELF_ATTENTION, compute)

    def cross_attn(self, x: Tensor, context: Tensor) -> Tensor:
        def compute(rows: Tensor | None = None) -> Tensor:
            out: Tensor = self._block.cross_attn(_rows(x, rows), context)
            return out

        return self._part(SubLayer.CROSS_ATTENTION, compute)

    def ffn(self, x: Tensor) -> Tensor:
        def compute(rows: Tensor | None = None) -> Tensor:
            out: Tensor = self._block.ffn(_rows(x, rows))
            return out

        return self._part(SubLayer.FEED_FORWARD, compute)

    def _part(self, part: SubLayer, compute: Any) -> Tensor:
        if part in self._hooks.parts:
            return self._hooks.sub_layer(part, compute)
        out: Tensor = compute()
        return out


@final
class _AttentionStandIn:
    """Self-attention as its own ``forward`` sees it, with the product of q, k, v ours."""

    def __init__(self, attention: Any, hooks: BlockHooks) -> None:
        self._attention = attention
        self._hooks = hooks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attention, name)

    def attn(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._hooks.attend(q, k, v, self._attention.attn)


def embed_macs(dit: Any, *, batch: int, tokens: int, text: int) -> int:
    """Multiply-accumulates of patch, text and timestep embedding and the head."""
    width = int(dit.dim)
    patch = batch * tokens * _conv_macs(dit.patch_embedding)
    text_dim: int = dit.text_embedding[0].in_features
    words = batch * text * (text_dim * width + width * width)
    time = int(dit.freq_dim) * width + width * width + 6 * width * width
    head = batch * tokens * width * int(dit.head.head.out_features)
    return patch + words + time + head


def _conv_macs(conv: Any) -> int:
    """Multiply-accumulates of a patch embedding for one token."""
    volume: int = math.prod(conv.kernel_size)
    return int(conv.in_channels) * int(conv.out_channels) * volume


def _rows(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(1, rows)


def _apply_fp32(layers: Iterable[Any], x: Tensor) -> Tensor:
    """Run an embedding's layers in fp32 whatever the dtype of their weights."""
    for layer in layers:
        if isinstance(layer, torch.nn.Linear):
            weight = layer.weight.to(x.device, torch.float32)
            x = torch.nn.functional.linear(x, weight, layer.bias.to(x.device, torch.float32))
        else:
            x = layer(x)
    return x


def _unwrapped(block: Any) -> Any:
    """Return the module behind DiffSynth's memory management, its own parameters on the device."""
    from diffsynth.core.vram.layers import AutoWrappedModule

    return block.computation() if isinstance(block, AutoWrappedModule) else block
