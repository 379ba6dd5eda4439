"""Guards of a session, and what is said in the end about a run that went wrong or did nothing."""

from __future__ import annotations

from typing import Any, Final

import pytest
import torch

from hetcache_core import (
    BlockAction,
    BlockDecider,
    BlockKey,
    BlockPolicy,
    CachePolicy,
    Guards,
    Mode,
    PartAction,
    RunInfo,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
    SubLayer,
    Trace,
    Use,
    accelerate,
)
from hetcache_core.errors import ConfigError, NonFiniteError
from hetcache_core.steps import Decision
from hetcache_core.testing import TinyBackbone, TinyPipeline, tiny_case, tiny_video

STEPS: Final = 10


class Always(StepPolicy, StepDecider):
    """Wants the same for every step."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode

    def begin(self, run: RunInfo) -> StepDecider:
        return self

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        return Decision(self.mode, "always")


class ReusedBlocks(BlockPolicy, BlockDecider):
    """Reuses every block, or every sub-layer, of which something is kept."""

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole

    def begin(self, run: RunInfo) -> BlockDecider:
        return self

    def block(
        self, step: StepInfo, branch: str, key: BlockKey, hidden: torch.Tensor
    ) -> BlockAction:
        if self.whole:
            return BlockAction(use=Use.REUSE, store=True)
        return self.control(step, branch, key)

    def control(self, step: StepInfo, branch: str, key: BlockKey) -> BlockAction:
        part = PartAction(Use.REUSE, store=True)
        return BlockAction(parts=dict.fromkeys(SubLayer, part))


def run(
    policy: CachePolicy,
    guards: Guards | None = None,
    *,
    steps: int = STEPS,
    layout: str = "none",
    pipeline: TinyPipeline | None = None,
) -> Trace:
    case = tiny_case()
    pipeline = pipeline or case.make_pipeline(0)
    session = accelerate(pipeline, policy, backbone=case.backbone, guards=guards)
    with session:
        case.run(pipeline, steps, layout, 0)
    return session.trace


def always(mode: Mode) -> CachePolicy:
    return CachePolicy(name="always", step=Always(mode))


def said(trace: Trace) -> list[str]:
    """What is noted, beside the backbone's own warning."""
    return [note for note in trace.notes if not note.startswith("The weights are random")]


def reasons(trace: Trace) -> dict[int, str]:
    return {record.step: record.reason for record in trace.records if record.mode is Mode.FULL}


# Steps


@pytest.mark.parametrize(
    ("guards", "expected"),
    [
        (Guards(first_steps=0.35), dict.fromkeys(range(3), "guard: first steps")),
        (Guards(first_steps=3), dict.fromkeys(range(3), "guard: first steps")),
        (
            Guards(last_steps=0.35),
            {0: "no cache yet", **dict.fromkeys(range(7, 10), "guard: last steps")},
        ),
        (Guards(last_steps=1), {0: "no cache yet", 9: "guard: last steps"}),
        (
            Guards(full_steps=(3, 7)),
            {0: "no cache yet", 3: "guard: listed step", 7: "guard: listed step"},
        ),
        (
            Guards(longest_reuse=3),
            {0: "no cache yet", 4: "guard: 3 reused in a row", 8: "guard: 3 reused in a row"},
        ),
        (
            Guards(first_steps=1, longest_reuse=0.4, full_steps=(4,)),
            {0: "guard: first steps", 4: "guard: listed step", 9: "guard: 4 reused in a row"},
        ),
    ],
    ids=["first", "counted", "last", "counted last", "listed", "reused in a row", "all together"],
)
def test_every_guard_computes_its_steps_and_says_so(
    guards: Guards, expected: dict[int, str]
) -> None:
    for layout in ("none", "separate", "merged"):
        trace = run(always(Mode.REUSE), guards, layout=layout)
        assert reasons(trace) == expected
        reused = {record.reason for record in trace.records if record.mode is Mode.REUSE}
        assert reused == {"always"}


def test_a_step_that_is_computed_anyway_keeps_its_own_reason() -> None:
    trace = run(always(Mode.FULL), Guards(first_steps=0.5))
    assert set(reasons(trace).values()) == {"always"}


def test_the_whole_run_may_be_guarded() -> None:
    trace = run(always(Mode.REUSE), Guards(first_steps=1.0))
    assert trace.modes() == [Mode.FULL] * STEPS
    assert trace.totals().flops_speedup == 1


# Blocks


