"""A command that is killed before its file has its name leaves what was there, and runs again as if first."""

from __future__ import annotations

import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffsynth")
pytest.importorskip("av")
pytest.importorskip("typer")

from hetcache.cli.main import main
from hetcache.media.video import write_video

KILLED = """
import os, signal, sys
from pathlib import Path
from hetcache.cli.main import main
def die(part, final):
    os.kill(os.getpid(), signal.SIGKILL)
Path.replace = Path.rename = die
sys.exit(main(sys.argv[1:]))
"""
"""Everything is written and synced when this dies; nothing has its name yet."""

OLD = b"what was there before"
EDIT = ["--video", "clip.mp4", "--mask", "mask.mp4", "--steps", "3", "--cfg-scale", "1"]
COMMANDS = {
    "edit": (["edit", *EDIT, "--output", "out.mp4", "--trace", "trace.json"], "out.mp4"),
    "calibrate": (["calibrate", "--policy", "magcache", *EDIT, "--output", "fit.json"], "fit.json"),
    "compile-schedule": (["compile-schedule", "run.json", "--output", "plan.json"], "plan.json"),
    "report": (["report", "results", "--output", "page.html"], "page.html"),
    "export": (["export", "--output", "graphs"], "graphs"),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip and its mask, the trace of an edit and a comparison."""
    folder = tmp_path_factory.mktemp("made")
    rows, columns = np.mgrid[:64, :64]
    frames = np.stack([np.stack([columns * 2 + i, rows * 3, 220 - columns], -1) for i in range(5)])
    mask = np.zeros((5, 64, 64, 3), np.uint8)
    mask[:, 16:40, 24:48] = 255
    write_video(folder / "clip.mp4", frames.astype(np.uint8), Fraction(25))
    write_video(folder / "mask.mp4", mask, Fraction(25))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["edit", *EDIT, "--output", "first.mp4", "--trace", "run.json"]) == 0
        sizes = ["--frames", "5", "--height", "64", "--width", "64", "--steps", "2"]
        clips = ["--clips", "builtin:small-still-object-0", "--policies", "every-nth"]
        assert main(["compare", *clips, *sizes, "--output", "results"]) == 0
    return folder


@pytest.mark.timeout(400)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command_leaves_the_old_file_and_runs_again(
    command: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command == "export":
        pytest.importorskip("onnxscript")
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    words, name = COMMANDS[command]
    output = tmp_path / name
    if command != "export":  # writes a new folder only
        output.write_bytes(OLD)
    there = {path.name for path in tmp_path.iterdir()}
    done = subprocess.run([sys.executable, "-c", KILLED, *words], cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not output.exists() or output.read_bytes() == OLD
    left = {path.name for path in tmp_path.iterdir()} - there
    assert left
    assert all(name.startswith(".") for name in left)
    if command != "export":  # takes long, and its folder is made under a new name each time
        monkeypatch.chdir(tmp_path)
        assert main(words) == 0
        assert output.read_bytes() != OLD
