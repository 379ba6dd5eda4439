"""``hetcache edit`` on real video files, through the embedded backbone."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import os
import re
import signal
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av")
pytest.importorskip("diffsynth")

import av
import numpy as np
from PIL import Image

from hetcache.cli.main import main
from hetcache.editing.config import EditConfig, SpanConfig
from hetcache.editing.edit import edit as run_edit
from hetcache.media.video import read_video, write_video
from hetcache.running.device import PlaceConfig
from hetcache.running.groups import ModelConfig, PolicyConfig
from hetcache_core.plugins.discovery import discover
from hetcache_core.plugins.hookspecs import Registration
from hetcache_core.records.trace import Trace
from hetcache_core.testing import TinyBackbone, TinyPipeline

RATE = Fraction(30000, 1001)
FRAMES, HEIGHT, WIDTH = 6, 64, 96
STEPS = 8

KEYS = {
    "backbone", "device", "dtype", "files", "fps", "frames", "height",
    "load_seconds", "met", "model", "notes", "notice", "psnr", "reference", "run", "seed", "speedup",
    "width", "windows",
}  # fmt: skip
RUN_KEYS = {
    "denoise_seconds", "flops", "peak_cache_bytes", "policy", "reached_speedup", "settings",
    "steps", "steps_full", "steps_partial", "steps_reused", "target_quality", "target_speedup",
    "total_seconds",
}  # fmt: skip
SPEEDUP_KEYS = {"clock", "clock_per_flops", "flops", "total"}
REGIONS = {"background", "margin", "mask", "whole"}


def moving_colours() -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack(
        [np.stack([columns * 2 + 3 * i, rows * 3, 220 - columns], -1) for i in range(FRAMES)]
    ).astype(np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A video and a mask of it, as options."""
    folder = tmp_path_factory.mktemp("clip")
    mask = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    mask[:, 16:48, 16:48] = 255
    write_video(folder / "clip.mp4", moving_colours(), RATE)
    write_video(folder / "mask.mp4", mask, RATE)
    return {"video": str(folder / "clip.mp4"), "mask": str(folder / "mask.mp4")}


def edit(clip: dict[str, str], output: Path, *options: str) -> int:
    files = ["--video", clip["video"], "--mask", clip["mask"], "--output", str(output)]
    return main(["edit", *files, "--steps", str(STEPS), "--device", "cpu", *options])


def test_the_policies_edit_a_video_and_their_traces_differ_as_they_should(
    clip: dict[str, str], tmp_path: Path
) -> None:
    traces = {}
    for policy in ("none", "teacache", "pab", "hetcache"):
        output, trace = tmp_path / f"{policy}.mp4", tmp_path / f"{policy}.json"
        assert edit(clip, output, "--policy", policy, "--trace", str(trace)) == 0
        edited = read_video(output, option="--output")
        assert edited.frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
        assert edited.fps == RATE
        traces[policy] = Trace.load(trace)
        assert traces[policy].policy == policy
        assert traces[policy].complete
    totals = {policy: trace.totals() for policy, trace in traces.items()}
    assert totals["none"].steps_full == STEPS
    assert totals["none"].flops_speedup == 1
    assert totals["none"].peak_cache_bytes == 0
    assert totals["teacache"].steps_reused > 0
    assert totals["teacache"].steps_partial == 0
    assert totals["pab"].steps_full == STEPS
    assert sum(record.parts_reused for record in traces["pab"].records) > 0
    assert totals["hetcache"].steps_partial > 0
    assert totals["hetcache"].steps_reused > 0
    assert all(totals[policy].flops_speedup > 1 for policy in totals if policy != "none")


