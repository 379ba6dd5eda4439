"""DiCache: when it reuses, and how far along the line it goes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor

from hetcache_core.errors import ConfigError
from hetcache_core.policy.guards import Guards
from hetcache_core.records.trace import Trace
from hetcache_core.steps import Mode, ModelInfo
from hetcache_core.testing import decide, tiny_case
from hetcache_core.testing.watch import WatchedEngine, watched_run
from hetcache_policies.dicache import PRESETS, DiCache

MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)
STEPS = (8, 20, 50, 100)
LAYOUTS = ["separate", "merged", "none"]
WALK = [1.0, 1.1, 1.12, 1.16, 1.2, 1.15, 1.12, 1.1, 1.1, 1.1]


def played(recipe: DiCache, added: Sequence[float], **more: Any) -> Trace:
    """A run whose blocks add the same known number everywhere."""
    return decide(recipe, steps=len(added), model=MODEL, added=added, **more)


def run(recipe: DiCache, steps: int, layout: str) -> tuple[WatchedEngine, Tensor]:
    return watched_run(tiny_case(), recipe.composed(MODEL), steps=steps, layout=layout)


# The rule


def test_changes_of_the_probes_output_add_up_from_step_to_step() -> None:
    found = played(DiCache(longest_reuse=1.0), WALK)
    assert found.letters() == "FFssFssFsF"
    assert found.records[2].signal == pytest.approx(0.02 / 1.1, rel=1e-4)
    assert found.records[3].signal == pytest.approx(0.02 / 1.1 + 0.04 / 1.12, rel=1e-4)
    assert found.records[4].signal == pytest.approx(
        0.02 / 1.1 + 0.04 / 1.12 + 0.04 / 1.16, rel=1e-4
    )
    assert found.records[5].signal == pytest.approx(0.05 / 1.2, rel=1e-4)
    assert [found.records[index].reason for index in (1, 2, 4, 9)] == [
        "probe 0.100 >= 0.080",
        "probe 0.018 < 0.080",
        "probe 0.088 >= 0.080",
        "guard: last steps",
    ]


def test_the_gain_is_how_far_the_probe_is_on_its_own_line_and_stays_between_1_and_2() -> None:
    found = played(DiCache(longest_reuse=1.0), WALK)
    # The line goes from 1.0 (step 0) to 1.1 (step 1) ...
    assert found.plan.steps[2].gain == pytest.approx(1.2, rel=1e-4)
    assert found.plan.steps[3].gain == pytest.approx(1.6, rel=1e-4)
    # ... and then from 1.1 (step 1) to 1.2 (step 4), of which 1.15 is the middle.
    assert found.plan.steps[5].gain == pytest.approx(1.0)
    beyond = played(DiCache(longest_reuse=1.0), [*WALK[:2], 1.5, *WALK[3:]])
    assert beyond.plan.steps[2].gain == 2.0


def test_a_step_that_is_computed_in_any_case_is_the_end_of_the_line() -> None:
    found = played(DiCache(longest_reuse=1.0), WALK, guards=Guards(full_steps=(2,)))
    assert found.plan.steps[3].gain == pytest.approx(2.0)  # 1.16 on the line from 1.1 to 1.12
    assert found.records[3].signal == pytest.approx(0.04 / 1.12, rel=1e-4)


def test_a_probe_that_stands_still_holds_the_last_residual() -> None:
    found = played(DiCache(), [1.0] * 8)
    assert {step.gain for step in found.plan.steps if step.mode is Mode.REUSE} == {1.0}


def test_threshold_zero_computes_every_step() -> None:
    assert played(DiCache(threshold=0.0), WALK).letters() == "F" * 10


def test_a_probe_that_is_not_a_number_is_never_reused() -> None:
    assert played(DiCache(), [float("nan")] * 8).letters() == "F" * 8


@pytest.mark.parametrize("steps", STEPS)
def test_a_probe_that_stands_still_is_still_computed_again(steps: int) -> None:
    found = played(DiCache(), [1.0] * steps).letters()
    longest = max(len(list(same)) for mode, same in groupby(found) if mode == "s")
    assert longest == max(1, steps // 5)
    assert found.endswith("F")


def test_presets_and_factors_reuse_more_and_more() -> None:
    drift = [1.02**index for index in range(50)]
    by_preset = [DiCache(**DiCache.preset(name, MODEL)) for name in PRESETS]
    counts = [played(recipe, drift).letters().count("F") for recipe in by_preset]
    factors = [
        played(DiCache(), drift, threshold_factor=f).letters().count("F") for f in (0.5, 1, 2)
    ]
    assert counts == factors == sorted(counts, reverse=True)
    assert len(set(counts)) == 3


def test_a_probe_of_all_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="blocks is 4, but the model has only 4"):
        DiCache(blocks=4).compose(MODEL)


# In a run


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_reused_residual_is_on_the_line_of_the_last_two_computed_ones(layout: str) -> None:
    engine, _result = run(DiCache(), 20, layout)
    kept: dict[str, list[Tensor]] = {}
    gains: dict[int, list[float]] = {}
    for seen, record in zip(engine.seen, engine.trace.records, strict=True):
        assert seen.trunk is not None
        assert seen.trunk_output is not None
        residual = seen.trunk_output - seen.trunk.x
        if record.mode is Mode.FULL:
            kept.setdefault(seen.call.key, []).append(residual)
            continue
        older, newer = kept[seen.call.key][-2:]
        line = newer - older
        gain = ((residual - older) * line).sum() / line.square().sum()
        assert 1 - 1e-4 <= gain <= 2 + 1e-4
        torch.testing.assert_close(residual, older + gain * line, rtol=1e-4, atol=1e-5)
        gains.setdefault(record.step, []).append(float(gain))
    assert len(gains) >= 5
    for of_branches in gains.values():
        assert of_branches == pytest.approx([of_branches[0]] * len(of_branches), abs=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_deciding_call_of_a_reused_step_runs_the_probe(layout: str) -> None:
    engine, _result = run(DiCache(), 20, layout)
    for record in engine.trace.records:
        if record.mode is Mode.REUSE:
            probed = (1, 1) if record.branch != "uncond" else (0, 0)
            assert (record.blocks_run, record.control_run) == probed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_kept_is_counted_and_read_once_a_step(layout: str) -> None:
    engine, _result = run(DiCache(), 20, layout)
    records = engine.trace.records
    assert [seen.held_bytes for seen in engine.seen] == [record.cache_bytes for record in records]
    assert engine.trace.peak_cache_bytes == max(record.cache_bytes for record in records)
    # Two residuals of each branch; the probe's output, what it adds now and in two computed steps.
    assert engine.seen[0].trunk is not None
    tokens = engine.seen[0].trunk.x[0].numel() * 4
    branches = 1 if layout == "none" else 2
    assert engine.trace.peak_cache_bytes == (2 * branches + 4) * tokens
    assert max(record.host_reads for record in records) == 1


def test_two_runs_are_the_same() -> None:
    assert torch.equal(run(DiCache(), 8, "separate")[1], run(DiCache(), 8, "separate")[1])
