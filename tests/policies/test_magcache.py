"""MagCache: the published schedules, the rule by hand, and models without ratios."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from hetcache_core.errors import ConfigError
from hetcache_core.policy.guards import Guards
from hetcache_core.records.calibration import Calibration
from hetcache_core.records.trace import Trace
from hetcache_core.session import accelerate
from hetcache_core.steps import Mode, ModelInfo
from hetcache_core.testing import (
    BoundCheck,
    TinyBackbone,
    decide,
    parametrize_with_checks,
    tiny_case,
)
from hetcache_core.testing.watch import watched_run
from hetcache_policies.fits.magcache_ratios import RATIOS
from hetcache_policies.magcache import PRESETS, MagCache, MagnitudeSteps

WAN = ModelInfo(backbone="wan-vace", variant="wan2.1-1.3b", layers=30, width=1536, heads=12)
VACE = evolve(WAN, control_layers=tuple(range(0, 30, 2)))
TINY = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)
STEPS = (8, 20, 50, 100)
SHARES = {"quality": 0.50, "balanced": 0.36, "fast": 0.28}


def played(recipe: MagCache, steps: int, model: ModelInfo = WAN, **more: Any) -> Trace:
    trace = decide(recipe, steps=steps, model=model, **more)
    assert not any(record.host_reads for record in trace.records)
    return trace


def computed(recipe: MagCache, steps: int, model: ModelInfo = WAN, **more: Any) -> list[int]:
    letters = played(recipe, steps, model, **more).letters()
    return [index for index, letter in enumerate(letters) if letter == "F"]


def setting(threshold: float, longest: int, first: float = 0.2, **more: object) -> MagCache:
    return MagCache(threshold=threshold, longest_reuse=longest, first_steps=first, **more)


# Golden schedules: computed from the rule and the published ratios


def test_t2v_at_012_and_2_computes_25_of_50_steps() -> None:
    assert computed(setting(0.12, 2), 50) == [
        *range(10), 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 44, 46, 48, 49,
    ]  # fmt: skip
    assert len(computed(setting(0.12, 2), 50)) == 25


def test_t2v_at_012_and_4_computes_21_of_50_steps() -> None:
    expected = [*range(10), 14, 19, 24, 29, 34, 38, 41, 44, 46, 48, 49]
    assert computed(setting(0.12, 4), 50) == expected
    assert len(expected) == 21


def test_vace_at_002_and_3_computes_29_of_50_steps() -> None:
    expected = [*range(10), 13, 17, 21, 24, 27, 30, 33, 35, 37, 39, *range(41, 50)]
    assert computed(setting(0.02, 3), 50, VACE) == expected
    assert len(expected) == 29


@pytest.mark.parametrize(("threshold", "longest"), [(0.12, 2), (0.12, 4), (0.24, 6)])
def test_forcing_the_last_step_changes_no_published_schedule(
    threshold: float, longest: int
) -> None:
    forced = computed(setting(threshold, longest), 50)
    free = computed(setting(threshold, longest, last_steps=0), 50)
    assert forced == free


# The rule


def test_the_error_is_the_sum_of_what_the_product_of_ratios_is_off_by() -> None:
    recipe = setting(0.5, 5, first=1, values=(1.0, 0.9, 0.9, 0.9, 0.9, 0.9))
    found = played(recipe, 6)
    assert found.letters() == "FssFsF"
    assert found.records[1].signal == pytest.approx(0.1)
    assert found.records[2].signal == pytest.approx(0.1 + 0.19)
    assert found.records[3].signal == pytest.approx(0.1 + 0.19 + 0.271)
    assert found.records[4].signal == pytest.approx(0.1)
    assert [record.reason for record in found.records] == [
        "guard: first steps",
        "error 0.100 < 0.500",
        "error 0.290 < 0.500",
        "error 0.561 >= 0.500",
        "error 0.100 < 0.500",
        "guard: last steps",
    ]


def test_a_step_that_is_computed_in_any_case_starts_the_error_again() -> None:
    recipe = setting(0.5, 5, first=1, values=(1.0, 0.9, 0.9, 0.9, 0.9, 0.9))
    found = played(recipe, 6, guards=Guards(full_steps=(2,)))
    assert found.letters() == "FsFssF"
    assert found.records[3].signal == pytest.approx(0.1)


def test_the_limit_of_reuse_holds_where_ratios_are_1() -> None:
    assert computed(setting(0.1, 3, first=1, values=(1.0,) * 9), 9) == [0, 4, 8]


def test_threshold_zero_computes_every_step() -> None:
    assert computed(setting(0.0, 3), 20) == list(range(20))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("model", [WAN, VACE], ids=["t2v", "vace"])
def test_reuse_never_runs_away(steps: int, model: ModelInfo) -> None:
    for preset in PRESETS:
        recipe = MagCache(**MagCache.preset(preset, model))
        found = computed(recipe, steps, model)
        assert found[0] == 0
        assert found[-1] == steps - 1
        gaps = [late - early - 1 for early, late in pairwise(found)]
        assert max(gaps) <= recipe.longest_reuse


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model", [WAN, VACE], ids=["t2v", "vace"])
def test_presets_compute_the_declared_share(preset: str, model: ModelInfo) -> None:
    recipe = MagCache(**MagCache.preset(preset, model))
    for steps in (20, 30, 50, 100):
        share = len(computed(recipe, steps, model)) / steps
        assert share == pytest.approx(SHARES[preset], abs=0.05)


def test_a_larger_factor_reuses_more_and_stretches_the_limit() -> None:
    shares = [len(computed(MagCache(), 50, threshold_factor=factor)) for factor in (0.1, 1.0, 4.0)]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == 3


# Where the ratios come from


def test_a_model_without_ratios_gets_none_of_another_ones() -> None:
    with pytest.raises(
        ConfigError, match="no magnitude ratios are known for this tiny model"
    ) as no:
        MagCache().compose(TINY)
    assert no.value.where == "policy magcache"
    assert no.value.setting == "ratios"
    assert "hetcache calibrate --backbone tiny --policy magcache" in no.value.remedy
    assert "ratios=vace-1.3b" in no.value.remedy


def test_another_models_ratios_can_be_borrowed_by_name() -> None:
    borrowed = MagCache(ratios="vace-1.3b", threshold=0.02, longest_reuse=3)
    assert computed(borrowed, 50, TINY) == computed(setting(0.02, 3), 50, VACE)
    assert MagCache(**MagCache.anywhere).compose(TINY).step is not None


def test_ratios_can_be_given_one_by_one() -> None:
    published = MagCache(values=RATIOS["t2v-1.3b"].values)
    assert computed(published, 50, TINY) == computed(MagCache(), 50, WAN)


def measured(path: Path, steps: int, policy: str = "magcache") -> str:
    """Calibrate on the toy, as ``hetcache calibrate`` does."""
    calibrator = MagCache.calibrator()
    engine, _result = watched_run(tiny_case(), calibrator.watch(), steps=steps, layout="none")
    info = engine.infos[0]
    made = Calibration(
        policy=policy,
        model=info.model,
        sigmas=info.sigmas,
        clips=1,
        data=calibrator.result(),
    )
    made.save(path)
    return str(path)


def test_ratios_are_measured_and_used(tmp_path: Path) -> None:
    recipe = MagCache(calibration=measured(tmp_path / "tiny.json", 8), threshold=0.5)
    case = tiny_case()
    policy = recipe.compose(case.backbone.describe(case.make_pipeline(0)))
    assert isinstance(policy.step, MagnitudeSteps)
    assert len(policy.step.ratios.values) == 8
    engine, _result = watched_run(case, policy, steps=8, layout="separate")
    assert Mode.REUSE in engine.trace.modes()
    with pytest.raises(ConfigError, match="measured with 8 steps, this run has 9"):
        watched_run(case, policy, steps=9, layout="separate")


def test_a_calibration_of_another_model_or_policy_is_refused(tmp_path: Path) -> None:
    path = measured(tmp_path / "tiny.json", 8)
    with pytest.raises(ConfigError, match="made for a model with backbone 'tiny'"):
        MagCache(calibration=path).compose(WAN)
    other = measured(tmp_path / "tea.json", 8, policy="teacache")
    with pytest.raises(ConfigError, match="made for policy teacache, not for magcache"):
        MagCache(calibration=other).compose(TINY)


def test_a_misspelt_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="ratios must be one of auto, ") as refused:
        MagCache(ratios="vace-13b")
    assert refused.value.nearest == "vace-1.3b"


# In a run


@pytest.mark.parametrize("layout", ["separate", "merged", "none"])
def test_reused_steps_run_no_block(layout: str) -> None:
    case = tiny_case()
    pipeline = case.make_pipeline(0)
    with accelerate(pipeline, MagCache(ratios="vace-1.3b"), backbone=case.backbone) as session:
        case.run(pipeline, 20, layout, 0)
    for record in session.trace.records:
        assert record.host_reads == 0
        assert record.blocks_run == (4 if record.mode is Mode.FULL else 0)
    expected = computed(MagCache(ratios="vace-1.3b"), 20, TINY)
    modes = session.trace.modes()
    assert [index for index, mode in enumerate(modes) if mode is Mode.FULL] == expected


@pytest.mark.parametrize("steps", [20, 50])
def test_an_asked_speed_up_is_reached(steps: int) -> None:
    case = tiny_case()
    pipeline = case.make_pipeline(0)
    with accelerate(
        pipeline, MagCache(ratios="vace-1.3b"), backbone=case.backbone, target_speedup=2.5
    ) as session:
        case.run(pipeline, steps, "none", 0)
    assert session.trace.totals().flops_speedup == pytest.approx(2.5, rel=0.05)


class WithRatios(TinyBackbone):
    """The toy under the name of a model that has ratios."""

    def describe(self, pipeline: object) -> ModelInfo:
        return evolve(super().describe(pipeline), variant="wan2.1-1.3b")


@parametrize_with_checks(policies=[MagCache], case=tiny_case().with_values(backbone=WithRatios()))
def test_contract(check: BoundCheck) -> None:
    check()
