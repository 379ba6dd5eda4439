"""Tokens of a masked edit: where they lie, which ones a mask touches, and their roles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from hetcache_core import ConfigError, Grid, Partition, Role, binary_mask, mask_to_tokens

GRID = Grid(frames=3, height=2, width=3, pixel_height=4, pixel_width=4, frame_stride=2)


def pixels(grid: Grid) -> torch.Tensor:
    return torch.zeros(
        grid.pixel_frames, grid.height * grid.pixel_height, grid.width * grid.pixel_width
    ).bool()


def test_a_grid_counts_tokens_and_pixel_frames() -> None:
    assert GRID.tokens == 18
    assert evolve(GRID, prefix=5).tokens == 23
    assert GRID.pixel_frames == 5
    assert evolve(GRID, first_frame_alone=False).pixel_frames == 6


def test_one_masked_pixel_marks_its_token_only() -> None:
    mask = pixels(GRID)
    mask[0, 3, 4] = True
    marked = mask_to_tokens(mask, GRID)
    assert marked.shape == (3, 2, 3)
    assert marked.nonzero().tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("frame", "latent", "alone"),
    [
        *[(0, 0, True), (1, 1, True), (2, 1, True), (3, 2, True), (4, 2, True)],
        *[(0, 0, False), (1, 0, False), (2, 1, False), (5, 2, False)],
    ],
)
def test_every_pixel_frame_belongs_to_its_latent_frame(
    frame: int, latent: int, alone: bool
) -> None:
    grid = evolve(GRID, first_frame_alone=alone)
    mask = pixels(grid)
    mask[frame, 0, 0] = True
    assert mask_to_tokens(mask, grid).nonzero().tolist() == [[latent, 0, 0]]


def test_a_mask_that_moves_within_a_latent_frame_is_covered_whole() -> None:
    """Taking every other frame, as latent masks do, would miss the second place."""
    mask = pixels(GRID)
    mask[1, 0, 0] = mask[2, 7, 11] = True
    assert mask_to_tokens(mask, GRID).nonzero().tolist() == [[1, 0, 0], [1, 1, 2]]


def test_one_latent_frame_is_enough() -> None:
    grid = evolve(GRID, frames=1)
    mask = pixels(grid)
    mask[0, 0, 0] = True
    assert mask_to_tokens(mask, grid).sum() == 1


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.2))
def test_no_masked_pixel_is_missed_and_no_token_marked_for_nothing(seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(pixels(GRID).shape, generator=generator) < share
    expected = torch.zeros(GRID.frames, GRID.height, GRID.width).bool()
    for f, y, x in mask.nonzero().tolist():
        expected[(f + 1) // 2, y // 4, x // 4] = True
    assert torch.equal(mask_to_tokens(mask, GRID), expected)


@pytest.mark.parametrize("shape", [(4, 8, 11), (5, 8, 11), (5, 12, 8)])
def test_a_mask_of_another_size_is_refused_with_both_sizes(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError) as error:
        mask_to_tokens(torch.zeros(shape).bool(), GRID)
    assert str(shape) in str(error.value)
    assert "(5, 8, 12)" in str(error.value)


def test_a_partition_splits_tokens_by_role() -> None:
    roles = torch.tensor([3, 0, 2, 1, 0, 2], dtype=torch.uint8)
    partition = Partition(roles, GRID)
    assert partition.tokens == 6
    assert partition.of(Role.PINNED).tolist() == [0]
    assert partition.of(Role.CONTEXT).tolist() == [1, 4]
    assert partition.of(Role.GENERATIVE).tolist() == [2, 5]
    assert [partition.count(role) for role in Role] == [2, 1, 2, 1]


MASK = torch.tensor([[[0, 1], [0, 1]], [[1, 0], [0, 0]]]).bool()
NOISE = torch.tensor([[[0, 2], [1, 0]], [[1, 2], [0, 1]]])
"""What video codecs make of black, in 255ths."""


@pytest.mark.parametrize("noise", [NOISE * 0, NOISE], ids=["clean", "noise"])
@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("kind", ["uint8", "int64", "0..1", "-1..1", "half", "numpy", "PIL"])
def test_every_kind_of_mask_is_white_where_it_is_nearer_to_white(
    kind: str, noise: torch.Tensor, *, empty: bool
) -> None:
    """Black at 0 to 2 of 255 is black, and white at 253 to 255 white."""
    mask = MASK & (not empty)
    grey = torch.where(mask, 255 - noise, noise)  # (F, H, W)
    share = grey.float() / 255
    as_given: dict[str, Any] = {
        "uint8": grey.to(torch.uint8),
        "int64": grey,
        "0..1": share,
        "-1..1": 2 * share - 1,
        "half": share.half(),
        "numpy": grey.to(torch.uint8).numpy(),
    }
    if kind == "PIL":
        picture = pytest.importorskip("PIL.Image")
        as_given[kind] = [picture.fromarray(frame) for frame in as_given["numpy"]]
    assert torch.equal(binary_mask(as_given[kind]), mask)


def test_a_mask_of_bool_is_itself_and_a_scale_that_is_known_is_not_guessed() -> None:
    assert binary_mask(MASK) is MASK
    assert binary_mask(MASK.tolist()).tolist() == MASK.tolist()
    assert torch.equal(binary_mask(torch.where(MASK, 255, NOISE).float()), MASK)
    assert not binary_mask(NOISE.float() / 2, scale=(0, 255)).any()


def test_whole_numbers_up_to_one_are_refused_since_they_may_be_noise() -> None:
    with pytest.raises(ConfigError, match="Pass bool values, or 0 and 255"):
        binary_mask(MASK.to(torch.uint8))
    assert not binary_mask(torch.zeros(2, 3, dtype=torch.uint8)).any()


@pytest.mark.parametrize(("frames", "nearest"), [(4, ("3", "5")), (6, ("5", "7"))])
def test_a_count_of_frames_that_cannot_be_made_is_named_and_not_the_mask_s_size(
    frames: int, nearest: tuple[str, str]
) -> None:
    mask = pixels(GRID)
    with pytest.raises(ConfigError, match=f"{frames} frames were given, and .* takes 2k.1") as got:
        mask_to_tokens(mask[:1].expand(frames, -1, -1), GRID)
    assert (got.value.setting, got.value.allowed) == ("frames", nearest)


def test_a_mask_of_another_length_is_named_as_such() -> None:
    with pytest.raises(ConfigError, match="the mask has 3 frames, and 5 are made"):
        mask_to_tokens(pixels(GRID)[:3], GRID)
