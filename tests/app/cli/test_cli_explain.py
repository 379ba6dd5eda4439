"""``hetcache explain``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("typer")

from hetcache.cli.main import main
from hetcache_core import Guards, accelerate, discover
from hetcache_core.testing import tiny_case


def recorded(path: Path, *, guards: Guards | None = None) -> str:
    """Record a run of eight steps in which teacache wants to reuse all it may."""
    case = tiny_case()
    pipeline = case.make_pipeline(0)
    settings = {"threshold": 1e9, "first_steps": 2, "longest_reuse": 3}
    session = accelerate(
        pipeline,
        "teacache",
        settings=settings,
        guards=guards,
        backbone=case.backbone,
        registry=discover(),
    )
    with session:
        case.run(pipeline, 8, "none", 0)
    session.trace.save(path)
    return str(path)


def test_every_step_is_told_on_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", recorded(tmp_path / "a.json")]) == 0
    out = capsys.readouterr().out
    assert "guard first_steps=2: 2 steps (set)" in out
    assert "guard last_steps=1: 1 steps (the policy's own)" in out
    (line,) = (line for line in out.splitlines() if line.startswith("   5  "))
    assert line.startswith("   5  full     the policy: reuse (signal ")
    assert line.endswith("; the gate: full (guard: 3 reused in a row)")


def test_one_step_is_told_with_its_calls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = recorded(tmp_path / "a.json")
    assert main(["explain", trace, "--step", "3"]) == 0
    out = capsys.readouterr().out
    assert "step 3: reuse" in out
    assert "call cond: reuse, 0 blocks run" in out
    assert main(["explain", trace, "--step", "3", "--json"]) == 0
    (step,) = json.loads(capsys.readouterr().out)["steps"]
    assert (step["wanted"], step["changes"], step["done"]) == ("reuse", [], "reuse")


def test_two_runs_part_where_they_first_do_different_things(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = recorded(tmp_path / "a.json")
    b = recorded(tmp_path / "b.json", guards=Guards(full_steps=(4,)))
    assert main(["explain", a, b]) == 0
    out = capsys.readouterr().out
    assert "they part at step 4" in out
    assert "guard: listed step" in out
    assert main(["explain", a, b, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parts_at"] == 4
    assert found["differ"] == {"guards.full_steps": [None, 1]}
    assert [run["step"]["done"] for run in found["runs"]] == ["reuse", "full"]
    assert main(["explain", a, a]) == 0
    assert "they do the same at every step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["TRACE", "--step", "8"], "there is no step 8: the run has 8, counted from 0"),
        (["TRACE", "TRACE", "--step", "1"], "one step can be explained of one run"),
        (["none.json"], "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = recorded(tmp_path / "a.json")
    assert main(["explain", *(trace if word == "TRACE" else word for word in words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
