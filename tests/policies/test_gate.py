"""What a user sets holds with every policy, preset and target, and a change of expert begins anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any, Final

import pytest
from attrs import evolve
from torch import Tensor

from hetcache_core import Guards, Mode, Trace, accelerate
from hetcache_core.backbone.adapter import ModelCall
from hetcache_core.engine.gate import Gate
from hetcache_core.engine.loop import Engine
from hetcache_core.errors import ConfigError
from hetcache_core.plugins.discovery import discover
from hetcache_core.policy.guards import count_of
from hetcache_core.session import resolve_policy
from hetcache_core.settings.declare import build
from hetcache_core.testing import tiny_case
from hetcache_core.testing.tiny.model import TinyConfig

REGISTRY: Final = discover()
STEPS: Final = 30
CASE: Final = tiny_case(TinyConfig(layers=6, width=16, feed_forward=32, control_layers=()))
MODEL: Final = CASE.backbone.describe(CASE.make_pipeline(0))


def deciding() -> list[str]:
    """Names of the registered policies that decide steps and run with their defaults."""
    names = []
    for name in REGISTRY.names("policy"):
        kind = REGISTRY.policy(name)
        if kind.needs_settings():
            continue
        made = build(kind, kind.anywhere, where=name).compose(MODEL)
        if made.step is not None:
            names.append(name)
    return names


DECIDING: Final = deciding()
ASKED: Final[Mapping[str, Mapping[str, Any]]] = {
    "nothing": {},
    "4x": {"target_speedup": 4.0},
    "8x": {"target_speedup": 8.0},
    "fast": {"preset": "fast"},
}


def run(
    policy: str,
    settings: Mapping[str, object] | None = None,
    *,
    guards: Guards | None = None,
    **asked: Any,
) -> Trace:
    pipeline = CASE.make_pipeline(0)
    kind = REGISTRY.policy(policy)
    if "preset" in asked and asked["preset"] not in kind.preset_shares:
        del asked["preset"]
    session = accelerate(
        pipeline,
        policy,
        settings={**kind.anywhere, **(settings or {})},
        guards=guards,
        backbone=CASE.backbone,
        registry=REGISTRY,
        **asked,
    )
    with session:
        CASE.run(pipeline, STEPS, "none", 0)
    return session.trace


def longest(trace: Trace) -> int:
    runs = (len(list(same)) for mode, same in groupby(trace.modes()) if mode is Mode.REUSE)
    return max(runs, default=0)


def first(trace: Trace) -> int:
    modes = trace.modes()
    return next((index for index, mode in enumerate(modes) if mode is not Mode.FULL), len(modes))


def test_there_are_policies_to_ask() -> None:
    assert {"teacache", "easycache", "auto", "magcache", "hetcache", "dicache"} <= set(DECIDING)


# What is set holds


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("policy", DECIDING)
def test_what_a_user_sets_holds_under_presets_and_targets(policy: str, asked: str) -> None:
    own = {"first_steps": 10, "longest_reuse": 0.05}
    trace = run(policy, own, guards=Guards(last_steps=0.1, full_steps=(14,)), **ASKED[asked])
    modes = trace.modes()
    assert modes[:10] == [Mode.FULL] * 10
    assert modes[-3:] == [Mode.FULL] * 3
    assert modes[14] is Mode.FULL
    assert longest(trace) <= 1
    assert {guard["by"] for guard in trace.guards.values()} == {"user"}


@pytest.mark.parametrize("policy", DECIDING)
def test_a_default_that_is_set_is_set(policy: str) -> None:
    own = resolve_policy(policy, REGISTRY.policy(policy).anywhere, None, MODEL, REGISTRY)[0].guards
    trace = run(policy, own.named, target_speedup=8.0)
    steps = count_of(own.first_steps or 0, STEPS)
    assert trace.modes()[:steps] == [Mode.FULL] * steps
    if own.longest_reuse is not None:
        assert longest(trace) <= count_of(own.longest_reuse, STEPS)


def test_the_reported_cases_hold() -> None:
    assert longest(run("teacache", {"longest_reuse": 0.05}, preset="fast")) == 1
    held = run("teacache", {"longest_reuse": 0.1}, target_speedup=8.0)
    assert longest(held) == 3
    assert any("longest_reuse=0.1 (3 in a row)" in note for note in held.notes)
    assert first(run("teacache", {"first_steps": 10}, preset="fast")) == 10
    assert first(run("easycache", {"first_steps": 0.5}, preset="fast")) == 15


def test_what_stands_in_the_way_is_said_with_its_steps() -> None:
    trace = run("teacache", {"first_steps": 12, "longest_reuse": 1.0}, target_speedup=6.0)
    (said,) = (note for note in trace.notes if note.startswith("Asked for"))
    assert said.endswith(
        "What was set stands in the way: with first_steps=12 (12 steps), at least 13 of 30 steps are "
        "computed, and the target leaves 5.0."
    )


def test_a_run_goes_before_the_settings_of_its_policy() -> None:
    trace = run("teacache", {"first_steps": 10, "longest_reuse": 1}, guards=Guards(first_steps=4))
    assert trace.guards["first_steps"] == {"given": 4, "by": "user", "steps": 4}
    assert trace.guards["longest_reuse"] == {"given": 1, "by": "user", "steps": 1}
    assert first(trace) == 4


# What is not set gives way


@pytest.mark.parametrize("policy", DECIDING)
def test_defaults_leave_a_target_its_choice(policy: str) -> None:
    trace = run(policy, target_speedup=4.0)
    assert first(trace) <= max(2, STEPS // 4 // 3)


def test_first_steps_keep_their_share_of_what_is_computed() -> None:
    gate = Gate(steps=50, defaults=Guards(first_steps=0.2, last_steps=1, longest_reuse=0.1))
    assert (gate.first, gate.last, gate.longest) == (10, 1, 5)
    gate.give_way(25.0)
    assert (gate.first, gate.last, gate.longest) == (5, 1, 5)
    gate.give_way(5.0)  # the even gap is 9
    assert (gate.first, gate.last, gate.longest) == (1, 1, 18)
    asked = Gate(steps=50, defaults=Guards(first_steps=0.2), asked=Guards(first_steps=0.2))
    asked.give_way(5.0)
    assert asked.first == 10


def test_a_default_limit_of_reuse_makes_room_for_first_steps_that_were_set() -> None:
    gate = Gate(steps=20, asked=Guards(first_steps=4), defaults=Guards(longest_reuse=0.2))
    gate.give_way(5.0)
    assert gate.fewest(0) == 5


@pytest.mark.parametrize(
    ("extent", "steps"),
    [(1, 1), (1.0, 30), (3, 3), (0, 0), (0.0, 0), (0.001, 1), (0.05, 1), (0.1, 3), (0.99, 29)],
)
def test_a_whole_number_counts_and_one_with_a_point_is_a_share(extent: float, steps: int) -> None:
    assert count_of(extent, 30) == steps


# Two experts


class SwitchingEngine(Engine):
    """An engine whose calls come from a second expert in the second half of the run."""

    def model_call(self, call: ModelCall, forward: Callable[..., Tensor]) -> Tensor:
        expert = "low" if call.step >= STEPS // 2 else "high"
        return super().model_call(evolve(call, expert=expert), forward)


def run_of_two_experts(policy: str, **settings: object) -> Trace:
    pipeline, traces = CASE.make_pipeline(0), []
    kind = REGISTRY.policy(policy)
    composed = resolve_policy(policy, {**kind.anywhere, **settings}, None, MODEL, REGISTRY)[0]
    engine = SwitchingEngine(policy=composed, on_run=traces.append)
    with CASE.backbone.attach(pipeline, engine):
        CASE.run(pipeline, STEPS, "none", 0)
    (trace,) = traces
    return trace


@pytest.mark.parametrize("policy", DECIDING)
def test_a_change_of_expert_begins_everything_anew(policy: str) -> None:
    trace = run_of_two_experts(policy, first_steps=3, longest_reuse=4)
    modes = trace.modes()
    assert modes[:3] == modes[15:18] == [Mode.FULL] * 3
    assert any("Cache reset at step 15" in note for note in trace.notes)


def test_steps_reused_before_a_change_are_not_counted_after_it() -> None:
    trace = run_of_two_experts("teacache", first_steps=1, longest_reuse=14, threshold=1e9)
    letters = "".join(mode.value[0] for mode in trace.modes())
    assert letters == "f" + "r" * 14 + "f" + "r" * 13 + "f"


# Two policies


def test_guards_of_two_policies_that_disagree_are_refused() -> None:
    settings = {"pab.first_steps": 2, "teacache.first_steps": 3}
    with pytest.raises(ConfigError, match="first_steps is 2 for 'pab' and 3 for 'teacache'"):
        resolve_policy("pab+teacache", settings, None, MODEL, REGISTRY)
    same = {"pab.first_steps": 3, "teacache.first_steps": 3}
    made = resolve_policy("pab+teacache", same, None, MODEL, REGISTRY)[0]
    assert made.asked == Guards(first_steps=3)


# The record of a step


def test_the_record_of_a_step_keeps_the_chain() -> None:
    trace = run("teacache", {"first_steps": 3, "threshold": 1e9, "longest_reuse": 2})
    assert len(trace.decisions) == STEPS
    guarded, limited = trace.decisions[1], trace.decisions[5]
    assert (guarded.wanted, guarded.done) == (Mode.REUSE, Mode.FULL)
    assert guarded.reason.startswith("signal ")
    assert [(c.by, c.mode, c.reason) for c in guarded.changes] == [
        ("gate", Mode.FULL, "guard: first steps")
    ]
    assert [c.reason for c in limited.changes] == ["guard: 2 reused in a row"]
    assert trace.decisions[3].changes == []
    assert Trace.from_dict(trace.to_dict()) == trace


def test_the_budget_and_the_cache_say_what_they_made_of_it() -> None:
    trace = run("easycache", {"threshold": 0.0}, target_speedup=3.0)
    makers = [change.by for decision in trace.decisions for change in decision.changes]
    assert "budget" in makers
    nothing = run("teacache", {"first_steps": 0, "threshold": 1e9})
    assert [(c.by, c.reason) for c in nothing.decisions[0].changes] == [("cache", "no cache yet")]


def test_older_traces_without_decisions_are_read() -> None:
    plain = run("teacache").to_dict()
    del plain["decisions"], plain["guards"]
    read = Trace.from_dict(plain)
    assert (read.decisions, read.guards) == ([], {})
