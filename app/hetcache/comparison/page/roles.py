"""Roles of a run's tokens, found again from its mask and checked against what its trace counted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from attrs import frozen

from hetcache.quality.regions import MARGIN_TOKENS
from hetcache_core import Grid, Role, mask_to_tokens

if TYPE_CHECKING:
    import torch

    from hetcache_core import Trace

__all__ = ["TokenRoles", "token_roles"]

SIZES: Final = range(64, 3, -1)
"""Sides of a token in pixels that are tried, the largest first."""

STRIDES: Final = range(1, 17)
"""Frames of a latent frame that are tried."""

MARGINS: Final = range(17)
TEMPORAL_MARGINS: Final = range(4)
"""Widths of the margin that are tried, in tokens and in latent frames."""


@frozen(eq=False, kw_only=True)
class TokenRoles:
    """The roles of a video's tokens.

    Attributes:
        roles: (T, h, w) uint8 values of ``Role``.
        grid: How they lie in the video.
        recorded: Whether they have the numbers that the run's trace counted; else the margin is
            the ring in which PSNR is measured.
    """

    roles: torch.Tensor
    grid: Grid
    recorded: bool

    def latent_frames(self) -> list[int]:
        """Return the latent frame of every frame of the video."""
        grid = self.grid
        if grid.first_frame_alone:
            later = range(grid.pixel_frames - 1)
            return [0, *(1 + frame // grid.frame_stride for frame in later)]
        return [frame // grid.frame_stride for frame in range(grid.pixel_frames)]


def token_roles(mask: torch.Tensor, trace: Trace) -> TokenRoles | None:
    """Find the roles of the tokens of a run.

    A trace counts tokens by role, and not where they are. The grid is the one that has as many
    tokens, and where roles were recorded, as many that the mask touches; the margin is as wide as
    makes the margin's count.

    Args:
        mask: (F, H, W) bool; ``True`` is edited.
        trace: What the run recorded.

    Returns:
        The roles; None where no grid fits.
    """
    counts = trace.tokens_by_role
    for grid in _grids(mask, trace.tokens - counts.get("pinned", 0)):
        generative = mask_to_tokens(mask, grid)  # (T, h, w)
        if not counts:
            return TokenRoles(
                roles=_with_margin(generative, MARGIN_TOKENS, 0), grid=grid, recorded=False
            )
        if int(generative.sum()) != counts.get("generative"):
            continue
        for temporal, margin in itertools.product(TEMPORAL_MARGINS, MARGINS):
            roles = _with_margin(generative, margin, temporal)
            if int((roles == Role.MARGIN).sum()) == counts.get("margin"):
                return TokenRoles(roles=roles, grid=grid, recorded=True)
    return None


def _grids(mask: torch.Tensor, tokens: int) -> Iterator[Grid]:
    """Give the grids of square tokens that have so many tokens."""
    frames, height, width = mask.shape
    for alone, stride, size in itertools.product((True, False), STRIDES, SIZES):
        if height % size or width % size or (frames - alone) % stride:
            continue
        grid = Grid(
            frames=(frames - alone) // stride + alone,
            height=height // size,
            width=width // size,
            pixel_height=size,
            pixel_width=size,
            frame_stride=stride,
            first_frame_alone=alone,
        )
        if grid.tokens == tokens:
            yield grid


def _with_margin(generative: torch.Tensor, margin: int, temporal: int) -> torch.Tensor:
    """Give every token a role; the margin reaches in rows, columns and diagonals."""
    import torch

    reach = (temporal, margin, margin)
    near = torch.nn.functional.max_pool3d(
        generative.float()[None],
        kernel_size=tuple(2 * r + 1 for r in reach),
        stride=1,
        padding=reach,
    )[0]  # (T, h, w)
    roles = torch.full_like(generative, Role.CONTEXT, dtype=torch.uint8)
    return roles.masked_fill_(near > 0, Role.MARGIN).masked_fill_(generative, Role.GENERATIVE)
