"""Masks as people have them: a video, a folder of pictures, or one picture for all frames.

What a picture means is decided from its own values: a varying alpha channel is the mask; where a picture
without noise holds labels or colours, all but the background are; else what is brighter than half is. What
was assumed is said in notes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import define, field, frozen
from PIL import Image, ImageOps, ImageSequence

from hetcache.media.options import PICTURES, MaskConfig, MissingMasks
from hetcache.media.pictures import opened_picture
from hetcache.media.video import read_layers
from hetcache_core import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Mask", "read_mask", "resize_nearest"]

LOSSLESS: Final = frozenset({"BMP", "PNG", "TIFF"})
"""Formats, by Pillow's names, that add no noise to labels."""

THRESHOLD: Final = 0.5
"""Share of the full range above which a pixel is white; halfway, so that noise stays on its side."""

WHITE: Final = 0.98
"""Share of the full range from which on a picture holds white: then it is a grey mask, and no labels."""

FLAT: Final = 0.5
"""Share of neighbours in a row that are equal, from which on a picture is drawn rather than photographed:
noise and photographs have next to none, masks more than .9."""

CHROMA: Final = 32
"""Difference of two channels, in 255ths, from which on a pixel has a colour."""

STRETCH: Final = 0.02
"""Share by which a mask's proportions may be off: sizes rounded to multiples of 16 pixels are by less."""

LISTED: Final = 8
"""So many values of an empty mask, or frames without one, are named."""

OPTION: Final = "--mask"


@frozen(eq=False, kw_only=True)
class Mask:
    """A mask that was read.

    Attributes:
        pixels: (F, H, W) bool; ``True`` means "edit".
        notes: what was assumed.
    """

    pixels: NDArray[np.bool_] = field(repr=False)
    notes: tuple[str, ...] = ()


@frozen(eq=False, kw_only=True)
class _Picture:
    """One picture, or one frame of a video, before it is decided what of it is masked.

    Attributes:
        name: of the file, for messages.
        levels: (h, w) the label, grey value or brightest channel of every pixel.
        full: the value of ``levels`` that stands for white.
        alpha: (h, w) uint8 opacity, or None.
        colours: whether pixels have colours, all of which are masked but for black.
        drawn: whether it is free of noise, so that values may be labels.
        labelled: whether ``levels`` are values that a label can be picked from.
    """

    name: str
    levels: NDArray[Any]
    full: float
    alpha: NDArray[np.uint8] | None = None
    colours: bool = False
    drawn: bool = False
    labelled: bool = True

    @property
    def opaque(self) -> NDArray[np.bool_] | None:
        """Whether each pixel (h, w) is more opaque than not, or None without opacity."""
        return None if self.alpha is None else np.asarray(self.alpha > THRESHOLD * 255)


@define(eq=False)
class _Reading:
    """Reads pictures, and keeps what was assumed of which."""

    label: int | None
    said: dict[str, list[str]] = field(factory=dict, init=False)
    values: set[float] = field(factory=set, init=False)

    def white(self, picture: _Picture, *, alpha_counts: bool) -> NDArray[np.bool_]:
        """Say which pixels (h, w) are masked, and keep in mind why.

        Args:
            picture: what was read.
            alpha_counts: whether the opacity of another picture beside it is the mask.
        """
        self.values |= set(np.unique(picture.levels)[: LISTED + 1].tolist())
        if self.label is not None:
            if not picture.labelled:
                raise ConfigError(
                    f"{picture.name} has colours, not labels, so label {self.label} cannot be picked",
                    where="--mask-label",
                    remedy="Leave it out to edit what has any colour, or give a picture of one channel "
                    "or with a palette.",
                )
            return np.asarray(picture.levels == self.label)
        opaque = picture.opaque
        if opaque is not None:
            if not opaque.all():
                self._say("its opacity is the mask, whatever the colours are", picture)
                return opaque
            if alpha_counts and not _black_and_white(picture):
                self._say("it is opaque everywhere, so all of it is edited", picture)
                return opaque
        drawn = picture.drawn and _flat(picture.levels)
        if drawn and picture.colours:
            self._say("it has colours: everything but black is edited", picture)
            return np.asarray(picture.levels > 0)
        if drawn and 0 < picture.levels.max() < WHITE * picture.full:
            found = np.unique(picture.levels)
            self._say(
                f"its values {_listed(found)} are labels: everything but 0 is edited", picture
            )
            return np.asarray(picture.levels > 0)
        return np.asarray(picture.levels > THRESHOLD * picture.full)

    def _say(self, what: str, picture: _Picture) -> None:
        self.said.setdefault(what, []).append(picture.name)

    def notes(self) -> Iterator[str]:
        for what, names in self.said.items():
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield f"mask {names[0]}{others}: {what}"


