"""Video files as PyAV reads and writes them; every file here is a real one."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import pytest

from hetcache_core.errors import ConfigError
from hetcache_core.files import replacing, write_text

pytest.importorskip("av")
pytest.importorskip("resource")

import resource

import av
import numpy as np

from hetcache.media.files import check_folder, check_writable
from hetcache.media.options import VIDEO_SUFFIXES
from hetcache.media.video import CONTAINERS, read_layers, read_video, write_video

RATE = Fraction(30000, 1001)
VISUALLY_LOSSLESS = 2.5
"""Mean error, of 255, that 8-bit 4:2:0 at the writer's quality stays under on smooth pictures."""


def smooth(frames: int = 6, height: int = 64, width: int = 96) -> np.ndarray:
    """Pictures with a different colour in every corner, moving slowly."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack(
        [
            np.stack(
                [columns * 200 // width + i, rows * 200 // height, 200 - columns * 150 // width],
                axis=-1,
            )
            for i in range(frames)
        ]
    ).astype(np.uint8)


def error_of(read: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(read.astype(int) - wanted).mean())


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the system refuse to make any file larger, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_what_is_written_is_read_again_with_its_rate(tmp_path: Path, suffix: str) -> None:
    path, frames = tmp_path / f"clip{suffix}", smooth()
    write_video(path, frames, RATE)
    clip = read_video(path, option="--video")
    assert clip.fps == RATE
    assert clip.total == len(frames)
    assert clip.frames.dtype == np.uint8
    assert error_of(clip.frames, frames) < VISUALLY_LOSSLESS


@pytest.mark.parametrize("size", [(63, 96), (64, 95), (71, 101)])
def test_odd_sizes_are_kept(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = smooth(3, *size)
    write_video(tmp_path / "odd.mp4", frames, Fraction(25))
    clip = read_video(tmp_path / "odd.mp4", option="--video")
    assert clip.frames.shape == frames.shape
    assert error_of(clip.frames, frames) < VISUALLY_LOSSLESS


def test_large_videos_keep_their_colours_and_say_their_matrix(tmp_path: Path) -> None:
    """From 720 lines on, players take a video for BT.709; BT.601 would turn red to orange."""
    frames = np.zeros((2, 720, 64, 3), np.uint8)
    frames[:] = (20, 200, 40)
    write_video(tmp_path / "large.mp4", frames, Fraction(25))
    clip = read_video(tmp_path / "large.mp4", option="--video")
    assert error_of(clip.frames, frames) < VISUALLY_LOSSLESS
    with av.open(str(tmp_path / "large.mp4")) as container:
        assert container.streams.video[0].codec_context.colorspace == 1


def test_a_phones_video_is_turned_upright(tmp_path: Path) -> None:
    """The display matrix in the file's header says: turn by 90 degrees, clockwise."""
    path, frames = tmp_path / "phone.mp4", smooth()
    write_video(path, frames, Fraction(25))
    content = bytearray(path.read_bytes())
    matrix = content.find(b"tkhd") + 44  # version, flags, times, ids, layer, volume come before
    one, tiny_one = 1 << 16, 1 << 30
    assert struct.unpack_from(">9i", content, matrix) == (one, 0, 0, 0, one, 0, 0, 0, tiny_one)
    struct.pack_into(">9i", content, matrix, 0, one, 0, -one, 0, 0, 0, 0, tiny_one)
    path.write_bytes(content)
    clip = read_video(path, option="--video")
    assert error_of(clip.frames, np.rot90(frames, -1, axes=(1, 2))) < VISUALLY_LOSSLESS


