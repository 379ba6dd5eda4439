"""Roles of tokens from the edit mask: touched, next to what is touched, the rest.

Source: HetCache (CVPR 2026), generative, margin and context tokens. Its code classifies a token by the
majority of its pixels and frames; here one touched pixel in one frame is enough, so that no token that
is edited counts as context, and the margin may reach into neighbouring frames.
"""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from attrs import frozen
from torch import Tensor

from hetcache_core import Grid, Partition, Role, TokenPartitioner, mask_to_tokens, setting

__all__ = ["MarginShape", "MaskPartitioner"]

MarginShape = Literal["square", "disk"]


@final
@frozen(kw_only=True)
class MaskPartitioner(TokenPartitioner):
    """Pools the mask to the token grid and dilates it there.

    Attributes:
        margin: width of the margin in tokens.
        temporal_margin: its width in latent frames.
        shape: how the width is measured: a square counts diagonals as rows and columns, a disk the distance.
    """

    name: ClassVar[str] = "mask"
    summary: ClassVar[str] = "what the mask touches, a margin around it, and the rest"

    margin: int = setting(2, ge=0, doc="width of the margin in tokens")
    temporal_margin: int = setting(0, ge=0, doc="width of the margin in latent frames")
    shape: MarginShape = setting(
        "square", doc="how the width is measured: with diagonals or without"
    )

    def partition(self, mask: Tensor, grid: Grid) -> Partition:
        """Give every token a role, on the mask's device."""
        generative = mask_to_tokens(mask, grid)  # (T, h, w)
        reach = (self.temporal_margin, self.margin, self.margin)
        brush = torch.ones([2 * r + 1 for r in reach], device=mask.device)  # (t, s, s)
        if self.shape == "disk":
            across = torch.arange(-self.margin, self.margin + 1, device=mask.device) ** 2  # (s,)
            brush *= across[:, None] + across <= self.margin**2
        near = torch.nn.functional.conv3d(
            generative.float()[None, None], brush[None, None], padding=reach
        )[0, 0]  # (T, h, w)
        roles = torch.full_like(generative, Role.CONTEXT, dtype=torch.uint8)
        roles.masked_fill_(near.round() > 0, Role.MARGIN).masked_fill_(generative, Role.GENERATIVE)
        prefix = roles.new_full((grid.prefix,), Role.PINNED)
        return Partition(torch.cat([prefix, roles.flatten()]), grid)  # (N,)
