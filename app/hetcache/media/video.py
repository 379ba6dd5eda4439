"""Video files, read and written with PyAV."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import av
import numpy as np
from attrs import define, evolve, field, frozen
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from hetcache.media.colour import HLG, PQ, to_sdr
from hetcache.media.files import memory_bytes
from hetcache.media.pictures import LARGEST, opened_picture
from hetcache_core import ConfigError
from hetcache_core.files import replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CONTAINERS",
    "VideoClip",
    "is_odd",
    "read_image",
    "read_layers",
    "read_video",
    "write_image",
    "write_video",
]

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

MATRICES: Final[dict[int, int]] = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: 9,  # BT.2020, which PyAV names from 16 on
}
"""Matrices by their number in the stream. Source: ITU-T H.273, table 4, and FFmpeg's SWS_CS_BT2020."""

WIDE_GAMUT: Final = 9
"""Number of BT.2020 among primaries and among matrices. Source: ITU-T H.273, tables 2 and 4."""

HDR_NAMES: Final = {PQ: "HDR (PQ)", HLG: "HDR (HLG)"}

CLOCK: Final = 90_000
"""Ticks a second for frames that do not come evenly. Source: the clock of MPEG's systems."""

AUDIO_CODEC: Final = "aac"
"""What sound is written in where a container cannot hold it as it is."""

ALPHA_DECODERS: Final = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders of codecs whose alpha travels beside the picture, where FFmpeg's own leave it out."""

LIMITED_RANGE: Final = 1
"""FFmpeg's number for luma from 16 to 235."""


@frozen(eq=False, kw_only=True)
class VideoClip:
    """A decoded video.

    Attributes:
        frames: (F, H, W, 3) uint8, upright, in BT.709 SDR.
        fps: Frames a second, on average.
        total: Frames of the whole file; None if it was not read to its end and does not say.
        times: When each frame is shown, in seconds from the first; empty where they come evenly.
        aspect: Width of a pixel over its height.
        sound: The file, if it has sound, and the second of it at which the first frame is shown.
        notes: What was assumed or changed.
        colours: Colour space of the file, in words.
    """

    frames: NDArray[np.uint8] = field(repr=False)
    fps: Fraction
    total: int | None
    times: tuple[Fraction, ...] = field(default=(), repr=False)
    aspect: Fraction = Fraction(1)
    sound: tuple[Path, Fraction] | None = None
    notes: tuple[str, ...] = ()
    colours: str = "BT.709"

    def first(self, count: int) -> VideoClip:
        """Return the clip cut to its first frames."""
        return evolve(self, frames=self.frames[:count], times=self.times[:count])


def read_video(
    path: Path, *, option: str, start: int = 0, max_frames: int | None = None
) -> VideoClip:
    """Decode a video file.

    Args:
        path: The file.
        option: The command-line option that named it.
        start: Leave out so many frames.
        max_frames: Stop after this many frames.

    Raises:
        ConfigError: It is missing, unreadable or damaged, holds no video or no such frame, or more than
            memory has room for.
    """
    frames: list[NDArray[np.uint8]] = []
    shown: list[Fraction] = []
    turned, colours = False, ""
    notes: dict[str, None] = {}
    ended, passed = True, 0
    with _opened(path, option) as (container, stream):
        fps = stream.average_rate or stream.guessed_rate or DEFAULT_FPS
        declared, has_audio = stream.frames, bool(container.streams.audio)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        for frame in container.decode(stream):
            if len(frames) == max_frames:
                ended = False
                break
            if passed < start:
                passed += 1
                continue
            if frame.pts is not None and frame.time_base is not None:
                shown.append(frame.pts * frame.time_base)
            notes.update(dict.fromkeys(f"{path.name} {text}" for text in _notes(frame)))
            frames.append(_upright(frame, "rgb24"))
            if len(frames) == 1:
                _check_memory(path, frames[0].nbytes, max_frames or declared, option)
            turned, colours = _turn(frame)[0], _colours(frame)
    if passed and not frames:
        raise ConfigError(
            f"{path} has {passed} frames, and none from {start} on", where="--start", given=start
        )
    if not frames:
        raise ConfigError(f"{path} has a video stream without any frame", where=option)
    if any(frame.shape != frames[0].shape for frame in frames):
        raise ConfigError(f"{path} changes its size on the way", where=option)
    return VideoClip(
        frames=np.stack(frames),  # (F, H, W, 3)
        fps=fps,
        total=passed + len(frames) if ended else declared or None,
        times=_uneven(shown, fps) if len(shown) == len(frames) else (),
        aspect=1 / aspect if turned else aspect,
        sound=(path, shown[0] if shown else Fraction(0)) if has_audio else None,
        notes=tuple(notes),
        colours=colours,
    )