def test_reading_stops_at_the_wanted_frames_but_knows_how_many_there_are(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", smooth(9), RATE)
    clip = read_video(tmp_path / "clip.mp4", option="--video", max_frames=4)
    assert len(clip.frames) == 4
    assert clip.total == 9


def test_a_comment_goes_into_the_file(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", smooth(), RATE, comment="made by a test")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.metadata["comment"] == "made by a test"


def write_bad_files(folder: Path) -> None:
    write_video(folder / "whole.mp4", smooth(), RATE)
    whole = (folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "noise.mp4").write_bytes(random.Random(0).randbytes(4000))
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video " * 50)
    with av.open(str(folder / "frameless.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    with av.open(str(folder / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.mp4", "No such file"),
        (".", "Is a directory"),
        ("cut.mp4", "no video that can be read"),
        ("noise.mp4", "no video that can be read"),
        ("empty.mp4", "no video that can be read"),
        ("text.mp4", "no video that can be read"),
        ("frameless.avi", "without any frame"),
        ("sound.wav", "no video stream"),
    ],
)
def test_a_file_that_is_no_video_is_named_with_what_is_wrong(
    tmp_path: Path, name: str, said: str
) -> None:
    write_bad_files(tmp_path)
    with pytest.raises(ConfigError, match=said) as raised:
        read_video(tmp_path / name, option="--video")
    assert raised.value.where == "--video"
    assert str(tmp_path / name) in str(raised.value)


@pytest.mark.parametrize("limit", [0, 3000, 20000])
def test_a_disk_that_fills_up_leaves_no_partial_file(tmp_path: Path, limit: int) -> None:
    """The limits strike at the header, in the middle, and when the encoder is flushed."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3), dtype=np.uint8)
    with file_size_limit(limit), pytest.raises(ConfigError, match="File too large"):
        write_video(tmp_path / "clip.mp4", noise, RATE)
    assert not list(tmp_path.iterdir())


def test_a_full_file_system_leaves_the_old_file_alone(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    try:
        (disk / "clip.mp4").write_bytes(b"old")
        noise = np.random.default_rng(0).integers(0, 256, (9, 128, 128, 3), dtype=np.uint8)
        with pytest.raises(ConfigError, match="No space left on device"):
            write_video(disk / "clip.mp4", noise, RATE)
        assert [path.name for path in disk.iterdir()] == ["clip.mp4"]
        assert (disk / "clip.mp4").read_bytes() == b"old"
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_an_encoder_that_refuses_leaves_no_partial_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be encoded"):
        write_video(tmp_path / "clip.mp4", np.zeros((1, 2, 20000, 3), np.uint8), RATE)
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_no_partial_file(tmp_path: Path) -> None:
    def interrupted() -> None:
        with replacing(tmp_path / "clip.mp4") as part:
            part.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_every_suffix_that_an_option_takes_can_be_written() -> None:
    assert set(VIDEO_SUFFIXES) == set(CONTAINERS)


def test_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "summary.json", "{}")
    finally:
        os.umask(old)
    assert (tmp_path / "summary.json").stat().st_mode & 0o777 == 0o640


def unwritable(tmp_path: Path) -> Path:
    """A folder that nobody can write to; root may write everywhere but in /proc."""
    if os.geteuid() == 0:
        return Path("/proc")
    (tmp_path / "locked").mkdir(mode=0o500)
    return tmp_path / "locked"


def test_a_folder_is_checked_before_anything_is_computed(tmp_path: Path) -> None:
    check_writable(tmp_path / "out.mp4", option="--output")
    check_folder(tmp_path / "new" / "folder", option="--output")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="does not exist"):
        check_writable(tmp_path / "new" / "out.mp4", option="--output")
    with pytest.raises(ConfigError, match="is a folder"):
        check_writable(tmp_path, option="--output")
    with pytest.raises(ConfigError, match="cannot write into"):
        check_writable(unwritable(tmp_path) / "out.mp4", option="--output")
    with pytest.raises(ConfigError, match="cannot write into"):
        check_folder(unwritable(tmp_path) / "demo", option="--output")
    with pytest.raises(ConfigError, match="is a file"):
        check_folder(tmp_path / "file" / "demo", option="--output")


# Videos as people have them


def write_coloured(
    path: Path, pixels: np.ndarray, *, pix_fmt: str, matrix: int, primaries: int, transfer: int
) -> None:
    """Write RGB (H, W, 3) of 16 bits as a lossless video that says what its colours mean."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, _ = pixels.shape
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = matrix, primaries, transfer
        context.color_range = 1
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb48le").reformat(
            format=pix_fmt, dst_colorspace=matrix, dst_color_range=1
        )
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def pq(nits: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084, equation 5.2, as 16-bit code values."""
    y = np.asarray(nits / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375 * 65535


def patches(values: list[tuple[float, float, float]]) -> np.ndarray:
    return np.repeat(np.repeat(np.array(values)[None], 32, 0), 32, 1)  # (32, 32 * n, 3)


def centres(picture: np.ndarray) -> np.ndarray:
    return picture[16, 16::32].astype(int)


def test_wide_gamut_is_brought_to_that_of_screens(tmp_path: Path) -> None:
    """Colours of BT.709, written as BT.2020, come back as they were; BT.601's matrix is off by 20."""
    to_2020 = np.array(
        [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
    )
    wanted = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200), (128, 128, 128)])
    light = (wanted / 255) ** 2.4 @ to_2020.T
    pixels = patches((light ** (1 / 2.4) * 65535).tolist()).astype(np.uint16)
    path = tmp_path / "wide.mkv"
    write_coloured(path, pixels, pix_fmt="yuv444p10le", matrix=9, primaries=9, transfer=14)
    clip = read_video(path, option="--video")
    assert np.abs(centres(clip.frames[0]) - wanted).max() <= 3
    assert "wide.mkv has the wide gamut of BT.2020" in clip.notes[0]
    assert clip.colours == "BT.2020"


