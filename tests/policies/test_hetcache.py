"""HetCache on a model: what partial steps run, keep and cost."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from hetcache_core.engine.loop import Engine
from hetcache_core.errors import ConfigError
from hetcache_core.plugins.discovery import discover
from hetcache_core.policy.partial import ControlMode, KVMode
from hetcache_core.policy.recipe import CachePolicy, PolicyRecipe
from hetcache_core.records.trace import Trace
from hetcache_core.session import accelerate, resolve_policy
from hetcache_core.steps import Mode, ModelInfo
from hetcache_core.testing import tiny_case
from hetcache_core.tokens import ContextSelector
from hetcache_policies.hetcache import HetCache
from hetcache_policies.none import Uncached
from hetcache_policies.shared.partition import MaskPartitioner
from hetcache_policies.shared.selectors import (
    AttentionSelector,
    ClusterSelector,
    GuidedClusterSelector,
    RandomSelector,
    UniformSelector,
)
from hetcache_policies.shared.signals import SIGNALS
from hetcache_policies.shared.tiers import TieredSteps
from hetcache_policies.teacache import TeaCache

CASE = tiny_case()
STEPS = 12
MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)

# Partial at every step after the warm-up: any change passes the threshold and none passes rho times it.
ALWAYS_PARTIAL = {
    "threshold": 1e-9,
    "rho": 1e12,
    "max_partials": STEPS,
    "reset_on_partial": True,
}


def edit(
    policy: PolicyRecipe | CachePolicy, guidance: str = "separate", seed: int = 0
) -> tuple[torch.Tensor, Trace]:
    pipeline = CASE.make_pipeline(0)
    with accelerate(pipeline, policy, backbone=CASE.backbone) as session:
        return CASE.run(pipeline, STEPS, guidance, seed), session.trace


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def of_mode(trace: Trace, mode: Mode) -> list:
    found = [record for record in trace.records if record.mode is mode]
    assert found
    return found


def test_a_default_run_has_steps_of_all_three_kinds() -> None:
    found, trace = edit(HetCache())
    full, partial, reuse = (of_mode(trace, mode) for mode in (Mode.FULL, Mode.PARTIAL, Mode.REUSE))
    assert max(r.flops for r in reuse) < min(r.flops for r in partial)
    assert max(r.flops for r in partial) < min(r.flops for r in full)
    assert all(r.blocks_run == r.control_run == 0 for r in reuse)
    assert max(record.host_reads for record in trace.records) == 1
    assert sum(record.host_reads for record in trace.records) == 1
    assert 0 < distance(found, edit(Uncached())[0]) < 0.2


@pytest.mark.parametrize(("preset", "kv_mode"), [("paper", "pruned"), ("code", "cached")])
def test_what_was_published_is_a_preset_and_runs_partial_steps(preset: str, kv_mode: str) -> None:
    policy, used = resolve_policy("hetcache", ALWAYS_PARTIAL, preset, MODEL, discover())
    assert used["kv_mode"] == kv_mode
    _, trace = edit(policy)
    assert len(of_mode(trace, Mode.PARTIAL)) == 2 * (STEPS - 3)
    assert trace.target_speedup is None


def test_the_published_code_borrows_the_polynomial_where_there_is_one() -> None:
    known = ModelInfo(backbone="wan-vace", variant="wan2.1-1.3b", layers=30, width=1536, heads=12)
    assert HetCache.preset("code", known)["rescale"] == "poly"
    assert HetCache.preset("code", MODEL)["rescale"] == "none"
    steps = resolve_policy("hetcache", {}, "code", known, discover())[0].step
    assert isinstance(steps, TieredSteps)
    assert (steps.threshold, steps.drift.rescale) == (0.1, "poly")


def test_the_three_roles_of_active_tokens_are_counted() -> None:
    _, trace = edit(HetCache(context_ratio=0.4, pad_to=1, margin_ratio=0.5))
    roles = trace.tokens_by_role
    for record in of_mode(trace, Mode.PARTIAL):
        assert record.active_by_role == {
            "generative": roles["generative"],
            "margin": round(0.5 * roles["margin"]),
            "context": round(0.4 * roles["context"]),
            "pinned": 0,
        }
        assert record.active == sum(record.active_by_role.values())


@pytest.mark.parametrize("kv_mode", list(KVMode))
@pytest.mark.parametrize("guidance", ["separate", "merged", "none"])
def test_partial_steps_of_all_tokens_are_the_uncached_model(kv_mode: KVMode, guidance: str) -> None:
    """With hints of their own; those of the last full step would be older than the step."""
    recipe = HetCache(
        kv_mode=kv_mode,
        control_mode=ControlMode.RECOMPUTE,
        context_ratio=1.0,
        max_active_share=1.0,
        **ALWAYS_PARTIAL,
    )
    found, trace = edit(recipe, guidance)
    assert len(of_mode(trace, Mode.PARTIAL)) == len(trace.records) * (STEPS - 3) // STEPS
    assert distance(found, edit(Uncached(), guidance)[0]) < 1e-5


def test_cached_keys_cost_more_than_pruned_ones_and_come_closer() -> None:
    plain, _ = edit(Uncached())
    flops, away = {}, {}
    for kv_mode in KVMode:
        recipe = HetCache(
            kv_mode=kv_mode,
            control_mode=ControlMode.RECOMPUTE,
            context_ratio=0.0,
            pad_to=1,
            **ALWAYS_PARTIAL,
        )
        found, trace = edit(recipe)
        flops[kv_mode] = of_mode(trace, Mode.PARTIAL)[0].flops
        away[kv_mode] = distance(found, plain)
    assert flops[KVMode.CACHED] > flops[KVMode.PRUNED]
    assert all(value > 0 for value in away.values())


def test_hints_are_those_of_the_last_full_step_or_fresh_ones() -> None:
    _, kept = edit(HetCache(control_mode=ControlMode.REUSE))
    _, fresh = edit(HetCache(control_mode=ControlMode.RECOMPUTE))
    assert {record.control_run for record in of_mode(kept, Mode.PARTIAL)} == {0}
    assert {record.control_run for record in of_mode(fresh, Mode.PARTIAL)} == {2}


def test_hints_are_the_same_whether_their_rows_are_known_before_the_step_or_after() -> None:
    """Where all context is active, choosing again gives the same rows."""
    settings = {"pattern": "FpFp", "control_mode": ControlMode.REUSE, "context_ratio": 1.0}
    after, before = (
        edit(HetCache(**settings, max_active_share=1.0, refresh_after=age)) for age in (1, STEPS)
    )
    assert torch.equal(after[0], before[0])
    assert len(of_mode(before[1], Mode.PARTIAL)) > 2


@pytest.mark.parametrize(
    "selector",
    [
        UniformSelector(),
        RandomSelector(),
        AttentionSelector(),
        ClusterSelector(clusters=4),
        GuidedClusterSelector(clusters=4),
        ClusterSelector(clusters=4, backend="sklearn"),
        GuidedClusterSelector(clusters=4, backend="sklearn"),
    ],
    ids=str,
)
def test_every_selector_runs_and_its_choice_repeats(selector: ContextSelector) -> None:
    if getattr(selector, "backend", "") == "sklearn":
        pytest.importorskip("sklearn")
    recipe = HetCache(selector=selector, context_ratio=0.3, pad_to=1)
    found, trace = edit(recipe)
    assert torch.equal(found, edit(recipe)[0])
    wanted = round(0.3 * trace.tokens_by_role["context"])
    assert {r.active_by_role["context"] for r in of_mode(trace, Mode.PARTIAL)} == {wanted}


@pytest.mark.parametrize("recipe", [HetCache(), HetCache(context_ratio=0.3), TeaCache()])
def test_deciding_changes_no_setting(recipe: HetCache | TeaCache) -> None:
    """One composition serves any number of runs, so a run must leave it as it was."""
    policy = recipe.compose(MODEL)
    before = copy.deepcopy(policy)
    first, _ = edit(policy)
    assert policy == before
    assert torch.equal(first, edit(policy)[0])


def test_two_runs_in_one_session_do_not_see_each_other() -> None:
    pipeline = CASE.make_pipeline(0)
    with accelerate(pipeline, HetCache(context_ratio=0.3), backbone=CASE.backbone):
        first = CASE.run(pipeline, STEPS, "separate", 0)
        CASE.run(pipeline, STEPS, "separate", 1)
        again = CASE.run(pipeline, STEPS, "separate", 0)
    assert torch.equal(first, again)


@pytest.mark.parametrize("signal", ["modulation", "modulated_input"])
def test_merged_guidance_decides_as_separate_calls_do(signal: str) -> None:
    recipe = HetCache(signal=SIGNALS[signal], context_ratio=0.3)
    separate, one = edit(recipe)
    merged, other = edit(recipe, "merged")
    assert [r.mode for r in one.records if r.branch == "cond"] == [r.mode for r in other.records]
    assert distance(merged, separate) < 1e-4


@pytest.mark.parametrize("recipe", [HetCache(), TeaCache()], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("speedup", [1.5, 2.5])
def test_thresholds_follow_an_asked_speed_up(recipe: PolicyRecipe, speedup: float) -> None:
    pipeline = CASE.make_pipeline(0)
    with accelerate(pipeline, recipe, backbone=CASE.backbone, target_speedup=speedup) as session:
        CASE.run(pipeline, 40, "separate", 0)
    assert session.trace.totals().flops_speedup == pytest.approx(speedup, rel=0.1)
    decided = [record.reason for record in session.trace.records if "signal" in record.reason]
    assert len(decided) > len(session.trace.records) / 2


# Settings ----------------------------------------------------------------------------------------


def test_context_is_kept_only_where_its_keys_would_be_missing() -> None:
    for kv_mode, ratio in ((KVMode.CACHED, 0.0), (KVMode.PRUNED, 0.3)):
        partial = HetCache(kv_mode=kv_mode).compose(MODEL).partial
        assert partial is not None
        assert partial.context_ratio == ratio


def test_a_selector_is_made_only_where_it_has_something_to_choose() -> None:
    """Otherwise full steps would score attention and cluster for nothing."""
    assert HetCache().compose(MODEL).selector is None
    selector = ClusterSelector(clusters=3)
    assert HetCache(selector=selector, context_ratio=0.2).compose(MODEL).selector == selector


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"selector": "uniform"}, UniformSelector()),
        ({"selector": "random"}, RandomSelector()),
        ({"selector": "attention"}, AttentionSelector()),
        ({"selector": "kmeans", "selector.clusters": 3}, ClusterSelector(clusters=3)),
        ({"selector": {"name": "both", "clusters": 3}}, GuidedClusterSelector(clusters=3)),
        ({"selector.clusters": 3}, GuidedClusterSelector(clusters=3)),
        ({"selector": ClusterSelector(), "selector.clusters": 3}, ClusterSelector(clusters=3)),
    ],
    ids=str,
)
def test_a_selector_is_named_in_settings(given: dict[str, object], made: ContextSelector) -> None:
    settings = {"context_ratio": 0.2, **given}
    composed, used = resolve_policy("hetcache", settings, None, MODEL, discover())
    assert composed.selector == made
    again, _ = resolve_policy("hetcache", used, None, MODEL, discover())
    assert again == composed
    assert json.loads(json.dumps(used))["selector"] == type(made).name


def test_a_partitioner_takes_the_place_of_the_mask_and_its_margin() -> None:
    settings = {"partitioner": "mask", "partitioner.margin": 3}
    composed, _ = resolve_policy("hetcache", settings, None, MODEL, discover())
    assert composed.partitioner == MaskPartitioner(margin=3)
    assert HetCache(margin=2).compose(MODEL).partitioner == MaskPartitioner(margin=2)


def test_the_settings_of_partial_steps_arrive() -> None:
    partial = HetCache(
        context_ratio=0.4, margin_ratio=0.6, max_active_share=0.7, pad_to=8, refresh_after=3,
        score_layers=(0, -1), score_queries=99, residual_ema=0.1, seed=7,
    ).compose(MODEL).partial  # fmt: skip
    assert partial is not None
    assert (partial.context_ratio, partial.margin_ratio, partial.max_active_share) == (
        0.4,
        0.6,
        0.7,
    )
    assert (partial.pad_to, partial.refresh_after, partial.score_layers) == (8, 3, (0, -1))
    assert (partial.score_queries, partial.residual_ema, partial.seed) == (99, 0.1, 7)


@pytest.mark.parametrize(
    "settings",
    [
        {"rho": 0.9},
        {"context_ratio": 1.1},
        {"selector": "best"},
        {"margin": -1},
        {"kv_mode": "all"},
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        HetCache(**settings)


def test_a_run_without_a_mask_is_refused() -> None:
    pipeline = CASE.make_pipeline(0)
    video = torch.zeros(5, 32, 32, 3, dtype=torch.uint8)
    session = accelerate(pipeline, HetCache(), backbone=CASE.backbone)
    with session, pytest.raises(ConfigError, match="needs the edit mask"):
        pipeline(video, None, steps=3)


def test_an_engine_can_hold_the_policy_by_itself() -> None:
    assert Engine(policy=HetCache().compose(MODEL)).policy.needs() == {"mask", "rows", "attention"}
