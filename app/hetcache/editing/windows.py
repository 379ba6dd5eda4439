"""A clip longer than the model takes: windows that overlap, each going on from the one before.

The first frames of a window are finished: the model sees them as known, with nothing masked. Those after them
are made again, and fade from what was there to what it makes: known frames alone leave a seam, since a model
does not go on from them without a step.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import frozen

from hetcache_core import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hetcache_core import Geometry

__all__ = ["Window", "faded", "plan_windows"]

OVERLAP_SHARE: Final = 0.25
"""Share of a window that overlaps by default, but for short ones: 21 of 81 frames."""

FADED: Final = 2
"""Latent frames over which windows fade, at least, and half of those that overlap. Measured: tiny-vace, 60
moving frames of 64x64 in windows of 17, the largest change at a seam over that elsewhere: 2.0 with 5 known
frames and no fade, 1.1 with 1 known and 4 faded ones, 1.0 with 1 and 8."""


@frozen(kw_only=True)
class Window:
    """Frames that are edited in one run.

    Attributes:
        start: The first frame.
        stop: The one after the last; past the clip's end, its last frame stands in.
        known: So many of its first frames are finished.
        faded: So many after those fade from what the window before has made.
    """

    start: int
    stop: int
    known: int = 0
    faded: int = 0

    @property
    def shared(self) -> int:
        """How many of its first frames an earlier window has made."""
        return self.known + self.faded


def plan_windows(
    geometry: Geometry, frames: int, *, window: int | None = None, overlap: int | None = None
) -> tuple[Window, ...]:
    """Cover a clip with windows of one length; the last one reaches back as far as it needs to.

    A clip shorter than a window is one, as much longer than the clip as the model needs.

    Args:
        geometry: Lengths that the model takes.
        frames: Frames of the clip, at least 1.
        window: Frames of a window, or None for the model's own number.
        overlap: Frames that a window shares with the one before, or None for a quarter of it.

    Raises:
        ConfigError: A number is none that the model takes.
    """
    stride, offset = geometry.frame_stride, geometry.frame_offset
    length = _length(geometry, frames, window)
    if length >= frames:
        return (Window(start=0, stop=length),)
    if overlap is None:
        # Whole latent frames, so that known frames are not coded together with unknown ones.
        latents = max(FADED, math.ceil((length * OVERLAP_SHARE - offset) / stride))
        overlap = min(latents * stride + offset, length - 1)
    if not 0 <= overlap < length:
        raise ConfigError(
            f"{overlap} shared frames leave nothing new in windows of {length}",
            where="--overlap",
            given=overlap,
            remedy=f"Take 0 to {length - 1}.",
        )
    latents = max(0, overlap - offset) // stride
    fading = min(overlap, max(min(FADED, latents), math.ceil(latents / 2)) * stride)
    windows = [Window(start=0, stop=length)]
    while windows[-1].stop < frames:
        done = windows[-1].stop
        start = min(done - overlap, frames - length)
        windows.append(
            Window(start=start, stop=start + length, known=done - start - fading, faded=fading)
        )
    return tuple(windows)


def _length(geometry: Geometry, frames: int, window: int | None) -> int:
    """Find the length of windows: what was asked for, or the least that the model takes for all frames."""
    stride, offset = geometry.frame_stride, geometry.frame_offset
    if window is not None and (window < offset or (window - offset) % stride):
        below = max(offset, (window - offset) // stride * stride + offset)
        near = f"{below} or {below + stride}" if below < window else f"{below}"
        raise ConfigError(
            f"the model takes {stride}k+{offset} frames, not {window}",
            where="--window",
            given=window,
            remedy=f"Take {near}.",
        )
    most = geometry.default_frames if window is None else window
    enough = math.ceil(max(0, frames - offset) / stride) * stride + offset
    return min(most, enough)


def faded(window: Window, before: NDArray[np.uint8], made: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fade from the pictures before a window to those that it has made.

    Args:
        window: The window.
        before: (shared, H, W, 3) uint8, what earlier windows have made of its first frames.
        made: (F, H, W, 3) uint8, what it has made.

    Returns:
        (F, H, W, 3) uint8; the known frames are those before, bit for bit.
    """
    share = np.zeros(window.shared, np.float32)
    share[window.known :] = (np.arange(window.faded) + 1) / (window.faded + 1)
    result: NDArray[np.uint8] = made.copy()  # (F, H, W, 3)
    for index, part in enumerate(share):
        mixed = before[index] * (1 - part) + made[index] * part
        result[index] = np.rint(mixed).astype(np.uint8)
    return result
