"""DiffSynth's Wan DiT as a trunk.

Blocks run through the library's own code. Where something inside a block has to be seen or
replaced, the library's ``DiTBlock.forward`` is called with a stand-in for ``self`` whose
sub-layers are ours; the block itself is never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, final

import torch
from attrs import define, evolve, frozen
from torch import Tensor

from hetcache_backends.trunk import DitBlocks, DitTrunk, apply_fp32, at_rows, padded_rows
from hetcache_core import (
    BlockCompiler,
    BlockHooks,
    ContractError,
    DitFlops,
    SubLayer,
    call_inside,
    call_through,
    matrix_macs,
)

IMAGE_TOKENS: Final = 257
"""Tokens of an image before those of the text. Source: DiffSynth 2.1.12, ``CrossAttention``."""


@final
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

    def scaled(self, hint: Tensor) -> Tensor:
        """Scale a hint (B, n, D) as the library does."""
        return hint if self.scale == 1.0 else hint * self.scale


def wan_trunk(*, inputs: Tensor, **given: Any) -> DitTrunk:
    """Make a call of the trunk.

    Args:
        inputs: (B, N, D) trunk input.
        **given: of ``WanBlocks``.
    """
    blocks = WanBlocks(**given)
    dit, control, (batch, tokens, _) = blocks.dit, blocks.control_branch, inputs.shape
    read = blocks.context.shape[1]
    text = read - (IMAGE_TOKENS if dit.blocks[0].cross_attn.has_image_input else 0)
    branches = len(control.context) if control is not None else 0
    embedding = matrix_macs(control.model.vace_patch_embedding) if control is not None else 0
    flops = DitFlops.of_blocks(
        inputs,
        around=batch * tokens * matrix_macs(dit.patch_embedding, dit.head.head)
        + batch * text * matrix_macs(dit.text_embedding)
        + matrix_macs(dit.time_embedding, dit.time_projection),
        ffn=int(dit.blocks[0].ffn_dim),
        text=read,
        control_batch=branches,
        control_call=branches * tokens * embedding,
    )
    return DitTrunk(x=inputs, blocks=blocks, flops=flops)


@final
@define(eq=False, kw_only=True)
class WanBlocks(DitBlocks):
    """The arguments that DiffSynth gave to its first block.

    Attributes:
        dit: the ``WanModel``.
        context: (B, L, D) embedded text, image tokens first where the model has them.
        modulation: (1, 6, D) or per token (1, n, 6, D).
        freqs: (n, 1, head_dim / 2) complex rotary table.
        control_branch: the control branch's arguments, or None.
        compiler: what blocks are run with, or None to run them as they are.
    """

    dit: Any
    context: Tensor
    modulation: Tensor
    freqs: Tensor
    control_branch: WanControl | None
    compiler: BlockCompiler | None = None

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

    def at(self, rows: Tensor) -> WanBlocks:
        """Gather rotary table and per-token modulation."""
        modulation = self.modulation
        if modulation.dim() > self.context.dim():
            modulation = at_rows(modulation, rows)  # (1, n, 6, D)
        return evolve(self, freqs=self.freqs.index_select(0, rows), modulation=modulation)

    def run(self, index: int, hidden: Tensor, hooks: BlockHooks | None) -> Tensor:
        """Run main block ``index``."""
        return self._run(self.dit.blocks[index], hidden, hooks)

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
        block = branch.model.vace_blocks[index]
        if state is None:
            embed = branch.model.vace_patch_embedding
            embedded = [embed(each[None]).flatten(2).transpose(1, 2) for each in branch.context]
            state = padded_rows(torch.cat(embedded), view.tokens, view.rows)  # (Bc, n, D)
        if _is_managed(block) or _is_hooked(block):
            # The library's block takes earlier hints stacked before its state and hands them on;
            # giving it none spares copying them block after block.
            stacked = state if block.block_id == 0 else state[None]
            run = block if hooks is None else partial(_looking, block, hooks)
            hint, state = run(stacked, view.x, self.context, self.modulation, self.freqs)
            return hint, state  # (B, n, D) each
        # Without the library's stack of hint and state.
        if block.block_id == 0:
            state = block.before_proj(state) + view.x
        arguments = (state, self.context, self.modulation, self.freqs)
        if self.compiler is not None and self._compiled(block, hooks):
            state = self.compiler.run(_forward, block, hooks, *arguments)
        else:
            state = _forward(block, hooks, *arguments)
        projected: Tensor = block.after_proj(state)
        return projected, state

    def embed(self, timesteps: Sequence[float], device: torch.device) -> Tensor:
        """Embed timesteps in fp32: (S, D)."""
        return apply_fp32(self.dit.time_embedding, waves(self.dit.freq_dim, timesteps, device))

    def project(self, embedded: Tensor) -> Tensor:
        """Project embedded timesteps in fp32: (S, 6 * D)."""
        return apply_fp32(self.dit.time_projection, embedded)

    def first_norm(self, x: Tensor) -> Tensor:
        """Normalize x (B, N, D)."""
        return torch.nn.functional.layer_norm(x, x.shape[2:], eps=self.dit.blocks[0].norm1.eps)

    def first_modulation(self, rows: Tensor) -> Tensor:
        """Add the first block's own table (6, D)."""
        block = self.dit.blocks[0]
        inner = block.computation() if _is_managed(block) else block
        table: Tensor = inner.modulation[0]
        return table.to(rows.device, torch.float32) + rows

    def _compiled(self, block: Any, hooks: BlockHooks | None) -> bool:
        """Whether a block is run compiled."""
        compiler = self.compiler
        return compiler is not None and not _is_managed(block) and compiler.takes(block, hooks)

    def _run(self, block: Any, hidden: Tensor, hooks: BlockHooks | None) -> Tensor:
        arguments = (hidden, self.context, self.modulation, self.freqs)
        if self.compiler is not None and self._compiled(block, hooks):
            return self.compiler.run(_forward, block, hooks, *arguments)
        output: Tensor
        output = block(*arguments) if hooks is None else _looking(block, hooks, *arguments)
        return output


