"""The clip generator of the tiny model: deterministic, well-formed, and what it says it is."""

from __future__ import annotations

import sys
from subprocess import run

import numpy as np
import pytest

from hetcache_backends.tiny_vace.clips import (
    GREY,
    Clip,
    ClipSpec,
    builtin_clips,
    demo_clip,
    make_clip,
    random_spec,
)
from hetcache_backends.tiny_vace.shapes import SHAPES, distance

SMALL = {"frames": 5, "height": 64, "width": 96}


@pytest.fixture(scope="module")
def specs() -> tuple[ClipSpec, ...]:
    """The built-in recipes at a size that renders in milliseconds."""
    return builtin_clips(frames=5, height=96, width=96)


def masked_share(clip: Clip) -> float:
    """The share of pixels that the model is to paint."""
    return float((clip.mask > 0).mean())


def test_the_package_is_imported_without_torch() -> None:
    code = "import hetcache_backends.tiny_vace, sys; sys.exit('torch' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_same_seed_renders_the_same_pixels() -> None:
    first, second = (make_clip(11, **SMALL) for _ in range(2))
    assert np.array_equal(first.video, second.video)
    assert np.array_equal(first.mask, second.mask)
    assert np.array_equal(first.target, second.target)
    assert first.prompt == second.prompt


def test_different_seeds_render_different_pixels() -> None:
    assert not np.array_equal(make_clip(1, **SMALL).target, make_clip(2, **SMALL).target)


@pytest.mark.parametrize("seed", range(6))
def test_the_video_is_the_target_outside_the_mask_and_grey_inside(seed: int) -> None:
    clip = make_clip(seed, **SMALL)
    inside = clip.mask > 0
    assert np.array_equal(clip.video[~inside], clip.target[~inside])
    assert (clip.video[inside] == GREY).all()
    assert set(np.unique(clip.mask)) <= {0, 255}


def test_clips_have_the_shape_that_was_asked_for() -> None:
    clip = make_clip(3, **SMALL)
    assert clip.video.shape == clip.target.shape == (5, 64, 96, 3)
    assert clip.mask.shape == (5, 64, 96)
    assert clip.video.dtype == clip.mask.dtype == clip.target.dtype == np.uint8


def test_the_prompt_names_the_object_that_is_drawn() -> None:
    spec = random_spec(4, **SMALL, kind="object")
    assert spec.has_object
    assert spec.prompt == f"a {spec.colour} {spec.shape}"


def test_the_builtin_set_covers_sizes_motion_content_and_outpainting(
    specs: tuple[ClipSpec, ...],
) -> None:
    names = [spec.name for spec in specs]
    assert len(names) >= 24
    assert len(set(names)) == len(names)
    for size in ("small", "medium", "large"):
        for motion in ("still", "moving"):
            for content in ("object", "background"):
                assert any(name.startswith(f"{size}-{motion}-{content}") for name in names)
    assert any(spec.region == "border" for spec in specs)


def test_masks_cover_the_share_that_the_recipe_says(specs: tuple[ClipSpec, ...]) -> None:
    for spec in specs:
        assert masked_share(spec.render()) == pytest.approx(spec.fraction, rel=0.15)


def test_moving_regions_move_and_still_ones_do_not(specs: tuple[ClipSpec, ...]) -> None:
    for spec in specs:
        mask = spec.render().mask
        assert (mask[0] != mask[-1]).any() == (spec.speed > 0)


def test_the_demo_puts_an_object_into_a_moving_tenth_of_the_frame() -> None:
    clip = demo_clip(frames=5, height=128, width=128)
    assert 0.09 < masked_share(clip) < 0.16
    assert (clip.mask[0] != clip.mask[-1]).any()
    assert clip.prompt != "background"


def test_a_length_that_does_not_fit_groups_of_four_is_refused() -> None:
    with pytest.raises(ValueError, match=r"4k\+1 frames"):
        make_clip(0, 6, 64, 64)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="object, background and outpainting"):
        make_clip(0, **SMALL, kind="dog")


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_inside_out_from_its_middle_and_within_its_radius(shape: str) -> None:
    x, y = np.meshgrid(np.linspace(-1.5, 1.5, 61), np.linspace(-1.5, 1.5, 61))
    inside = distance(shape, x.astype(np.float32), y.astype(np.float32)) < 0
    assert 0.1 < inside.mean() * 9 / np.pi < 1.05
    assert np.hypot(x, y)[inside].max() < 1.26
