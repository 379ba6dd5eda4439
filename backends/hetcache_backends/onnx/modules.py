"""Parts of a Wan block as modules that torch can export; each calls the library's own modules."""

from __future__ import annotations

from typing import Any, final

import torch
from diffsynth.models.wan_video_dit import flash_attention, modulate, rope_apply
from torch import Tensor, nn


class BlockPart(nn.Module):
    """A part of a ``DiTBlock``, which is called from here as it is."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block


@final
class Modulation(BlockPart):
    """Shift, scale and gate of a block: its own table added to (times, 6, D)."""

    def forward(self, modulation: Tensor) -> Tensor:
        """Run it."""
        total: Tensor = self.block.modulation + modulation
        return total  # (times, 6, D)


@final
class Queries(BlockPart):
    """Queries, keys and values of self-attention at the rows, normalized and rotated."""

    def forward(
        self, hidden: Tensor, modulation: Tensor, cosines: Tensor, sines: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run it."""
        attention = self.block.self_attn
        x = modulate(self.block.norm1(hidden), modulation[:, 0:1], modulation[:, 1:2])
        # As an input of a graph a complex tensor is refused, made inside it is decomposed; with
        # cosines in float32 the library's float64 rotation is not.
        table = torch.complex(cosines, sines)  # (rows, 1, d / 2)
        queries = rope_apply(attention.norm_q(attention.q(x)), table, attention.num_heads)
        keys = rope_apply(attention.norm_k(attention.k(x)), table, attention.num_heads)
        return queries, keys, attention.v(x)


@final
class Attend(BlockPart):
    """Self-attention over given keys and values, and its output projection."""

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Run it."""
        attention = self.block.self_attn
        output: Tensor = attention.o(_attended(queries, keys, values, attention.num_heads))
        return output


@final
class CrossAttention(BlockPart):
    """Attention to the prompt, its norm included."""

    def forward(self, hidden: Tensor, context: Tensor) -> Tensor:
        """Run it."""
        attention = self.block.cross_attn
        queries = attention.norm_q(attention.q(self.block.norm3(hidden)))
        keys, values = attention.norm_k(attention.k(context)), attention.v(context)
        output: Tensor = attention.o(_attended(queries, keys, values, attention.num_heads))
        return output


@final
class FeedForward(BlockPart):
    """The feed-forward, its norm and modulation included."""

    def forward(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        """Run it."""
        x = modulate(self.block.norm2(hidden), modulation[:, 3:4], modulation[:, 4:5])
        output: Tensor = self.block.ffn(x)
        return output


@final
class Head(nn.Module):
    """The library's head; its ``chunk`` would become a sequence, whose elements have no rank."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Run it."""
        own = self.head.modulation + embedding[:, None]  # (1, 2, D)
        output: Tensor = self.head.head(modulate(self.head.norm(hidden), own[:, 0:1], own[:, 1:2]))
        return output


def _attended(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """The library's attention on torch's own kernel, which alone can be exported."""
    output: Tensor = flash_attention(queries, keys, values, heads, compatibility_mode=True)
    return output