def test_hdr_is_tone_mapped(tmp_path: Path) -> None:
    """Greys below diffuse white keep their luminance; above, brighter stays brighter, and nothing clips."""
    nits = np.array([10.0, 50, 100, 203, 400, 1000, 4000])
    pixels = patches([(value,) * 3 for value in pq(nits).tolist()]).astype(np.uint16)
    path = tmp_path / "hdr.mkv"
    write_coloured(path, pixels, pix_fmt="yuv444p10le", matrix=9, primaries=9, transfer=16)
    clip = read_video(path, option="--video")
    found = centres(clip.frames[0])
    assert np.ptp(found, axis=1).max() <= 2  # grey stays grey
    below = nits <= 0.75 * 203
    assert np.abs(found[below, 0] - 255 * (nits[below] / 203) ** (1 / 2.4)).max() <= 3
    assert (np.diff(found[:, 0]) > 0).all()
    assert "HDR (PQ): it is tone-mapped" in clip.notes[0]


def test_hlg_is_tone_mapped(tmp_path: Path) -> None:
    """75 % of the signal is diffuse white: 203 cd/m2 on a display of 1000. Source: ITU-R BT.2408."""
    pixels = patches([(65535 * level,) * 3 for level in (0.3, 0.75, 1.0)]).astype(np.uint16)
    path = tmp_path / "hlg.mkv"
    write_coloured(path, pixels, pix_fmt="yuv444p10le", matrix=9, primaries=9, transfer=18)
    dark, white, peak = centres(read_video(path, option="--video").frames[0])[:, 0]
    assert dark < 110
    assert 220 < white < 245 < peak


def write_timed(path: Path, frames: np.ndarray, ticks: list[int]) -> None:
    """Write frames that are shown at multiples of 1/1000 of a second."""
    write_video(path, frames, Fraction(25), times=[Fraction(tick, 1000) for tick in ticks])


def test_frames_that_do_not_come_evenly_keep_their_times(tmp_path: Path) -> None:
    ticks = [0, 40, 80, 300, 340, 700]
    write_timed(tmp_path / "phone.mp4", smooth(6), ticks)
    clip = read_video(tmp_path / "phone.mp4", option="--video")
    assert clip.times == tuple(Fraction(tick, 1000) for tick in ticks)
    write_video(tmp_path / "out.mp4", clip.frames, clip.fps, times=clip.times)
    assert read_video(tmp_path / "out.mp4", option="--video").times == clip.times
    assert clip.first(2).times == clip.times[:2]


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_even_frames_have_no_times_of_their_own(tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / f"clip{suffix}", smooth(60), RATE)
    assert read_video(tmp_path / f"clip{suffix}", option="--video").times == ()


