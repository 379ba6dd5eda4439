"""TaylorSeer: the schedule, the line, both levels, and compositions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hetcache_core.errors import ConfigError
from hetcache_core.plugins.discovery import discover
from hetcache_core.policy.recipe import CachePolicy
from hetcache_core.session import resolve_policy
from hetcache_core.steps import Mode, ModelInfo
from hetcache_core.testing import BoundCheck, decide, parametrize_with_checks, tiny_case
from hetcache_core.testing.replaying import replay
from hetcache_core.testing.watch import WatchedEngine, watched_run
from hetcache_policies.every_nth import EveryNth
from hetcache_policies.shared.predictors import Taylor
from hetcache_policies.shared.tiers import TieredSteps
from hetcache_policies.taylorseer import PRESETS, TaylorSeer

MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)
LAYOUTS = ["separate", "merged", "none"]
SHARES = {"quality": 0.50, "balanced": 0.36, "fast": 0.28}
BLOCKS = 4 + 2
"""Main and control blocks of the toy, each with three sub-layers."""


def resolved(names: str, **settings: object) -> CachePolicy:
    return resolve_policy(names, settings, None, MODEL, discover())[0]


def run(
    recipe: TaylorSeer | EveryNth, steps: int, layout: str = "none"
) -> tuple[WatchedEngine, Tensor]:
    return watched_run(tiny_case(), recipe.composed(MODEL), steps=steps, layout=layout)


# The trunk's residual


def test_the_published_schedule_computes_every_5th_step_and_the_last() -> None:
    assert decide(TaylorSeer(), steps=12).letters() == "FssssFssssFF"
    assert decide(TaylorSeer(first_steps=3), steps=13).letters() == "FFFssssFssssF"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_predicted_residual_is_on_the_line_through_the_last_two(layout: str) -> None:
    engine, _result = run(TaylorSeer(interval=3), 9, layout)
    kept: dict[str, list[tuple[int, Tensor]]] = {}
    for seen, record in zip(engine.seen, engine.trace.records, strict=True):
        assert seen.trunk is not None
        assert seen.trunk_output is not None
        residual = seen.trunk_output - seen.trunk.x
        computed = kept.setdefault(seen.call.key, [])
        if record.mode is Mode.FULL:
            computed.append((record.step, residual))
            continue
        late, newest = computed[-1]
        expected = newest
        if len(computed) > 1:
            early, older = computed[-2]
            expected = newest + (newest - older) / (late - early) * (record.step - late)
        torch.testing.assert_close(residual, expected, rtol=1e-4, atol=1e-5)
        assert (record.blocks_run, record.control_run) == (0, 0)
    assert engine.trace.letters() == "FssFssFsF"


def test_a_higher_order_keeps_more_tensors() -> None:
    peaks = [
        run(TaylorSeer(interval=2, predictor=Taylor(order=order)), 9)[0].trace for order in (1, 2)
    ]
    first, second = (trace.peak_cache_bytes for trace in peaks)
    assert 3 * first == 2 * second


def test_where_things_move_evenly_the_series_is_closer_than_holding() -> None:
    uncached = watched_run(tiny_case(), CachePolicy(name="none"), steps=40, layout="none")[1]

    def error(recipe: TaylorSeer | EveryNth) -> float:
        return float((run(recipe, 40)[1] - uncached).norm())

    # Forty small steps of a smooth toy: the residual moves along a line from one to the next.
    assert error(TaylorSeer(interval=2, first_steps=3)) < error(EveryNth(every=2, first_steps=3))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_compute_the_declared_share(preset: str) -> None:
    recipe = TaylorSeer(**TaylorSeer.preset(preset, MODEL))
    for steps in (30, 50, 100):
        full = run(recipe, steps)[0].trace.letters().count("F")
        assert full / steps == pytest.approx(SHARES[preset], abs=0.05)


# Sub-layers


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_sub_layers_of_both_stacks_are_predicted(layout: str) -> None:
    engine, _result = run(TaylorSeer(level="sub_layer", interval=3), 8, layout)
    by_step = {record.step: record.parts_reused for record in engine.trace.records}
    whole = {0, 3, 6, 7}
    assert by_step == {step: 0 if step in whole else 3 * BLOCKS for step in range(8)}
    assert {record.mode for record in engine.trace.records} == {Mode.FULL}


def test_sub_layers_are_computed_again_where_inputs_stand_still() -> None:
    policy = TaylorSeer(level="sub_layer", interval=2).compose(MODEL)
    for repeats in replay(tiny_case(), policy, repeats=4, layout="none"):
        for repeat in repeats[1:]:
            torch.testing.assert_close(
                repeat.trunk_output, repeats[0].trunk_output, rtol=1e-4, atol=1e-5
            )


def test_every_step_computed_is_the_uncached_run_at_both_levels() -> None:
    uncached = watched_run(tiny_case(), CachePolicy(name="none"), steps=6, layout="separate")[1]
    for recipe in (TaylorSeer(interval=1), TaylorSeer(interval=1, level="sub_layer")):
        assert torch.equal(run(recipe, 6, "separate")[1], uncached)


def test_sub_layers_keep_what_the_documentation_says() -> None:
    engine, _result = run(TaylorSeer(level="sub_layer", interval=2), 8)
    assert engine.seen[0].trunk is not None
    one = engine.seen[0].trunk.x.numel() * 4
    assert engine.trace.peak_cache_bytes == 3 * BLOCKS * 2 * one
    assert max(seen.held_bytes for seen in engine.seen) == engine.trace.peak_cache_bytes


def test_sub_layers_need_an_interval() -> None:
    with pytest.raises(ConfigError, match="level=sub_layer needs an interval"):
        TaylorSeer(level="sub_layer", interval=None).compose(MODEL)


# Compositions


def test_beside_a_policy_that_decides_steps_it_only_predicts() -> None:
    policy = resolved("hetcache+taylorseer")
    assert policy.name == "hetcache+taylorseer"
    assert isinstance(policy.step, TieredSteps)
    assert policy.predictor == Taylor(order=1)
    assert resolved("taylorseer+every-nth").step == EveryNth().compose(MODEL).step
    assert resolved("dbcache+taylorseer", **{"taylorseer.predictor.order": 2}).predictor == Taylor(
        order=2
    )


def test_beside_a_policy_that_decides_none_it_keeps_its_interval() -> None:
    assert resolved("fewer-steps+taylorseer").step == TaylorSeer().compose(MODEL).step
    assert resolved("fewer-steps+taylorseer").sampler_share == 0.5


def test_pab_goes_with_teacache() -> None:
    policy = resolved("pab+teacache")
    assert policy.step == resolved("teacache").step
    assert policy.blocks == resolved("pab").blocks


@pytest.mark.parametrize(
    ("names", "piece"),
    [
        ("dicache+taylorseer", "predictor"),
        ("every-nth+teacache", "step"),
        ("fbcache+hetcache", "step"),
        ("easycache+dicache", "step"),
    ],
)
def test_two_answers_to_one_question_are_refused_naming_both(names: str, piece: str) -> None:
    first, second = names.split("+")
    with pytest.raises(ConfigError, match=f"'{first}' and '{second}' both bring a {piece} piece"):
        resolved(names)


@pytest.mark.parametrize("names", ["hetcache+taylorseer", "pab+teacache", "easycache+taylorseer"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compositions_run(names: str, layout: str) -> None:
    engine, result = watched_run(tiny_case(), resolved(names), steps=8, layout=layout)
    assert engine.trace.complete
    assert result.isfinite().all()


@parametrize_with_checks(policies={"sub-layers": lambda: TaylorSeer(level="sub_layer")})
def test_contract(check: BoundCheck) -> None:
    check()
