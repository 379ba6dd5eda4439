"""Policies played without a model: by the engine, its guards, its budget and its cache."""

from __future__ import annotations

from typing import final

import pytest
from attrs import define, field

from hetcache_core import (
    CachePolicy,
    Decision,
    Guards,
    Mode,
    RunInfo,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
    discover,
)
from hetcache_core.testing import decide, scripted, tiny_case
from hetcache_core.testing.watch import watched_run

ALWAYS = scripted(Mode.REUSE)


@final
@define(eq=False)
class Onlooker(StepPolicy, StepDecider):
    """Computes every second step, and writes down what it is shown."""

    shown: list[tuple[float, ...]] = field(factory=list)
    outputs: list[float] = field(factory=list)

    def begin(self, run: RunInfo) -> StepDecider:
        return self

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        values = (
            signals.timestep_embedding(),
            signals.timestep_modulation(),
            signals.modulated_input(),
            signals.hidden(),
            signals.probe(2),
            signals.latent(),
        )
        self.shown.append(tuple(float(value.mean()) for value in values))
        return Decision(Mode.REUSE if step.index % 2 else Mode.FULL, "every second")

    def output(self, step: StepInfo, latents: object, output: object) -> None:
        self.outputs.append(float(output.mean()))  # type: ignore[attr-defined]  # a tensor


@pytest.mark.parametrize("name", sorted({"auto", "every-nth", "pab", "taylorseer"}))
def test_what_is_played_is_what_a_run_does_where_the_schedule_decides(name: str) -> None:
    recipe, case = discover().policy(name)(), tiny_case()
    policy = recipe.compose(case.backbone.describe(case.make_pipeline(0)))
    engine, _ = watched_run(case, policy, steps=20, layout="none")
    sigmas = engine.infos[0].sigmas
    assert decide(policy, steps=20, sigmas=sigmas).letters() == engine.trace.letters()


def test_a_decider_is_shown_the_values_that_were_given() -> None:
    onlooker = Onlooker()
    decide(
        CachePolicy(name="onlooker", step=onlooker),
        steps=3,
        signal=[1.0, 2.0, 3.0],
        hidden=5.0,
        added=lambda index: 0.5 * index,
        latents=7.0,
        outputs=[8.0, 9.0, 10.0],
    )
    assert onlooker.shown == [
        (signal, signal, signal, 5.0, 5.0 + 2 * added, 7.0)
        for signal, added in ((1.0, 0.0), (2.0, 0.5), (3.0, 1.0))
    ]
    assert onlooker.outputs == [8.0, 10.0]  # the second step was reused


def test_guards_have_their_say() -> None:
    assert decide(ALWAYS, steps=6).letters() == "Fsssss"
    assert decide(ALWAYS, steps=6, guards=Guards(full_steps=[2, 3])).letters() == "FsFFss"


def test_a_target_is_reached() -> None:
    assert decide(ALWAYS, steps=20, target_speedup=2.0).letters().count("F") == 10


def test_another_model_has_nothing_to_reuse() -> None:
    trace = decide(ALWAYS, steps=6, experts=["high"] * 3 + ["low"] * 3)
    assert trace.letters() == "FssFss"
    assert [record.expert for record in trace.records] == ["high"] * 3 + ["low"] * 3


def test_every_branch_is_called_and_the_first_decides() -> None:
    trace = decide(ALWAYS, steps=2, branches=("cond", "uncond"))
    assert [(r.branch, r.mode.letter) for r in trace.records] == [
        ("cond", "F"),
        ("uncond", "F"),
        ("cond", "s"),
        ("uncond", "s"),
    ]


def test_a_policy_that_takes_fewer_steps_takes_them() -> None:
    assert decide(CachePolicy(name="half", sampler_share=0.5), steps=10).letters() == "FFFFF"


def test_thresholds_see_the_factor_that_was_given() -> None:
    seen = []

    @final
    @define(eq=False)
    class Looking(StepPolicy, StepDecider):
        def begin(self, run: RunInfo) -> StepDecider:
            return self

        def decide(self, step: StepInfo, signals: Signals) -> Decision:
            seen.append(signals.threshold_factor)
            return Decision(Mode.FULL, "looking")

    decide(CachePolicy(name="looking", step=Looking()), steps=2, threshold_factor=3.0)
    assert seen == [3.0, 3.0]
