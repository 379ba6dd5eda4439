"""Tokens of a masked edit: the grid, their roles, and the pieces that choose among them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, Final

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

from hetcache_core.errors import ConfigError


class Role(IntEnum):
    """What a token is to the edit (HetCache, CVPR 2026, section 3)."""

    CONTEXT = 0
    """Outside the mask and its margin."""
    MARGIN = 1
    """Next to the mask."""
    GENERATIVE = 2
    """Touched by the mask in any of its pixels or frames."""
    PINNED = 3
    """Not part of the video (reference images): always active."""


@frozen(kw_only=True)
class Grid:
    """How the tokens of one batch row lie in the video.

    Attributes:
        frames: latent frames ``T`` of the video.
        height: token rows ``h``.
        width: token columns ``w``.
        prefix: tokens before the video's (reference images).
        pixel_height: pixels a token covers vertically.
        pixel_width: pixels a token covers horizontally.
        frame_stride: pixel frames that one latent frame covers.
        first_frame_alone: whether latent frame 0 covers pixel frame 0 only.
    """

    frames: int
    height: int
    width: int
    prefix: int = 0
    pixel_height: int
    pixel_width: int
    frame_stride: int
    first_frame_alone: bool = True

    @property
    def tokens(self) -> int:
        """Number of tokens ``N``, prefix included."""
        return self.prefix + self.frames * self.height * self.width

    @property
    def pixel_frames(self) -> int:
        """Pixel frames that the latent frames stand for."""
        if self.first_frame_alone:
            return 1 + (self.frames - 1) * self.frame_stride
        return self.frames * self.frame_stride


BYTES: Final = (0, 255)
"""Black and white in pictures and videos."""


def binary_mask(mask: Any, *, scale: tuple[float, float] | None = None) -> Tensor:
    """Say where a mask is white, whatever it came as: where it is nearer to white than to black.

    Video codecs and resizing leave black at 0 to 2 of 255 and white a little below 255; both stay what
    they are. Every backbone reads masks with this.

    Args:
        mask: bool as it is; integers from 0 to 255; reals from 0 to 1, from -1 to 1 or from 0 to 255
            (an array or tensor of any shape); or a sequence of F pictures (PIL), whose red is looked at.
        scale: black and white where they are known; by default they are found from type and values,
            which waits for the mask's device once.

    Returns:
        Bool of the same shape on the mask's device, (F, H, W) of pictures; ``True`` means "edit".

    Raises:
        ConfigError: whole numbers reach from 0 to 1 only, which may be a mask, or noise in black.
    """
    if isinstance(mask, Sequence) and mask and hasattr(mask[0], "convert"):
        mask = np.stack([np.asarray(frame.convert("RGB"))[..., 0] for frame in mask])  # (F, H, W)
        scale = BYTES
    values = torch.as_tensor(np.asarray(mask) if isinstance(mask, Sequence) else mask)
    if values.dtype == torch.bool:
        return values
    black, white = scale or _scale(values)
    return values > (black + white) / 2


def _scale(values: Tensor) -> tuple[float, float]:
    """Find what black and white are in a mask that does not say it."""
    if not values.numel():
        return BYTES
    low, high = torch.stack(values.aminmax()).tolist()
    if not values.is_floating_point():
        if high == 1:
            raise ConfigError(
                "whole numbers from 0 to 1 may be a mask, or noise in black",
                where="mask",
                remedy="Pass bool values, or 0 and 255",
                setting="mask",
                given=str(values.dtype),
            )
        return BYTES
    if high > 1.5:  # noqa: PLR2004 - past the white of the other scales, and what resizing adds to it
        return BYTES
    return (-1, 1) if low < -0.5 else (0, 1)  # noqa: PLR2004 - nearer to a black at -1 than to one at 0


def mask_to_tokens(mask: Tensor, grid: Grid) -> Tensor:
    """Mark every video token that a masked pixel touches.

    The union over all pixel frames of a latent frame is taken, so a moving mask is covered whole.

    Args:
        mask: (F, H, W) bool, any device; ``True`` means "edit".
        grid: the token grid; ``F`` must be ``grid.pixel_frames``, ``H`` and ``W`` its size in
            pixels.

    Returns:
        (T, h, w) bool on the mask's device.

    Raises:
        ConfigError: the mask has another size or length than the grid, or so many frames cannot be
            made.
    """
    expected = (
        grid.pixel_frames,
        grid.height * grid.pixel_height,
        grid.width * grid.pixel_width,
    )
    frames, stride = mask.shape[0], grid.frame_stride
    if tuple(mask.shape[1:]) == expected[1:] and frames != expected[0]:
        offset = int(grid.first_frame_alone)
        below = (frames - offset) // stride * stride + offset
        if below != frames:
            raise ConfigError(
                f"{frames} frames were given, and this model takes {stride}k+{offset}",
                where="frames",
                remedy=f"Give {below} or {below + stride} frames of video and mask",
                setting="frames",
                given=frames,
                allowed=(str(below), str(below + stride)),
            )
        raise ConfigError(
            f"the mask has {frames} frames, and {expected[0]} are made",
            where="mask",
            remedy="Pass a mask of the video's own length",
            setting="mask",
            given=frames,
            allowed=(str(expected[0]),),
        )
    if tuple(mask.shape) != expected:
        raise ConfigError(
            f"The mask is {tuple(mask.shape)} (frames, height, width) but the model's grid covers "
            f"{expected}. Pass a mask of the video's own size and length."
        )
    pooled = torch.nn.functional.max_pool2d(
        mask.float()[:, None], (grid.pixel_height, grid.pixel_width)
    )[:, 0]  # (F, h, w)
    if not grid.first_frame_alone:
        groups: Tensor = pooled.unflatten(0, (grid.frames, grid.frame_stride))
        return groups.amax(1) > 0  # (T, h, w)
    head, tail = pooled[:1], pooled[1:]
    if grid.frames > 1:
        tail = tail.unflatten(0, (grid.frames - 1, grid.frame_stride)).amax(1)  # (T-1, h, w)
    return torch.cat([head, tail]) > 0  # (T, h, w)


@frozen(eq=False)
class Partition:
    """The role of every token of one batch row.

    Attributes:
        roles: (N,) uint8 values of ``Role``, on the trunk's device.
        grid: the grid they lie on.
    """

    roles: Tensor
    grid: Grid
    indices: tuple[Tensor, ...] = field(init=False)

    @indices.default
    def _split(self) -> tuple[Tensor, ...]:
        # One wait for the device, for the counts, once a run.
        roles = torch.arange(len(Role), device=self.roles.device)
        counts = (self.roles == roles[:, None]).sum(1).tolist()
        return tuple(torch.split(self.roles.argsort(stable=True), counts))

    def of(self, role: Role) -> Tensor:
        """Return the sorted token indices (k,) of one role."""
        return self.indices[int(role)]

    def count(self, role: Role) -> int:
        """Return how many tokens have a role."""
        return self.of(role).numel()

    @property
    def tokens(self) -> int:
        """Number of tokens ``N``."""
        return self.roles.numel()


class TokenPartitioner(ABC):
    """Decides which tokens are generative, margin, context or pinned. Called once a run."""

    @abstractmethod
    def partition(self, mask: Tensor, grid: Grid) -> Partition:
        """Give every token a role.

        Args:
            mask: (F, H, W) bool pixel mask on the trunk's device; ``True`` means "edit".
            grid: the token grid.

        Returns:
            The roles of all ``grid.tokens`` tokens; prefix tokens are PINNED.
        """


@frozen(eq=False)
class Selection:
    """Context tokens in the order in which they should be kept.

    Attributes:
        order: (|C|,) permutation of positions in ``partition.of(CONTEXT)``, best first. The
            engine keeps the first ``count`` and takes the next ones where it pads.
        centroids: (K, d) cluster centres for a warm start of the next selection, or None.
    """

    order: Tensor
    centroids: Tensor | None = None


@frozen(eq=False, kw_only=True)
class SelectionRequest:
    """What a selector may look at; the callables compute on first use.

    Attributes:
        partition: roles of the tokens.
        count: how many context tokens will be kept, ``1 <= count < |C|``.
        scores: returns (|C|,) fp32 attention that generative queries pay to each context token.
        features: returns (|C|, D) hidden states of the context tokens.
        seed: seed of any random choice.
        previous: the selection that this one replaces, or None.
    """

    partition: Partition
    count: int
    scores: Callable[[], Tensor]
    features: Callable[[], Tensor]
    seed: int
    previous: Selection | None = None


class ContextSelector(ABC):
    """Chooses the context tokens that stay active in a partial step."""

    @property
    def needs_scores(self) -> bool:
        """Whether ``select`` asks for attention scores; they are captured only then."""
        return False

    @property
    def needs_features(self) -> bool:
        """Whether ``select`` asks for hidden states; they are kept only then."""
        return False

    @abstractmethod
    def select(self, request: SelectionRequest) -> Selection:
        """Order the context tokens, best first, on the partition's own device."""


def spread(indices: Tensor, count: int) -> Tensor:
    """Take ``count`` of (k,) indices, evenly spread: elements ``floor(j * k / count)``.

    Args:
        indices: (k,) any tensor of one dimension.
        count: how many to take; all of them where there are no more.
    """
    total = indices.numel()
    if count >= total:
        return indices
    return indices[torch.arange(count, device=indices.device) * total // max(count, 1)]
