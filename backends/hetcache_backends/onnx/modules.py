"""The graphs of a DiT block and of a head, as modules that torch can export.

They run a library's own modules; ``BlockCode`` names them, and holds what libraries do differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

from attrs import frozen
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

ATTENTION_SHIFT: Final = 0
FEED_FORWARD_SHIFT: Final = 3
"""Rows of a block's modulation; the scale is in the row after each."""


@final
@frozen(eq=False, kw_only=True)
class BlockCode:
    """A library's block: the names of its modules, and how it rotates.

    Attributes:
        heads: attention heads.
        table: parameter of the block, what it adds to a modulation.
        self_attention: module of the block.
        cross_attention: module of the block.
        cross_norm: module of the block before its cross-attention, or None where there is none.
        feed_forward: module of the block.
        projections: modules of an attention: to queries, keys and values, and of what it read.
        rotated: rotates x (B, n, D) by cosines and sines of a number of heads.
    """

    heads: int
    table: str
    self_attention: str
    cross_attention: str
    cross_norm: str | None
    feed_forward: str
    projections: tuple[str, str, str, str]
    rotated: Callable[[Tensor, Tensor, Tensor, int], Tensor]


class BlockPart(nn.Module):
    """A part of a library's block, which is called from here as it is."""

    def __init__(self, block: Any, code: BlockCode) -> None:
        """Take a block.

        Args:
            block: the library's.
            code: how such blocks compute.
        """
        super().__init__()
        self.block = block
        self.code = code

    def projected(self, name: str, x: Tensor, read: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries of x, keys and values of what is read, (B, n, D) each, normalized."""
        attention = self.block.get_submodule(name)
        to_q, to_k, to_v, _ = map(attention.get_submodule, self.code.projections)
        return attention.norm_q(to_q(x)), attention.norm_k(to_k(read)), to_v(read)

    def attended(
        self, name: str, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Attend on torch's own kernel, which alone can be exported, and project: (B, n, D)."""
        q, k, v = (
            t.unflatten(2, (self.code.heads, -1)).transpose(1, 2) for t in (queries, keys, values)
        )
        read = scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2, 3)
        project = self.block.get_submodule(f"{name}.{self.code.projections[3]}")
        output: Tensor = project(read)
        return output


@final
class Modulation(BlockPart):
    """Shift, scale and gate of a block: its own table added to (..., 6, D)."""

    def forward(self, modulation: Tensor) -> Tensor:
        """Run it."""
        total: Tensor = self.block.get_parameter(self.code.table) + modulation
        return total  # (..., 6, D)


@final
class Queries(BlockPart):
    """Queries, keys and values of self-attention at the rows, normalized and rotated."""

    def forward(
        self, hidden: Tensor, modulation: Tensor, cosines: Tensor, sines: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run it."""
        x = modulated(self.block.norm1(hidden), modulation, ATTENTION_SHIFT)
        queries, keys, values = self.projected(self.code.self_attention, x, x)
        turn, heads = self.code.rotated, self.code.heads
        return turn(queries, cosines, sines, heads), turn(keys, cosines, sines, heads), values


@final
class Attend(BlockPart):
    """Self-attention over given keys and values, and its output projection."""

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Run it."""
        return self.attended(self.code.self_attention, queries, keys, values)


@final
class CrossAttention(BlockPart):
    """Attention to the prompt, the norm before it included."""

    def forward(self, hidden: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        """Run it; the bias of the words is (B, 1, words)."""
        name, norm = self.code.cross_attention, self.code.cross_norm
        x = hidden if norm is None else self.block.get_submodule(norm)(hidden)
        scores = None if bias is None else bias[:, None]  # (B, 1, 1, words)
        return self.attended(name, *self.projected(name, x, context), scores)


@final
class FeedForward(BlockPart):
    """The feed-forward, its norm and modulation included."""

    def forward(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        """Run it."""
        x = modulated(self.block.norm2(hidden), modulation, FEED_FORWARD_SHIFT)
        output: Tensor = self.block.get_submodule(self.code.feed_forward)(x)
        return output


@final
class Head(nn.Module):
    """A model's last norm, its modulation and projection.

    A library's own head may ``chunk``, which becomes a sequence, whose elements have no rank.
    """

    def __init__(self, norm: nn.Module, table: nn.Parameter, projection: nn.Module) -> None:
        """Take what the head is made of.

        Args:
            norm: of its input.
            table: (..., 2, D) its own shift and scale.
            projection: to what is predicted.
        """
        super().__init__()
        self.norm = norm
        self.table = table
        self.projection = projection

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Run it."""
        own = self.table + embedding[..., None, :]  # (1, 2, D) or (B, n, 2, D)
        output: Tensor = self.projection(modulated(self.norm(hidden), own, 0))
        return output


def modulated(x: Tensor, modulation: Tensor, row: int) -> Tensor:
    """Scale and shift x (B, n, D) by two rows of a modulation, the shift's first."""
    return x * (1 + modulation[..., row + 1, :]) + modulation[..., row, :]
