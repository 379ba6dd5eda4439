"""A clip that was read, and frames as bytes: what travels between a comparison and its workers."""

from __future__ import annotations

import hashlib
import io
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from hetcache.media.arrays import member_of
from hetcache_core import EvaluationClip

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Footage", "frames_from_bytes", "frames_to_bytes", "video_to_bytes"]


@frozen(eq=False, kw_only=True)
class Footage:
    """A clip, read at the size that models work at.

    Attributes:
        clip: Frames, mask, prompt, and the right answer where it is known.
        fps: Frames a second.
    """

    clip: EvaluationClip
    fps: Fraction

    @property
    def digest(self) -> str:
        """Says whether two clips are the same, pixel by pixel."""
        total = hashlib.sha256(f"{self.clip.prompt} {self.clip.video.shape}".encode())
        for pixels in (self.clip.video, self.clip.mask, self.clip.truth):
            if pixels is not None:
                total.update(np.ascontiguousarray(pixels).tobytes())
        return total.hexdigest()


def frames_from_bytes(data: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read (F, H, W, 3) uint8 frames of a known shape from the bytes of an NPZ.

    Raises:
        ValueError: They hold something else.
    """
    frames: NDArray[np.uint8] = member_of(data, "frames", shape, np.uint8)
    return frames


def frames_to_bytes(frames: NDArray[np.uint8]) -> bytes:
    """Write (F, H, W, 3) uint8 frames exactly, as an NPZ."""
    file = io.BytesIO()
    np.savez_compressed(file, frames=frames)
    return file.getvalue()


def video_to_bytes(frames: NDArray[np.uint8], footage: Footage) -> bytes:
    """Encode (F, H, W, 3) uint8 frames as an MP4 at the rate of a clip."""
    from hetcache.media.video import write_video

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, frames, footage.fps)
        return path.read_bytes()
