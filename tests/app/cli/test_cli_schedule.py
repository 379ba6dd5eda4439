"""``hetcache compile-schedule``, and ``hetcache edit --policy replay:schedule=…`` with what it wrote."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

pytest.importorskip("av")
pytest.importorskip("typer")
pytest.importorskip("diffsynth")

import numpy as np
import torch

from hetcache.cli.main import main
from hetcache.editing.config import EditConfig
from hetcache.media.video import read_video, write_video
from hetcache.running.options import make
from hetcache.running.run import PolicyChoice
from hetcache_core import Calibration, ConfigError, Mode, accelerate, discover
from hetcache_core.records.trace import Trace
from hetcache_core.testing import scripted, tiny_case

STEPS = 6
FRAMES, HEIGHT, WIDTH = 5, 64, 96


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A video and a mask of it, as options."""
    folder = tmp_path_factory.mktemp("clip")
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    video = np.stack([np.stack([columns * 2 + i, rows * 3, 220 - columns], -1) for i in range(5)])
    mask = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    mask[:, 16:48, 16:48] = 255
    write_video(folder / "clip.mp4", video.astype(np.uint8), Fraction(16))
    write_video(folder / "mask.mp4", mask, Fraction(16))
    return ["--video", str(folder / "clip.mp4"), "--mask", str(folder / "mask.mp4")]


def edit(clip: list[str], *words: str) -> int:
    return main(["edit", *clip, "--device", "cpu", *words])


