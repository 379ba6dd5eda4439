"""Pictures in files, opened only where they are no larger than pictures are."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from PIL import Image

from hetcache_core import ConfigError

__all__ = ["LARGEST", "opened_picture"]

LARGEST: Final = 1 << 26
"""Most pixels of a picture or of a video's frame: twice those of 8K."""

DAMAGE: Final = (
    OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, EOFError, OverflowError, MemoryError,
    NotImplementedError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises for damaged files."""


@contextmanager
def opened_picture(
    path: Path, *, where: str = "", remedy: str = "", most: int = LARGEST
) -> Iterator[Image.Image]:
    """Open a picture for as long as the block lasts; its pixels are not read yet.

    Args:
        path: The file.
        where: What it is for, for messages.
        remedy: What to do where it cannot be read.
        most: Most pixels that it may have.

    Raises:
        ConfigError: It is missing, too large or damaged; also where that is found inside the block.
    """
    usual, Image.MAX_IMAGE_PIXELS = (
        Image.MAX_IMAGE_PIXELS,
        None,
    )  # it would warn, and only above 2**27
    try:
        with Image.open(path) as image:
            if image.width * image.height > most:
                raise ConfigError(
                    f"{path} has {image.width} x {image.height} pixels, and {most:,} are the most that "
                    "are read",
                    where=where,
                    remedy=remedy,
                )
            yield image
    except DAMAGE as error:
        reason = "not found" if isinstance(error, FileNotFoundError) else "no readable picture"
        raise ConfigError(f"{path}: {reason}", where=where, remedy=remedy) from error
    finally:
        Image.MAX_IMAGE_PIXELS = usual
