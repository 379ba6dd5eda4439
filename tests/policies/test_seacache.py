"""SeaCache: what its filter keeps, and what is decided by it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from hetcache_core import Grid, ModelInfo, Signals
from hetcache_core.testing import decide, tiny_case
from hetcache_core.testing.watch import watched_run
from hetcache_policies.seacache import SeaCache
from hetcache_policies.shared.signals import FilteredInput
from hetcache_policies.teacache import TeaCache

MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)
GRID = Grid(
    frames=3, height=8, width=6, prefix=2, pixel_height=8, pixel_width=8, frame_stride=4
)  # fmt: skip
ROWS = torch.arange(8.0)
FAST = torch.cos(math.pi * ROWS)
SLOW = torch.cos(2 * math.pi * ROWS / 8)


def filtered(pattern: Tensor, sigma: float, power: float = 3.0) -> Tensor:
    """Filter what changes from row to row (8,) and is the same along frames and columns."""
    video = pattern.view(1, 8, 1).expand(3, 8, 6).reshape(1, -1, 1).expand(1, -1, 4)
    tokens = torch.cat([torch.full((1, GRID.prefix, 4), 99.0), video], dim=1)
    signals: Any = SimpleNamespace(
        grid=GRID, step=SimpleNamespace(sigma=sigma), modulated_input=lambda: tokens
    )
    found = FilteredInput(power).value(cast("Signals", signals), 0)
    assert found.shape == (1, 3, 8, 6, 4)
    torch.testing.assert_close(found, found[:, :1, :, :1, :1].expand_as(found))
    return found[0, 0, :, 0, 0]


def gain(frequency: float, sigma: float, power: float = 3.0) -> float:
    return float((1 - sigma) / ((1 - sigma) ** 2 + sigma**2 * frequency**power))


def test_without_noise_nothing_is_filtered() -> None:
    torch.testing.assert_close(filtered(FAST + SLOW, 0.0), FAST + SLOW)


@pytest.mark.parametrize("power", [2.0, 3.0])
@pytest.mark.parametrize("sigma", [0.3, 0.9])
def test_what_is_left_of_a_frequency_follows_from_the_noise(sigma: float, power: float) -> None:
    """Along frames and columns nothing moves, and zero is the frequency that is kept most."""
    still = 1.0
    for size in (GRID.frames, GRID.width):
        kept = [gain(min(k, size - k) / size, sigma, power) for k in range(size)]
        still *= kept[0] / (sum(kept) / size)
    rows = [gain(min(k, 8 - k) / 8, sigma, power) for k in range(8)]
    for pattern, at in ((SLOW, 1), (FAST, 4)):
        expected = pattern * still * rows[at] / (sum(rows) / 8)
        torch.testing.assert_close(filtered(pattern, sigma, power), expected, rtol=1e-4, atol=1e-5)


def test_of_nothing_but_noise_the_mean_is_left() -> None:
    found = filtered(FAST + 2, 1.0)
    torch.testing.assert_close(found, torch.full_like(found, found[0].item()))
    assert found.isfinite().all()


def test_changes_add_up_to_the_threshold_and_two_steps_are_the_most_in_a_row() -> None:
    """Without noise nothing is filtered, and the input grows by a tenth at every step."""
    levels = [0.0] * 12
    found = decide(
        SeaCache(threshold=0.25), steps=12, sigmas=levels, signal=[1.1**i for i in range(12)]
    )
    assert found.letters() == "FssFssFssFsF"
    assert found.records[3].signal == pytest.approx(0.3, abs=1e-4)
    loose = decide(
        SeaCache(threshold=9.0), steps=12, sigmas=levels, signal=[1.1**i for i in range(12)]
    )
    assert loose.letters() == "FssFssFssFsF"


@pytest.mark.parametrize("layout", ["separate", "merged", "none"])
def test_the_first_branch_decides_with_one_wait_a_step(layout: str) -> None:
    engine, _ = watched_run(tiny_case(), SeaCache().composed(MODEL), steps=9, layout=layout)
    assert engine.trace.letters()[0] == engine.trace.letters()[-1] == "F"
    assert all(record.host_reads <= 1 for record in engine.trace.records)


def test_the_filter_is_a_signal_for_other_policies() -> None:
    recipe = TeaCache(signal=FilteredInput(), threshold=0.25)
    signal = [1.1**i for i in range(10)]
    found = decide(recipe, steps=10, sigmas=[0.0] * 10, signal=signal)
    assert found.letters() == "FssFssFssF"
