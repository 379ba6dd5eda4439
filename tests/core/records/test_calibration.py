"""``hetcache calibrate``: measured on the embedded backbone, used by a run, refused for another one."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av")
pytest.importorskip("diffsynth")

import numpy as np
from attrs import evolve

from hetcache.cli.main import main
from hetcache.media.video import write_video
from hetcache_core import Calibration, LoadRequest, ModelInfo, Trace, discover
from hetcache_core.errors import ConfigError

STEPS = 10
SHAPE = (5, 64, 96)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A video and a mask of it, as options."""
    folder = tmp_path_factory.mktemp("clip")
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
    frames = [np.stack([columns * 2 + 3 * i, rows * 3, 220 - columns], -1) for i in range(SHAPE[0])]
    mask = np.zeros((*SHAPE, 3), np.uint8)
    mask[:, 16:48, 32:64] = 255
    write_video(folder / "clip.mp4", np.stack(frames).astype(np.uint8), Fraction(25))
    write_video(folder / "mask.mp4", mask, Fraction(25))
    return ["--video", str(folder / "clip.mp4"), "--mask", str(folder / "mask.mp4")]


@pytest.fixture(scope="module")
def files(clip: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A calibration of each policy that takes one."""
    folder = tmp_path_factory.mktemp("calibrations")
    made = {}
    for policy in ("teacache", "magcache"):
        made[policy] = folder / f"{policy}.json"
        options = ["--steps", str(STEPS), "--cfg-scale", "1", "--device", "cpu"]
        words = ["calibrate", "--policy", policy, *clip, *clip, "-o", str(made[policy])]
        assert main([*words, *options]) == 0
    return made


def model() -> ModelInfo:
    backbone = discover().backbone("tiny-vace")()
    return backbone.describe(backbone.load(LoadRequest()))


def edit(clip: list[str], folder: Path, *options: str) -> int:
    words = ["edit", *clip, "--output", str(folder / "out.mp4"), "--device", "cpu"]
    return main([*words, "--cfg-scale", "1", *options])


def error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_the_file_says_what_it_is_of(files: dict[str, Path]) -> None:
    for policy, path in files.items():
        loaded = Calibration.load(path, policy=policy, model=model())
        assert (loaded.steps, loaded.clips) == (STEPS, 2)
        assert loaded.sigmas[0] == 1.0
        assert list(loaded.sigmas) == sorted(loaded.sigmas, reverse=True)
        assert json.loads(path.read_text())["version"] == 1
    fitted = Calibration.load(files["teacache"], policy="teacache", model=model()).data
    assert len(fitted["coefficients"]) == 5
    assert 0 < fitted["low"] < fitted["high"]
    assert 0 <= fitted["residual_rms"] < fitted["mean_change"]
    measured = Calibration.load(files["magcache"], policy="magcache", model=model()).data
    assert len(measured["ratios"]) == STEPS
    assert all(0.5 < ratio < 1.5 for ratio in measured["ratios"])


@pytest.mark.parametrize("policy", ["teacache", "magcache"])
def test_an_edit_uses_the_file(
    files: dict[str, Path], clip: list[str], tmp_path: Path, policy: str
) -> None:
    trace = tmp_path / "trace.json"
    options = ["--policy", policy, "--set", f"calibration={files[policy]}", "--steps", str(STEPS)]
    assert edit(clip, tmp_path, *options, "--trace", str(trace), "--target-speedup", "2") == 0
    found = Trace.load(trace)
    assert found.settings["calibration"] == str(files[policy])
    assert found.totals().steps_reused > 0
    assert found.totals().flops_speedup == pytest.approx(2, rel=0.06)


@pytest.mark.parametrize("policy", ["teacache", "magcache"])
def test_another_number_of_steps_or_another_shift_is_refused(
    files: dict[str, Path],
    clip: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    policy: str,
) -> None:
    options = ["--policy", policy, "--set", f"calibration={files[policy]}"]
    assert edit(clip, tmp_path, *options, "--steps", "12") == 2
    assert f"it was measured with {STEPS} steps, this run has 12" in error(capsys)
    options += ["--steps", str(STEPS), "--option", "sigma_shift=3.0"]
    assert edit(clip, tmp_path, *options) == 2
    assert "another shift" in error(capsys)
    assert not list(tmp_path.iterdir())


def test_another_policy_is_refused(
    files: dict[str, Path], clip: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--policy", "magcache", "--set", f"calibration={files['teacache']}"]
    assert edit(clip, tmp_path, *options) == 2
    assert "it was made for policy teacache, not for magcache" in error(capsys)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backbone": "wan-vace"}, "a model with backbone 'wan-vace', this one has 'tiny-vace'"),
        ({"variant": "another"}, "variant 'another'"),
        ({"layers": 30}, "layers 30"),
        ({"control_layers": ()}, r"control_layers \(\)"),
    ],
)
def test_another_model_is_refused(
    files: dict[str, Path], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    made = Calibration.load(files["magcache"], policy="magcache", model=model())
    evolve(made, model=evolve(made.model, **change)).save(tmp_path / "other.json")
    with pytest.raises(ConfigError, match=said) as refused:
        Calibration.load(tmp_path / "other.json", policy="magcache", model=model())
    assert "hetcache calibrate --backbone tiny-vace --policy magcache" in refused.value.remedy


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "its version is None"),
        ('{"version": 99}', "its version is 99, this release reads 1"),
        ('{"version": 1}', "it is not whole"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        Calibration.load(tmp_path / "file.json", policy="teacache", model=model())
    with pytest.raises(ConfigError, match="cannot be read"):
        Calibration.load(tmp_path / "none.json", policy="teacache", model=model())


def test_json_is_the_content_of_the_file_and_people_get_the_residual_error(
    clip: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "file.json"
    words = ["calibrate", "--policy", "teacache", *clip, "-o", str(output), "--steps", str(STEPS)]
    assert main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    printed.pop("notice")
    assert printed == json.loads(output.read_text())
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "teacache on tiny-vace" in shown
    assert "1 clip of 10 steps" in shown
    assert "residual_rms" in shown
    assert f"--set calibration={output}" in shown


def test_without_videos_the_models_own_clip_is_run_with_several_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = discover().backbone("tiny-vace")
    sample, seeds = kind().sample(), []
    video, mask = sample.video[:5, :64, :96].copy(), np.zeros(SHAPE, bool)
    mask[:, 16:48, 32:64] = True
    run = kind.edit

    def edited(backbone: Any, pipeline: Any, request: Any) -> Any:
        seeds.append(request.seed)
        return run(backbone, pipeline, evolve(request, video=video, mask=mask))

    monkeypatch.setattr(kind, "sample", lambda _self: evolve(sample, video=video, mask=mask))
    monkeypatch.setattr(kind, "edit", edited)
    output = str(tmp_path / "file.json")
    options = ["--clips", "3", "--seed", "5", "--steps", "4", "--device", "cpu"]
    assert main(["calibrate", "--policy", "magcache", "-o", output, *options]) == 0
    assert seeds == [5, 6, 7]
    assert Calibration.load(output, policy="magcache", model=model()).clips == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "pab"], "policy pab has nothing to calibrate. Those that take one: auto"),
        (["--policy", "teacach"], "mean 'teacache'"),
        (["--policy", "searched"], "within a budget. Give how many times fewer FLOPs"),
        (["--policy", "searched", "--budget", "0.5x"], "cannot read '0.5x'"),
        (
            ["--policy", "teacache", "--budget", "4x"],
            "policy teacache is measured without a budget",
        ),
        (["--policy", "teacache", "--video", "a.mp4"], "every --video needs its --mask"),
        (["--policy", "teacache", "--backbone", "wan-vace"], "no embedded clip"),
        (["--policy", "teacache", "--steps", "0"], "steps must be >= 1"),
        (["--policy", "teacache", "--clips", "0"], "clips must be >= 1"),
        ([], "missing --policy"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["calibrate", *words, "--output", str(tmp_path / "file.json")]) == 2
    assert said in error(capsys)
    assert not list(tmp_path.iterdir())


def test_too_few_steps_for_a_polynomial_are_refused(
    clip: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["calibrate", "--policy", "teacache", *clip, "-o", str(tmp_path / "file.json")]
    assert main([*words, "--steps", "4"]) == 2
    assert "too few to fit a polynomial of degree 4" in error(capsys)
    assert not list(tmp_path.iterdir())


def test_a_searched_schedule_is_no_farther_than_where_it_began_and_replay_runs_it(
    clip: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule, trace = tmp_path / "schedule.json", tmp_path / "trace.json"
    options = ["--steps", "9", "--cfg-scale", "1", "--device", "cpu", "--json"]
    words = ["calibrate", "--policy", "searched", "--budget", "3x", *clip, *options]
    assert main([*words, "-o", str(schedule)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["computed"][0] == 0
    assert found["computed"][-1] == found["steps"] - 1 == 8
    assert len(found["computed"]) == 3
    assert found["decibels"] >= found["before"]
    assert 3 < found["runs"] <= 7
    asked = ["--policy", "replay", "--set", f"schedule={schedule}", "--steps", "9"]
    assert edit(clip, tmp_path, *asked, "--trace", str(trace)) == 0
    modes = Trace.load(trace).modes()
    assert [index for index, mode in enumerate(modes) if mode.value == "full"] == found["computed"]
