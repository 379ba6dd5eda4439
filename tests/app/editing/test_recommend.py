"""``hetcache recommend``: the choice follows mask and memory, and the command that it prints is accepted."""

from __future__ import annotations

import json
import shlex
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("PIL")
pytest.importorskip("typer")

from hetcache.cli.main import main
from hetcache.editing.config import EditConfig
from hetcache.media.video import write_video
from hetcache.running.options import make


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip with a small mask and one with a mask over half of it."""
    folder = tmp_path_factory.mktemp("clip")
    write_video(folder / "clip.mp4", np.full((5, 480, 832, 3), 90, np.uint8), Fraction(25))
    for name, width in (("small", 64), ("large", 416)):
        mask = np.zeros((5, 480, 832, 3), np.uint8)
        mask[:, 100:400, 32 : 32 + width] = 255
        write_video(folder / f"{name}.mp4", mask, Fraction(25))
    return folder


@pytest.fixture
def ask(clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(clip)

    def asked(mask: str, *options: str) -> dict[str, Any]:
        words = ["recommend", "--video", "clip.mp4", "--mask", f"{mask}.mp4", "--json", *options]
        assert main(words) == 0
        said: dict[str, Any] = json.loads(capsys.readouterr().out)
        return said

    return asked


def test_the_largest_model_that_fits_is_taken_with_partial_steps_where_few_tokens_are_edited(
    ask: Any,
) -> None:
    large, small = ask("small", "--memory", "80GB"), ask("small", "--memory", "16GB")
    assert large["model"].endswith("14B")
    assert small["model"].endswith("1.3B")
    assert large["settings"] == small["settings"] == {"partials": 1}
    assert small["active"] < 0.25 < large["cache_bytes"] / small["cache_bytes"]
    assert small["cache_bytes"] + small["weights_bytes"] <= 0.8 * 16e9
    assert ask("large", "--memory", "16GB")["settings"] == {}


def test_keys_that_do_not_fit_are_not_kept_and_too_little_memory_is_said(ask: Any) -> None:
    tight = ask("small", "--memory", "6GB")
    assert tight["settings"] == {}
    assert "their keys do not fit" in tight["reasons"][-1]
    assert "do not fit into 80% of 2 GB" in ask("small", "--memory", "2GB")["reasons"][0]


def test_the_command_is_one_that_edit_takes(ask: Any) -> None:
    program, command, *words = shlex.split(
        ask("small", "--memory", "16GB", "--speedup", "4")["command"]
    )
    assert (program, command) == ("hetcache", "edit")
    given: dict[str, Any] = dict(zip(words[::2], words[1::2], strict=True))
    name, value = given.pop("--set").split("=")
    plain = {key.removeprefix("--").replace("-", "_"): value for key, value in given.items()}
    plain["target_speedup"] = float(plain["target_speedup"])
    made = make(EditConfig, {**plain, "settings": {name: int(value)}}, where="hetcache edit")
    assert (made.limits.target_speedup, made.policy.settings) == (4.0, {"partials": 1})


def test_people_read_reasons_and_the_command(
    clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clip)
    assert main(["recommend", "--video", "clip.mp4", "--mask", "small.mp4"]) == 0
    *reasons, command = capsys.readouterr().out.splitlines()
    assert len(reasons) == 3
    assert command.startswith("hetcache edit --video clip.mp4")
    assert main(["recommend", "--video", "clip.mp4", "--mask", "gone.mp4"]) == 2