def read_mask(
    path: Path,
    *,
    frames: int,
    height: int,
    width: int,
    total: int | None = None,
    options: MaskConfig = MaskConfig(),
) -> Mask:
    """Read a mask and fit it to the frames of a video.

    Another resolution of the same proportions is resized by nearest neighbour, surplus frames are left out,
    and a single frame serves for all. Pictures of a folder go to the frames of their numbers.

    Args:
        path: A video, a folder of pictures, or a picture of one or more frames.
        frames: Frames of the video ``F`` that are edited.
        height: Height of the video ``H``.
        width: Width of the video ``W``.
        total: Frames of the whole video, if known.
        options: How to read it.

    Raises:
        ConfigError: It cannot be read, does not cover the frames, has other proportions, or is empty.
    """
    reading = _Reading(options.mask_label)
    notes: list[str] = []
    if path.is_dir():
        files, at, notes = _numbered(path, frames, total)
        pictures = [picture for file in files for picture in _pictures(file, frames)]
        if len(pictures) != len(files):
            at = list(range(len(pictures)))  # files of several frames: one after the other
    else:
        pictures = list(_single(path, frames))
        at = list(range(len(pictures)))
    opacities = [each.opaque for each in pictures]
    alpha_counts = any(each is not None and 0 < each.mean() < 1 for each in opacities)
    for each in pictures:
        _check_proportions(each, height, width)
    read = {
        index: resize_nearest(reading.white(each, alpha_counts=alpha_counts), height, width)
        for index, each in zip(at, pictures, strict=True)
        if index < frames
    }
    notes += reading.notes()
    if len(pictures) == 1:
        read = dict.fromkeys(range(frames), next(iter(read.values())))
    mask = np.stack(list(_filled(path, read, frames, options.missing_masks, notes)))  # (F, H, W)
    if options.invert_mask:
        mask = ~mask
    if not mask.any():
        raise ConfigError(
            f"the mask {path} is empty: nothing in the {frames} edited frames is "
            f"{'black' if options.invert_mask else 'white'}; its values are "
            f"{_listed(sorted(reading.values))}",
            where=OPTION,
            remedy=_remedy_for_empty(options),
        )
    return Mask(pixels=mask, notes=tuple(notes))


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


# Which picture belongs to which frame


def _numbered(
    folder: Path, frames: int, total: int | None
) -> tuple[list[Path], list[int], list[str]]:
    """Find a folder's pictures, the frames that they belong to, and what was assumed of them."""
    files = sorted(
        (
            path
            for path in folder.iterdir()
            if path.suffix.lower() in PICTURES and not path.name.startswith(".")
        ),
        key=_natural,
    )
    if not files:
        raise ConfigError(f"the folder {folder} holds no pictures", where=OPTION)
    numbers = _numbers(files)
    if numbers is None:
        notes = []
        if len(files) > 1:
            notes = ["the mask's files have no numbers of their own: they are taken in order"]
        return files, list(range(len(files))), notes
    first, last = numbers[0], numbers[-1]
    if first <= 1:
        return files, [number - first for number in numbers], []
    if first >= frames:
        notes = [
            f"the mask's files are numbered from {first}: {files[0].name} is the first frame's"
        ]
        return files, [number - first for number in numbers], notes
    start = 1 if last == total else 0
    counted = (
        f"the mask's files are numbered {first} to {last}, counted from {start}: {files[0].name} is "
        f"frame {first - start} of the video, whose first is 0"
    )
    return files, [number - start for number in numbers], [counted]