@pytest.fixture(scope="module")
def recorded(clip: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the video and the trace of a run, and its schedule."""
    folder = tmp_path_factory.mktemp("recorded")
    out, trace = str(folder / "out.mp4"), str(folder / "trace.json")
    words = ["--steps", str(STEPS), "--policy", "dicache", "--set", "threshold=10"]
    assert edit(clip, "--output", out, "--trace", trace, *words) == 0
    assert main(["compile-schedule", trace, "--output", str(folder / "schedule.json")]) == 0
    return folder


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one error of a command that is refused; notes may come before it."""
    capsys.readouterr()
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    *before, line = err.splitlines()
    assert line.startswith("error: ")
    assert all(other.startswith("note: ") for other in before)
    return line


def test_a_replayed_edit_writes_the_same_frames_and_runs_no_probe(
    clip: list[str], recorded: Path, tmp_path: Path
) -> None:
    out, trace = str(tmp_path / "out.mp4"), str(tmp_path / "trace.json")
    policy = f"replay:schedule={recorded / 'schedule.json'}"
    words = ["--steps", str(STEPS), "--policy", policy, "--trace", trace]
    assert edit(clip, "--output", out, *words) == 0
    first = read_video(recorded / "out.mp4", option="--output").frames
    again = read_video(tmp_path / "out.mp4", option="--output").frames
    assert np.array_equal(first, again)
    before, replayed = Trace.load(recorded / "trace.json"), Trace.load(trace)
    assert replayed.modes() == before.modes()
    assert Mode.REUSE in replayed.modes()
    assert replayed.totals().flops < before.totals().flops
    assert replayed.totals().host_reads == 0 < before.totals().host_reads
    assert any("Replays 6 steps of dicache" in note for note in replayed.notes)


def test_what_was_written_is_said(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    trace, out = str(recorded / "trace.json"), str(tmp_path / "s.json")
    assert main(["compile-schedule", trace, "-o", out]) == 0
    text = capsys.readouterr().out
    assert "6 steps of dicache on tiny-vace" in text
    assert f"run with --policy replay:schedule={out}" in text
    assert main(["compile-schedule", trace, "-o", out, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    totals = Trace.load(recorded / "trace.json").totals()
    assert (made["steps_full"], made["steps_reused"]) == (totals.steps_full, totals.steps_reused)
    assert made["bytes"] == Path(out).stat().st_size
    assert not made["blocks"]


def test_runs_of_another_kind_are_refused(
    clip: list[str], recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = f"replay:schedule={recorded / 'schedule.json'}"
    out = tmp_path / "out.mp4"
    words = ["edit", *clip, "--device", "cpu", "--output", str(out), "--policy", policy]
    line = refused(capsys, *words, "--steps", "8")
    assert "recorded with 6 steps, this run has 8" in line
    line = refused(capsys, *words, "--steps", "6", "--target-speedup", "2")
    assert "can compute neither more nor less" in line
    line = refused(capsys, *words, "--steps", "6", "--height", "32", "--width", "48")
    assert "tokens" in line
    assert not list(tmp_path.iterdir())


def test_a_replay_without_a_schedule_is_refused_before_a_model_is_loaded(
    clip: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["edit", *clip, "--output", str(tmp_path / "out.mp4"), "--model", "/nowhere"]
    assert "missing setting schedule" in refused(capsys, *words, "--policy", "replay")
    line = refused(capsys, *words, "--policy", "replay:schedule=none.json")
    assert "there is no schedule none.json" in line


def test_what_is_no_trace_makes_no_schedule(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, trace = tmp_path / "s.json", tmp_path / "t.json"
    assert "missing --output" in refused(capsys, "compile-schedule", str(trace))
    words = ["compile-schedule", str(trace), "--output", str(out)]
    assert "t.json cannot be read" in refused(capsys, *words)
    trace.write_text("{}")
    assert "has trace schema None" in refused(capsys, *words)
    plain = json.loads((recorded / "trace.json").read_text())
    trace.write_text(json.dumps({**plain, "schema_version": 1, "plan": None}))
    assert "Record the run again with this version" in refused(capsys, *words)
    trace.write_text(json.dumps({**plain, "complete": False}))
    assert "broke off" in refused(capsys, *words)
    trace.write_text(json.dumps({**plain, "policy": "long-gone"}))
    assert "its policy long-gone cannot be composed again" in refused(capsys, *words)
    trace.write_text(json.dumps(plain))
    line = refused(capsys, "compile-schedule", str(trace), "--output", str(trace))
    assert "would overwrite the trace" in line
    assert "does not exist" in refused(
        capsys, "compile-schedule", str(trace), "--output", str(tmp_path / "no" / "s.json")
    )
    assert json.loads(trace.read_text()) == plain
    assert not out.exists()


def test_a_replay_is_not_compiled_again(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = str(recorded / "schedule.json")
    plain = json.loads((recorded / "trace.json").read_text())
    trace = tmp_path / "t.json"
    trace.write_text(json.dumps({**plain, "policy": "replay", "settings": {"schedule": schedule}}))
    words = ["compile-schedule", str(trace), "--output", str(tmp_path / "s.json")]
    assert f"the run was a replay of {schedule} itself" in refused(capsys, *words)


def test_a_policy_that_was_composed_by_hand_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = tiny_case()
    pipeline = case.make_pipeline(0)
    with accelerate(pipeline, scripted(Mode.FULL, Mode.REUSE), backbone=case.backbone) as session:
        case.run(pipeline, 4, "none", 0)
    session.trace.save(tmp_path / "t.json")
    words = ["compile-schedule", str(tmp_path / "t.json"), "--output", str(tmp_path / "s.json")]
    assert "Only a policy that is chosen by its name" in refused(capsys, *words)


@pytest.mark.parametrize("policy", ["teacache", "magcache", "pab+magcache"])
def test_a_calibration_file_is_not_needed_any_more(policy: str, tmp_path: Path) -> None:
    case = tiny_case()
    pipeline = case.make_pipeline(0)
    measured, plain = policy.rsplit("+", maxsplit=1)[-1], "+" not in policy
    calibrator = discover().policy(measured).calibrator()
    assert calibrator is not None
    with accelerate(pipeline, calibrator.watch(), backbone=case.backbone) as session:
        case.run(pipeline, 8, "none", 0)
    file = tmp_path / "calibration.json"
    Calibration(
        policy=measured,
        model=case.backbone.describe(pipeline),
        sigmas=tuple(record.sigma for record in session.trace.records),
        clips=1,
        data=calibrator.result(),
    ).save(file)
    settings = {"calibration" if plain else f"{measured}.calibration": str(file)}
    with accelerate(pipeline, policy, settings=settings, backbone=case.backbone) as session:
        result = case.run(pipeline, 8, "none", 0)
    session.trace.save(tmp_path / "t.json")
    schedule = tmp_path / "s.json"
    assert main(["compile-schedule", str(tmp_path / "t.json"), "--output", str(schedule)]) == 0
    file.unlink()
    chosen = {"schedule": str(schedule)}
    with accelerate(pipeline, "replay", settings=chosen, backbone=case.backbone) as session:
        again = case.run(pipeline, 8, "none", 0)
    assert torch.equal(again, result)


def choice(**given: object) -> PolicyChoice:
    files = {"video": "v", "mask": "m", "output": "o.mp4"}
    asked = make(EditConfig, {**files, **given}, where="hetcache edit")
    return asked.policy.choose(asked.limits, asked.cache, asked.steps)


def test_a_policy_may_bring_its_settings_in_its_text() -> None:
    asked = choice(policy="teacache@fast:threshold=2")
    assert (asked.name, asked.preset, asked.settings) == ("teacache", "fast", {"threshold": 2})
    asked = choice(policy="hetcache@3x:rho=2;margin=1", settings={"margin": 2})
    assert (asked.target_speedup, asked.settings) == (3.0, {"rho": 2, "margin": 2})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"policy": "teacache:threshold=1,pab"}, "names 2 policies"),
        ({"policy": "teacache:"}, "cannot read"),
        ({"policy": "teacache@fast", "preset": "quality"}, "goes with no --preset"),
        ({"policy": "teacache@2x", "target_speedup": 3.0}, "goes with no --target-speedup"),
    ],
)
def test_a_text_that_cannot_be_meant_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        choice(**given)


def test_what_was_done_is_counted_and_not_what_was_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With so small a share allowed, every partial step runs in full."""
    case = tiny_case()
    pipeline = case.make_pipeline(0)
    settings = {"pattern": "Fp", "max_active_share": 0.01}
    with accelerate(pipeline, "hetcache", settings=settings, backbone=case.backbone) as session:
        case.run(pipeline, 6, "none", 0)
    assert any(step.wanted is Mode.PARTIAL for step in session.trace.decisions)
    session.trace.save(tmp_path / "t.json")
    capsys.readouterr()
    words = ["compile-schedule", str(tmp_path / "t.json"), "--output", str(tmp_path / "s.json")]
    assert main([*words, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["steps_full"], made["steps_partial"]) == (6, 0)
