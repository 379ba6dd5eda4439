"""A transformer block whose parts are graphs, with room for hooks between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import Tensor, nn

from hetcache_backends.onnx.session import Graph
from hetcache_backends.trunk import at_rows
from hetcache_core import BlockHooks, SubLayer

ATTENTION_GATE: Final = 2
FEED_FORWARD_GATE: Final = 5
"""Rows of a modulation; those before each gate are shift and scale."""

ONE_ROW_A_TOKEN: Final = 4
"""Dimensions of a modulation with a token axis, (B, n, 6, D); one for all tokens is (1, 6, D)."""


class OnnxBlock(nn.Module):
    """A block; between its graphs hooks see and replace what they ask for.

    Wan's blocks and those of LTX-Video compute the same, gates at the same places of the modulation.
    """

    def __init__(self, graphs: Callable[[str], Graph], heads: int) -> None:
        """Take the block's graphs.

        Args:
            graphs: gives each part's graph by the part's name.
            heads: attention heads.
        """
        super().__init__()
        self.num_heads = heads
        self.modulate = graphs("modulation")
        self.queries = graphs("queries")
        self.attend = graphs("attend")
        self.cross_attention = graphs("cross_attention")
        self.feed_forward = graphs("feed_forward")

    def run(
        self,
        hidden: Tensor,
        text: tuple[Tensor, ...],
        modulation: Tensor,
        angles: tuple[Tensor, Tensor],
        hooks: BlockHooks | None,
    ) -> Tensor:
        """Run the block.

        Args:
            hidden: (B, n, D) its input.
            text: what cross-attention reads: (B, words, D) embedded prompt, and the bias of its
                words where the graph takes one.
            modulation: (1, 6, D) or (B, n, 6, D), what all blocks start from.
            angles: cosines and sines of the rows, as the graph takes them.
            hooks: what to see or replace, or None.

        Returns:
            (B, n, D).
        """
        six: Tensor = self.modulate(modulation)  # (1, 6, D) or (B, n, 6, D)

        def attention(rows: Tensor | None = None) -> Tensor:
            queries, keys, values = self.queries(hidden, six, *angles)
            if hooks is not None and hooks.attends:
                return hooks.attend(at_rows(queries, rows), keys, values, self.attend)
            attended: Tensor = self.attend(at_rows(queries, rows), keys, values)
            return attended

        gate = six[..., ATTENTION_GATE, :]
        after = hidden + gate * _part(hooks, SubLayer.SELF_ATTENTION, attention)

        def cross(rows: Tensor | None = None) -> Tensor:
            read: Tensor = self.cross_attention(at_rows(after, rows), *text)
            return read

        state = after + _part(hooks, SubLayer.CROSS_ATTENTION, cross)

        def feed(rows: Tensor | None = None) -> Tensor:
            follows = six.dim() == ONE_ROW_A_TOKEN
            fed: Tensor = self.feed_forward(
                at_rows(state, rows), at_rows(six, rows) if follows else six
            )
            return fed

        gate = six[..., FEED_FORWARD_GATE, :]
        return state + gate * _part(hooks, SubLayer.FEED_FORWARD, feed)


def graphs_of(graphs: Mapping[str, Graph], block: str) -> Callable[[str], Graph]:
    """Look a block's graphs up by the names of its parts."""
    return lambda part: graphs[f"{block}.{part}"]


def _part(hooks: BlockHooks | None, part: SubLayer, compute: Any) -> Tensor:
    if hooks is not None and part in hooks.parts:
        return hooks.sub_layer(part, compute)
    output: Tensor = compute()
    return output
