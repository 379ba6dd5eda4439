"""The smooth fill that the embedded model is shown in the place of masked pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from torch import Tensor

pytest.importorskip("diffsynth")

from hetcache_backends.tiny_vace.backbone import TinyVace
from hetcache_backends.tiny_vace.clips import ClipSpec, builtin_clips
from hetcache_backends.tiny_vace.fill import MaskFill, smooth_fill
from hetcache_core import EditRequest, LoadRequest

SPEC = ClipSpec(name="hole", seed=3, frames=5, height=64, width=96, background="clouds")


def hole(frames: int = 2, height: int = 36, width: int = 50) -> Tensor:
    mask = torch.zeros(1, 1, frames, height, width)
    mask[..., 8:20, 11:30] = 1.0
    return mask


def plane(frames: int = 2, height: int = 36, width: int = 50) -> Tensor:
    """Three colours that rise evenly, (1, 3, F, H, W) in [0, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    colours = torch.stack([x, y, (x + y) / 2])
    return colours[None, :, None].repeat(1, 1, frames, 1, 1)


def test_known_pixels_stay_and_the_others_follow_their_surroundings() -> None:
    video, mask = plane(), hole()
    filled = smooth_fill(video * (1 - mask), mask)
    known = (mask == 0).expand_as(video)
    assert torch.equal(filled[known], video[known])
    error = (filled - video)[~known].abs()
    assert error.max() < 0.2
    assert error.mean() < 0.04


def test_one_colour_stays_one_colour() -> None:
    video, mask = torch.full((1, 3, 1, 40, 24), 0.3), hole(1, 40, 24)
    torch.testing.assert_close(smooth_fill(video * (1 - mask), mask), video)


def test_each_frame_is_filled_on_its_own() -> None:
    video, mask = plane(), hole()
    video[:, :, 1] = 1 - video[:, :, 1]
    both = smooth_fill(video, mask)
    alone = smooth_fill(video[:, :, 1:], mask[:, :, 1:])
    assert torch.equal(both[:, :, 1:], alone)


def test_a_frame_that_is_all_masked_is_black() -> None:
    mask = hole()
    mask[:, :, 0] = 1.0
    filled = smooth_fill(plane(), mask)
    assert not filled[:, :, 0].any()
    assert filled[:, :, 1].any()


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return TinyVace().load(LoadRequest())


def test_what_is_behind_the_mask_makes_no_difference(pipeline: Any) -> None:
    clip = SPEC.render()
    request = EditRequest(video=clip.video, mask=clip.mask > 0, prompt="background", steps=1)
    other = evolve(request, video=clip.target)
    assert not np.array_equal(request.video, other.video)
    assert np.array_equal(TinyVace().edit(pipeline, request), TinyVace().edit(pipeline, other))


@pytest.mark.parametrize("given", [(None, None), (None, []), ([], None)])
def test_without_a_video_or_a_mask_nothing_is_filled(given: tuple[Any, Any]) -> None:
    assert MaskFill().process(None, *given) == {}


def test_the_fill_comes_before_the_control_video_is_encoded(pipeline: Any) -> None:
    names = [type(unit).__name__ for unit in pipeline.units]
    assert names.index("MaskFill") + 1 == names.index("WanVideoUnit_VACE")
    assert names.count("MaskFill") == 1


def test_the_fill_is_a_good_start_for_a_hole() -> None:
    """It is closer to the right answer than the mean colour of what is known, clip by clip."""
    specs = [s for s in builtin_clips(frames=1, height=96, width=96) if not s.has_object]
    better = 0
    for clip in (spec.render() for spec in specs):
        where = clip.mask > 0
        video = torch.from_numpy(clip.video).permute(3, 0, 1, 2)[None].float()
        mask = torch.from_numpy(where)[None, None].float()
        filled = smooth_fill(video, mask)[0].permute(1, 2, 3, 0).numpy()
        mean = clip.video[~where].mean(0)
        truth = clip.target[where]
        better += bool(((filled[where] - truth) ** 2).mean() < ((mean - truth) ** 2).mean())
    assert better >= len(specs) - 3
