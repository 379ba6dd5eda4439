"""The contract: what every selector must do, each check a test of its own; and what this one does."""

import pytest
import torch

from hetcache_core import Grid, Partition, Role, SelectionRequest, accelerate, discover
from hetcache_core.testing import BoundCheck, TinyBackbone, TinyPipeline, parametrize_with_checks
from hetcache_template_piece.selector import Near


@parametrize_with_checks(pieces={"selector": [Near, lambda: Near(radius=0)]})
def test_contract(check: BoundCheck) -> None:
    check()


@pytest.mark.parametrize(("radius", "first"), [(1, [1, 3]), (2, [0, 1, 3, 4])])
def test_what_is_near_comes_first(radius: int, first: list[int]) -> None:
    roles = torch.full((5,), int(Role.CONTEXT), dtype=torch.uint8)
    roles[2] = int(Role.GENERATIVE)
    grid = Grid(frames=1, height=1, width=5, pixel_height=16, pixel_width=16, frame_stride=1)
    partition = Partition(roles, grid)

    def unasked() -> torch.Tensor:
        raise AssertionError

    request = SelectionRequest(
        partition=partition, count=len(first) - 1, scores=unasked, features=unasked, seed=0
    )
    order = Near(radius=radius).select(request).order
    chosen = partition.of(Role.CONTEXT)[order[: len(first)]]
    assert sorted(chosen.tolist()) == first


def test_it_is_found_by_its_name_with_its_settings() -> None:
    settings = {"context_ratio": 0.3, "selector": "near", "selector.radius": 3}
    pipe = TinyPipeline()
    video = torch.randint(256, (9, 64, 64, 3), dtype=torch.uint8)
    mask = torch.zeros(9, 64, 64, dtype=torch.bool)
    mask[:, 16:40, 16:40] = True
    with accelerate(
        pipe, "hetcache", settings=settings, backbone=TinyBackbone(), registry=discover()
    ) as run:
        pipe(video, mask, steps=7)
    assert run.trace.settings["selector"] == "near"
    assert run.trace.settings["selector.radius"] == 3
