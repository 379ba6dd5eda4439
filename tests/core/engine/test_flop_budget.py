"""``target_speedup``: any policy with a threshold reaches the asked share of computed FLOPs.

A run spends steps, not FLOPs: one more computed step instead of a reused one costs ``1 - r``, where ``r``
is the share of a step that a reused one still costs. The budget replaces a decision where the other
one ends nearer to it, so a run ends within ``(1 - r) / 2`` of its budget, which is at most half a step. Of
``S / s`` steps, half a step is 5 % at ``S / s = 10``: longer budgets are met within 5 %, shorter ones
within half a step.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from hetcache_core import Guards, Mode, Trace, accelerate
from hetcache_core.engine.flop_budget import Budget, Costs
from hetcache_core.engine.gate import Gate
from hetcache_core.errors import ConfigError
from hetcache_core.plugins.discovery import discover
from hetcache_core.session import check_target
from hetcache_core.steps import Decision, StepInfo
from hetcache_core.testing import tiny_case
from hetcache_core.testing.tiny.model import TinyConfig

REGISTRY: Final = discover()
SMALL: Final = TinyConfig()
DEEP: Final = TinyConfig(layers=24, width=16, feed_forward=32, control_layers=())
"""For policies that run the first blocks in every step: here these are a small share."""

POLICIES: Final[dict[str, tuple[TinyConfig, dict[str, object]]]] = {
    "teacache": (SMALL, {}),
    "hetcache": (SMALL, {}),
    "magcache": (SMALL, {"ratios": "vace-1.3b"}),
    "easycache": (SMALL, {}),
    "adacache": (SMALL, {}),
    "every-nth": (SMALL, {}),
    "taylorseer": (SMALL, {}),
    "fbcache": (DEEP, {}),
    "dbcache": (DEEP, {"front": 1}),
    "dicache": (DEEP, {}),
    "hetcache+taylorseer": (SMALL, {}),
    "pab+teacache": (SMALL, {}),
}
STEPS: Final = (20, 50)
TARGETS: Final = (1.5, 2.5, 4.0)


def run(
    policy: str,
    steps: int,
    target: float | None,
    config: TinyConfig = SMALL,
    layout: str = "none",
    **more: Any,
) -> Trace:
    case = tiny_case(config)
    pipeline = case.make_pipeline(0)
    session = accelerate(
        pipeline,
        policy,
        backbone=case.backbone,
        registry=REGISTRY,
        target_speedup=target,
        **more,
    )
    with session:
        case.run(pipeline, steps, layout, 0)
    return session.trace


def missed(trace: Trace) -> float:
    """Steps' worth of FLOPs that a run has spent beyond its budget."""
    assert trace.target_speedup is not None
    spent = trace.requested_steps / trace.totals().flops_speedup
    return spent - trace.requested_steps / trace.target_speedup


def said(trace: Trace) -> str:
    (note,) = (note for note in trace.notes if note.startswith("Asked for"))
    return note


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_asked_share_is_computed(policy: str, steps: int, target: float) -> None:
    config, settings = POLICIES[policy]
    trace = run(policy, steps, target, config, settings=settings)
    assert abs(missed(trace)) <= max(0.05 * steps / target, 0.5)
    reached = trace.totals().flops_speedup
    assert said(trace) == f"Asked for {target:g}x fewer FLOPs, reached {reached:.2f}x."


@pytest.mark.parametrize("layout", ["separate", "merged"])
def test_guidance_changes_nothing_about_it(layout: str) -> None:
    trace = run("hetcache", 20, 2.5, layout=layout)
    assert abs(missed(trace)) <= 0.5


def test_blocks_are_a_finer_grain_than_steps() -> None:
    """FastCache decides no steps: its threshold alone follows what was spent."""
    for steps in STEPS:
        trace = run("fastcache", steps, 1.25, TinyConfig(layers=12))
        assert trace.totals().flops_speedup == pytest.approx(1.25, rel=0.05)


def test_the_embedded_backbone_reaches_it() -> None:
    pytest.importorskip("diffsynth")
    import numpy as np
    from attrs import evolve

    from hetcache_core import LoadRequest

    backbone = REGISTRY.backbone("tiny-vace")()
    pipeline = backbone.load(LoadRequest())
    sample = backbone.sample()
    assert sample is not None
    mask = np.zeros((5, 64, 96), bool)
    mask[:, 16:48, 32:64] = True
    video = sample.video[:5, :64, :96].copy()
    request = evolve(sample, video=video, mask=mask, steps=20, guidance_scale=1.0)
    session = accelerate(pipeline, "easycache", backbone=backbone, target_speedup=2.5)
    with session:
        backbone.edit(pipeline, request)
    assert abs(missed(session.trace)) <= 0.5


