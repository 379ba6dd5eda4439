"""Pictures to look at: runs side by side, and a strip of frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["even", "outlined", "side_by_side", "stacked", "strip"]

COLUMNS: Final = 5
"""Frames in a strip, evenly spread over the clip."""

GAIN: Final = 4
"""Factor of the differences that are shown; most are too faint to be seen as they are."""

BAR: Final = 24
"""Height of a line of text in pixels; even, as 4:2:0 video needs it."""

FONT_SIZE: Final = 14

OUTLINE: Final = (255, 64, 64)

PAPER: Final = (24, 24, 24)
INK: Final = (235, 235, 235)


def outlined(frames: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Draw the outline of a mask onto frames.

    Args:
        frames: (F, H, W, 3) uint8.
        mask: (F, H, W) bool.

    Returns:
        (F, H, W, 3) uint8.
    """
    padded = np.pad(mask, ((0, 0), (2, 2), (2, 2)), mode="edge")
    height, width = mask.shape[1:]
    inside = mask.copy()
    for shift in (0, 1, 3, 4):
        inside &= padded[:, shift : shift + height, 2 : 2 + width]
        inside &= padded[:, 2 : 2 + height, shift : shift + width]
    drawn: NDArray[np.uint8] = frames.copy()
    drawn[mask & ~inside] = OUTLINE
    return drawn


def side_by_side(rows: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Put clips next to each other, with a line of text above each.

    Args:
        rows: (F, H, W, 3) uint8 by title.

    Returns:
        (F, BAR + H, len(rows) * W, 3) uint8.
    """
    labelled = []
    for title, frames in rows.items():
        bar = _bar(title, frames.shape[2])
        bars = np.broadcast_to(bar, (len(frames), *bar.shape))
        labelled.append(np.concatenate([bars, frames], axis=1))  # (F, BAR + H, W, 3)
    return np.concatenate(labelled, axis=2, dtype=np.uint8)  # (F, BAR + H, n * W, 3)


def strip(
    source: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    reference: NDArray[np.uint8],
    cached: NDArray[np.uint8],
    *,
    policy: str,
    footer: str = "",
) -> Image.Image:
    """Draw a few frames of a comparison: source, reference, cached, and their difference.

    Args:
        source: (F, H, W, 3) uint8.
        mask: (F, H, W) bool, outlined in the source.
        reference: (F, H, W, 3) uint8.
        cached: (F, H, W, 3) uint8.
        policy: Name of the policy of ``cached``.
        footer: A sentence below everything.
    """
    chosen = even(len(source))
    difference = np.abs(reference[chosen].astype(np.int16) - cached[chosen]) * GAIN
    rows = {
        "source, and outline of the mask": outlined(source[chosen], mask[chosen]),
        "reference": reference[chosen],
        policy: cached[chosen],
        f"difference of the two, times {GAIN}": difference.clip(0, 255).astype(np.uint8),
    }
    return Image.fromarray(stacked(rows, footer=footer))


def even(frames: int) -> NDArray[np.int64]:
    """Choose a few frames, evenly spread over a clip."""
    chosen: NDArray[np.int64] = np.linspace(0, frames - 1, min(COLUMNS, frames)).round().astype(int)
    return chosen


def stacked(rows: Mapping[str, NDArray[np.uint8]], *, footer: str = "") -> NDArray[np.uint8]:
    """Put rows of frames below one another, each under a line of text.

    Args:
        rows: (n, H, W, 3) uint8 by title.
        footer: A sentence below everything.

    Returns:
        (height, n * W, 3) uint8.
    """
    lines = []
    for title, frames in rows.items():
        row = np.concatenate(list(frames), axis=1)  # (H, n * W, 3)
        lines += [_bar(title, row.shape[1]), row]
    if footer:
        lines.append(_bar(footer, row.shape[1]))
    return np.concatenate(lines)


def _bar(text: str, width: int) -> NDArray[np.uint8]:
    """Draw a line of text (BAR, width, 3)."""
    image = Image.new("RGB", (width, BAR), PAPER)
    font = ImageFont.load_default(FONT_SIZE)
    ImageDraw.Draw(image).text((6, BAR // 2), text, fill=INK, font=font, anchor="lm")
    return np.asarray(image)
