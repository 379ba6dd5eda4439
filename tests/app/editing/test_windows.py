"""Windows over a clip that is longer than the model takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcache_core import ConfigError, Geometry

pytest.importorskip("PIL")

import numpy as np

from hetcache.editing.windows import Window, faded, plan_windows

WAN = Geometry(size_multiple=16, frame_stride=4, default_frames=17)


@pytest.mark.parametrize(("frames", "length"), [(1, 1), (2, 5), (6, 9), (16, 17), (17, 17)])
def test_a_clip_that_the_model_takes_whole_is_one_window(frames: int, length: int) -> None:
    assert plan_windows(WAN, frames) == (Window(start=0, stop=length),)


def test_windows_overlap_and_the_last_one_reaches_back() -> None:
    assert plan_windows(WAN, 40) == (
        Window(start=0, stop=17),
        Window(start=8, stop=25, known=1, faded=8),
        Window(start=16, stop=33, known=1, faded=8),
        Window(start=23, stop=40, known=2, faded=8),
    )


def test_of_a_long_overlap_one_half_is_known_and_the_other_fades() -> None:
    wan = Geometry(size_multiple=16, frame_stride=4, default_frames=81)
    assert plan_windows(wan, 141)[1] == Window(start=60, stop=141, known=9, faded=12)


@given(
    frames=st.integers(1, 300),
    stride=st.sampled_from([1, 4, 8]),
    window=st.none() | st.integers(0, 20),
    overlap=st.none() | st.integers(0, 6),
)
def test_every_frame_is_made_once_and_every_length_is_the_models(
    frames: int, stride: int, window: int | None, overlap: int | None
) -> None:
    geometry = Geometry(size_multiple=16, frame_stride=stride, default_frames=4 * stride + 1)
    length = None if window is None else window * stride + 1
    whole = frames <= (length or geometry.default_frames)
    if overlap is not None and overlap >= (length or geometry.default_frames) and not whole:
        with pytest.raises(ConfigError, match="leave nothing new"):
            plan_windows(geometry, frames, window=length, overlap=overlap)
        return
    windows = plan_windows(geometry, frames, window=length, overlap=overlap)
    new = [index for each in windows for index in range(each.start + each.shared, each.stop)]
    assert new[:frames] == list(range(frames))
    assert len(new) - frames < stride
    assert len(new) == frames or len(windows) == 1
    for each in windows:
        assert (each.stop - each.start - 1) % stride == 0
    for each in windows[1:]:
        assert 0 <= each.known <= each.shared < each.stop - each.start


@pytest.mark.parametrize(("window", "near"), [(16, "Take 13 or 17"), (2, "Take 1 or 5")])
def test_lengths_that_the_model_does_not_take_are_refused(window: int, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"4k\+1 frames, not {window}") as raised:
        plan_windows(WAN, 60, window=window)
    assert near in str(raised.value)


def test_pictures_fade_from_what_is_finished_to_what_was_made() -> None:
    window = Window(start=10, stop=17, known=2, faded=3)
    before = np.zeros((5, 2, 2, 3), np.uint8)
    result = faded(window, before, np.full((7, 2, 2, 3), 100, np.uint8))
    assert result[:, 0, 0, 0].tolist() == [0, 0, 25, 50, 75, 100, 100]