@pytest.mark.parametrize("whole", [True, False], ids=["blocks", "sub-layers"])
def test_guards_compute_all_blocks_and_sub_layers_of_a_step(whole: bool) -> None:
    policy = CachePolicy(name="blocks", blocks=ReusedBlocks(whole=whole))
    guards = Guards(first_steps=0.2, last_steps=0.1, full_steps=(5,))
    guarded = {0, 1, 5, 9}
    for record in run(policy, guards).records:
        if record.step in guarded:
            assert record.flops == record.flops_full
            assert record.parts_reused == 0
        else:
            assert record.flops < record.flops_full
    free = run(policy).records
    assert all(record.flops < record.flops_full for record in free if record.step > 0)


def test_a_limit_of_reuse_is_one_of_whole_steps() -> None:
    policy = CachePolicy(name="blocks", blocks=ReusedBlocks(whole=True))
    limited = run(policy, Guards(longest_reuse=1))
    assert limited.totals().flops == run(policy).totals().flops


# What makes no sense


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"first_steps": 1.5}, "first_steps must be >= 0 and as a share <= 1.0, got 1.5"),
        ({"last_steps": -0.1}, "last_steps must be >= 0 and as a share <= 1.0, got -0.1"),
        ({"last_steps": -1}, "last_steps must be >= 0 and as a share <= 1.0, got -1"),
        ({"first_steps": float("nan")}, "first_steps must be a whole number or a finite number"),
        ({"first_steps": True}, "first_steps must be a whole number or a finite number"),
        ({"longest_reuse": 0}, "longest_reuse must be > 0 and as a share <= 1.0, got 0"),
        ({"full_steps": (-1,)}, "full_steps must be >= 0"),
    ],
)
def test_guards_out_of_range_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        Guards(**values)
    assert refused.value.where == "Guards"


# What is said in the end


def broken(value: float) -> TinyPipeline:
    """A pipeline whose trunk adds the same value everywhere: the last layer of each block is fixed."""
    pipeline = TinyPipeline()
    for block in pipeline.model.blocks:
        for layer in (block.self_attention, block.cross_attention, block.feed_forward):
            *_, last = [part for part in layer.modules() if isinstance(part, torch.nn.Linear)]
            torch.nn.init.constant_(last.weight, value)
            torch.nn.init.constant_(last.bias, value)
    if value == 0.0:
        pipeline.model.control = None
    return pipeline


@pytest.mark.parametrize("policy", [CachePolicy(name="none"), always(Mode.FULL)])
def test_a_run_that_ends_in_nan_is_an_error_whatever_the_policy(policy: CachePolicy) -> None:
    traces: list[Trace] = []
    session = accelerate(
        broken(float("nan")), policy, backbone=TinyBackbone(), on_run=traces.append
    )
    with pytest.raises(NonFiniteError, match="from step 0 of 4 on") as caught, session:
        session.pipeline(*tiny_video(), steps=4)
    assert (caught.value.first_step, caught.value.steps) == (0, 4)
    assert [trace.complete for trace in traces] == [True]
    assert session.pipeline.scheduler.__class__ is TinyPipeline().scheduler.__class__


def test_a_strength_of_guidance_past_all_numbers_is_an_error_with_one_step_too() -> None:
    """The model's own output is finite then; what the sampler makes of it is not."""
    session = accelerate(TinyPipeline(), "none", backbone=TinyBackbone())
    with pytest.raises(NonFiniteError), session:
        session.pipeline(*tiny_video(), steps=1, guidance_scale=1e39)


def test_a_residual_that_is_all_zero_is_said() -> None:
    trace = run(always(Mode.FULL), pipeline=broken(0.0))
    assert trace.notes.count("A cached residual was all zero: the trunk changed nothing.") == 1


def test_a_healthy_run_has_nothing_to_say() -> None:
    trace = run(always(Mode.REUSE), Guards(longest_reuse=2))
    assert said(trace) == []


def test_a_run_in_which_nothing_was_reused_says_so() -> None:
    assert said(run(always(Mode.FULL))) == ["Nothing was reused: every step ran in full."]
    assert said(run(CachePolicy(name="none"))) == []


def test_blocks_that_are_reused_are_something() -> None:
    policy = CachePolicy(name="blocks", blocks=ReusedBlocks(whole=False))
    assert said(run(policy)) == []


def test_a_signal_that_never_crosses_its_threshold_is_said() -> None:
    assert said(run(always(Mode.REUSE))) == [
        "The signal never crossed its threshold: every step between the first and the last was reused."
    ]


@pytest.mark.parametrize("mode", [Mode.FULL, Mode.REUSE])
def test_short_runs_are_not_judged(mode: Mode) -> None:
    assert said(run(always(mode), steps=4)) == []


def test_every_decision_has_a_reason() -> None:
    for mode in (Mode.FULL, Mode.REUSE):
        trace = run(always(mode), Guards(first_steps=0.2, longest_reuse=1), layout="separate")
        assert all(record.reason for record in trace.records)
