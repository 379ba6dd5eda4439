"""Video files as PyAV reads and writes them; every file here is a real one."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import pytest

from hetcache_core.errors import ConfigError

pytest.importorskip("av")
pytest.importorskip("resource")

import resource

import av
import numpy as np

from hetcache.media.files import check_folder, check_writable, replacing, write_text
from hetcache.media.video import CONTAINERS, check_suffix, read_video, write_video

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


def test_only_suffixes_that_can_be_written_are_taken() -> None:
    check_suffix(Path("a.MP4"), option="--output")
    with pytest.raises(ConfigError, match=r"\.mp4, \.m4v, \.mov, \.mkv") as raised:
        check_suffix(Path("a.gif"), option="--output")
    assert raised.value.allowed == tuple(CONTAINERS)


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
