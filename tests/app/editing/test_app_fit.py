"""Fitting videos to what a model takes, and back."""

from __future__ import annotations

import pytest

from hetcache_core.errors import ConfigError

pytest.importorskip("PIL")

import numpy as np

from hetcache.media.fit import FEATHER, Fit, plan_crop, plan_frames, plan_part, plan_size
from hetcache_core.backbone.adapter import Geometry

WAN = Geometry(size_multiple=16, frame_stride=4, default_size=(480, 832), default_frames=81)


@pytest.mark.parametrize(
    ("available", "asked", "edited"),
    [
        (81, None, 81),
        (80, None, 77),
        (5, None, 5),
        (1, None, 1),
        (3, None, 1),
        (500, None, 81),
        (500, 200, 197),
        (500, 17, 17),
        (30, 81, 29),
        (30, 1, 1),
    ],
)
def test_frame_counts_are_cut_to_what_the_model_takes(
    available: int, asked: int | None, edited: int
) -> None:
    assert plan_frames(WAN, available, asked) == edited


def test_too_few_frames_are_refused() -> None:
    geometry = Geometry(size_multiple=8, frame_stride=8, frame_offset=9)
    with pytest.raises(ConfigError, match="at least 9 frames, and there are 4"):
        plan_frames(geometry, 4, None)


@pytest.mark.parametrize("size", [(480, 832), (16, 16), (832, 480), (384, 384), (512, 16)])
def test_a_size_that_the_model_takes_is_left_alone(size: tuple[int, int]) -> None:
    fit = plan_size(WAN, size, None, None)
    assert fit == Fit(source=size, box=(0, 0, *size), size=size)
    assert not fit.crops
    assert not fit.resizes


SIZES = [(1080, 1920), (720, 1280), (1920, 1080), (2160, 3840), (1000, 1000), (481, 833)]
ODD_SIZES = [(70, 102), (71, 101), (10, 10), (9, 700), (240, 426), (333, 500)]


@pytest.mark.parametrize("source", [*SIZES, *ODD_SIZES])
def test_any_size_becomes_multiples_and_loses_little(source: tuple[int, int]) -> None:
    fit = plan_size(WAN, source, None, None)
    height, width = fit.size
    assert height % 16 == 0
    assert width % 16 == 0
    assert height * width <= max(480 * 832, 16 * 16)
    top, left, rows, columns = fit.box
    assert min(top, left) >= 0
    assert top + rows <= source[0]
    assert left + columns <= source[1]
    # Both sides are scaled alike, up to the pixel that boxes are rounded to.
    assert rows / columns == pytest.approx(height / width, rel=1 / min(rows, columns))
    if min(source) >= 200:
        assert rows * columns >= 0.95 * source[0] * source[1]


def test_a_large_video_is_scaled_down_to_the_models_own_size() -> None:
    assert plan_size(WAN, (1080, 1920), None, None).size == (464, 832)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(480, 832, (480, 832)), (480, None, (480, 848)), (None, 640, (368, 640)), (64, 64, (64, 64))],
)
def test_an_asked_size_is_taken_and_the_other_side_follows(
    height: int | None, width: int | None, size: tuple[int, int]
) -> None:
    fit = plan_size(WAN, (1080, 1920), height, width)
    assert fit.size == size


@pytest.mark.parametrize(("side", "near"), [(100, "96 or 112"), (5, "Take 16")])
def test_an_asked_size_that_is_no_multiple_is_refused_with_the_nearest(
    side: int, near: str
) -> None:
    with pytest.raises(ConfigError, match=near) as raised:
        plan_size(WAN, (480, 832), None, side)
    assert raised.value.where == "--width"


def test_frames_keep_their_pixels_where_nothing_is_resized() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 50, 64, 3), dtype=np.uint8)
    fit = Fit(source=(50, 64), box=(1, 0, 48, 64), size=(48, 64))
    seen = fit.video_to_model(frames)
    assert (seen == frames[:, 1:49]).all()
    back = fit.to_source(255 - seen, frames)
    assert (back[:, 1:49] == 255 - frames[:, 1:49]).all()
    assert (back[:, [0, 49]] == frames[:, [0, 49]]).all()


