"""Sizes and lengths that all backbones of a comparison take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from attrs import frozen

from hetcache_core import ConfigError, Geometry

__all__ = ["Size", "check_size", "join", "modest", "scaled"]

MODEST_SIDE: Final = 256
MODEST_FRAMES: Final = 17
"""Where nobody asks for a size: large enough to show an edit, small enough for a CPU."""


@frozen(kw_only=True, order=True)
class Size:
    """Length and size of a clip as a model works on it.

    Attributes:
        frames: Frames ``F``.
        height: Height ``H`` in pixels.
        width: Width ``W`` in pixels.
    """

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        """Write it as notes do."""
        return f"{self.frames} frames of {self.height}x{self.width}"


def join(geometries: Mapping[str, Geometry]) -> Geometry:
    """Return what all backbones take at once.

    Args:
        geometries: By the names of the backbones; at least one.

    Returns:
        The common multiple of sides, the common stride of lengths with its smallest offset, and
        the smallest of the default sizes.

    Raises:
        ConfigError: No number of frames fits all.
    """
    parts = list(geometries.values())
    stride = math.lcm(*(part.frame_stride for part in parts))
    largest = max(part.frame_offset for part in parts)
    fitting = [
        frames
        for frames in range(largest, largest + stride)
        if all((frames - part.frame_offset) % part.frame_stride == 0 for part in parts)
    ]
    if not fitting:
        raise ConfigError(
            f"no number of frames fits all backbones: {_takes(geometries)}",
            where="--backbones",
            remedy="Compare them apart.",
        )
    return Geometry(
        size_multiple=math.lcm(*(part.size_multiple for part in parts)),
        frame_stride=stride,
        frame_offset=fitting[0],
        default_size=min((part.default_size for part in parts), key=math.prod),
        default_frames=min(part.default_frames for part in parts),
    )


def modest(joint: Geometry) -> Size:
    """Return a small size that a geometry takes, for clips that can have any."""
    height, width = (min(side, MODEST_SIDE) for side in joint.default_size)
    return _rounded(joint, min(joint.default_frames, MODEST_FRAMES), height, width)


def scaled(size: Size, joint: Geometry, *, frames: float = 1.0, side: float = 1.0) -> Size:
    """Return a multiple of a size, or what a geometry takes next to it.

    Args:
        size: The size.
        joint: What all backbones take.
        frames: What the number of frames is multiplied with.
        side: What height and width are multiplied with.
    """
    return _rounded(
        joint, round(size.frames * frames), round(size.height * side), round(size.width * side)
    )


def check_size(
    geometries: Mapping[str, Geometry],
    *,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> None:
    """Make sure that what is asked for fits every backbone.

    Args:
        geometries: By the names of the backbones.
        frames: ``--frames``, or None.
        height: ``--height``, or None.
        width: ``--width``, or None.

    Raises:
        ConfigError: It does not; the message says what does.
    """
    joint = join(geometries)
    stride, offset = joint.frame_stride, joint.frame_offset
    if frames is not None and (frames < offset or (frames - offset) % stride):
        below = (frames - offset) // stride * stride + offset
        near = [count for count in (below, below + stride) if count >= offset]
        raise ConfigError(
            f"{frames} frames do not fit all backbones: {_takes(geometries)}",
            where="--frames",
            given=frames,
            remedy=f"Take {' or '.join(map(str, near))}.",
        )
    multiple = joint.size_multiple
    for option, asked in (("--height", height), ("--width", width)):
        if asked is not None and asked % multiple:
            below = asked // multiple * multiple
            near = [side for side in (below, below + multiple) if side]
            takes = ", ".join(f"{name} {g.size_multiple}" for name, g in geometries.items())
            raise ConfigError(
                f"{asked} does not fit all backbones, which take multiples: {takes}",
                where=option,
                given=asked,
                remedy=f"Take {' or '.join(map(str, near))}.",
            )


def _takes(geometries: Mapping[str, Geometry]) -> str:
    return ", ".join(
        f"{name} takes {g.frame_stride}k+{g.frame_offset}" for name, g in geometries.items()
    )


def _rounded(joint: Geometry, frames: int, height: int, width: int) -> Size:
    multiple, stride, offset = joint.size_multiple, joint.frame_stride, joint.frame_offset
    return Size(
        frames=max(0, round((frames - offset) / stride)) * stride + offset,
        height=max(1, round(height / multiple)) * multiple,
        width=max(1, round(width / multiple)) * multiple,
    )
