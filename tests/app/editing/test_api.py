"""What the commands do, from Python: a video file goes in, and one comes out."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

pytest.importorskip("av")
pytest.importorskip("diffsynth")
pytest.importorskip("torchmetrics")

import numpy as np

import hetcache
from hetcache.media.video import write_video
from hetcache_core import ConfigError, Trace


@pytest.fixture
def clip(tmp_path: Path) -> tuple[Path, Path]:
    mask = np.zeros((5, 32, 48, 3), np.uint8)
    mask[:, 8:24, 8:24] = 255
    pixels = np.random.default_rng(0).integers(0, 256, mask.shape, dtype=np.uint8)
    write_video(tmp_path / "clip.mp4", pixels, Fraction(25))
    write_video(tmp_path / "mask.mp4", mask, Fraction(25))
    return tmp_path / "clip.mp4", tmp_path / "mask.mp4"


def test_a_video_file_goes_in_and_one_comes_out(clip: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    edited = hetcache.edit(
        *clip,
        output=output,
        prompt="a red ball",
        policy="every-nth",
        settings={"every": 2},
        steps=5,
        trace=tmp_path / "trace.json",
        device="cpu",
    )
    assert edited.output == output
    assert output.stat().st_size > 0
    assert [mode.value for mode in edited.trace.modes()] == ["full", "reuse"] * 2 + ["full"]
    assert (
        edited.speedup == edited.trace.totals().flops_speedup > 1.5
    )  # 5 / 3, less what is not the trunk
    assert edited.report.files == {"output": str(output), "trace": str(tmp_path / "trace.json")}
    assert Trace.load(tmp_path / "trace.json").policy == "every-nth"


def test_a_random_model_stands_in_for_a_checkpoint(clip: tuple[Path, Path], tmp_path: Path) -> None:
    edited = hetcache.edit(
        *clip, output=tmp_path / "out.mp4", backbone="wan-vace=random", steps=2, device="cpu"
    )
    assert (edited.report.backbone, edited.report.model) == ("wan-vace", "random")
    assert "random" in (edited.report.notice or "")


def test_mistakes_are_those_of_the_command(clip: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    with pytest.raises(ConfigError, match="mean 'steps'"):
        hetcache.edit(*clip, output=output, stepz=3)
    with pytest.raises(ConfigError, match=r"hetcache\.edit: steps must be >= 1"):
        hetcache.edit(*clip, output=output, steps=0)
    assert not output.exists()


@pytest.mark.timeout(400)  # a process of its own loads the libraries
def test_runs_are_compared_from_python(clip: tuple[Path, Path], tmp_path: Path) -> None:
    video, mask = clip
    made = hetcache.compare(
        output=tmp_path / "results", video=video, mask=mask, policies="every-nth", steps=2, repeat=1,
        device="cpu",
    )  # fmt: skip
    assert made.made == 2
    assert [row.key.policy for row in made.results.rows()] == ["none", "every-nth"]
    assert list((tmp_path / "results").glob("*.md"))
