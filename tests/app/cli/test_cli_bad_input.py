"""Every bad input: one clear line, exit status 2, no traceback, and nothing left behind."""

from __future__ import annotations

import json
import os
import random
import subprocess
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

pytest.importorskip("av")
pytest.importorskip("diffsynth")
pytest.importorskip("resource")

import resource

import av
import numpy as np
from PIL import Image

from hetcache.cli.main import main
from hetcache.media.video import write_video

RATE = Fraction(25)
SHAPE = (5, 32, 48, 3)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a clip, a mask, and everything that is no clip and no mask."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, 8:24, 8:24] = 255
    write_video(tmp_path / "clip.mp4", pixels, RATE)
    write_video(tmp_path / "mask.mp4", mask, RATE)
    write_video(tmp_path / "short.mp4", mask[:3], RATE)
    write_video(tmp_path / "black.mp4", np.zeros_like(mask), RATE)
    (tmp_path / "noise.mp4").write_bytes(random.Random(0).randbytes(3000))
    (tmp_path / "noise.png").write_bytes(random.Random(1).randbytes(300))
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.yaml").write_text("- steps\n")
    (tmp_path / "typo.yaml").write_text("stepz: 3\n")
    (tmp_path / "settings.yaml").write_text("settings: {treshold: 3}\n")
    (tmp_path / "sizes.yaml").write_text("max-cache-bytes: much\n")
    (tmp_path / "broken.yaml").write_text("steps: [3\n")
    Image.new("L", (48, 32), 255).save(tmp_path / "white.png")
    header = b"IHDR" + (200_000).to_bytes(4, "big") * 2 + b"\x08\0\0\0\0"
    (tmp_path / "huge.png").write_bytes(
        b"\x89PNG\r\n\x1a\n\0\0\0\x0d"
        + header
        + zlib.crc32(header).to_bytes(4, "big")
        + b"\0\0\0\0IDAT"
        + zlib.crc32(b"IDAT").to_bytes(4, "big")
    )
    (tmp_path / "deep.yaml").write_text("steps: " + "[" * 3000)
    (tmp_path / "itself.yaml").write_text("settings: &a {b: [*a]}\n")
    doubled = "".join(f"  a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    (tmp_path / "laughs.yaml").write_text("settings:\n  a0: &a0 1\n" + doubled)
    (tmp_path / "twice.yaml").write_text("steps: 3\nsteps: 4\n")
    (tmp_path / "dashes.yaml").write_text("max-cache-bytes: 3\nmax_cache_bytes: 4\n")
    (tmp_path / "number.yaml").write_text("steps: " + "9" * 5000)
    with av.open(str(tmp_path / "frameless.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return tmp_path


GOOD = {"--video": "clip.mp4", "--mask": "mask.mp4", "--output": "out.mp4", "--device": "cpu"}


def arguments(changed: dict[str, str]) -> list[str]:
    options = {**GOOD, "--steps": "2", **changed}
    return ["edit", *(word for pair in options.items() for word in pair if word)]


def contents(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def refusal(words: list[str], folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused, and return the one line that says why.

    Caught at the file descriptors, so that what FFmpeg prints is seen as well.
    """
    before = contents(folder)
    assert main(words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith(("note: ", "notice: "))]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in err
    assert contents(folder) == before
    return lines[0]


HETCACHE = {"--policy": "hetcache"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        pytest.param({"--video": "nowhere.mp4"}, "nowhere.mp4", id="missing video"),
        pytest.param({"--video": "noise.mp4"}, "noise.mp4 is no video", id="unreadable video"),
        pytest.param({"--video": "empty"}, "Is a directory", id="a folder for a video"),
        pytest.param({"--video": "sound.wav"}, "no video stream", id="no video stream"),
        pytest.param({"--video": "frameless.avi"}, "without any frame", id="zero frames"),
        pytest.param({"--mask": "nowhere.mp4"}, "nowhere.mp4", id="missing mask"),
        pytest.param({"--mask": "nowhere.png"}, "nowhere.png", id="missing picture"),
        pytest.param({"--mask": "noise.mp4"}, "noise.mp4 is no video", id="unreadable mask"),
        pytest.param({"--mask": "noise.png"}, "no readable picture", id="unreadable picture"),
        pytest.param({"--mask": "empty"}, "holds no pictures", id="folder without pictures"),
        pytest.param({"--mask": "black.mp4"}, "--invert-mask", id="empty mask"),
        pytest.param({"--mask": "short.mp4"}, "has 3 frames, but 5", id="shorter mask"),
        pytest.param(
            {"--mask": "white.png", "--invert-mask": ""}, "is empty", id="empty inverted mask"
        ),
        pytest.param({"--policy": "hetcach"}, "mean 'hetcache'", id="unknown policy"),
        pytest.param({"--policy": "pab+hetcach"}, "mean 'hetcache'", id="unknown joined policy"),
        pytest.param({"--policy": "teacache+hetcache"}, "both bring", id="policies in conflict"),
        pytest.param({"--backbone": "tiny-vase"}, "mean 'tiny-vace'", id="unknown backbone"),
        pytest.param({"--backbone": "wan-vace"}, "--model", id="no checkpoint"),
        pytest.param({"--model": "nowhere"}, "nowhere", id="missing checkpoint"),
        pytest.param(
            {"--set": "context_ratoi=1", **HETCACHE}, "'context_ratio'", id="unknown setting"
        ),
        pytest.param(
            {"--set": "context_ratio=2", **HETCACHE},
            "context_ratio must",
            id="setting out of range",
        ),
        pytest.param(
            {"--set": "context_ratio=x", **HETCACHE},
            "context_ratio must",
            id="setting of no number",
        ),
        pytest.param({"--set": "context_ratio"}, "--set", id="setting without a value"),
        pytest.param({"--preset": "quick"}, "quality, balanced, fast", id="unknown preset"),
        pytest.param(
            {"--policy": "none", "--preset": "fast"}, "preset", id="policy without presets"
        ),
        pytest.param({"--option": "sliding_window_size=2"}, "sliding", id="refused option"),
        pytest.param({"--steps": "0"}, "steps must be >= 1", id="no steps"),
        pytest.param({"--steps": "many"}, "--steps", id="steps that are no number"),
        pytest.param({"--seed": "-1"}, "seed must", id="negative seed"),
        pytest.param({"--frames": "0"}, "frames must be >= 1", id="no frames"),
        pytest.param({"--height": "100"}, "96 or 112", id="height that is no multiple"),
        pytest.param({"--cfg-scale": "-1"}, "cfg_scale must", id="negative guidance"),
        pytest.param({"--cfg-scale": "nan"}, "cfg_scale must", id="guidance that is no number"),
        pytest.param({"--device": "gpu"}, "no device 'gpu'", id="unknown device"),
        pytest.param({"--dtype": "float8"}, "dtype must be", id="unknown precision"),
        pytest.param({"--target-speedup": "0.5"}, "target_speedup must be >= 1", id="no speed-up"),
        pytest.param({"--target-speedup": "inf"}, "a finite number", id="infinite speed-up"),
        pytest.param(
            {"--first-steps": "1.5"},
            "first_steps must be >= 0 and as a share <= 1.0",
            id="a share of more than all",
        ),
        pytest.param(
            {"--first-steps": "half"},
            "a share of the run with a point, such as 0.1",
            id="no number",
        ),
        pytest.param({"--last-steps": "-1"}, "last_steps must be >= 0", id="negative last steps"),
        pytest.param({"--longest-reuse": "0"}, "longest_reuse must be > 0", id="no reuse at all"),
        pytest.param({"--full-steps": "3,x"}, "such as 3,7", id="steps that are no numbers"),
        pytest.param({"--full-steps": "1,2"}, "no step 2: the 2 steps", id="a step too many"),
        pytest.param({"--max-cache-bytes": "5XB"}, "500MB or 2GiB", id="size in no unit"),
        pytest.param({"--max-cache-bytes": "0"}, "max_cache_bytes must be >= 1", id="no cache"),
        pytest.param(
            {"--max-cache-bytes": "1kB", "--policy": "teacache"},
            "the limit is 1,000",
            id="too small a cache",
        ),
        pytest.param({"--cache-dtype": "int8"}, "cache_dtype must be", id="unknown cache dtype"),
        pytest.param({"--cache-device": "gpu"}, "no device 'gpu'", id="unknown cache device"),
        pytest.param({"--config": "sizes.yaml"}, "sizes.yaml: cannot read", id="size in a file"),
        pytest.param({"--output": "new/out.mp4"}, "does not exist", id="no such folder"),
        pytest.param({"--output": "empty"}, "cannot write to", id="a folder for an output"),
        pytest.param({"--output": "out.gif"}, ".mp4", id="unknown container"),
        pytest.param({"--output": "clip.mp4"}, "overwrite the video", id="output is the video"),
        pytest.param({"--output": "mask.mp4"}, "overwrite the mask", id="output is the mask"),
        pytest.param({"--trace": "new/trace.json"}, "--trace", id="no folder for the trace"),
        pytest.param({"--config": "nowhere.yaml"}, "nowhere.yaml", id="missing file"),
        pytest.param({"--config": "typo.yaml"}, "mean 'steps'", id="unknown key"),
        pytest.param(
            {"--config": "settings.yaml", **HETCACHE}, "'threshold'", id="unknown setting in a file"
        ),
        pytest.param({"--config": "list.yaml"}, "holds no keys", id="file without keys"),
        pytest.param({"--config": "broken.yaml"}, "is no YAML", id="file that is no YAML"),
        pytest.param({"--height": "1000000"}, "height must be >= 1 and <= 8192", id="too high"),
        pytest.param({"--width": "9" * 20}, "width must be", id="a width of 20 digits"),
        pytest.param({"--frames": "9" * 20}, "frames must be", id="frames of 20 digits"),
        pytest.param({"--steps": "9" * 20}, "steps must be", id="steps of 20 digits"),
        pytest.param({"--seed": "9" * 20}, "seed must be", id="a seed of 20 digits"),
        pytest.param({"--first-steps": "9" * 5000}, "first_steps must be", id="a long number"),
        pytest.param(
            {
                "--max-cache-bytes": "9" * 400,
                "--height": "8192",
                "--width": "8192",
                "--frames": "5",
            },
            "more than the 268,435,456 pixels",
            id="more pixels than memory",
        ),
        pytest.param({"--config": "/dev/zero"}, "has more than 1,048,576 bytes", id="no end"),
        pytest.param({"--config": "deep.yaml"}, "nested too deeply", id="deep YAML"),
        pytest.param({"--config": "itself.yaml"}, "within itself", id="YAML in itself"),
        pytest.param({"--config": "laughs.yaml"}, "more than 100,000 values", id="doubled YAML"),
        pytest.param({"--config": "twice.yaml"}, "the key 'steps' twice", id="a key twice"),
        pytest.param(
            {"--config": "dashes.yaml"}, "twice, with - and with _", id="a key in two ways"
        ),
        pytest.param({"--config": "number.yaml"}, "is no YAML", id="a number past all digits"),
        pytest.param({"--mask": "huge.png"}, "200000 x 200000 pixels", id="a huge declared size"),
        pytest.param({"--trace": "clip.mp4"}, "overwrite the video", id="the trace is the video"),
        pytest.param({"--frobnicate": "1"}, "--frobnicate", id="unknown option"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], changed: dict[str, str], said: str
) -> None:
    assert said in refusal(arguments(changed), folder, capfd)


def test_what_is_missing_is_named(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "missing --mask, --output" in refusal(["edit", "--video", "clip.mp4"], folder, capfd)


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["plugins", "frobnicate"],
        ["plugins", "list", "--hook", "hetcache_register_polices"],
        ["demo", "--steps", "0"],
        ["demo", "--policy", "hetcach"],
        ["demo", "--backbone", "wan-vace", "--output", "demo"],
        ["demo", "--output", "clip.mp4/demo"],
        ["demo", "--target-speedup", "0"],
        ["demo", "--full-steps", "99"],
        ["calibrate", "--policy", "teacache"],
    ],
    ids=" ".join,
)
def test_other_commands_refuse_bad_input_alike(
    folder: Path, capfd: pytest.CaptureFixture[str], words: list[str]
) -> None:
    refusal(words, folder, capfd)


def test_an_output_folder_that_cannot_be_written_to_is_found_before_the_model_is_loaded(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    locked = Path("/proc")  # where root cannot write either
    if os.geteuid() != 0:
        locked = folder / "locked"
        locked.mkdir(mode=0o500)
    said = refusal(arguments({"--output": str(locked / "out.mp4")}), folder, capfd)
    assert "cannot write into" in said


def test_cuda_that_is_not_there_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("CUDA is there")
    said = refusal(arguments({"--device": "cuda"}), folder, capfd)
    assert "CUDA is not available" in said
    assert "--device cpu" in said


@pytest.fixture
def full_disk(folder: Path) -> Iterator[Path]:
    """A folder on a file system without any room, where root may mount one."""
    disk = folder / "empty"
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    (disk / "filler").write_bytes(bytes(8 * 1024))
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    full_disk: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = refusal(arguments({"--output": str(full_disk / "out.mp4")}), folder, capfd)
    assert "out.mp4 cannot be written: No space left on device" in said


def test_a_limit_on_file_sizes_is_one_line_and_leaves_nothing(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        said = refusal(arguments({}), folder, capfd)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "out.mp4 cannot be written: File too large" in said


def test_an_old_output_survives_a_failed_run(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "out.mp4").write_bytes(b"old")
    refusal(arguments({"--option": "sliding_window_size=2"}), folder, capfd)
    assert (folder / "out.mp4").read_bytes() == b"old"


def test_the_traceback_is_shown_on_request(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HETCACHE_DEBUG", "1")
    assert main(arguments({"--video": "nowhere.mp4"})) == 2
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: ")


def test_json_says_nothing_on_stdout_when_it_fails(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refusal([*arguments({"--video": "nowhere.mp4"}), "--json"], folder, capfd)


def test_a_mask_over_everything_is_no_mistake(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments({"--mask": "white.png"}), "--json"]) == 0
    notes = json.loads(capfd.readouterr().out)["notes"]
    assert "the mask covers everything: there is no context to cache" in notes