def read_image(path: Path, *, option: str) -> VideoClip:
    """Read a picture as a clip of one frame, upright and without its alpha.

    Args:
        path: The file.
        option: The command-line option that named it.

    Raises:
        ConfigError: It is missing, too large or damaged.
    """
    with opened_picture(path, where=option) as picture:
        upright = ImageOps.exif_transpose(picture)
        frames = np.asarray(upright.convert("RGB"))[None].copy()  # (1, H, W, 3)
    return VideoClip(frames=frames, fps=DEFAULT_FPS, total=1)


def write_image(path: Path, frames: NDArray[np.uint8], *, comment: str = "") -> None:
    """Write the first frame as a PNG; the file appears whole or not at all.

    Args:
        path: The file.
        frames: (F, H, W, 3) uint8.
        comment: Goes into the file's metadata.
    """
    said = PngInfo()
    said.add_text("Comment", comment)
    with replacing(path) as part:
        Image.fromarray(frames[0]).save(part, format="PNG", pnginfo=said)


def _colours(frame: av.VideoFrame) -> str:
    """Name the colour space that a frame is taken for."""
    if frame.color_trc in HDR_NAMES:
        return HDR_NAMES[frame.color_trc]
    if WIDE_GAMUT in {frame.color_primaries, frame.colorspace}:
        return "BT.2020"
    return "BT.709" if _matrix(frame) == Colorspace.ITU709 else "BT.601"


def _matrix(frame: av.VideoFrame) -> int:
    """Tell the matrix from the frame's tag, or from its size as players do."""
    untagged = COLORS_709 if frame.height >= HD_HEIGHT else COLORS_601
    return MATRICES.get(frame.colorspace, untagged[0])


def _check_memory(path: Path, frame_bytes: int, count: int, option: str) -> None:
    """Refuse what would fill memory: the frames, their mask, and what is made of them."""
    needed, there = 3 * frame_bytes * count, memory_bytes()
    if needed > there // 2:
        fitting = there // 2 // (3 * frame_bytes)
        raise ConfigError(
            f"{count} frames of {path} take {needed / 2**30:.1f} GiB of memory, and the machine has "
            f"{there / 2**30:.1f}",
            where=option,
            remedy=f"Edit the clip in parts: --frames {fitting}, then --start {fitting}.",
        )


def _uneven(shown: Sequence[Fraction], fps: Fraction) -> tuple[Fraction, ...]:
    """Return when frames are shown, from the first; nothing if as evenly as the rate says."""
    times = tuple(time - shown[0] for time in shown)
    off = max(abs(time - index / fps) for index, time in enumerate(times))
    return times if off > 1 / (2 * fps) else ()


def _notes(frame: av.VideoFrame) -> Iterator[str]:
    """Say what of a frame is not shown as it is."""
    if frame.color_trc in HDR_NAMES:
        yield f"is {HDR_NAMES[frame.color_trc]}: it is tone-mapped to SDR, and written as that"
    elif frame.color_primaries == WIDE_GAMUT:
        yield "has the wide gamut of BT.2020: it is brought to BT.709, and written as that"
    if frame.interlaced_frame:
        yield "is interlaced: its lines are edited as they are; deinterlace it first for a better result"


