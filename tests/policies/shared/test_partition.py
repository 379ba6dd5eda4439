"""Tokens by role: no masked pixel is missed, the margin reaches as far as it should."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetcache_core.engine.active_rows import ActiveRows
from hetcache_core.errors import ConfigError
from hetcache_core.policy.partial import PartialSettings
from hetcache_core.tokens import Grid, Role, mask_to_tokens, spread
from hetcache_policies.shared.partition import MarginShape, MaskPartitioner

WAN = {"pixel_height": 16, "pixel_width": 16, "frame_stride": 4}
LTX = {"pixel_height": 32, "pixel_width": 32, "frame_stride": 8}
CHUNKED = {"pixel_height": 8, "pixel_width": 4, "frame_stride": 2, "first_frame_alone": False}


def grid_of(frames: int, height: int, width: int, prefix: int = 0, **pixels: int | bool) -> Grid:
    return Grid(frames=frames, height=height, width=width, prefix=prefix, **(pixels or WAN))


def empty_mask(grid: Grid) -> Tensor:
    return torch.zeros(
        grid.pixel_frames,
        grid.height * grid.pixel_height,
        grid.width * grid.pixel_width,
        dtype=torch.bool,
    )


def video_roles(partition_roles: Tensor, grid: Grid) -> Tensor:
    return partition_roles[grid.prefix :].unflatten(0, (grid.frames, grid.height, grid.width))


@st.composite
def moving_masks(draw: st.DrawFn) -> tuple[Tensor, Grid]:
    """A rectangle that moves by any number of pixels a frame, as small as one pixel."""
    grid = grid_of(
        draw(st.integers(1, 4)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 5)),
        draw(st.integers(0, 3)),
        **draw(st.sampled_from([WAN, LTX, CHUNKED])),
    )
    mask = empty_mask(grid)
    _, height, width = mask.shape
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    tall, wide = draw(st.integers(1, height)), draw(st.integers(1, width))
    down, right = draw(st.integers(-20, 20)), draw(st.integers(-20, 20))
    for index, frame in enumerate(mask):
        y, x = top + index * down, left + index * right
        frame[max(0, y) : max(0, y + tall), max(0, x) : max(0, x + wide)] = True
    return mask, grid


@settings(max_examples=100, deadline=None)
@given(moving_masks())
def test_exactly_the_tokens_that_a_masked_pixel_touches_are_generative(
    drawn: tuple[Tensor, Grid],
) -> None:
    mask, grid = drawn
    touched = set()
    for frame, y, x in mask.nonzero().tolist():
        if grid.first_frame_alone:
            latent = 0 if frame == 0 else (frame - 1) // grid.frame_stride + 1
        else:
            latent = frame // grid.frame_stride
        touched.add((latent, y // grid.pixel_height, x // grid.pixel_width))
    assert {tuple(token) for token in mask_to_tokens(mask, grid).nonzero().tolist()} == touched
    partition = MaskPartitioner(margin=1).partition(mask, grid)
    generative = (video_roles(partition.roles, grid) == int(Role.GENERATIVE)).nonzero().tolist()
    assert {tuple(token) for token in generative} == touched


@settings(max_examples=60, deadline=None)
@given(moving_masks(), st.integers(0, 3), st.integers(0, 2), st.sampled_from(["square", "disk"]))
def test_every_token_has_one_role_and_the_margin_is_what_is_near(
    drawn: tuple[Tensor, Grid], margin: int, temporal: int, shape: MarginShape
) -> None:
    mask, grid = drawn
    partitioner = MaskPartitioner(margin=margin, temporal_margin=temporal, shape=shape)
    partition = partitioner.partition(mask, grid)
    listed = torch.cat([partition.of(role) for role in Role])
    assert torch.equal(listed.sort().values, torch.arange(grid.tokens))
    assert torch.equal(partition.of(Role.PINNED), torch.arange(grid.prefix))
    roles = video_roles(partition.roles, grid)
    generative = (roles == int(Role.GENERATIVE)).nonzero()  # (k, 3)
    for token in torch.cartesian_prod(*(torch.arange(n) for n in roles.shape)):
        away = (generative - token).abs()
        across = away[:, 1:].amax(1) if shape == "square" else away[:, 1:].float().norm(dim=1)
        near = ((away[:, 0] <= temporal) & (across <= margin)).any()
        is_near = int(roles[tuple(token)]) in {Role.MARGIN, Role.GENERATIVE}
        assert is_near == bool(near)


@settings(max_examples=60, deadline=None)
@given(moving_masks(), st.floats(0, 1), st.floats(0, 1), st.integers(1, 16))
def test_active_rows_and_the_rest_are_all_tokens_and_share_none(
    drawn: tuple[Tensor, Grid], context: float, margin: float, pad: int
) -> None:
    mask, grid = drawn
    partition = MaskPartitioner(margin=1).partition(mask, grid)
    options = PartialSettings(context_ratio=context, margin_ratio=margin, pad_to=pad)
    active = ActiveRows(partition, options, selector=None)
    active.after_full_step(None, None)
    rows = active.current()
    rest = torch.ones(grid.tokens, dtype=torch.bool)
    rest[rows] = False
    assert torch.equal(
        torch.cat([rows, rest.nonzero().flatten()]).sort().values, torch.arange(grid.tokens)
    )
    assert rows.unique().numel() == rows.numel() == active.count
    needed = torch.cat([partition.of(Role.GENERATIVE), partition.of(Role.PINNED)])
    assert torch.isin(needed, rows).all()
    # Padding ends where the context does.
    assert active.count % pad == 0 or torch.isin(partition.of(Role.CONTEXT), rows).all()


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.7, 0.9])
def test_a_sampled_margin_has_tokens_in_every_frame(ratio: float) -> None:
    """Taking every ``floor(1 / ratio)``-th would be all of the first frames above one half."""
    grid = grid_of(9, 12, 12)
    mask = empty_mask(grid)
    for index, frame in enumerate(mask):
        frame[64:112, 16 + 2 * index : 64 + 2 * index] = True
    partition = MaskPartitioner(margin=2).partition(mask, grid)
    options = PartialSettings(margin_ratio=ratio, pad_to=1)
    active = ActiveRows(partition, options, selector=None)
    active.after_full_step(None, None)
    margin = partition.of(Role.MARGIN)
    kept = margin[torch.isin(margin, active.current())]
    assert kept.numel() == round(ratio * margin.numel())
    in_frame = torch.bincount(kept // 144, minlength=9) / torch.bincount(margin // 144, minlength=9)
    assert float(in_frame.min()) > 0.5 * ratio
    assert float(in_frame.max()) < min(1.01, 1.5 * ratio + 0.05)


@given(st.integers(1, 200), st.data())
def test_spread_indices_differ_and_are_evenly_far_apart(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    taken = spread(torch.arange(total), count).tolist()
    assert taken == [j * total // count for j in range(count)]
    assert len(set(taken)) == count


def test_a_temporal_margin_reaches_into_the_frames_beside() -> None:
    grid = grid_of(5, 4, 4)
    mask = empty_mask(grid)
    mask[9:13, 16:32, 16:32] = True  # latent frame 3
    roles = video_roles(
        MaskPartitioner(margin=0, temporal_margin=1).partition(mask, grid).roles, grid
    )
    assert roles[:, 1, 1].tolist() == [
        Role.CONTEXT,
        Role.CONTEXT,
        Role.MARGIN,
        Role.GENERATIVE,
        Role.MARGIN,
    ]


def test_a_margin_wider_than_the_video_leaves_no_context() -> None:
    grid = grid_of(2, 3, 3)
    mask = empty_mask(grid)
    mask[:, 0, 0] = True
    partition = MaskPartitioner(margin=10).partition(mask, grid)
    assert [partition.count(role) for role in Role] == [0, 16, 2, 0]


@pytest.mark.parametrize("value", [False, True])
def test_a_mask_of_nothing_or_of_everything_is_taken(value: bool) -> None:
    grid = grid_of(2, 3, 3, prefix=4)
    partition = MaskPartitioner().partition(torch.full_like(empty_mask(grid), value), grid)
    expected = Role.GENERATIVE if value else Role.CONTEXT
    assert partition.count(expected) == 18
    assert partition.count(Role.PINNED) == 4


def test_a_mask_of_another_size_is_refused() -> None:
    grid = grid_of(2, 3, 3)
    with pytest.raises(ConfigError, match=r"\(5, 47, 48\).*\(5, 48, 48\)"):
        MaskPartitioner().partition(empty_mask(grid)[:, 1:], grid)
    with pytest.raises(ConfigError, match=r"4 frames were given, and this model takes 4k\+1"):
        MaskPartitioner().partition(empty_mask(grid)[1:], grid)
