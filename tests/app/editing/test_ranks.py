"""One edit by two processes on a CPU: the video of one, one error for both, and no file that is half made."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers", minversion="0.42")
pytest.importorskip("av")
if "fork" not in multiprocessing.get_all_start_methods():
    pytest.skip("the processes are forked, which spares them the imports", allow_module_level=True)

import torch.distributed as dist

import hetcache.editing.ranks
from hetcache.cli.main import main
from hetcache.media.video import read_video, write_video
from hetcache_backends.diffusers.wan_vace import WanVaceDiffusers


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A clip of 5 x 64 x 96 pixels, and its mask."""
    folder = tmp_path_factory.mktemp("clip")
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), dtype=np.uint8)
    mask = np.zeros_like(frames)
    mask[:, 16:40, 24:56] = 255
    for name, pixels in (("video", frames), ("mask", mask)):
        write_video(folder / f"{name}.mp4", pixels, Fraction(8))
    return {name: str(folder / f"{name}.mp4") for name in ("video", "mask")}


def edit(clip: dict[str, str], output: Path, *options: str) -> int:
    """Edit the clip with a random model."""
    given = ["--video", clip["video"], "--mask", clip["mask"], "--output", str(output)]
    model = ["--backbone", "wan-vace-diffusers=random", "--policy", "teacache", "--device", "cpu"]
    return main(["edit", *given, *model, *options])


def test_two_processes_make_the_video_of_one(clip: dict[str, str], tmp_path: Path) -> None:
    assert edit(clip, tmp_path / "one.mp4", "--steps", "3") == 0
    assert edit(clip, tmp_path / "two.mp4", "--steps", "3", "--gpus", "2") == 0
    one, two = (read_video(tmp_path / f"{n}.mp4", option="").frames for n in ("one", "two"))
    assert np.abs(one.astype(int) - two).max() <= 1  # rounding on the way to bytes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.mp4", "two.mp4"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (signal.SIGKILL, "process 2 of 2 was killed by signal 9"),
        (signal.SIGSTOP, "process 1 of 2: RuntimeError"),  # it hangs: the other one waits in vain
    ],
)
def test_a_process_that_dies_or_hangs_ends_the_other_and_leaves_no_file(
    clip: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fault: signal.Signals,
    said: str,
) -> None:
    monkeypatch.setattr(hetcache.editing.ranks, "TIMEOUT", timedelta(seconds=4))
    own = WanVaceDiffusers.edit

    def hit(self: Any, *given: Any) -> Any:
        if dist.get_rank() == 1:
            threading.Timer(0.5, os.kill, (os.getpid(), fault)).start()
        return own(self, *given)

    monkeypatch.setattr(WanVaceDiffusers, "edit", hit)
    assert edit(clip, tmp_path / "no.mp4", "--steps", "1000", "--gpus", "2") == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert said in errors[0]
    assert not list(tmp_path.iterdir())
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--gpus", "2", "--policy", "hetcache"), "computes some of the tokens"),
        (("--gpus", "3"), "3 processes cannot share 2 attention heads evenly"),
        (("--gpus", "1"), "gpus must be"),
    ],
)
def test_what_is_asked_for_wrongly_is_one_error(
    clip: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    said: str,
) -> None:
    assert edit(clip, tmp_path / "no.mp4", "--steps", "3", *options) == 2
    assert said in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
