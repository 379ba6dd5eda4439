"""Masks as people have them: a video, a folder of pictures, or one picture for all frames."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from hetcache.media.video import read_video
from hetcache_core import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PICTURES", "read_mask", "resize_nearest"]

PICTURES: Final = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Suffixes of what is read as a picture."""

THRESHOLD: Final = 0.5
"""Share of the full range above which a pixel is white; halfway, so that noise stays on its side."""

OPTION: Final = "--mask"


def read_mask(
    path: Path, *, frames: int, height: int, width: int, invert: bool = False
) -> NDArray[np.bool_]:
    """Read a mask and fit it to the frames of a video.

    White is edited, and black with ``invert``. Another resolution is resized by nearest neighbour,
    surplus frames are left out, and a single frame serves for all.

    Args:
        path: A video, a folder of pictures in the natural order of their names, or a picture.
        frames: Frames of the video ``F``.
        height: Height of the video ``H``.
        width: Width of the video ``W``.
        invert: Black means "edit".

    Returns:
        (F, H, W) bool; ``True`` means "edit".

    Raises:
        ConfigError: It cannot be read, is shorter than the video, or is empty.
    """
    read = [resize_nearest(white, height, width) for white in _frames(path, frames)]
    if 1 < len(read) < frames:
        raise ConfigError(
            f"the mask {path} has {len(read)} frames, but {frames} frames of the video are edited",
            where=OPTION,
            remedy=f"Give a mask for every frame, a single one for all, or --frames {len(read)}.",
        )
    mask = np.stack(read)
    mask = np.broadcast_to(mask, (frames, height, width))  # (F, H, W)
    if invert:
        mask = ~mask
    if not mask.any():
        raise ConfigError(
            f"the mask {path} is empty: nothing in the {frames} edited frames is "
            f"{'black' if invert else 'white'}",
            where=OPTION,
            remedy="If the colours mean the opposite, "
            + ("leave out --invert-mask." if invert else "give --invert-mask."),
        )
    return np.ascontiguousarray(mask)


def resize_nearest(picture: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Resize a picture by taking, for every pixel, the one nearest to its centre.

    Args:
        picture: (h, w) bool.
        height: New height ``H``.
        width: New width ``W``.

    Returns:
        (H, W) bool.
    """
    rows, columns = (
        (np.arange(new) * 2 + 1) * old // (2 * new)
        for new, old in zip((height, width), picture.shape, strict=True)
    )
    resized: NDArray[np.bool_] = picture[rows][:, columns]  # (H, W)
    return resized


def _frames(path: Path, limit: int) -> Iterable[NDArray[np.bool_]]:
    if path.is_dir():
        return _pictures(_in_folder(path)[:limit])
    if path.suffix.lower() in PICTURES:
        return _pictures([path])
    clip = read_video(path, option=OPTION, max_frames=limit)
    white = THRESHOLD * np.iinfo(np.uint8).max
    return (np.asarray(_brightest(frame) > white) for frame in clip.frames)


def _in_folder(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES]
    if not found:
        raise ConfigError(f"the folder {folder} holds no pictures", where=OPTION)
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort "2.png" before "10.png"."""
    return [
        (int(part) if part.isdecimal() else -1, part)
        for part in re.split(r"(\d+)", path.name.lower())
    ]


def _pictures(paths: Sequence[Path]) -> Iterator[NDArray[np.bool_]]:
    read = [_brightness(path) for path in paths]
    # Labels 0 and 1, saved as they are, look black; only lossless pictures are free of such noise.
    lossless = all(path.suffix.lower() == ".png" for path in paths)
    labels = lossless and all(brightness.max() <= 1 for brightness, _ in read)
    for brightness, full in read:
        yield np.asarray(brightness > THRESHOLD * (1 if labels else full))


def _brightness(path: Path) -> tuple[NDArray[np.integer[Any]], int]:
    """Read the pixels of a picture (h, w), and the value that stands for white."""
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode.startswith("I"):
                return np.asarray(image), np.iinfo(np.uint16).max
            # Annotation tools paint labels in palette colours, all of which mean "masked".
            full = 1 if image.mode == "P" else np.iinfo(np.uint8).max
            return _brightest(np.asarray(image.convert("RGB"))), full
    except (OSError, ValueError, SyntaxError) as error:
        reason = "not found" if isinstance(error, FileNotFoundError) else "no readable picture"
        raise ConfigError(f"{path}: {reason}", where=OPTION) from error


def _brightest(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Take the brightest channel of (h, w, 3), so that a mask may be of any saturated colour."""
    return np.asarray(frame.max(axis=-1))  # (h, w)
