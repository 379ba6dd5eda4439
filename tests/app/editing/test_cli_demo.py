"""``hetcache demo``, at its own size but with a single step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("av")
pytest.importorskip("diffsynth")

from PIL import Image

from hetcache.cli.main import main
from hetcache.editing.strip import BAR
from hetcache.media.video import read_video
from hetcache_core.records.trace import Trace


def test_the_demo_writes_everything_that_it_lists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "demo"
    options = ["--output", str(folder), "--steps", "1", "--device", "cpu", "--json"]
    assert main(["demo", *options, "--policy", "teacache"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert {Path(path) for path in report["files"].values()} == set(folder.iterdir())
    assert {path.name for path in folder.iterdir()} == {
        "source.mp4", "reference.mp4", "teacache.mp4", "side_by_side.mp4", "strip.png",
        "trace.json", "trace-reference.json", "summary.json",
    }  # fmt: skip
    assert json.loads((folder / "summary.json").read_text()) == report
    frames, height, width = report["frames"], report["height"], report["width"]
    for name in ("source", "reference", "teacache"):
        clip = read_video(folder / f"{name}.mp4", option="")
        assert clip.frames.shape == (frames, height, width, 3)
    joined = read_video(folder / "side_by_side.mp4", option="")
    assert joined.frames.shape == (frames, BAR + height, 3 * width, 3)
    with Image.open(folder / "strip.png") as picture:
        assert picture.height >= 4 * (BAR + height)
    assert Trace.load(folder / "trace.json").policy == "teacache"
    assert Trace.load(folder / "trace-reference.json").policy == "none"
    assert report["run"]["policy"] == "teacache"
    assert report["reference"]["policy"] == "none"
    assert report["psnr"]["whole"]["identical"], "a single step is always computed"
    assert report["notice"] is None or f"notice: {report['notice']}" in err.splitlines()
