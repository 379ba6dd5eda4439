"""Whole clips, longer than the model takes, through the embedded model."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av")
pytest.importorskip("diffsynth")

import numpy as np

from hetcache.cli.main import main
from hetcache.editing.kept import KeptWindows
from hetcache.media.video import read_video, write_video
from hetcache.running.run import Runner, RunResult
from hetcache_core.records.trace import Trace

FRAMES, SIDE = 60, 64
RATE = Fraction(16)


def moving(frames: int) -> np.ndarray:
    """A pattern that moves two pixels a frame."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    pictures = [
        np.stack([(columns + 2 * i) % 64 * 4, rows * 4, 255 - (columns + 2 * i) % 64 * 4], -1)
        for i in range(frames)
    ]
    return np.stack(pictures).astype(np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """60 moving frames, and a mask that goes with the pattern and is gone from frame 44 on."""
    folder = tmp_path_factory.mktemp("clip")
    mask = np.zeros((FRAMES, SIDE, SIDE, 3), np.uint8)
    for index in range(44):
        mask[index, 20:44, 16 + index // 4 : 40 + index // 4] = 255
    write_video(folder / "clip.mp4", moving(FRAMES), RATE)
    write_video(folder / "mask.mp4", mask, RATE)
    return ["--video", str(folder / "clip.mp4"), "--mask", str(folder / "mask.mp4")]


def edit(clip: list[str], output: Path, *options: str) -> int:
    fixed = ["--prompt", "a red circle", "--steps", "6", "--device", "cpu", "--output", str(output)]
    return main(["edit", *clip, *fixed, *options])


def write_both(path: Path, frames: np.ndarray, *arguments: Any, **options: Any) -> None:
    np.save(path.with_suffix(".npy"), frames)
    write_video(path, frames, *arguments, **options)


@pytest.fixture(scope="module")
def edited(clip: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The edited file; beside it, the frames as they were before the encoder had them."""
    output = tmp_path_factory.mktemp("edited") / "out.mkv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hetcache.editing.edit.write_video", write_both)
        assert edit(clip, output, "--trace", str(output.with_suffix(".json"))) == 0
    return output


def test_all_frames_come_out_and_there_is_a_trace_for_every_window_that_was_run(
    edited: Path,
) -> None:
    assert len(read_video(edited, option="--video").frames) == FRAMES
    # 17 frames a window and 8 new ones each: the sixth is the last that has new masked frames.
    traces = sorted(path.name for path in edited.parent.glob("out-*.json"))
    assert traces == [f"out-{number}.json" for number in (1, 2, 3, 4, 5)]
    assert all(Trace.load(edited.parent / name).complete for name in traces)
    assert not list(edited.parent.glob(".windows-*"))


def test_no_seam_is_larger_than_what_neighbouring_frames_differ_by_inside_a_window(
    edited: Path,
) -> None:
    frames = np.load(edited.with_suffix(".npy"))[:44].astype(np.float32)
    change = np.abs(np.diff(frames[:, 20:44, 24:40], axis=0)).mean((1, 2, 3))  # (43,)
    seams = [7, 15, 23, 31]  # where the first frame that is new, or begins to fade, follows
    ends = [16, 24, 32, 40]
    at = sorted({*seams, *ends})
    inside = np.delete(change, at)
    assert change[at].max() <= 1.25 * inside.max()


def test_what_has_no_mask_stays_as_it_was_bit_for_bit(edited: Path, clip: list[str]) -> None:
    source, masks = (read_video(Path(clip[at]), option="--video").frames for at in (1, 3))
    outside = masks[..., 0] < 128
    assert outside[44:].all()
    assert (np.load(edited.with_suffix(".npy"))[outside] == source[outside]).all()


def test_the_traces_of_windows_overwrite_nothing_that_is_read(
    clip: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mask-1.mp4").symlink_to(clip[3])
    words = [*clip[:2], "--mask", str(tmp_path / "mask-1.mp4")]
    assert edit(words, tmp_path / "out.mp4", "--trace", str(tmp_path / "mask.mp4")) == 2
    assert "--trace 1: " in (said := capsys.readouterr().err)
    assert "would overwrite the mask" in said
    span = ["--start", "30", "--frames", "7", "--window", "5", "--overlap", "1", "--steps", "2"]
    assert edit(clip, tmp_path / "out.mp4", *span, "--trace", os.devnull) == 0
    assert not list(Path(os.devnull).parent.glob("null-*"))


def test_an_interrupted_edit_goes_on_where_it_was(
    clip: list[str],
    edited: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, real, runs = tmp_path / "out.mkv", Runner.run, []

    def interrupted(self: Runner, *arguments: Any) -> RunResult:
        if len(runs) == 2:
            raise KeyboardInterrupt
        runs.append(arguments)
        return real(self, *arguments)

    monkeypatch.setattr(Runner, "run", interrupted)
    assert edit(clip, output) == 130
    assert "2 of 7 windows are kept in" in capsys.readouterr().err
    assert not output.exists()
    (folder,) = tmp_path.glob(".windows-*")
    # What somebody may have put there: fewer frames than the window has.
    np.savez(folder / "cached-00001.npz", frames=np.zeros((3, 8, 8, 3), np.uint8), total_seconds=1)

    def counted(self: Runner, *arguments: Any) -> RunResult:
        runs.append(arguments)
        return real(self, *arguments)

    monkeypatch.setattr(Runner, "run", counted)
    monkeypatch.setattr("hetcache.editing.edit.write_video", write_both)
    assert edit(clip, output) == 0
    said = capsys.readouterr().err
    assert "2 of 7 windows are finished from an earlier run" in said
    assert "cached-00001.npz" in said
    assert "is damaged; the window is run again" in said
    assert len(runs) == 2 + 4
    assert not folder.exists()
    ours, theirs = (np.load(path.with_suffix(".npy")) for path in (output, edited))
    differs = np.abs(ours.astype(int) - theirs).reshape(FRAMES, -1).max(1)
    assert differs.tolist() == [0] * FRAMES


def test_another_edit_takes_nothing_of_a_finished_window(clip: list[str], tmp_path: Path) -> None:
    from attrs import evolve

    from hetcache.editing.config import EditConfig

    config = EditConfig(video=clip[1], mask=clip[3], output=str(tmp_path / "out.mp4"))
    same = evolve(config, trace="t.json", audio=False)
    others = [evolve(config, prompt="a dog"), evolve(config, seed=1), evolve(config, video=clip[3])]
    folder = KeptWindows.of(config).folder
    assert KeptWindows.of(same).folder == folder
    assert len({folder, *(KeptWindows.of(other).folder for other in others)}) == 4


def test_frames_from_a_start_are_edited_in_windows_and_compared(
    clip: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.mp4"
    span = ["--start", "30", "--frames", "7", "--window", "5", "--overlap", "1"]
    assert edit(clip, output, *span, "--compare", "--json") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert "7 frames are edited in 2 windows of 5" in err
    assert (report["frames"], report["windows"], report["run"]["steps"]) == (7, 2, 12)
    assert report["reference"]["steps_full"] == 12
    assert report["psnr"]["mask"]["db"] > 20
    assert len(read_video(output, option="--video").frames) == 7


def test_texts_are_encoded_once_for_all_windows(
    clip: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    encoder, seen = transformers.T5EncoderModel, []
    forward = encoder.forward

    def counting(self: Any, *arguments: Any, **named: Any) -> Any:
        seen.append(arguments)
        return forward(self, *arguments, **named)

    monkeypatch.setattr(encoder, "forward", counting)
    monkeypatch.setattr("hetcache.editing.edit.write_video", write_both)
    span = ["--start", "30", "--frames", "9", "--window", "5", "--overlap", "1", "--policy", "none"]
    model = [
        "--backbone",
        "wan-vace-diffusers=random",
        "--height",
        "48",
        "--width",
        "64",
        "--prompt",
        "a",
    ]
    assert edit(clip, tmp_path / "once.mp4", *span, *model) == 0
    once = len(seen)
    monkeypatch.setattr("hetcache.editing.edit.texts_once", lambda _: nullcontext())
    assert edit(clip, tmp_path / "each.mp4", *span, *model) == 0
    each = len(seen) - once
    assert once == 2  # what is wanted, and what is not
    assert each >= 2 * once
    made = [np.load(tmp_path / f"{name}.npy") for name in ("once", "each")]
    assert (made[0] == made[1]).all()


def test_a_start_past_the_end_and_a_mask_that_is_over_are_refused(
    clip: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edit(clip, tmp_path / "out.mp4", "--start", "60") == 2
    assert "has 60 frames, and none from 60 on" in capsys.readouterr().err
    assert edit(clip, tmp_path / "out.mp4", "--start", "50") == 2
    assert "is empty from frame 50 on" in capsys.readouterr().err


def test_more_frames_than_memory_has_room_for_are_refused_with_what_fits(
    clip: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("hetcache.media.video.memory_bytes", lambda: 2 * 3 * 20 * SIDE * SIDE * 3)
    assert edit(clip, tmp_path / "out.mp4") == 2
    assert "--frames 20, then --start 20" in capsys.readouterr().err