def test_json_is_one_object_with_the_documented_keys_and_nothing_else(
    clip: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edit(clip, tmp_path / "out.mp4", "--json", "--compare", "--set", "every=2") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert set(report) == KEYS
    assert set(report["run"]) == set(report["reference"]) == RUN_KEYS
    assert set(report["speedup"]) == SPEEDUP_KEYS
    assert set(report["psnr"]) == REGIONS
    assert all(set(value) == {"db", "identical", "pixels"} for value in report["psnr"].values())
    assert report["run"]["policy"] == "auto"
    assert report["run"]["settings"]["every"] == 2
    assert report["reference"]["policy"] == "none"
    assert report["reference"]["steps_full"] == STEPS
    assert report["fps"] == "30000/1001"
    assert (report["frames"], report["height"], report["width"]) == (FRAMES, HEIGHT, WIDTH)
    run, reference, speedup = report["run"], report["reference"], report["speedup"]
    assert speedup["flops"] == pytest.approx(reference["flops"] / run["flops"])
    assert speedup["clock"] == pytest.approx(reference["denoise_seconds"] / run["denoise_seconds"])
    assert speedup["clock_per_flops"] == pytest.approx(speedup["clock"] / speedup["flops"])
    assert report["notes"] == [
        "the model is given 9 frames, the last one 4 times, since it does not take 6"
    ]
    assert all(line.startswith(("note: ", "notice: ")) for line in err.splitlines())


def test_without_compare_there_is_nothing_to_compare_with(
    clip: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edit(clip, tmp_path / "out.mp4", "--json", "--cfg-scale", "1") == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == KEYS
    assert report["reference"] is report["speedup"] is report["psnr"] is None


def test_the_reference_compared_with_itself_is_identical(
    clip: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edit(clip, tmp_path / "out.mp4", "--json", "--compare", "--policy", "none") == 0
    report = json.loads(capsys.readouterr().out)
    psnr, files = report["psnr"], report["files"]
    assert set(files) == {"output", "reference", "side by side", "strip"}
    seen = {
        role: read_video(Path(files[role]), option="--output").frames
        for role in ("output", "reference", "side by side")
    }
    # The encoder does not give the same bytes for the same frames every time.
    assert np.abs(seen["output"].astype(int) - seen["reference"]).mean() < 2
    assert seen["side by side"].shape == (FRAMES, HEIGHT + 24, 3 * WIDTH, 3)
    with Image.open(tmp_path / "out-strip.png") as picture:
        assert picture.width == 5 * WIDTH
    assert all(quality["identical"] for quality in psnr.values())
    assert all(quality["db"] is None for quality in psnr.values())


def test_what_is_written_next_to_the_output_overwrites_no_input(
    clip: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "out-reference.mp4"
    video.write_bytes(Path(clip["video"]).read_bytes())
    files = {**clip, "video": str(video)}
    assert edit(files, tmp_path / "out.mp4", "--compare") == 2
    assert "--output, reference" in capsys.readouterr().err
    assert video.read_bytes() == Path(clip["video"]).read_bytes()


def test_people_get_a_table(
    clip: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edit(clip, tmp_path / "out.mp4", "--compare") == 0
    out = capsys.readouterr().out
    for shown in (
        "reference", "auto", "denoise seconds", "total seconds", "TFLOPs", "peak cache MiB",
        "steps full / partial / reused", "clock speed-up / FLOP speed-up", "mask", "margin",
        "background", f"output: {tmp_path / 'out.mp4'}",
    ):  # fmt: skip
        assert shown in out


def test_compositing_keeps_the_pixels_outside_of_the_mask(
    clip: dict[str, str], tmp_path: Path
) -> None:
    outside = np.ones((HEIGHT, WIDTH), bool)
    outside[12:52, 12:52] = False  # away from the edge, which the encoder blurs
    source = read_video(Path(clip["video"]), option="--video").frames.astype(int)
    errors = {}
    for option in ("--composite", "--no-composite"):
        assert edit(clip, tmp_path / "out.mp4", option, "--policy", "teacache") == 0
        result = read_video(tmp_path / "out.mp4", option="--output").frames
        errors[option] = np.abs(result - source)[:, outside].mean()
    assert errors["--composite"] < 2  # what encoding it again costs
    assert errors["--no-composite"] > errors["--composite"]


def test_a_part_of_the_picture_is_edited_alone_and_the_rest_stays(
    clip: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = read_video(Path(clip["video"]), option="--video").frames.astype(int)
    options = ("--crop", "48x48+8+8", "--no-composite", "--policy", "teacache")
    assert edit(clip, tmp_path / "out.mp4", *options) == 0
    assert "the model sees 48x48 of 64x96, from row 8 and column 8 on" in capsys.readouterr().err
    result = read_video(tmp_path / "out.mp4", option="--output").frames
    errors = np.abs(result - source).mean(axis=(0, -1))
    assert errors[:, 64:].mean() < 2  # what encoding it again costs
    assert errors[16:48, 16:48].mean() > errors[:, 64:].mean()
    assert edit(clip, tmp_path / "no.mp4", "--crop", "16x16+0+80") == 2
    assert "Choose another --crop, or auto" in capsys.readouterr().err


def test_a_picture_is_a_video_of_one_frame(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = moving_colours()[0], tmp_path / "out.png"
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[16:48, 16:48] = 255
    Image.fromarray(source).save(tmp_path / "in.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    files = ["--image", str(tmp_path / "in.png"), "--mask", str(tmp_path / "mask.png")]
    given = ["edit", *files, "--steps", str(STEPS), "--device", "cpu", "--policy", "hetcache"]
    assert main([*given, "--output", str(output), "--compare", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["frames"] == 1
    assert report["run"]["steps_partial"] > 0
    made = np.asarray(Image.open(output))
    assert np.array_equal(made[mask == 0], source[mask == 0])
    assert not np.array_equal(made, source)
    assert sorted(path.suffix for path in tmp_path.glob("out*")) == [".png"] * 4
    for options, said in (
        (["--output", str(tmp_path / "out.mp4")], "cannot be what is made of an image"),
        (["--output", str(output), "--start", "1"], "an image has one frame"),
        (["--output", str(output), "--video", str(tmp_path / "in.png")], "a video or an image"),
    ):
        assert main([*given, *options]) == 2
        assert said in capsys.readouterr().err


def test_an_odd_size_goes_through_the_model_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, columns = np.mgrid[:71, :101]
    frames = np.stack([np.stack([columns, rows, rows + columns], -1)] * 2).astype(np.uint8)
    write_video(tmp_path / "clip.mp4", frames, Fraction(25))
    mask = np.zeros((2, 36, 51, 3), np.uint8)
    mask[:, 10:20, 10:20] = 255
    write_video(tmp_path / "mask.mp4", mask, Fraction(25))
    files = {"video": str(tmp_path / "clip.mp4"), "mask": str(tmp_path / "mask.mp4")}
    assert edit(files, tmp_path / "out.mp4") == 0
    edited = read_video(tmp_path / "out.mp4", option="--output").frames
    assert edited.shape == (2, 71, 101, 3)
    err = capsys.readouterr().err
    assert "the model works at" in err
    assert "4:4:4" in err


def test_a_mask_over_everything_works_and_says_that_there_is_no_context(
    clip: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
    files = {**clip, "mask": str(tmp_path / "white.png")}
    assert edit(files, tmp_path / "out.mp4", "--json", "--compare") == 0
    out, err = capsys.readouterr()
    assert "there is no context to cache" in err
    assert json.loads(out)["psnr"]["background"] == {"db": None, "identical": False, "pixels": 0}


def test_a_file_and_options_go_together(
    clip: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(
        f"video: {clip['video']}\nmask: {clip['mask']}\noutput: {tmp_path / 'out.mp4'}\n"
        "steps: 50\npolicy: teacache\nsettings: {threshold: 0.4, last_steps: 1}\njson: true\n"
        "frames: 1\ndevice: cpu\n"
    )
    options = ["--steps", "4", "--set", "last_steps=0"]
    assert main(["edit", "--config", str(tmp_path / "run.yaml"), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["run"]["steps"] == 4
    assert report["run"]["policy"] == "teacache"
    assert report["run"]["settings"]["threshold"] == 0.4
    assert report["run"]["settings"]["last_steps"] == 0
    assert report["frames"] == 1


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("1", None),
        ("4", "the model is given 5 frames, the last one 2 times, since it does not take 4"),
        ("9", "6 frames are edited, since there are no 9"),
    ],
)
def test_a_length_other_than_what_was_asked_for_is_noted(
    clip: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    asked: str,
    reason: str | None,
) -> None:
    options = ["--json", "--steps", "1", "--frames", asked]
    assert edit(clip, tmp_path / "out.mp4", *options) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["frames"] == min(int(asked), FRAMES)
    assert reason is None or report["notes"][0] == reason


def test_policies_can_be_joined_and_presets_chosen(
    clip: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    joined = ["--policy", "pab+teacache", "--set", "pab.self_attention=3"]
    assert edit(clip, tmp_path / "out.mp4", "--json", *joined) == 0
    assert json.loads(capsys.readouterr().out)["run"]["settings"]["pab.self_attention"] == 3
    assert edit(clip, tmp_path / "out.mp4", "--json", "--preset", "fast") == 0
    assert json.loads(capsys.readouterr().out)["run"]["steps_reused"] > 0


def test_an_asked_speed_up_is_reached_and_both_are_reported(
    clip: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--policy", "teacache", "--steps", "20", "--target-speedup", "2.5", "--compare"]
    assert edit(clip, tmp_path / "out.mp4", "--json", *options) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    run = report["run"]
    assert run["target_speedup"] == 2.5
    assert run["reached_speedup"] == pytest.approx(2.5, rel=0.05)
    assert run["reached_speedup"] == pytest.approx(report["speedup"]["flops"])
    said = f"Asked for 2.5x fewer FLOPs, reached {run['reached_speedup']:.2f}x."
    assert said in report["notes"]
    assert f"note: {said}" in err.splitlines()
    assert report["reference"]["target_speedup"] is None
    assert report["reference"]["reached_speedup"] == 1
    assert edit(clip, tmp_path / "out.mp4", *options) == 0
    assert "fewer FLOPs asked / reached" in capsys.readouterr().out


def test_guards_and_cache_settings_come_from_options_and_from_a_file(
    clip: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, options = tmp_path / "trace.json", ["--policy", "every-nth", "--set", "every=8"]
    given = [
        "--first-steps",
        "2",
        "--last-steps",
        "0.1",
        "--full-steps",
        "4, 6",
        "--longest-reuse",
        "1",
    ]
    assert edit(clip, tmp_path / "out.mp4", *options, *given, "--trace", str(trace)) == 0
    assert {record.step: record.reason for record in Trace.load(trace).records} == {
        **dict.fromkeys((0, 1, 4, 6, 7), "distances count from here"),
        2: "every 8 steps, not yet", 3: "guard: 1 reused in a row", 5: "every 8 steps, not yet",
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(
        "full-steps: [4, 6]\nmax-cache-bytes: 1MiB\ncache_dtype: bfloat16\ncache-device: cpu\n"
    )
    capsys.readouterr()
    options += ["--config", str(tmp_path / "run.yaml"), "--json"]
    assert edit(clip, tmp_path / "out.mp4", *options) == 0
    half = json.loads(capsys.readouterr().out)["run"]
    assert half["steps_full"] == 4
    assert edit(clip, tmp_path / "out.mp4", *options, "--cache-dtype", "auto") == 0
    assert json.loads(capsys.readouterr().out)["run"]["peak_cache_bytes"] == (
        2 * half["peak_cache_bytes"]
    )


def test_a_warning_of_the_backbone_goes_wherever_the_result_goes(
    clip: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registration = Registration(name="tiny", target=TinyBackbone, summary="random weights")
    config = EditConfig(
        video=clip["video"],
        mask=clip["mask"],
        output=str(tmp_path / "out.mp4"),
        trace=str(tmp_path / "trace.json"),
        model=ModelConfig(backbone="tiny"),
        policy=PolicyConfig(policy="teacache"),
        span=SpanConfig(frames=5),
        steps=4,
        place=PlaceConfig(device="cpu"),
    )
    report = run_edit(config, discover().with_registrations("backbone", registration)).report
    notice = TinyBackbone().notice(TinyPipeline())
    assert report.to_dict()["notice"] == notice
    assert f"notice: {notice}" in capsys.readouterr().err.splitlines()
    assert notice in Trace.load(tmp_path / "trace.json").notes
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert notice in container.metadata["comment"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_with_the_mode_of_each_step(
    clip: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", terminal)
    assert edit(clip, tmp_path / "out.mp4", "--compare") == 0
    shown = terminal.getvalue()
    assert shown.startswith("note: loading tiny-vace")
    assert f"{STEPS}/{STEPS}" in shown
    assert "1 of 2, reference" in shown
    assert "2 of 2, auto" in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    bars = [line for line in re.split(r"[\r\n]", plain) if " of 2, " in line]
    assert all(len(line.rstrip()) <= 80 for line in bars)
    assert any(re.search(r"\d:\d\d$", line.rstrip()) for line in bars)  # the time, not cut off
    assert "full" in shown
    assert "reuse" in shown


def test_nothing_but_messages_goes_to_a_stderr_that_is_no_terminal(
    clip: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Caught at the file descriptors, so that bars and prints of the libraries are seen as well."""
    assert edit(clip, tmp_path / "out.mp4", "--json") == 0
    out, err = capfd.readouterr()
    json.loads(out)
    assert all(line.startswith(("note: ", "notice: ")) for line in err.splitlines())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_leaves_nothing_behind(
    clip: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    returned = threading.Event()

    def interrupt() -> None:
        # Again after a while: a signal that falls into a library's callback is lost there.
        while not returned.wait(4.0):
            os.kill(os.getpid(), number)

    # A shell that starts the tests in the background lets them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        status = edit(clip, tmp_path / "out.mp4", "--steps", "10000", "--policy", "none")
    finally:
        returned.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert status == 128 + number
    assert not list(tmp_path.iterdir())
    assert "Traceback" not in capsys.readouterr().err


def test_the_seed_decides_the_result(clip: dict[str, str], tmp_path: Path) -> None:
    results: list[Any] = []
    for seed in ("1", "1", "2"):
        assert edit(clip, tmp_path / "out.mp4", "--seed", seed, "--frames", "1") == 0
        results.append(read_video(tmp_path / "out.mp4", option="--output").frames)
    assert (results[0] == results[1]).all()
    assert (results[0] != results[2]).any()


@pytest.mark.timeout(400)
def test_compiled_blocks_make_the_same_video(clip: dict[str, str], tmp_path: Path) -> None:
    options = ["--steps", "4", "--policy", "hetcache", "--json"]
    assert edit(clip, tmp_path / "plain.mp4", *options) == 0
    assert edit(clip, tmp_path / "compiled.mp4", *options, "--compile") == 0
    plain, compiled = (
        read_video(tmp_path / f"{name}.mp4", option="--video").frames
        for name in ("plain", "compiled")
    )
    # A byte or two differ before encoding, which a lossy codec makes more of: 0.5 was seen.
    assert np.abs(plain.astype(int) - compiled).mean() < 1.5


@pytest.mark.parametrize("policy", ["none", "hetcache", "teacache"])
@pytest.mark.parametrize("steps", ["1", "4"])
def test_a_result_of_nan_is_one_error_and_nothing_is_written(
    clip: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    policy: str,
    steps: str,
) -> None:
    files = ["--output", str(tmp_path / "out.mp4"), "--trace", str(tmp_path / "trace.json")]
    given = ["--video", clip["video"], "--mask", clip["mask"], "--device", "cpu", *files]
    wrong = ["--steps", steps, "--cfg-scale", "1e39", "--policy", policy]
    assert main(["edit", *given, *wrong]) == 2
    assert f"NaN or infinity from step 0 of {steps} on" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_was_assumed_of_files_is_noted_and_sound_and_times_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A phone's clip with uneven frames and sound, and a folder of labels with a gap."""
    times = [Fraction(tick, 1000) for tick in (0, 33, 66, 300, 333, 500)]
    with av.open(str(tmp_path / "tone.mkv"), "w") as container:
        track = container.add_stream("flac", rate=8000, layout="mono")
        tone = av.AudioFrame.from_ndarray(np.full((1, 8000), 9000, np.int16), "s16", "mono")
        tone.sample_rate, tone.pts = 8000, 0
        for packet in (*track.encode(tone), *track.encode()):
            container.mux(packet)
    write_video(
        tmp_path / "clip.mp4",
        moving_colours(),
        RATE,
        times=times,
        sound=(tmp_path / "tone.mkv", Fraction(0)),
    )
    folder = tmp_path / "masks"
    folder.mkdir()
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[16:32, 16:32], labels[32:48, 32:48] = 1, 2
    for number in (1, 2, 4, 5):
        Image.fromarray(labels).save(folder / f"{number:04}.png")
    output = tmp_path / "out.mp4"
    arguments = ["--video", str(tmp_path / "clip.mp4"), "--mask", str(folder), "--steps", "2"]
    arguments += [
        "--output",
        str(output),
        "--mask-label",
        "2",
        "--missing-masks",
        "empty",
        "--json",
    ]
    assert main(["edit", *arguments]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("nothing is edited there" in text for text in notes), notes
    written = read_video(output, option="--video")
    assert written.times == tuple(times)
    assert written.sound is not None
    source = read_video(tmp_path / "clip.mp4", option="--video").frames.astype(int)
    changed = np.abs(written.frames - source)[:, 32:48, 32:48].mean((1, 2, 3))
    edited, kept = changed[[0, 1, 3, 4]], changed[2]
    assert edited.min() > 3 * kept  # what the encoder changes
    assert main(["edit", *arguments, "--no-audio"]) == 0
    assert read_video(output, option="--video").sound is None


def test_many_jobs_cost_one_model_and_a_failed_one_itself_alone(
    clip: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, loads = importlib.import_module("hetcache.editing.edit"), []
    load = module.load

    def counting(*arguments: Any, **named: Any) -> Any:
        loads.append(arguments)
        return load(*arguments, **named)

    monkeypatch.setattr(module, "load", counting)
    jobs = tmp_path / "jobs.yaml"
    listed = [
        {**clip, "output": str(tmp_path / "a.mp4"), "seed": 1},
        {**clip, "output": str(tmp_path / "b.mp4"), "mask": str(tmp_path / "gone.png")},
        {**clip, "output": str(tmp_path / "c.mp4"), "policy": "none"},
    ]
    jobs.write_text(json.dumps(listed))
    options = ["--steps", "3", "--device", "cpu", "--cfg-scale", "1", "--json"]
    assert main(["edit", "--jobs", str(jobs), *options]) == 1
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert [(each["job"], each["run"]["policy"]) for each in said["finished"]] == [
        (1, "auto"),
        (3, "none"),
    ]
    assert [each["job"] for each in said["failed"]] == [2]
    assert "gone.png" in said["failed"][0]["error"]
    assert "2 of 3 jobs are finished; failed: 2" in err
    assert len(loads) == 1
    assert (tmp_path / "a.mp4").stat().st_size > 0
    assert (tmp_path / "c.mp4").stat().st_size > 0
    assert not (tmp_path / "b.mp4").exists()


@pytest.mark.timeout(400)
def test_jobs_on_a_ray_cluster_end_as_on_this_machine(
    clip: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("ray") is None:  # imported first by the command itself
        pytest.skip("Ray is not installed")
    listed = [
        {**clip, "output": str(tmp_path / "a.mp4"), "seed": 1},
        {**clip, "output": str(tmp_path / "b.mp4"), "mask": str(tmp_path / "gone.png")},
        {**clip, "output": str(tmp_path / "c.mp4"), "video": str(tmp_path / "a.mp4")},  # after it
    ]
    (tmp_path / "jobs.yaml").write_text(json.dumps(listed))
    options = ["--steps", "3", "--device", "cpu", "--cfg-scale", "1", "--json"]
    jobs = str(tmp_path / "jobs.yaml")
    assert main(["edit", "--jobs", jobs, *options, "--workers", "ray:2"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert [(each["job"], each["run"]["steps"]) for each in said["finished"]] == [
        (1, 3),
        (3, 3),
    ]
    assert "gone.png" in said["failed"][0]["error"]
    assert (tmp_path / "a.mp4").stat().st_size > 0


def test_workers_are_of_a_ray_cluster_and_for_many_jobs(
    clip: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--video", clip["video"], "--mask", clip["mask"], "--output", str(tmp_path / "a.mp4")]
    assert main(["edit", *files, "--workers", "ray"]) == 2
    assert "Give --jobs" in capsys.readouterr().err
    jobs = tmp_path / "jobs.yaml"
    jobs.write_text(json.dumps([{**clip, "output": str(tmp_path / "a.mp4")}]))
    assert main(["edit", "--jobs", str(jobs), "--workers", "2"]) == 2
    assert "Take ray or ray:N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("video: a.mp4", "is no list of jobs"),
        ("- a.mp4", "is no list of jobs"),
        ("- {video: a.mp4, mask: m.png, output: x.mp4}\n- {video: a.mp4}", "job 2: hetcache edit"),
        ("- {video: a.mp4, mask: m.png, output: x.mp4, stepz: 3}", "job 1"),
        (
            "- {video: a.mp4, mask: m.png, output: x.mp4}\n- {video: b.mp4, mask: m.png, output: x.mp4}",
            "x.mp4 would overwrite the output of job 1",
        ),
        ("- {video: a.mp4, mask: m.png, output: jobs.yaml.mp4, trace: jobs.yaml}", "list of jobs"),
    ],
)
def test_all_jobs_are_checked_before_the_first_is_begun(
    listed: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("jobs.yaml").write_text(listed)
    assert main(["edit", "--jobs", "jobs.yaml"]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.yaml"]