def waves(width: int, timesteps: Sequence[float], device: torch.device) -> Tensor:
    """Make the cosines and sines of timesteps as the library does: (S, width) fp32."""
    from diffsynth.models.wan_video_dit import sinusoidal_embedding_1d

    times = torch.tensor(timesteps, dtype=torch.float64, device=device)
    made: Tensor = sinusoidal_embedding_1d(width, times).float()
    return made


def _forward(block: Any, hooks: BlockHooks | None, *arguments: Any) -> Tensor:
    """Run a block's own forward, as it is or with something inside it seen or replaced."""
    from diffsynth.models.wan_video_dit import DiTBlock

    subject = block if hooks is None else _BlockStandIn(block, hooks)
    output: Tensor = DiTBlock.forward(subject, *arguments)
    return output


def _looking(block: Any, hooks: BlockHooks, *arguments: Any) -> Any:
    """Call a block with something inside it seen or replaced, within hooks and memory management."""

    def inside(module: Any, *given: Any) -> Any:
        parts = _BlockStandIn(module, hooks)
        names = ("self_attn", "cross_attn", "ffn")
        return call_inside(module, {name: getattr(parts, name) for name in names}, *given)

    if not _is_managed(block):
        return inside(block, *arguments)
    return call_through(block, lambda *given: inside(block.computation(), *given), *arguments)


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
            hooked = partial(type(attention).forward, _AttentionStandIn(attention, hooks))
            # What hooks into it is not called in a graph, which blocks that have hooks are not made into.
            called = (
                hooked
                if torch.compiler.is_compiling()
                else partial(call_through, attention, hooked)
            )
            attended: Tensor = called(x, freqs)
            return attended

        return self._part(SubLayer.SELF_ATTENTION, compute)

    def cross_attn(self, x: Tensor, context: Tensor) -> Tensor:
        def compute(rows: Tensor | None = None) -> Tensor:
            out: Tensor = self._block.cross_attn(at_rows(x, rows), context)
            return out

        return self._part(SubLayer.CROSS_ATTENTION, compute)

    def ffn(self, x: Tensor) -> Tensor:
        def compute(rows: Tensor | None = None) -> Tensor:
            out: Tensor = self._block.ffn(at_rows(x, rows))
            return out

        return self._part(SubLayer.FEED_FORWARD, compute)

    def _part(self, part: SubLayer, compute: Any) -> Tensor:
        if part in self._hooks.parts:
            return self._hooks.sub_layer(part, compute)
        out: Tensor = compute()
        return out


@final
class _AttentionStandIn:
    """Self-attention as its own ``forward`` sees it, with the product of q, k, v ours.

    Not core's ``StandIn``, which ``torch.compile`` cannot trace.
    """

    def __init__(self, attention: Any, hooks: BlockHooks) -> None:
        self._attention = attention
        self._hooks = hooks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attention, name)

    def attn(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._hooks.attend(q, k, v, self._attention.attn)


def _is_hooked(block: Any) -> bool:
    """Whether something wants to see a block being called as the library calls it."""
    own = vars(block)  # torch has no public way to ask
    return bool(own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own)


def _is_managed(block: Any) -> bool:
    """Whether DiffSynth's memory management holds a module."""
    from diffsynth.core.vram.layers import AutoWrappedModule

    return isinstance(block, AutoWrappedModule)
