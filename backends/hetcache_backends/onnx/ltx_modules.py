"""Parts of an LTX-Video model as modules that torch can export; each calls the library's own."""

from __future__ import annotations

from typing import Any, final

import torch
from diffusers.models.transformers.transformer_ltx import apply_rotary_emb
from torch import Tensor, nn


class LtxBlockPart(nn.Module):
    """A part of an ``LTXVideoTransformerBlock``, which is called from here as it is."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block


@final
class LtxModulation(LtxBlockPart):
    """Shift, scale and gate of a block: its own table added to (B, n, 6, D)."""

    def forward(self, modulation: Tensor) -> Tensor:
        """Run it."""
        total: Tensor = self.block.scale_shift_table[None, None] + modulation
        return total  # (B, n, 6, D)


@final
class LtxQueries(LtxBlockPart):
    """Queries, keys and values of self-attention at the rows, normalized and rotated."""

    def forward(
        self, hidden: Tensor, modulation: Tensor, cosines: Tensor, sines: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run it."""
        attention = self.block.attn1
        x = _modulated(self.block.norm1(hidden), modulation[:, :, 0], modulation[:, :, 1])
        angles = (cosines, sines)  # (B, n, D) each
        queries = _rotated(attention.norm_q(attention.to_q(x)), angles)
        keys = _rotated(attention.norm_k(attention.to_k(x)), angles)
        return queries, keys, attention.to_v(x)


@final
class LtxAttend(LtxBlockPart):
    """Self-attention over given keys and values, and its output projection."""

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Run it."""
        return _attended(self.block.attn1, queries, keys, values, None)


@final
class LtxCrossAttention(LtxBlockPart):
    """Attention to the prompt, which has no norm before it."""

    def forward(self, hidden: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        """Run it."""
        attention = self.block.attn2
        queries = attention.norm_q(attention.to_q(hidden))
        keys, values = attention.norm_k(attention.to_k(context)), attention.to_v(context)
        return _attended(attention, queries, keys, values, bias[:, None])  # bias (B, 1, 1, words)


@final
class LtxFeedForward(LtxBlockPart):
    """The feed-forward, its norm and modulation included."""

    def forward(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        """Run it."""
        x = _modulated(self.block.norm2(hidden), modulation[:, :, 3], modulation[:, :, 4])
        output: Tensor = self.block.ff(x)
        return output


@final
class LtxHead(nn.Module):
    """The model's last norm, its modulation and projection."""

    def __init__(self, model: Any) -> None:
        """Take what the head is made of.

        Args:
            model: the model; its blocks are not held.
        """
        super().__init__()
        self.norm_out = model.norm_out
        self.proj_out = model.proj_out
        self.scale_shift_table = model.scale_shift_table

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Run it."""
        own = self.scale_shift_table[None, None] + embedding[:, :, None]  # (B, n, 2, D)
        output: Tensor = self.proj_out(
            _modulated(self.norm_out(hidden), own[:, :, 0], own[:, :, 1])
        )
        return output


def _rotated(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    rotated: Tensor = apply_rotary_emb(x, angles)  # type: ignore[no-untyped-call]
    return rotated


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def _attended(
    attention: Any, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None
) -> Tensor:
    """Attend on torch's own kernel, which alone can be exported, and project as the library does."""
    q, k, v = (
        t.unflatten(2, (attention.heads, -1)).transpose(1, 2) for t in (queries, keys, values)
    )
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    joined = attended.transpose(1, 2).flatten(2, 3)  # (B, n, D)
    output: Tensor = attention.to_out[1](attention.to_out[0](joined))
    return output
