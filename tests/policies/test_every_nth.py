"""Uniform skipping: which steps are computed."""

from __future__ import annotations

import pytest

from hetcache_core.errors import ConfigError
from hetcache_core.records.trace import Trace
from hetcache_core.session import accelerate
from hetcache_core.steps import Mode, ModelInfo
from hetcache_core.testing import decide, tiny_case
from hetcache_policies.every_nth import PRESETS, EveryNth, UniformSteps

MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)
STEPS = (8, 20, 50, 100)
SHARES = {"quality": 0.50, "balanced": 0.36, "fast": 0.28}


def modes(steps: int, **settings: object) -> str:
    return decide(EveryNth(**settings), steps=steps).letters()


def trace_of(recipe: EveryNth, steps: int, layout: str, speedup: float | None = None) -> Trace:
    case = tiny_case()
    pipeline = case.make_pipeline(0)
    with accelerate(pipeline, recipe, backbone=case.backbone, target_speedup=speedup) as session:
        case.run(pipeline, steps, layout, 0)
    return session.trace


def test_every_nth_step_and_the_last_one_are_computed() -> None:
    assert modes(8, every=2) == "FsFsFsFF"
    assert modes(8, every=3) == "FssFssFF"
    assert modes(9, every=4) == "FsssFsssF"
    assert modes(8, every=1) == "FFFFFFFF"
    assert modes(9, every=4, last_steps=0) == "FsssFsssF"
    assert modes(8, every=4, last_steps=0) == "FsssFsss"


def test_the_distance_counts_from_the_last_of_the_first_steps() -> None:
    assert modes(10, every=3, first_steps=3) == "FFFssFssFF"


def test_more_first_steps_than_there_are_compute_all() -> None:
    assert modes(4, every=3, first_steps=9) == "FFFF"


def test_a_run_of_one_step_computes_it() -> None:
    assert modes(1) == "F"


@pytest.mark.parametrize("steps", STEPS)
def test_no_run_of_reused_steps_is_longer_than_the_distance_allows(steps: int) -> None:
    assert max(len(run) for run in modes(steps, every=4).split("F")) == 3


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_compute_the_declared_share(preset: str) -> None:
    for steps in (30, 50, 100):
        share = modes(steps, **EveryNth.preset(preset, MODEL)).count("F") / steps
        assert share == pytest.approx(SHARES[preset], abs=0.05)


def test_a_stretched_distance_stays_uniform() -> None:
    piece = UniformSteps(every=2)
    stretched = [piece.decision(since, 1.25).mode.value[0] for since in range(1, 11)]
    assert "".join(stretched) == "rrfrfrrfrf"
    assert {piece.decision(since, 0.1).mode for since in range(1, 4)} == {Mode.FULL}


@pytest.mark.parametrize("factor", [0.7, 1.3, 1.9, 2.6, 4.0])
@pytest.mark.parametrize("steps", [8, 20, 50])
def test_a_stretched_schedule_computes_no_step_just_before_the_last(
    steps: int, factor: float
) -> None:
    found = decide(EveryNth(every=3), steps=steps, threshold_factor=factor).letters()
    gaps = [len(gap) for gap in found[1:-1].split("F")]
    assert found.endswith("F")
    assert max(gaps) - min(gaps) <= 1


def test_a_distance_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"every must be .*>= 1"):
        EveryNth(every=0)


@pytest.mark.parametrize("layout", ["separate", "merged", "none"])
def test_reused_steps_run_no_block_and_look_at_nothing(layout: str) -> None:
    trace = trace_of(EveryNth(every=3), 8, layout)
    assert trace.letters() == "FssFssFF"
    for record in trace.records:
        ran = record.mode is Mode.FULL
        assert (record.blocks_run, record.control_run) == ((4, 2) if ran else (0, 0))
        assert record.host_reads == 0


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("speedup", [1.5, 2.5])
def test_an_asked_speed_up_is_reached(steps: int, speedup: float) -> None:
    totals = trace_of(EveryNth(), steps, "none", speedup).totals()
    assert totals.flops_speedup == pytest.approx(speedup, rel=0.05)
