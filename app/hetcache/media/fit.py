"""Fitting a video to the sizes and lengths that a model takes, and the result back to the video."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
from attrs import frozen
from PIL import Image

from hetcache_core import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hetcache_core import Geometry

__all__ = ["Fit", "check_pixels", "plan_crop", "plan_frames", "plan_part", "plan_size"]

MOST_PIXELS: Final = 1 << 28
"""Of all frames of a run together: 290 of 720p. Three bytes each are held several times over."""

FEATHER: Final = 32
"""Pixels over which a part of a picture fades into the rest: two tokens of Wan. Our choice."""

Scalar = TypeVar("Scalar", bound=np.generic)


@frozen(kw_only=True)
class Fit:
    """How the pictures of a video and of a model go together.

    Attributes:
        source: (H, W) of the video.
        box: (top, left, height, width) of the part of the video that the model sees.
        size: (h, w) that the model works at.
        feather: Pixels over which the part fades into the rest of the video, where it does not end with it.
    """

    source: tuple[int, int]
    box: tuple[int, int, int, int]
    size: tuple[int, int]
    feather: int = 0

    @property
    def crops(self) -> bool:
        """Whether a part of the video is left out."""
        return self.box[2:] != self.source

    @property
    def resizes(self) -> bool:
        """Whether the model works at another resolution."""
        return self.box[2:] != self.size

    def video_to_model(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Crop and resize (F, H, W, 3) frames to (F, h, w, 3)."""
        return _resized(self._cropped(frames), self.size)

    def mask_to_model(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Crop and resize a (F, H, W) mask to (F, h, w), so that no masked pixel is missed."""
        cropped = self._cropped(mask)
        if not self.resizes:
            return cropped
        height, width = self.size
        # Mean coverage; float, because a single pixel of a large area rounds to nothing in uint8.
        covered = [
            np.asarray(
                Image.fromarray(frame.astype(np.float32)).resize(
                    (width, height), Image.Resampling.BOX
                )
            )
            for frame in cropped
        ]
        return np.stack(covered) > 0  # (F, h, w)

    def to_source(self, edited: NDArray[np.uint8], source: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Put a model's (F, h, w, 3) frames back into the (F, H, W, 3) frames of the video."""
        top, left, height, width = self.box
        result: NDArray[np.uint8] = source.copy()
        part = result[:, top : top + height, left : left + width]  # a view
        made = _resized(edited, (height, width))
        if self.feather:
            weight = self._weight()  # (height, width, 1)
            for below, above in zip(part, made, strict=True):  # one by one: floats are large
                below[:] = np.rint(below + weight * (above.astype(np.float32) - below))
        else:
            part[:] = made
        return result

    def _weight(self) -> NDArray[np.float32]:
        """How much of the part counts, from its border inwards: (height, width, 1)."""
        weights = []
        for start, length, whole in zip(self.box[:2], self.box[2:], self.source, strict=True):
            inside = np.arange(1, length + 1)
            before = inside if start else np.full(length, length)
            after = inside[::-1] if start + length < whole else np.full(length, length)
            weights.append(np.minimum(np.minimum(before, after) / (self.feather + 1), 1))
        rows, columns = weights
        weight: NDArray[np.float32] = (rows[:, None, None] * columns[:, None]).astype(np.float32)
        return weight

    def masked_outside(self, mask: NDArray[np.bool_]) -> int:
        """Count the masked pixels of a (F, H, W) mask that the model does not see."""
        return int(mask.sum()) - int(self._cropped(mask).sum())

    def _cropped(self, frames: NDArray[Scalar]) -> NDArray[Scalar]:
        top, left, height, width = self.box
        return frames[:, top : top + height, left : left + width]


def plan_frames(geometry: Geometry, available: int, asked: int | None) -> int:
    """Find how many frames of a video are edited.

    Args:
        geometry: What the model takes.
        available: Frames of the video.
        asked: ``--frames``, or None for the model's default.

    Raises:
        ConfigError: There are not enough for the model.
    """
    wanted = min(available, geometry.default_frames if asked is None else asked)
    stride, offset = geometry.frame_stride, geometry.frame_offset
    if wanted < offset:
        raise ConfigError(
            f"the model takes at least {offset} frames, and there are {wanted}", where="--frames"
        )
    return (wanted - offset) // stride * stride + offset


def check_pixels(frames: int, height: int, width: int) -> None:
    """Refuse what no memory holds, before any of it is given out.

    Raises:
        ConfigError: There are too many pixels.
    """
    if frames * height * width > MOST_PIXELS:
        raise ConfigError(
            f"{frames} frames of {height} x {width} pixels are more than the {MOST_PIXELS:,} pixels that "
            "are taken",
            remedy="Give smaller --height and --width, or fewer --frames.",
        )


def plan_crop(
    geometry: Geometry, mask: NDArray[np.bool_], asked: str
) -> tuple[int, int, int, int] | None:
    """Find the part of a video that an edit is about.

    By itself it is as large as the model's own pictures, or large enough for half as much again on each side
    of the mask, over all frames.

    Args:
        geometry: What the model takes.
        mask: (F, H, W) where to edit.
        asked: "none", "auto", or HEIGHTxWIDTH+TOP+LEFT in pixels of the video.

    Returns:
        (top, left, height, width), or None for all of it.

    Raises:
        ConfigError: What was asked for is none of that, or no part of the video.
    """
    if asked == "none":
        return None
    _, *whole = mask.shape
    if asked == "auto":
        starts, sizes = [], []
        for axis, side in enumerate(geometry.default_size):
            (found,) = np.nonzero(np.any(mask, axis=(0, 2 - axis)))
            first, length = int(found[0]), int(found[-1] - found[0]) + 1
            size = min(whole[axis], max(side, 2 * length, length + 2 * FEATHER))
            starts.append(min(max(first - (size - length) // 2, 0), whole[axis] - size))
            sizes.append(size)
        return None if sizes == whole else (starts[0], starts[1], sizes[0], sizes[1])
    read = re.fullmatch(r"(\d{1,5})x(\d{1,5})\+(\d{1,5})\+(\d{1,5})", asked)
    if read is None:
        raise ConfigError(
            f"cannot read {asked!r}",
            where="--crop",
            given=asked,
            remedy="Give none, auto or HEIGHTxWIDTH+TOP+LEFT in pixels, such as 480x832+100+0.",
        )
    height, width, top, left = map(int, read.groups())
    if not (height and width and top + height <= whole[0] and left + width <= whole[1]):
        raise ConfigError(
            f"{asked} is no part of a picture of {whole[0]}x{whole[1]} (height x width)",
            where="--crop",
            given=asked,
            remedy="Give HEIGHTxWIDTH+TOP+LEFT inside of it.",
        )
    return top, left, height, width


def plan_part(
    geometry: Geometry,
    source: tuple[int, int],
    part: tuple[int, int, int, int],
    height: int | None,
    width: int | None,
) -> Fit:
    """Find the size that a model works at for a part of a video; arguments and errors as of ``plan_size``."""
    top, left, *size = part
    fit = plan_size(geometry, (size[0], size[1]), height, width)
    inner = (top + fit.box[0], left + fit.box[1], *fit.box[2:])
    return Fit(source=source, box=inner, size=fit.size, feather=min(FEATHER, min(fit.box[2:]) // 8))


def plan_size(
    geometry: Geometry, source: tuple[int, int], height: int | None, width: int | None
) -> Fit:
    """Find the size that a model works at, and the part of the video that it sees.

    Without a wish, the video keeps its size up to the number of pixels of the model's default
    size; larger ones are scaled down to that. Of the multiples around, those are taken that cut
    off least.

    Args:
        geometry: What the model takes.
        source: (H, W) of the video.
        height: ``--height``, or None.
        width: ``--width``, or None.

    Raises:
        ConfigError: An asked size is no multiple that the model takes.
    """
    multiple = geometry.size_multiple
    for option, side in (("--height", height), ("--width", width)):
        if side is not None and side % multiple:
            below, above = side // multiple * multiple, (side // multiple + 1) * multiple
            near = f"{below} or {above}" if below else f"{above}"
            raise ConfigError(
                f"{side} is no multiple of {multiple}, which the model needs",
                where=option,
                given=side,
                remedy=f"Take {near}.",
            )
    rows, columns = source
    if height is None and width is None:
        area = geometry.default_size[0] * geometry.default_size[1]
        scale = min(1.0, (area / (rows * columns)) ** 0.5)
        heights = _around(rows * scale, multiple)
        widths = _around(columns * scale, multiple)
        limit = max(area, heights[0] * widths[0])
    else:
        heights = [height] if height else _around(rows * (width or 0) / columns, multiple)
        widths = [width] if width else _around(columns * (height or 0) / rows, multiple)
        limit = max(heights) * max(widths)
    sizes = [(h, w) for h in heights for w in widths if h * w <= limit]
    boxes = {size: _box(source, size) for size in sizes}
    best = max(sizes, key=lambda size: (boxes[size][2] * boxes[size][3], -size[0] * size[1]))
    return Fit(source=source, box=boxes[best], size=best)


def _around(side: float, multiple: int) -> list[int]:
    """List the multiples next to a length, the lower one first."""
    below = max(multiple, int(side) // multiple * multiple)
    return [below] if below >= side else [below, below + multiple]


def _box(source: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Find the largest part of a picture, around its centre, with the proportions of a size."""
    rows, columns = source
    height = min(rows, max(1, round(columns * size[0] / size[1])))
    width = min(columns, max(1, round(rows * size[1] / size[0])))
    return (rows - height) // 2, (columns - width) // 2, height, width


def _resized(frames: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if frames.shape[1:3] == size:
        return frames
    height, width = size
    return np.stack(
        [
            np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))
            for frame in frames
        ]
    )  # (F, height, width, 3)