def _numbers(files: Sequence[Path]) -> list[int] | None:
    """Return the number in each name that tells the files apart, ascending; None where there is none."""
    split = [re.split(r"(\d+)", file.stem) for file in files]
    if len({tuple(parts[::2]) for parts in split}) != 1:
        return None
    varying = [
        place
        for place in range(1, len(split[0]), 2)
        if len({int(parts[place]) for parts in split}) == len(files)
    ]
    if not varying:
        return None
    numbers = [int(parts[varying[-1]]) for parts in split]
    return numbers if numbers == sorted(numbers) else None


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort "2.png" before "10.png"."""
    return [
        (int(part) if part.isdecimal() else -1, part)
        for part in re.split(r"(\d+)", path.name.lower())
    ]


def _filled(
    path: Path,
    read: Mapping[int, NDArray[np.bool_]],
    frames: int,
    missing: MissingMasks,
    notes: list[str],
) -> Iterator[NDArray[np.bool_]]:
    """Give a mask (H, W) for every frame."""
    gaps = [index for index in range(frames) if index not in read]
    if gaps and missing == "error":
        count = gaps[0]
        cut = f", or --frames {count}" if count else ""
        if gaps == list(range(count, frames)):  # it ends too early
            what = (
                f"the mask {path} has {count} frames, but {frames} frames of the video are edited"
            )
        else:
            what = f"the mask {path} has no picture for frames {_listed(gaps)} of {frames}"
        raise ConfigError(
            what,
            where=OPTION,
            remedy=f"Give a mask for every frame, a single one for all{cut}, or --missing-masks empty "
            "or previous.",
        )
    if gaps:
        stands_in = "nothing is edited there" if missing == "empty" else "the one before is taken"
        notes.append(f"the mask has no picture for frames {_listed(gaps)} of {frames}: {stands_in}")
    last = np.zeros_like(next(iter(read.values())))  # (H, W)
    for index in range(frames):
        mask = read.get(index, last)
        last = mask if missing == "previous" else last
        yield mask


# Pictures


def _single(path: Path, limit: int) -> Iterator[_Picture]:
    if path.suffix.lower() in PICTURES:
        yield from _pictures(path, limit)
        return
    for frame, alpha in read_layers(path, option=OPTION, max_frames=limit):
        yield _Picture(
            name=path.name, levels=_brightest(frame), full=255, alpha=alpha, labelled=False
        )


def _pictures(path: Path, limit: int) -> list[_Picture]:
    """Read the first frames or pages of a picture, upright."""
    with opened_picture(path, where=OPTION) as image:
        drawn = image.format in LOSSLESS
        return [
            _picture(ImageOps.exif_transpose(frame), path.name, drawn=drawn)
            for frame in islice(ImageSequence.Iterator(image), limit)
        ]


def _picture(image: Image.Image, name: str, *, drawn: bool) -> _Picture:
    if image.mode == "F":
        levels = np.nan_to_num(np.asarray(image))
        scales = (full for full in (1, 255, 65535) if levels.max() <= full)
        return _Picture(name=name, levels=levels, full=next(scales, levels.max()), drawn=drawn)
    if image.mode.startswith("I"):
        return _Picture(name=name, levels=np.asarray(image), full=65535, drawn=drawn)
    alpha = None
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]  # (h, w)
    rgb = np.asarray(image.convert("RGB")).astype(np.int16)  # (h, w, 3)
    colours = bool((rgb.max(-1) - rgb.min(-1) > CHROMA).any())
    labelled = image.mode in {"L", "LA", "1"} or not colours
    levels = rgb.max(-1)  # (h, w)
    if image.mode in {"P", "PA"} and colours:
        indices = np.asarray(image if image.mode == "P" else image.getchannel(0))
        # Segmentation tools paint label 0 black; other palettes may have black anywhere, or nowhere.
        black = levels == 0
        levels = (
            np.where(black, 0, np.where(indices == 0, 256, indices)) if black.any() else indices
        )
        labelled = True
    return _Picture(
        name=name,
        levels=levels,
        full=255,
        alpha=alpha,
        colours=colours,
        drawn=drawn,
        labelled=labelled,
    )


def _brightest(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Take the brightest channel of (h, w, 3), so that a mask may be of any saturated colour."""
    return np.asarray(frame.max(axis=-1))  # (h, w)


def _flat(levels: NDArray[Any]) -> bool:
    """Whether at least ``FLAT`` of the neighbours in a row of (h, w) are equal."""
    return levels[:, 1:].size == 0 or bool((levels[:, 1:] == levels[:, :-1]).mean() >= FLAT)


def _black_and_white(picture: _Picture) -> bool:
    """Whether next to all pixels are black or white, as those of a mask and not of an object are."""
    near = (1 - WHITE) * picture.full
    grey = (picture.levels > near) & (picture.levels < picture.full - near)
    return not picture.colours and bool(grey.mean() < near / picture.full)


def _check_proportions(picture: _Picture, height: int, width: int) -> None:
    """Refuse what could only be stretched; a mask of one value has no proportions.

    Raises:
        ConfigError: The proportions are others than the video's.
    """
    tall, wide = picture.levels.shape
    off = abs(wide * height / (tall * width) - 1)
    rounding = 1 / min(tall, wide)  # a side of a small mask may be rounded by a pixel
    if off <= max(STRETCH, rounding) or (picture.levels == picture.levels.flat[0]).all():
        return
    turned = abs(tall * height / (wide * width) - 1) <= STRETCH
    raise ConfigError(
        f"the mask {picture.name} is {wide}x{tall} pixels, the video {width}x{height}: other proportions",
        where=OPTION,
        remedy="It seems to be turned by 90 degrees: turn it back."
        if turned
        else f"Crop or pad it to the proportions of {width}x{height}; any size of these will do.",
    )


def _remedy_for_empty(options: MaskConfig) -> str:
    if options.mask_label is not None:
        return "Give one of these to --mask-label."
    return "If the colours mean the opposite, " + (
        "leave out --invert-mask." if options.invert_mask else "give --invert-mask."
    )


def _listed(values: Sequence[Any] | NDArray[Any]) -> str:
    """Name a few values, numbers that are whole without a fraction."""
    words = [f"{value:g}" for value in values[:LISTED]]
    return ", ".join(words) + (f" and {len(values) - LISTED} more" if len(values) > LISTED else "")
