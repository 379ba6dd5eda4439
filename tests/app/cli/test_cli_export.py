"""``hetcache export``, and ``hetcache edit`` on what it wrote."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path

import pytest

pytest.importorskip("av")
pytest.importorskip("typer")
pytest.importorskip("diffsynth")

import numpy as np
from attrs import evolve

from hetcache.cli.main import main
from hetcache.media.video import read_video, write_video
from hetcache.running import export as app_export
from hetcache.running import run
from hetcache_core import LoadRequest, accelerate, discover

STEPS = 6


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr of an export that is refused."""
    assert main(["export", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_the_output_has_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "missing --output" in refused(capsys)


def test_what_cannot_be_exported_names_what_can(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    backbone = "wan-vace-diffusers"
    line = refused(capsys, "--backbone", backbone, "--output", str(tmp_path / "graphs"))
    can = "ltx-video, tiny-vace, wan-vace"
    assert f"{backbone} cannot be exported to ONNX. These can: {can}." in line
    assert not list(tmp_path.iterdir())


def test_what_stands_in_the_way_is_said_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_arguments: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(run, "load", unreachable)
    (tmp_path / "mine.txt").touch()
    assert "is not empty" in refused(capsys, "--output", str(tmp_path))
    assert "is a file" in refused(capsys, "--output", str(tmp_path / "mine.txt"))
    assert "cannot write" in refused(capsys, "--output", "/proc/graphs")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "hetcache[onnx]" in refused(capsys, "--output", str(tmp_path / "graphs"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's graphs."""
    for library in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("exported") / "new" / "graphs"
    assert main(["export", "--output", str(folder), "--json"]) == 0
    return folder


def test_people_are_told_how_to_run_what_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    made = app_export.Exported(
        output="graphs", backbone="tiny-vace", runs_with="onnx-runtime", graphs=65, files=68,
        bytes=2**20, around=None, notice="random weights",
    )  # fmt: skip
    app_export.print_export(made)
    assert capsys.readouterr().out.splitlines() == [
        "tiny-vace: 65 graphs, 1.0 MiB",
        "notice: random weights",
        "output: graphs",
        "use: hetcache edit --backbone onnx-runtime --model graphs",
    ]


def test_a_folder_comes_whole_and_alone(exported: Path) -> None:
    files = list(exported.iterdir())
    assert sum(path.suffix == ".onnx" for path in files) == 65
    assert {"codec.safetensors", "manifest.json", "weights.bin"} <= {path.name for path in files}
    assert list(exported.parent.iterdir()) == [exported]


def test_an_edit_with_the_graphs_has_the_frames_of_the_model(exported: Path) -> None:
    registry, frames = discover(), []
    for name, model in (("onnx-runtime", str(exported)), ("tiny-vace", None)):
        backbone = registry.backbone(name)()
        pipeline = backbone.load(LoadRequest(model=model))
        clip = registry.backbone("tiny-vace")().sample()
        request = evolve(
            clip, video=clip.video[:5, :128, :128], mask=clip.mask[:5, :128, :128], steps=STEPS
        )
        with accelerate(pipeline, "hetcache", backbone=backbone, registry=registry):
            frames.append(backbone.edit(pipeline, request).astype(int))
    # Latents differ in the sixth digit, so a few values fall on the other side of a half.
    assert np.abs(frames[0] - frames[1]).max() <= 1


def test_an_edit_on_the_command_line_decides_as_with_the_model(
    exported: Path, tmp_path: Path
) -> None:
    """With the exported model's own guidance, which is not what other models are run with."""
    mask = np.zeros((5, 64, 96, 3), np.uint8)
    write_video(tmp_path / "clip.mp4", mask + 90, Fraction(10))
    mask[:, 16:48, 16:48] = 255
    write_video(tmp_path / "mask.mp4", mask, Fraction(10))
    modes = []
    for words in (["onnx-runtime", "--model", str(exported)], ["tiny-vace"]):
        trace = tmp_path / f"{words[0]}.json"
        files = ["--video", str(tmp_path / "clip.mp4"), "--mask", str(tmp_path / "mask.mp4")]
        made = ["--output", str(tmp_path / f"{words[0]}.mp4"), "--trace", str(trace)]
        common = ["--steps", str(STEPS), "--device", "cpu", "--policy", "hetcache"]
        assert main(["edit", *files, *made, *common, "--backbone", *words]) == 0
        content = json.loads(trace.read_text(encoding="utf-8"))
        assert content["backbone"] == words[0]
        modes.append([record["mode"] for record in content["records"]])
    assert modes[0] == modes[1]
    assert {"full", "partial"} <= set(modes[0])
    videos = [
        read_video(tmp_path / f"{name}.mp4", option="--video", max_frames=5).frames.astype(int)
        for name in ("onnx-runtime", "tiny-vace")
    ]
    # A byte that differs before encoding becomes more by it; with another guidance it is far more.
    assert np.abs(videos[0] - videos[1]).mean() < 1.5