def test_pixels_that_are_not_square_stay_so(tmp_path: Path) -> None:
    write_video(tmp_path / "dv.mp4", smooth(), Fraction(25), aspect=Fraction(16, 15))
    clip = read_video(tmp_path / "dv.mp4", option="--video")
    assert clip.aspect == Fraction(16, 15)
    assert clip.frames.shape[1:3] == (64, 96)


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((-1, 0, 0, 1), lambda f: f[:, :, ::-1]),
        ((1, 0, 0, -1), lambda f: f[:, ::-1]),
        ((-1, 0, 0, -1), lambda f: f[:, ::-1, ::-1]),
        ((0, 1, -1, 0), lambda f: np.rot90(f, -1, axes=(1, 2))),
        ((0, -1, 1, 0), lambda f: np.rot90(f, 1, axes=(1, 2))),
        ((0, 1, 1, 0), lambda f: f.transpose(0, 2, 1, 3)),
    ],
)
def test_display_matrices_are_followed_mirrored_ones_too(
    tmp_path: Path, matrix: tuple[int, ...], shown: Callable[[np.ndarray], np.ndarray]
) -> None:
    path, frames = tmp_path / "phone.mp4", smooth()
    write_video(path, frames, Fraction(25))
    content = bytearray(path.read_bytes())
    place = content.find(b"tkhd") + 44  # version, flags, times, ids, layer, volume come before
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", content, place, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    clip = read_video(path, option="--video")
    assert error_of(clip.frames, shown(frames)) < VISUALLY_LOSSLESS


def test_interlaced_video_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "tape.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"flags": "+ildct+ilme"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for pixels in smooth():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    clip = read_video(path, option="--video")
    assert [text for text in clip.notes if "tape.mkv is interlaced" in text]


def write_with_sound(path: Path, frames: int, codec: str, start: Fraction = Fraction(0)) -> None:
    """Write a video whose tone of 440 Hz begins, loud, with its first frame."""
    rate = 48_000
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=25)
        picture.width, picture.height, picture.pix_fmt = 96, 64, "yuv420p"
        track = container.add_stream(codec, rate=rate, layout="mono")
        for index, pixels in enumerate(smooth(frames)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index + round(start * 25), Fraction(1, 25)
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        seconds = np.arange(rate * frames // 25) / rate
        tone = (np.sin(2 * np.pi * 440 * seconds) * 20_000).astype(np.int16)
        sound = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = rate, round(start * rate), Fraction(1, rate)
        resampled = av.AudioResampler(format=track.format, rate=rate).resample(sound)
        for part in resampled:
            container.mux(track.encode(part))
        container.mux(track.encode())


def sound_of(path: Path) -> tuple[str, float, float]:
    """Codec, seconds and loudest half second's mean magnitude of a file's sound."""
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        name, rate = track.codec_context.name, track.rate
        samples = [frame.to_ndarray().astype(float).mean(0) for frame in container.decode(track)]
        whole = np.concatenate(samples)
    return name, len(whole) / rate, float(np.abs(whole).mean() / np.abs(whole).max())


@pytest.mark.parametrize(
    ("source", "codec", "suffix", "written"),
    [
        ("clip.mp4", "aac", ".mp4", "aac"),
        ("clip.mkv", "flac", ".mp4", "flac"),
        ("clip.mkv", "libopus", ".mkv", "opus"),
        ("clip.mkv", "wavpack", ".mp4", "aac"),
    ],
)
def test_sound_is_kept_as_long_as_the_frames(
    tmp_path: Path, source: str, codec: str, suffix: str, written: str
) -> None:
    write_with_sound(tmp_path / source, 50, codec)
    clip = read_video(tmp_path / source, option="--video", max_frames=25)
    assert clip.sound == (tmp_path / source, Fraction(0))
    out = tmp_path / f"out{suffix}"
    write_video(out, clip.frames, clip.fps, sound=clip.sound)
    name, seconds, mean = sound_of(out)
    assert name == written
    assert seconds == pytest.approx(1, abs=0.1)  # packets are not cut: one is up to 4096 samples
    assert mean == pytest.approx(2 / np.pi, abs=0.1)  # of a sine: it is there from start to end
    assert read_video(out, option="--video").total == 25


@pytest.mark.parametrize(
    "name", ["12:30.mp4", "concat:x.mp4", "-x.mp4", "%d.mp4", "a b'c.mp4", "n" * 251 + ".mp4"]
)
def test_names_are_names_of_files(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_writable(Path(name), option="--output")
    write_video(Path(name), smooth(), Fraction(25))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert read_video(Path(name), option="--video").total == 6
    ((picture, _),) = read_layers(Path(name), option="--mask", max_frames=1)
    assert error_of(picture, smooth(1)[0]) < VISUALLY_LOSSLESS


def test_a_name_that_the_file_system_does_not_take_is_refused_before_anything_is_computed(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="File name too long") as raised:
        check_writable(tmp_path / ("n" * 252 + ".mp4"), option="--output")
    assert raised.value.where == "--output"
    assert list(tmp_path.iterdir()) == []