def test_frames_come_back_at_the_size_of_the_video() -> None:
    rows, columns = np.mgrid[:70, :102]
    frames = np.stack([np.stack([columns, rows, rows + columns], -1)] * 3).astype(np.uint8)
    fit = plan_size(WAN, (70, 102), None, None)
    back = fit.to_source(fit.video_to_model(frames), frames)
    assert back.shape == frames.shape
    # A slope survives resampling there and back; only the rim is bent by a value or two.
    assert np.abs(back.astype(int) - frames).max() <= 2


def test_no_masked_pixel_is_missed_when_a_mask_shrinks() -> None:
    mask = np.zeros((1, 1080, 1920), bool)
    mask[0, 541, 1203] = True
    fit = plan_size(WAN, (1080, 1920), None, None)
    assert fit.mask_to_model(mask).sum() >= 1
    assert fit.mask_to_model(~mask).all()
    assert fit.masked_outside(mask) == 0


def test_masked_pixels_in_the_border_are_counted() -> None:
    mask = np.ones((3, 50, 64), bool)
    fit = Fit(source=(50, 64), box=(1, 0, 48, 64), size=(48, 64))
    assert fit.masked_outside(mask) == 3 * 2 * 64


def masked(source: tuple[int, int], *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A mask (F, H, W) with one box (top, left, height, width) a frame."""
    mask = np.zeros((len(boxes), *source), dtype=bool)
    for frame, (top, left, height, width) in zip(mask, boxes, strict=True):
        frame[top : top + height, left : left + width] = True
    return mask


@pytest.mark.parametrize(
    ("boxes", "part"),
    [
        ([(500, 900, 40, 60)], (280, 514, 480, 832)),  # the model's own size, around the middle
        ([(0, 0, 40, 60)], (0, 0, 480, 832)),
        ([(1040, 1860, 40, 60)], (600, 1088, 480, 832)),
        ([(100, 100, 10, 10), (400, 1500, 10, 10)], (0, 0, 620, 1920)),  # wherever it moves
        ([(200, 300, 400, 400)], (0, 84, 800, 832)),
    ],
)
def test_a_box_around_the_mask_holds_it_with_room(
    boxes: list[tuple[int, int, int, int]], part: tuple[int, int, int, int]
) -> None:
    mask = masked((1080, 1920), *boxes)
    assert plan_crop(WAN, mask, "auto") == part
    fit = plan_part(WAN, (1080, 1920), part, None, None)
    assert fit.masked_outside(mask) == 0
    assert fit.box[2] * fit.box[3] >= 0.9 * part[2] * part[3]
    assert all(side % 16 == 0 for side in fit.size)


def test_no_box_is_made_where_it_would_be_everything() -> None:
    assert plan_crop(WAN, masked((480, 832), (0, 0, 9, 9)), "auto") is None
    assert plan_crop(WAN, masked((300, 300), (9, 9, 9, 9)), "auto") is None
    assert plan_crop(WAN, masked((1080, 1920), (9, 9, 9, 9)), "none") is None


def test_a_box_of_ones_own_is_inside_the_picture() -> None:
    mask = masked((1080, 1920), (500, 900, 40, 60))
    assert plan_crop(WAN, mask, "480x832+100+0") == (100, 0, 480, 832)
    for asked in (
        "480x832",
        "0x832+0+0",
        "1080x1920+1+0",
        "480x832+-1+0",
        "Auto",
        "9999999999x1+0+0",
    ):
        with pytest.raises(ConfigError, match="--crop"):
            plan_crop(WAN, mask, asked)


def test_a_part_fades_into_the_picture_but_not_at_the_pictures_own_edges() -> None:
    fit = plan_part(WAN, (1080, 1920), (600, 0, 480, 832), None, None)
    assert fit.feather == FEATHER
    source = np.full((1, 1080, 1920, 3), 10, np.uint8)
    result = fit.to_source(np.full((1, 480, 832, 3), 220, np.uint8), source)
    assert (result[0, :600] == 10).all()
    assert (result[0, :, 832:] == 10).all()
    column = result[0, 600:, 100, 0].astype(int)
    assert 10 < column[0] < 20
    assert (np.diff(column)[: FEATHER - 1] > 0).all()
    assert (column[FEATHER:] == 220).all()  # down to the last row
    assert (result[0, 700:, 0] == 220).all()  # and to the first column
    assert (source == 10).all()
