"""Video files, read and written with PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import av
import numpy as np
from attrs import field, frozen
from av.video.reformatter import ColorRange, Colorspace

from hetcache.media.files import replacing
from hetcache_core import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CONTAINERS", "VideoClip", "check_suffix", "is_odd", "read_video", "write_video"]

CONTAINERS: Final = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Containers that are written, by suffix; all of them hold H.264."""

CODEC: Final = "libx264"
CRF: Final = "18"
"""Quality of what is written. Source: FFmpeg's H.264 guide calls 17 to 18 visually lossless."""

DEFAULT_FPS: Final = Fraction(25)
"""For what has no rate, such as a single picture. Source: FFmpeg's own default for pictures."""

HD_HEIGHT: Final = 720
"""Untagged video is taken for BT.709 from this height on, as players do, and below for BT.601."""

COLORS_709: Final = (Colorspace.ITU709, 1)
COLORS_601: Final = (Colorspace.ITU601, 6)
"""The matrix for the conversion from RGB, and its number in the stream. Source: ITU-T H.273."""

MATRICES: Final = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
}
"""Matrices by their number in the stream. Source: ITU-T H.273, table 4."""

LIMITED_RANGE: Final = 1
"""FFmpeg's number for luma from 16 to 235."""


@frozen(eq=False, kw_only=True)
class VideoClip:
    """A decoded video.

    Attributes:
        frames: (F, H, W, 3) uint8, upright.
        fps: Frames a second.
        total: Frames of the whole file; None if it was not read to its end and does not say.
        has_audio: Whether the file has sound.
    """

    frames: NDArray[np.uint8] = field(repr=False)
    fps: Fraction
    total: int | None
    has_audio: bool = False


def read_video(path: Path, *, option: str, max_frames: int | None = None) -> VideoClip:
    """Decode a video file.

    Args:
        path: The file.
        option: The command-line option that named it.
        max_frames: Stop after this many frames.

    Raises:
        ConfigError: It is missing, unreadable or damaged, or holds no video or no frame.
    """
    frames: list[NDArray[np.uint8]] = []
    ended = True
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ConfigError(f"{path} has no video stream", where=option)
            stream = container.streams.video[0]
            fps = stream.average_rate or stream.guessed_rate or DEFAULT_FPS
            declared, has_audio = stream.frames, bool(container.streams.audio)
            for frame in container.decode(stream):
                if len(frames) == max_frames:
                    ended = False
                    break
                frames.append(_upright_rgb(frame))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{path} cannot be read: {reason}", where=option) from error
    except av.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{path} is no video that can be read: {reason}", where=option) from error
    if not frames:
        raise ConfigError(f"{path} has a video stream without any frame", where=option)
    if any(frame.shape != frames[0].shape for frame in frames):
        raise ConfigError(f"{path} changes its size on the way", where=option)
    return VideoClip(
        frames=np.stack(frames),  # (F, H, W, 3)
        fps=fps,
        total=len(frames) if ended else declared or None,
        has_audio=has_audio,
    )


def _upright_rgb(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """Convert a decoded frame to RGB, turned as its display matrix says."""
    untagged, _ = COLORS_709 if frame.height >= HD_HEIGHT else COLORS_601
    matrix = MATRICES.get(frame.colorspace, untagged)
    # Before PyAV 16, the matrix is looked at only where a range is named as well.
    rgb = frame.reformat(
        format="rgb24", src_colorspace=matrix, dst_color_range=ColorRange.JPEG
    ).to_ndarray()
    turned = np.rot90(rgb, round(frame.rotation / 90))  # (H, W, 3)
    return np.ascontiguousarray(turned, dtype=np.uint8)


def check_suffix(path: Path, *, option: str) -> None:
    """Make sure that a video can be written under a name.

    Args:
        path: The file to be written.
        option: The command-line option that named it.

    Raises:
        ConfigError: Its suffix stands for no container that is written.
    """
    if path.suffix.lower() not in CONTAINERS:
        raise ConfigError(
            f"cannot write a video called {path.name!r}",
            where=option,
            remedy=f"Let its name end in one of {', '.join(CONTAINERS)}.",
            allowed=CONTAINERS,
        )


def is_odd(height: int, width: int) -> bool:
    """Whether a size has an odd side, which 4:2:0 video cannot have."""
    return bool(height % 2 or width % 2)


def write_video(path: Path, frames: NDArray[np.uint8], fps: Fraction, *, comment: str = "") -> None:
    """Encode frames as H.264; the file appears whole or not at all.

    Pictures with an odd side are written with full colour resolution (4:4:4), which keeps their
    size but is not shown by every player.

    Args:
        path: The file; its suffix is one of ``CONTAINERS``.
        frames: (F, H, W, 3) uint8.
        fps: Frames a second.
        comment: Goes into the file's metadata.

    Raises:
        ConfigError: The file cannot be written, or the encoder refuses.
    """
    container_format = CONTAINERS[path.suffix.lower()]
    try:
        with (
            replacing(path) as part,
            av.open(str(part), "w", format=container_format) as container,
        ):
            container.metadata["comment"] = comment
            for packet in _encoded(container, frames, fps):
                container.mux(packet)
    except av.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{path} cannot be encoded: {reason}") from error


def _encoded(container: Any, frames: NDArray[np.uint8], fps: Fraction) -> Iterator[Any]:
    _, height, width, _ = frames.shape
    matrix, number = COLORS_709 if height >= HD_HEIGHT else COLORS_601
    stream = container.add_stream(CODEC, rate=fps, options={"crf": CRF})
    stream.width, stream.height = width, height
    stream.pix_fmt = "yuv444p" if is_odd(height, width) else "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = number
    context.color_range = LIMITED_RANGE
    for index, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
            format=stream.pix_fmt, dst_colorspace=matrix, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base = index, 1 / fps
        yield from stream.encode(frame)
    yield from stream.encode()