@pytest.mark.parametrize("steps", STEPS)
def test_a_schedule_is_solved_ahead(steps: int) -> None:
    trace = run("teacache", steps, 2.5)
    assert not any(record.reason.startswith("budget") for record in trace.records)
    thresholds = {
        record.reason.split()[-1] for record in trace.records if record.reason.startswith("signal")
    }
    assert len(thresholds) == 1


def test_a_signal_is_followed_within_the_run() -> None:
    trace = run("easycache", 50, 2.5)
    thresholds = {
        record.reason.split()[-1] for record in trace.records if record.reason.startswith("change")
    }
    assert len(thresholds) > 10


def test_steps_of_the_guards_are_kept_free_in_the_budget() -> None:
    trace = run("teacache", 20, 2.0, guards=Guards(first_steps=0.15, last_steps=0.25))
    assert abs(missed(trace)) <= 0.5
    assert trace.modes()[-5:] == [Mode.FULL] * 5


@pytest.mark.parametrize(
    ("policy", "target", "reason"),
    [
        ("pab", 4.0, "leaves out no whole steps, and no more inside of them."),
        ("toca", 4.0, "leaves out no whole steps, and no more inside of them."),
        ("fewer-steps", 4.0, "decides nothing that could be adjusted."),
        ("none", 2.0, "decides nothing that could be adjusted."),
        ("dbcache", 4.0, "cannot leave out more with these settings and guards."),
        ("teacache", 30.0, "cannot leave out more with these settings and guards."),
        ("toca", 1.5, "computes no more."),
    ],
)
def test_what_cannot_be_reached_is_said(policy: str, target: float, reason: str) -> None:
    trace = run(policy, 20, target)
    assert said(trace).endswith(reason)
    assert f"policy {policy}" in said(trace).lower()


def test_guards_can_make_it_unreachable() -> None:
    trace = run("every-nth", 20, 4.0, guards=Guards(longest_reuse=1))
    assert trace.totals().flops_speedup < 2.5
    assert said(trace).endswith(
        "What was set stands in the way: with longest_reuse=1 (1 in a row), at least 11 of 20 steps "
        "are computed, and the target leaves 5.0."
    )


@pytest.mark.parametrize("target", [0.5, 0.0, -1.0, float("inf"), float("nan")])
def test_a_target_that_means_nothing_is_refused(target: float) -> None:
    with pytest.raises(ConfigError) as refused:
        check_target(target)
    assert refused.value.where == "target_speedup"


# The budget by itself


def step(index: int, total: int = 10) -> StepInfo:
    return StepInfo(index=index, total=total, timestep=500.0, sigma=0.5)


REUSE: Final = Decision(Mode.REUSE, "wanted")
FULL: Final = Decision(Mode.FULL, "wanted")
FREE: Final = Costs(partial=0.5, reuse=0.0)


def play(budget: Budget, wanted: Decision) -> list[Decision]:
    found: list[Decision] = []
    for index in range(budget.steps):
        row = next((i for i, d in enumerate(found[::-1]) if d.mode is not Mode.REUSE), index)
        decision = budget.apply(step(index), wanted, FREE, row)
        found.append(decision)
        budget.spend(step(index), decision.mode, FREE.of(decision.mode))
    return found


def test_a_policy_that_only_computes_is_stopped_when_the_budget_is_spent() -> None:
    found = play(Budget(2.5, Gate(steps=10)), FULL)
    assert "".join(decision.mode.value[0] for decision in found) == "fffrrrrrrf"
    assert {decision.reason for decision in found[3:-1]} == {"budget: spent"}


def test_a_policy_that_only_reuses_spends_the_budget_at_the_end() -> None:
    budget = Budget(2.5, Gate(steps=10))
    found = [FULL, *play(budget, REUSE)[1:]]
    assert "".join(decision.mode.value[0] for decision in found) == "frrrrrffff"
    assert {decision.reason for decision in found[6:]} == {"budget: to be spent"}


def test_the_factor_rises_with_what_was_spent_too_much_and_falls_with_too_little() -> None:
    rising, falling = Budget(2.0, Gate(steps=10)), Budget(2.0, Gate(steps=10))
    rising.spend(step(0), Mode.FULL, 1.0)
    falling.spend(step(0), Mode.REUSE, 0.0)
    assert rising.factor > 1 > falling.factor


def test_the_solver_finds_the_factor_and_lets_it_be() -> None:
    budget = Budget(4.0, Gate(steps=40))
    budget.solve(lambda factor: 40 / factor)
    assert budget.factor == pytest.approx(4.0, rel=1e-3)
    found = budget.factor
    budget.spend(step(0, 40), Mode.FULL, 1.0)
    assert budget.factor == found


def test_a_solved_factor_still_follows_where_full_steps_cost_less_than_a_step() -> None:
    budget = Budget(4.0, Gate(steps=40), steady=False)
    budget.solve(lambda factor: 40 / factor)
    found = budget.factor
    budget.spend(step(0, 40), Mode.FULL, 1.0)
    assert budget.factor > found
