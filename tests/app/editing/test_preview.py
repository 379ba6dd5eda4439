"""``hetcache preview``: roles of tokens over the frames, without a model."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

pytest.importorskip("av")
pytest.importorskip("rich")

import numpy as np
from PIL import Image

from hetcache.cli.main import main
from hetcache.media.video import read_video, write_video

GREY = 100
RED, YELLOW = (170, 84, 84), (170, 145, 84)
"""Over grey: what is masked, and its margin, each 45 % of its colour."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """30 grey frames of 64x96, in the first of which 16x16 pixels are masked."""
    folder = tmp_path_factory.mktemp("clip")
    write_video(folder / "clip.mp4", np.full((30, 64, 96, 3), GREY, np.uint8), Fraction(16))
    (folder / "mask").mkdir()
    for index in range(30):
        mask = np.zeros((64, 96), np.uint8)
        mask[16:32, 32:48] = 255 * (index == 0)
        Image.fromarray(mask).save(folder / "mask" / f"{index:03}.png")
    return ["--video", str(folder / "clip.mp4"), "--mask", str(folder / "mask")]


def preview(clip: list[str], output: Path, *options: str) -> int:
    return main(["preview", *clip, "--output", str(output), "--backbone", "tiny-vace", *options])


def test_masked_tokens_and_their_margin_are_drawn_and_counted(
    clip: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 5 latent frames of 4x6 tokens, one token of the first is masked and eight are around it."""
    assert preview(clip, tmp_path / "p.png", "--clip", str(tmp_path / "p.mp4"), "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["frames"], made["windows"], made["tokens"]) == (30, 1, 5 * 4 * 6)
    assert made["generative"] == pytest.approx(1 / 120)
    assert made["margin"] == pytest.approx(8 / 120)
    assert made["active"] == pytest.approx(9 / 120)
    picture = np.asarray(Image.open(tmp_path / "p.png"))
    assert picture.shape == (24 + 64, 5 * 96, 3)
    first = picture[24:, :96].astype(int)
    for (row, column), colour in (((24, 40), RED), ((8, 40), YELLOW), ((56, 8), (GREY,) * 3)):
        assert np.abs(first[row, column] - colour).max() <= 3
    assert np.abs(picture[24:, 96:].astype(int) - GREY).max() <= 3
    assert len(read_video(tmp_path / "p.mp4", option="--video").frames) == 30


def test_people_are_told_what_a_partial_step_runs(
    clip: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preview(clip, tmp_path / "p.webp", "--margin", "0") == 0
    said = capsys.readouterr().out
    assert "30 frames of 64x96 in 1 window, 120 tokens each" in said
    assert "masked 0.8%, margin 0.0%: a partial step runs 0.8% of the tokens" in said


def test_the_picture_replaces_no_input(
    clip: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preview(clip, tmp_path / "p.png", "--clip", clip[1]) == 2
    assert "--clip" in capsys.readouterr().err
    assert preview(clip, tmp_path / "p.gif") == 2