def read_layers(
    path: Path, *, option: str, max_frames: int
) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8] | None]]:
    """Decode the colours and the opacity of a video file.

    Args:
        path: The file.
        option: The command-line option that named it.
        max_frames: Stop after this many frames.

    Returns:
        For each frame (H, W, 3) uint8 colours, and (H, W) uint8 opacity or None.

    Raises:
        ConfigError: It is missing, unreadable or damaged, or holds no video or no frame.
    """
    with _opened(path, option) as (container, stream):
        frames = container.decode(stream)
        tags = {name.lower(): value for name, value in stream.metadata.items()}
        if tags.get("alpha_mode") == "1" and stream.name in ALPHA_DECODERS:
            frames = _decoded_with_alpha(container, stream)
        layers = [_layers(frame) for frame in islice(frames, max_frames)]
    if not layers:
        raise ConfigError(f"{path} has a video stream without any frame", where=option)
    return layers


@contextmanager
def _opened(path: Path, option: str) -> Iterator[tuple[Any, Any]]:
    """Open a file and its first video stream, and name the file in what goes wrong while it is read."""
    try:
        # The protocol is named, so that no file name is taken for another protocol of FFmpeg.
        with av.open(f"file:{path}") as container:
            if not container.streams.video:
                raise ConfigError(f"{path} has no video stream", where=option)
            stream: Any = container.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > LARGEST:
                raise ConfigError(
                    f"{path} has frames of {width} x {height} pixels, and {LARGEST:,} are the most that "
                    "are read",
                    where=option,
                )
            yield container, stream
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{path} cannot be read: {reason}", where=option) from error
    except av.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{path} is no video that can be read: {reason}", where=option) from error


