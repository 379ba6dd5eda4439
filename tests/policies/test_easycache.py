"""EasyCache: the rule by hand, and what a run keeps and leaves out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor

from hetcache_core.policy.guards import Guards
from hetcache_core.records.trace import Trace
from hetcache_core.steps import Mode, ModelInfo
from hetcache_core.testing import BoundCheck, decide, parametrize_with_checks, tiny_case
from hetcache_core.testing.watch import WatchedEngine, watched_run
from hetcache_policies.easycache import PRESETS, EasyCache

MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)
STEPS = (8, 20, 50, 100)
LAYOUTS = ["separate", "merged", "none"]
REUSING = EasyCache(threshold=0.5)
"""A toy with random weights changes its output faster than a trained model."""


def falling(index: int) -> float:
    return 10.0 - index


def rising(index: int) -> float:
    return 2.0 + 0.1 * index


def played(
    recipe: EasyCache,
    steps: int,
    latents: Callable[[int], float] = falling,
    outputs: Callable[[int], float] = rising,
    **more: Any,
) -> Trace:
    """A run where latents and outputs have the same known value everywhere."""
    return decide(recipe, steps=steps, latents=latents, outputs=outputs, **more)


def run(recipe: EasyCache, steps: int, layout: str) -> tuple[WatchedEngine, Tensor]:
    return watched_run(tiny_case(), recipe.composed(MODEL), steps=steps, layout=layout)


# The rule


def test_the_rate_of_change_times_the_latents_change_adds_up() -> None:
    found = played(EasyCache(threshold=0.12, longest_reuse=1.0), 10)
    assert found.letters() == "FFssFssFsF"
    # Between steps 0 and 1 the output moves by 0.1 where the latents move by 1, and is 2.1 then.
    assert found.records[2].signal == pytest.approx(0.1 / 2.1)
    assert found.records[3].signal == pytest.approx(2 * 0.1 / 2.1)
    assert found.records[4].signal == pytest.approx(3 * 0.1 / 2.1)
    # Between 1 and 4, the computed ones, by 0.3 where the latents move by 3, and is 2.4 then.
    assert found.records[5].signal == pytest.approx(0.1 / 2.4)
    assert found.records[8].signal == pytest.approx(0.1 / 2.7)
    assert [record.reason for record in found.records[1:5]] == [
        "no rate of change yet",
        "change 0.048 < 0.120",
        "change 0.095 < 0.120",
        "change 0.143 >= 0.120",
    ]
    assert found.records[9].reason == "guard: last steps"


def test_a_step_that_is_computed_in_any_case_gives_a_rate_and_starts_the_sum_again() -> None:
    found = played(EasyCache(threshold=0.13, longest_reuse=1.0), 10, guards=Guards(full_steps=(2,)))
    assert found.letters() == "FFFssFsssF"
    assert found.records[3].signal == pytest.approx(0.1 / 2.2, rel=1e-4)


def test_without_a_second_computed_step_there_is_no_rate() -> None:
    found = played(EasyCache(first_steps=0, longest_reuse=1.0), 8)
    assert found.records[1].reason == "no rate of change yet"
    assert found.records[2].mode is Mode.REUSE


def test_threshold_zero_computes_every_step() -> None:
    assert played(EasyCache(threshold=0.0), 10).letters() == "F" * 10


def test_latents_that_stand_still_do_not_divide_by_zero() -> None:
    found = played(EasyCache(), 10, latents=lambda _index: 1.0)
    assert all(record.signal in {None, 0.0} for record in found.records)


def test_an_output_that_is_not_a_number_is_never_reused() -> None:
    assert played(EasyCache(), 10, outputs=lambda _index: float("nan")).letters() == "F" * 10


@pytest.mark.parametrize("steps", STEPS)
def test_an_output_that_hardly_moves_is_still_computed_again(steps: int) -> None:
    found = played(EasyCache(), steps, outputs=lambda index: 2.0 + 1e-6 * index).letters()
    longest = max(len(list(same)) for mode, same in groupby(found) if mode == "s")
    assert longest == max(1, steps // 5)
    assert found.startswith("F" * max(1, steps // 5))
    assert found.endswith("F")


def test_a_larger_factor_reuses_more() -> None:
    counts = [
        played(EasyCache(), 50, threshold_factor=f).letters().count("F") for f in (0.5, 1.0, 3.0)
    ]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 3


def test_presets_are_ordered() -> None:
    found = [EasyCache(**EasyCache.preset(name, MODEL)) for name in PRESETS]
    counts = [played(recipe, 50).letters().count("F") for recipe in found]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 3


# In a run


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_reused_call_is_the_latents_plus_what_was_last_computed(layout: str) -> None:
    engine, _result = run(REUSING, 20, layout)
    changes: dict[str, Tensor] = {}
    reused = 0
    for seen, record in zip(engine.seen, engine.trace.records, strict=True):
        key, latents = seen.call.key, seen.call.latents
        if record.mode is Mode.FULL:
            changes[key] = seen.output - latents
            continue
        reused += 1
        torch.testing.assert_close(seen.output, latents + changes[key], rtol=0, atol=0)
        assert seen.trunk is None
        assert (record.flops, record.blocks_run, record.control_run) == (0, 0, 0)
    assert reused >= 10


def test_branches_follow_the_first_one_in_every_layout() -> None:
    modes = {layout: run(REUSING, 20, layout)[0].trace.modes() for layout in ("separate", "merged")}
    assert modes["separate"] == modes["merged"]
    records = run(REUSING, 20, "separate")[0].trace.records
    assert all(a.mode is b.mode for a, b in zip(records[::2], records[1::2], strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_kept_is_counted_and_read_once_a_step(layout: str) -> None:
    engine, _result = run(REUSING, 8, layout)
    records = engine.trace.records
    assert [seen.held_bytes for seen in engine.seen] == [record.cache_bytes for record in records]
    assert engine.trace.peak_cache_bytes == max(record.cache_bytes for record in records)
    # Latents of the last step, of the last computed one and its output; a change for each
    # branch; and the rate.
    latents = engine.seen[0].call.latents[:1]
    branches = 1 if layout == "none" else 2
    rate = 4
    assert engine.trace.peak_cache_bytes == (3 + branches) * latents.numel() * 4 + rate
    assert max(record.host_reads for record in records) == 1


def test_two_runs_are_the_same() -> None:
    assert torch.equal(run(REUSING, 8, "separate")[1], run(REUSING, 8, "separate")[1])


@parametrize_with_checks(policies={"easycache that reuses": lambda: REUSING})
def test_contract(check: BoundCheck) -> None:
    check()
