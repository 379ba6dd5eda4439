"""How pictures and videos are to be read: options that commands share. Imports no media library."""

from __future__ import annotations

from typing import Final, Literal, final

from attrs import frozen

from hetcache_core import setting

__all__ = ["PICTURES", "PICTURE_SUFFIX", "VIDEO_SUFFIXES", "MaskConfig", "MissingMasks"]

PICTURES: Final = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""How the names of pictures end that are read."""

VIDEO_SUFFIXES: Final = (".mp4", ".m4v", ".mov", ".mkv")
"""How the names of videos that are written end."""

PICTURE_SUFFIX: Final = ".png"
"""How the name of an edited picture ends, which loses nothing."""

MissingMasks = Literal["error", "empty", "previous"]
"""What stands in for the frames of a folder that have no picture."""


@final
@frozen(kw_only=True)
class MaskConfig:
    """How masks are to be read."""

    invert_mask: bool = setting(default=False, doc="black is edited instead of white")
    mask_label: int | None = setting(
        None, ge=0, doc="edit only where the mask has this value, or this index of a palette"
    )
    missing_masks: MissingMasks = setting(
        "error",
        doc="what frames get that a folder of masks has no picture for: nothing (empty), the mask before",
    )