def _decoded_with_alpha(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
    decoder: Any = av.CodecContext.create(ALPHA_DECODERS[stream.name], "r")
    decoder.extradata = stream.codec_context.extradata
    for packet in container.demux(stream):
        yield from decoder.decode(packet if packet.size else None)


def _layers(frame: av.VideoFrame) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    if not any(component.is_alpha for component in frame.format.components):
        return _upright(frame, "rgb24"), None
    rgba = _upright(frame, "rgba")
    return rgba[..., :3], rgba[..., 3]


def _upright(frame: av.VideoFrame, pixels: str) -> NDArray[np.uint8]:
    """Convert a decoded frame to RGB or RGBA, as its colours and its display matrix say."""
    wide = frame.color_primaries == WIDE_GAMUT
    deep = pixels == "rgb24" and (wide or frame.color_trc in HDR_NAMES)
    # Before PyAV 16, the matrix is looked at only where a range is named as well.
    rgb: Any = frame.reformat(
        format="rgb48le" if deep else pixels,
        src_colorspace=_matrix(frame),
        dst_color_range=ColorRange.JPEG,
    ).to_ndarray()
    if deep:
        rgb = to_sdr(rgb, transfer=frame.color_trc, wide=wide)
    swap, mirror, flip = _turn(frame)
    turned = rgb.transpose(1, 0, 2) if swap else rgb  # (H, W, 3 or 4)
    turned = turned[:: -1 if flip else 1, :: -1 if mirror else 1]
    return np.ascontiguousarray(turned, dtype=np.uint8)


def _turn(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Read a display matrix: do rows become columns, and are then left and right, top and bottom swapped?

    A matrix (a b u, c d v, x y w) shows the pixel (x, y) at (a x + c y, b x + d y). Source: ISO 14496-12,
    section 8.3.2.
    """
    side_data: Any = frame.side_data
    data = side_data.get(SideData.DISPLAYMATRIX)
    if data is None:
        return False, False, False
    a, b, _, c, d = struct.unpack_from("=5i", bytes(data))
    swap = abs(b) > abs(a)
    right, down = (c, b) if swap else (a, d)
    return swap, right < 0, down < 0


def is_odd(height: int, width: int) -> bool:
    """Whether a size has an odd side, which 4:2:0 video cannot have."""
    return bool(height % 2 or width % 2)


def write_video(
    path: Path,
    frames: NDArray[np.uint8],
    fps: Fraction,
    *,
    times: Sequence[Fraction] = (),
    aspect: Fraction = Fraction(1),
    sound: tuple[Path, Fraction] | None = None,
    comment: str = "",
) -> None:
    """Encode frames as H.264; the file appears whole or not at all.

    Pictures with an odd side are written with full colour resolution (4:4:4), which keeps their
    size but is not shown by every player.

    Args:
        path: The file; its suffix is one of ``CONTAINERS``.
        frames: (F, H, W, 3) uint8.
        fps: Frames a second.
        times: When each frame is shown, in seconds from the first; empty where they come evenly.
        aspect: Width of a pixel over its height.
        sound: A file whose sound is copied for as long as the frames last, and the second of it at which
            the first frame is shown.
        comment: Goes into the file's metadata.

    Raises:
        ConfigError: The file cannot be written, or the encoder refuses.
    """
    container_format = CONTAINERS[path.suffix.lower()]
    try:
        with (
            replacing(path) as part,
            av.open(f"file:{part}", "w", format=container_format) as container,
            contextlib.ExitStack() as stack,
        ):
            container.metadata["comment"] = comment
            picture = _picture_stream(container, frames.shape, fps, aspect, uneven=bool(times))
            track = None
            if sound is not None:
                source = stack.enter_context(av.open(f"file:{sound[0]}"))
                track = _Track(container, source.streams.audio[0], sound[1])
            for packet in _encoded(picture, frames, fps, times):
                container.mux(packet)
            if track is not None:
                end = times[-1] + 1 / fps if times else len(frames) / fps
                for packet in track.packets(end):
                    container.mux(packet)
    except av.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{path} cannot be encoded: {reason}") from error


@define(eq=False)
class _Track:
    """The sound of a file: copied where the container can hold it, else encoded anew."""

    container: Any
    source: Any
    start: Fraction
    _out: Any = field(init=False)
    _copied: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        name = self.source.codec_context.codec.canonical_name
        self._copied = name in self.container.supported_codecs
        if self._copied:
            self._out = self.container.add_stream_from_template(self.source)
        else:
            self._out = self.container.add_stream(AUDIO_CODEC, rate=self.source.rate)

    def packets(self, end: Fraction) -> Iterator[Any]:
        """Give the packets from the first frame on, up to ``end`` seconds after it."""
        source, base = self.source, self.source.time_base
        first = round(self.start / base)
        for packet in source.container.demux(source):
            if packet.pts is None or packet.pts < first:
                continue
            if (packet.pts - first) * base >= end:
                break
            if self._copied:
                packet.pts -= first
                packet.dts = packet.pts
                packet.stream = self._out
                yield packet
            else:
                for frame in packet.decode():
                    frame.pts -= first
                    yield from self._out.encode(frame)
        if not self._copied:
            yield from self._out.encode(None)


def _picture_stream(
    container: Any, shape: tuple[int, ...], fps: Fraction, aspect: Fraction, *, uneven: bool
) -> Any:
    _, height, width, _ = shape
    _, number = COLORS_709 if height >= HD_HEIGHT else COLORS_601
    stream = container.add_stream(CODEC, rate=fps, options={"crf": CRF})
    stream.width, stream.height = width, height
    stream.pix_fmt = "yuv444p" if is_odd(height, width) else "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = number
    context.color_range = LIMITED_RANGE
    context.sample_aspect_ratio = aspect
    if uneven:
        context.time_base = stream.time_base = Fraction(1, CLOCK)
    return stream


def _encoded(
    stream: Any, frames: NDArray[np.uint8], fps: Fraction, times: Sequence[Fraction]
) -> Iterator[Any]:
    matrix, _ = COLORS_709 if stream.height >= HD_HEIGHT else COLORS_601
    for index, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
            format=stream.pix_fmt, dst_colorspace=matrix, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base = index, 1 / fps
        if times:
            frame.pts, frame.time_base = round(times[index] * CLOCK), Fraction(1, CLOCK)
        yield from stream.encode(frame)
    yield from stream.encode()
