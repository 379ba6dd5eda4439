"""Roles of tokens from the edit mask: touched, next to what is touched, the rest.

Source: HetCache (CVPR 2026), generative, margin and context tokens. Its code classifies a token by the
majority of its pixels and frames; here one touched pixel in one frame is enough, so that no token that
is edited counts as context, and the margin may reach into neighbouring frames.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from attrs import frozen
from torch import Tensor

from hetcache_core import Grid, Partition, Role, TokenPartitioner, mask_to_tokens, setting

__all__ = ["MaskPartitioner"]


@final
@frozen(kw_only=True)
class MaskPartitioner(TokenPartitioner):
    """Pools the mask to the token grid and dilates it there.

    Attributes:
        margin: width of the margin in tokens, in rows, columns and diagonals.
        temporal_margin: its width in latent frames.
    """

    name: ClassVar[str] = "mask"
    summary: ClassVar[str] = "what the mask touches, a margin around it, and the rest"

    margin: int = setting(2, ge=0, doc="width of the margin in tokens")
    temporal_margin: int = setting(0, ge=0, doc="width of the margin in latent frames")

    def partition(self, mask: Tensor, grid: Grid) -> Partition:
        """Give every token a role, on the mask's device."""
        generative = mask_to_tokens(mask, grid)  # (T, h, w)
        reach = (self.temporal_margin, self.margin, self.margin)
        near = torch.nn.functional.max_pool3d(
            generative.float()[None],
            kernel_size=tuple(2 * r + 1 for r in reach),
            stride=1,
            padding=reach,
        )[0]  # (T, h, w)
        roles = torch.full_like(generative, Role.CONTEXT, dtype=torch.uint8)
        roles.masked_fill_(near > 0, Role.MARGIN).masked_fill_(generative, Role.GENERATIVE)
        prefix = roles.new_full((grid.prefix,), Role.PINNED)
        return Partition(torch.cat([prefix, roles.flatten()]), grid)  # (N,)
