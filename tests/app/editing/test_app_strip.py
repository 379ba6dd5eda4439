"""Pictures that show a comparison."""

from __future__ import annotations

import pytest

pytest.importorskip("PIL")

import numpy as np

from hetcache.editing.strip import BAR, COLUMNS, GAIN, OUTLINE, outlined, side_by_side, strip


def clip(value: int, frames: int = 9) -> np.ndarray:
    return np.full((frames, 32, 48, 3), value, np.uint8)


def square_mask(frames: int = 9) -> np.ndarray:
    mask = np.zeros((frames, 32, 48), bool)
    mask[:, 8:24, 16:32] = True
    return mask


def test_the_outline_lies_inside_the_mask_and_leaves_its_middle() -> None:
    mask = square_mask()
    drawn = outlined(clip(100), mask)
    red = (drawn == OUTLINE).all(axis=-1)
    assert red[:, 8, 16:32].all()
    assert not red[:, 12:20, 20:28].any()
    assert not red[~mask].any()
    assert (drawn[~red] == 100).all()


def test_clips_stand_side_by_side_at_a_size_that_video_takes() -> None:
    joined = side_by_side({"one": clip(10), "two": clip(20), "three": clip(30)})
    assert joined.shape == (9, BAR + 32, 3 * 48, 3)
    assert joined.shape[1] % 2 == 0
    for index, value in enumerate((10, 20, 30)):
        assert (joined[:, BAR:, index * 48 : (index + 1) * 48] == value).all()


@pytest.mark.parametrize("frames", [1, 3, 9])
def test_a_strip_has_a_row_each_for_source_uncached_cached_and_difference(frames: int) -> None:
    picture = strip(
        clip(50, frames),
        square_mask(frames),
        clip(60, frames),
        clip(65, frames),
        policy="hetcache",
        footer="a notice",
    )
    pixels = np.asarray(picture)
    row = BAR + 32
    assert pixels.shape == (4 * row + BAR, min(frames, COLUMNS) * 48, 3)
    shown = [pixels[n * row + BAR : (n + 1) * row] for n in range(4)]
    assert (shown[1] == 60).all()
    assert (shown[2] == 65).all()
    assert (shown[3] == 5 * GAIN).all()
    assert pixels[-BAR:].std() > 0
