"""The one loop: what is asked, run, stored and recorded in each kind of step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from attrs import define, evolve, field, frozen
from torch import Tensor

from hetcache_core import (
    BlockAction,
    BlockDecider,
    BlockPolicy,
    BranchRows,
    CacheBudgetError,
    CachePolicy,
    CacheStateError,
    ConfigError,
    ContextSelector,
    ContractError,
    ControlMode,
    Decision,
    Engine,
    Guards,
    GuidanceDecider,
    GuidancePolicy,
    KVMode,
    Mode,
    ModelCall,
    PartialSettings,
    Predictor,
    ReusePoint,
    Role,
    RunInfo,
    Selection,
    SelectionRequest,
    Span,
    Stack,
    StepDecider,
    StepInfo,
    StepPolicy,
    Stored,
    StoreSettings,
    SubLayer,
    Use,
    accelerate,
)
from hetcache_core.policy.pieces import PartAction
from hetcache_core.testing import FULL_STEPS, TinyConfig, scripted, tiny_case, tiny_video
from hetcache_core.testing.comparing import require_close, rounding_bound
from hetcache_core.testing.replaying import Repeat, replay
from hetcache_core.testing.scripted import BlockScript
from hetcache_core.testing.watch import WatchedEngine, watched_run

FULL, PARTIAL, REUSE, PREDICT = Mode.FULL, Mode.PARTIAL, Mode.REUSE, Mode.PREDICT
CASE = tiny_case()
LAYERS = TinyConfig().layers


def run(policy: CachePolicy, steps: int = 6, layout: str = "none", **options: Any) -> WatchedEngine:
    return watched_run(CASE, policy, steps=steps, layout=layout, **options)[0]


def modes(engine: WatchedEngine, branch: str | None = None) -> list[Mode]:
    return [r.mode for r in engine.trace.records if branch in {None, r.branch}]


def answers(policy: CachePolicy, repeats: int) -> list[Repeat]:
    return replay(CASE, policy, repeats=repeats, layout="none")[0]


@define(eq=False)
class Told(StepDecider):
    """Says its modes and keeps what it is told."""

    modes: Sequence[Mode]
    decided: list[int] = field(factory=list)
    settled: list[Mode] = field(factory=list)
    outputs: list[int] = field(factory=list)
    reads: int = 0

    def decide(self, step: StepInfo, signals: Any) -> Decision:
        self.decided.append(step.index)
        for _ in range(self.reads):
            signals.read(signals.hidden().sum())
        return Decision(self.modes[step.index], "told", signal=0.5, gain=2.0)

    def settle(self, step: StepInfo, mode: Mode) -> None:
        self.settled.append(mode)

    def output(self, step: StepInfo, latents: Tensor, output: Tensor) -> None:
        assert latents.shape == output.shape
        self.outputs.append(step.index)


@frozen(eq=False)
class Telling(StepPolicy):
    decider: Told

    def begin(self, run: RunInfo) -> StepDecider:
        return self.decider


def told(*wanted: Mode, reads: int = 0, **pieces: Any) -> tuple[Told, CachePolicy]:
    decider = Told(wanted, reads=reads)
    return decider, CachePolicy(name="told", step=Telling(decider), **pieces)


# Deciding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["separate", "merged", "none"])
def test_a_step_is_decided_once_whatever_its_branches(layout: str) -> None:
    decider, policy = told(FULL, REUSE, FULL, REUSE)
    engine = run(policy, 4, layout)
    assert decider.decided == [0, 1, 2, 3]
    assert decider.settled == engine.trace.modes() == [FULL, REUSE, FULL, REUSE]
    assert {record.reason for record in engine.trace.records} == {"told"}


def test_reuse_before_any_full_step_runs_in_full_and_the_decider_is_told() -> None:
    decider, policy = told(REUSE, REUSE, FULL)
    engine = run(policy, 3, "separate")
    assert decider.settled == [FULL, REUSE, FULL]
    assert [r.reason for r in engine.trace.records][:2] == ["no cache yet"] * 2


def test_the_decider_sees_the_output_of_steps_that_ran() -> None:
    decider, policy = told(FULL, REUSE, FULL)
    run(policy, 3, "separate")
    assert decider.outputs == [0, 2]


@pytest.mark.parametrize(("reads", "total"), [(0, 0), (1, 3)])
def test_reads_of_a_decision_are_counted_once_a_step(reads: int, total: int) -> None:
    _, policy = told(FULL, REUSE, FULL, reads=reads)
    engine = run(policy, 3, "separate")
    assert engine.trace.totals().host_reads == total
    assert [r.host_reads for r in engine.trace.records] == [reads, 0] * 3


def test_signal_and_gain_of_a_decision_arrive() -> None:
    _, policy = told(FULL, REUSE, predictor=Scaling())
    full, reused = answers(policy, 2)
    assert reused.record.signal == 0.5
    x = full.seen.trunk.x if full.seen.trunk is not None else torch.empty(0)
    expected = x + 2.0 * (full.trunk_output - x)
    assert torch.allclose(reused.trunk_output, expected, atol=1e-6)


def test_a_probe_runs_its_blocks_once() -> None:
    (probed,) = answers(scripted(FULL, probe=2), 1)
    (plain,) = answers(FULL_STEPS, 1)
    assert (probed.main, probed.record.blocks_run) == (LAYERS, LAYERS)
    assert probed.record.flops == plain.record.flops
    assert torch.equal(probed.trunk_output, plain.trunk_output)


def test_a_probe_in_a_reused_step_is_what_that_step_costs() -> None:
    _, reused = answers(scripted(FULL, REUSE, probe=1), 2)
    assert (reused.main, reused.record.blocks_run, reused.record.control_run) == (1, 1, 1)
    assert reused.record.flops < reused.record.flops_full / 2
    assert reused.record.active == 48


# Reusing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("span", [Span(1), Span(0, 1), Span(1, 1), Span(2, 1), Span(2, 2)])
@pytest.mark.parametrize("probe", [0, 1, 2])
def test_a_span_is_left_out_wherever_the_probe_ended(span: Span, probe: int) -> None:
    full, reused = answers(scripted(FULL, REUSE, span=span, probe=probe), 2)
    assert reused.record.mode is REUSE
    bound = rounding_bound(full.trunk_output, LAYERS, 32)
    require_close(reused.trunk_output, full.trunk_output, bound, "reused")


def test_control_blocks_run_only_as_far_as_the_back_blocks_need() -> None:
    front = answers(scripted(FULL, REUSE, span=Span(front=1)), 2)[1]
    assert (front.main, front.control) == (1, 1)
    back = answers(scripted(FULL, REUSE, span=Span(back=1)), 2)[1]
    assert (back.main, back.control) == (1, 0)
    two = answers(scripted(FULL, REUSE, span=Span(back=2)), 2)[1]
    assert (two.main, two.control) == (2, 2)


def test_reused_outputs_cost_nothing_and_are_compared_with_the_last_computed_call() -> None:
    engine = run(scripted(FULL, REUSE, reuse_point=ReusePoint.OUTPUT), 4, "separate")
    full, reused = engine.trace.records[0], engine.trace.records[2]
    assert (reused.mode, reused.flops, reused.active) == (REUSE, 0, 0)
    assert reused.flops_full == full.flops_full > 0


def test_a_decision_before_the_embedding_cannot_look_at_the_trunk() -> None:
    _, policy = told(FULL, FULL, reads=1, reuse_point=ReusePoint.OUTPUT)
    with pytest.raises(ContractError, match="'hidden' needs the model's embedding"):
        run(policy, 2)


def test_the_last_step_stores_nothing() -> None:
    policy = scripted(FULL, FULL, FULL, partial=PartialSettings())
    stored, last = run(policy, 2), run(policy, 1)
    assert [r.cache_bytes > 0 for r in stored.trace.records] == [True, True]
    assert stored.trace.records[0].cache_bytes == stored.trace.records[1].cache_bytes
    assert last.trace.peak_cache_bytes == 0


# Partial steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_mode", KVMode)
@pytest.mark.parametrize("control_mode", ControlMode)
def test_a_partial_step_reports_its_rows_by_role(
    kv_mode: KVMode, control_mode: ControlMode
) -> None:
    partial = PartialSettings(
        kv_mode=kv_mode, control_mode=control_mode, context_ratio=0.25, pad_to=1
    )
    engine = run(scripted(FULL, PARTIAL, FULL, partial=partial), 3)
    full, part, _ = engine.trace.records
    roles = engine.trace.tokens_by_role
    assert full.active_by_role == roles
    assert roles["context"] + roles["generative"] == 48
    assert part.active_by_role == {**roles, "context": round(0.25 * roles["context"])}
    assert part.active == sum(part.active_by_role.values())
    assert part.flops < full.flops
    assert part.control_run == (0 if control_mode is ControlMode.REUSE else 2)


def test_more_active_tokens_than_allowed_make_a_full_step_and_a_note() -> None:
    partial = PartialSettings(context_ratio=0.9, max_active_share=0.5, pad_to=1)
    engine = run(scripted(FULL, PARTIAL, partial=partial), 2)
    assert modes(engine) == [FULL, FULL]
    assert "of the tokens active, over 50%" in engine.trace.records[1].reason
    assert "partial steps run in full" in engine.trace.notes[0]
    # Nothing is prepared for partial steps that never come.
    assert engine.trace.peak_cache_bytes == 48 * 32 * 4


def test_a_mask_over_everything_leaves_a_note() -> None:
    def run_all(pipeline: Any, steps: int, guidance: str, seed: int) -> Tensor:
        video, mask = tiny_video()
        result: Tensor = pipeline(video, mask | True, steps=steps, guidance_scale=1.0)
        return result

    policy = scripted(FULL, PARTIAL, partial=PartialSettings())
    case = CASE.with_values(run=run_all)
    engine, _ = watched_run(case, policy, steps=2, layout="none")
    assert any("no context tokens" in note for note in engine.trace.notes)


def test_partial_steps_without_a_mask_are_refused_before_any_call() -> None:
    def run_unmasked(pipeline: Any, steps: int, guidance: str, seed: int) -> Tensor:
        result: Tensor = pipeline(tiny_video()[0], steps=steps)
        return result

    policy = scripted(FULL, PARTIAL, partial=PartialSettings())
    pipeline = CASE.make_pipeline(0)
    engine = WatchedEngine(policy=policy)
    with (
        pytest.raises(ConfigError, match="needs the edit mask") as error,
        CASE.backbone.attach(pipeline, engine),
    ):
        run_unmasked(pipeline, 2, "none", 0)
    assert "teacache" in error.value.remedy
    assert engine.seen == []


def test_a_partial_step_without_settings_is_an_error_of_the_policy() -> None:
    _, policy = told(FULL, PARTIAL)
    with pytest.raises(ContractError, match="has no PartialSettings"):
        run(policy, 2)


def test_the_residual_average_mixes_old_and_new() -> None:
    """With constant inputs and pruned keys, the active rows move only part of the way."""
    outputs = {}
    for weight in (0.0, 0.75, 1.0):
        partial = PartialSettings(kv_mode=KVMode.PRUNED, residual_ema=weight, pad_to=1)
        full, part, reused = answers(scripted(FULL, PARTIAL, REUSE, partial=partial), 3)
        outputs[weight] = (full.trunk_output, part.trunk_output, reused.trunk_output)
    full_out, part_out, new = outputs[0.0]
    bound = 4 * rounding_bound(full_out, 1, 1)
    require_close(new, part_out, bound, "new residual")
    require_close(outputs[1.0][2], full_out, bound, "old residual kept")
    require_close(outputs[0.75][2], 0.25 * part_out + 0.75 * full_out, bound, "mixed residual")
    assert not torch.equal(part_out, full_out)


# Predictors --------------------------------------------------------------------------------------


@frozen
class Scaling(Predictor):
    """The newest value times the gain."""

    history = 1

    def predict(self, values: Sequence[Stored], *, step: int, gain: float | None) -> Tensor:
        return values[-1].value * (1.0 if gain is None else gain)


@frozen(eq=False)
class Noting(Predictor):
    """Goes on in a line through the last two values, and notes what it was given."""

    given: list[tuple[int, list[int]]] = field(factory=list)

    @property
    def history(self) -> int:
        return 2

    def predict(self, values: Sequence[Stored], *, step: int, gain: float | None) -> Tensor:
        self.given.append((step, [value.step for value in values]))
        if len(values) == 1:
            return values[0].value
        older, newer = values
        slope = (newer.value - older.value) / (newer.step - older.step)
        return newer.value + slope * (step - newer.step)


def test_a_predictor_gets_the_computed_values_with_their_steps() -> None:
    predictor = Noting()
    policy = evolve(scripted(FULL, REUSE, FULL, FULL, REUSE, REUSE), predictor=predictor)
    run(policy, 6)
    assert predictor.given == [(1, [0]), (4, [2, 3]), (5, [2, 3])]


def test_with_constant_inputs_a_line_through_two_steps_stays_where_it_is() -> None:
    policy = evolve(scripted(FULL, FULL, REUSE), predictor=Noting())
    full, _, reused = answers(policy, 3)
    bound = 4 * rounding_bound(full.trunk_output, 1, 1)
    require_close(reused.trunk_output, full.trunk_output, bound, "extrapolated")


def test_each_token_is_predicted_from_its_own_computed_values() -> None:
    """First those of all tokens, from full steps; then those of the active ones, from partial ones too."""
    predictor = Noting()
    partial = PartialSettings(pad_to=1)
    policy = evolve(
        scripted(FULL, PARTIAL, REUSE, FULL, PARTIAL, REUSE, partial=partial), predictor=predictor
    )
    full, part, reused, *_ = answers(policy, 6)
    assert predictor.given == [
        (1, [0]), (1, [0]),
        (2, [0]), (2, [0, 1]),
        (4, [0, 3]), (4, [1, 3]),
        (5, [0, 3]), (5, [3, 4]),
    ]  # fmt: skip
    bound = rounding_bound(full.trunk_output, LAYERS, 32)
    require_close(part.trunk_output, full.trunk_output, bound, "partial")
    require_close(reused.trunk_output, full.trunk_output, 4 * bound, "reused after partial")


def test_a_line_through_inactive_tokens_passes_by_what_partial_steps_predicted_of_them() -> None:
    """A partial step before a full one leaves the slope of inactive tokens as it is."""
    policies = {
        name: evolve(
            scripted(*modes, partial=PartialSettings(pad_to=1, margin_ratio=1.0)),
            predictor=Noting(),
        )
        for name, modes in {
            "with": (FULL, REUSE, REUSE, PARTIAL, FULL, REUSE, FULL),
            "without": (FULL, REUSE, REUSE, REUSE, FULL, REUSE, FULL),
        }.items()
    }
    slopes: dict[str, list[tuple[int, list[int]]]] = {}
    for name, policy in policies.items():
        run(policy, 7)
        slopes[name] = [given for given in policy.predictor.given if given[0] == 5]
    assert slopes["without"][0] == slopes["with"][0] == (5, [0, 4])
    assert slopes["with"][1] == (5, [3, 4])


def test_new_active_rows_start_with_the_history_of_all_tokens() -> None:
    predictor = Noting()
    settings = PartialSettings(context_ratio=0.3, pad_to=1, refresh_after=2)
    policy = evolve(
        scripted(FULL, PARTIAL, FULL, PARTIAL, FULL, PARTIAL, partial=settings),
        predictor=predictor,
        selector=Turning(),
    )
    run(policy, 6)
    assert predictor.given == [
        (1, [0]), (1, [0]),
        (3, [0, 2]), (3, [1, 2]),
        (5, [2, 4]), (5, [2, 4]),
    ]  # fmt: skip


@frozen
class Turning(ContextSelector):
    """Other tokens at every choice."""

    def select(self, request: SelectionRequest) -> Selection:
        order = torch.arange(request.partition.count(Role.CONTEXT))
        return Selection(order if request.previous is None else order.flip(0))


# Blocks ------------------------------------------------------------------------------------------


@define(eq=False)
class Observing(BlockDecider):
    """Looks at sub-layers and blocks, and counts."""

    prepared: list[int] = field(factory=list)
    seen: list[tuple[str, str, int, SubLayer | None]] = field(factory=list)

    def prepare(self, step: StepInfo, signals: Any) -> None:
        self.prepared.append(step.index)
        signals.read(signals.hidden().sum())

    def block(self, step: StepInfo, branch: str, key: Any, hidden: Tensor) -> BlockAction:
        return BlockAction(observe=frozenset({SubLayer.FEED_FORWARD}), observe_block=True)

    def control(self, step: StepInfo, branch: str, key: Any) -> BlockAction:
        return BlockAction(observe=frozenset({SubLayer.CROSS_ATTENTION}))

    def observe(
        self, step: StepInfo, branch: str, key: Any, part: SubLayer | None, output: Tensor
    ) -> None:
        assert output.shape == (1, 48, 32)
        self.seen.append((branch, key.stack.value, key.index, part))


@frozen(eq=False)
class Observer(BlockPolicy):
    decider: Observing

    def begin(self, run: RunInfo) -> BlockDecider:
        return self.decider


def test_a_block_decider_prepares_once_a_step_and_sees_what_it_asked_for() -> None:
    decider = Observing()
    engine = run(CachePolicy(name="looks", blocks=Observer(decider)), 2, "separate")
    assert decider.prepared == [0, 1]
    assert engine.trace.totals().host_reads == 2
    first = [seen[1:] for seen in decider.seen if seen[0] == "cond"][:10]
    part, cross = SubLayer.FEED_FORWARD, SubLayer.CROSS_ATTENTION
    expected: list[Any] = []
    for index in range(LAYERS):
        if index in {0, 2}:
            expected.append(("control", index // 2, cross))
        expected += [("main", index, part), ("main", index, None)]
    assert first == expected
    assert len(decider.seen) == 2 * 2 * len(expected)


def test_parts_that_are_reused_are_counted_and_cost_nothing() -> None:
    blocks = BlockScript(parts=frozenset({SubLayer.SELF_ATTENTION}))
    engine = run(CachePolicy(name="parts", blocks=blocks), 2)
    full, reused = engine.trace.records
    assert (full.parts_reused, reused.parts_reused) == (0, LAYERS + 2)
    trunk = engine.seen[0].trunk
    assert trunk is not None
    costs = trunk.flops
    main, control = (
        costs.sub_layer(stack, SubLayer.SELF_ATTENTION, rows=48, keys=48) for stack in Stack
    )
    assert full.flops - reused.flops == LAYERS * main + 2 * control


def test_a_reused_block_before_a_block_that_runs_catches_up_on_control() -> None:
    """Control blocks feed each other: the second hint needs the first block's state."""

    @frozen
    class FirstReused(BlockPolicy, BlockDecider):
        def begin(self, run: RunInfo) -> BlockDecider:
            return self

        def block(self, step: StepInfo, branch: str, key: Any, hidden: Tensor) -> BlockAction:
            if key.index != 0:
                return BlockAction()
            return BlockAction(store=True) if step.index == 0 else BlockAction(use=Use.REUSE)

    full, reused = answers(CachePolicy(name="first", blocks=FirstReused()), 2)
    assert (reused.main, reused.control) == (LAYERS - 1, 2)
    bound = rounding_bound(full.trunk_output, LAYERS, 32)
    require_close(reused.trunk_output, full.trunk_output, bound, "first block reused")


def test_guards_reach_the_blocks() -> None:
    policy = CachePolicy(name="blocks", blocks=BlockScript(whole=True))
    engine = run(policy, 4, guards=Guards(full_steps=[1]))
    assert [r.blocks_run for r in engine.trace.records] == [LAYERS, LAYERS, LAYERS, 0]


def test_guards_reach_the_steps() -> None:
    engine = run(
        scripted(FULL, REUSE, REUSE, REUSE), 8, guards=Guards(longest_reuse=2, last_steps=0.25)
    )
    assert modes(engine) == [FULL, REUSE, REUSE, FULL, FULL, REUSE, FULL, FULL]
    assert engine.trace.records[3].reason == "guard: 2 reused in a row"
    assert engine.trace.records[7].reason == "guard: last steps"


# Guidance ----------------------------------------------------------------------------------------


@define(eq=False)
class CondForUncond(GuidanceDecider):
    """In odd steps, the unconditional output is the conditional one."""

    observed: list[tuple[int, list[str]]] = field(factory=list)

    def predicts(self, step: StepInfo, branch: str, mode: Mode) -> str | None:
        assert mode is FULL
        return "odd step" if step.index % 2 else None

    def predict(
        self, step: StepInfo, branch: str, outputs: Mapping[str, Tensor], signals: Any
    ) -> Tensor:
        return outputs["cond"]

    def observe_outputs(
        self, step: StepInfo, outputs: Mapping[str, Tensor], mode: Mode, signals: Any
    ) -> None:
        self.observed.append((step.index, list(outputs)))


@frozen(eq=False)
class Guided(GuidancePolicy):
    decider: CondForUncond

    def begin(self, run: RunInfo) -> GuidanceDecider:
        return self.decider


def test_a_predicted_branch_is_not_run() -> None:
    decider = CondForUncond()
    engine = run(CachePolicy(name="guided", guidance=Guided(decider)), 4, "separate")
    assert modes(engine, "cond") == [FULL] * 4
    assert modes(engine, "uncond") == [FULL, PREDICT] * 2
    predicted = engine.trace.records[3]
    assert (predicted.reason, predicted.flops, predicted.blocks_run) == ("odd step", 0, 0)
    assert predicted.flops_full == engine.trace.records[1].flops_full
    assert torch.equal(engine.outputs[1, "uncond"], engine.outputs[1, "cond"])


def test_a_guidance_decider_learns_from_steps_in_which_both_branches_ran() -> None:
    decider = CondForUncond()
    run(CachePolicy(name="guided", guidance=Guided(decider)), 4, "separate")
    assert decider.observed == [(0, ["cond", "uncond"]), (2, ["cond", "uncond"])]


@pytest.mark.parametrize("layout", ["merged", "none"])
def test_a_branch_that_has_no_call_of_its_own_is_never_predicted(layout: str) -> None:
    decider = CondForUncond()
    engine = run(CachePolicy(name="guided", guidance=Guided(decider)), 4, layout)
    assert modes(engine) == [FULL] * 4


# Runs and steps ----------------------------------------------------------------------------------


def test_another_expert_begins_with_an_empty_cache() -> None:
    case = tiny_case(experts=2)
    partial = PartialSettings()
    policy = scripted(FULL, REUSE, REUSE, PARTIAL, partial=partial)
    engine, _ = watched_run(case, policy, steps=8, layout="separate")
    records = engine.trace.records
    second = next(r.step for r in records if r.expert == "second")
    assert {r.expert for r in records if r.step < second} == {"first"}
    entering = [r for r in records if r.step == second]
    assert [(r.mode, r.reason) for r in entering] == [(FULL, "no cache yet")] * 2
    assert any(f"Cache reset at step {second}" in note for note in engine.trace.notes)
    later = [r.mode for r in records if r.step > second and r.branch == "cond"]
    assert FULL not in later[:1]


def engine_in_a_run(policy: CachePolicy = FULL_STEPS) -> tuple[Engine, ModelCall]:
    """Begin a run of three steps by hand, as a backbone would."""
    watched = run(FULL_STEPS, 3)
    engine = Engine(policy=policy)
    engine.begin_run(watched.infos[0])
    return engine, watched.seen[0].call


def test_steps_must_follow_on_one_another() -> None:
    engine, call = engine_in_a_run()
    with pytest.raises(CacheStateError) as error:
        engine.model_call(evolve(call, step=1), lambda _: call.latents)
    assert (error.value.step, error.value.expected_step) == (1, 0)
    engine, call = engine_in_a_run()  # the error has ended that run
    engine.model_call(call, lambda _: call.latents)
    with pytest.raises(CacheStateError):
        engine.model_call(evolve(call, step=2), lambda _: call.latents)


def test_a_step_beyond_the_last_is_refused() -> None:
    engine, call = engine_in_a_run()
    for step in range(3):
        engine.model_call(evolve(call, step=step), lambda _: call.latents)
        if step < 2:
            engine.end_step()
    with pytest.raises(CacheStateError, match="step 3 of 3"):
        engine.model_call(evolve(call, step=3), lambda _: call.latents)


def test_a_call_outside_a_run_is_refused() -> None:
    _, call = engine_in_a_run()
    with pytest.raises(CacheStateError, match="outside a run"):
        Engine(policy=FULL_STEPS).model_call(call, lambda _: call.latents)


def test_a_trunk_of_another_size_than_announced_is_refused() -> None:
    watched = run(FULL_STEPS, 3)
    trunk, info = watched.seen[0].trunk, watched.infos[0]
    assert trunk is not None
    engine = Engine(policy=FULL_STEPS)
    engine.begin_run(evolve(info, grid=evolve(info.grid, prefix=1)))
    call = watched.seen[0].call
    with pytest.raises(ContractError, match="48 tokens, the announced grid 49"):
        engine.model_call(call, lambda run: run(trunk))


def test_the_run_ends_with_its_last_step_and_holds_nothing() -> None:
    engine = run(scripted(FULL, REUSE), 4)
    assert not engine.running
    assert len(engine.traces) == 1
    assert engine.trace.complete
    assert engine.trace.peak_cache_bytes > 0


def test_a_run_that_is_given_up_hands_out_no_trace() -> None:
    traces: list[Any] = []
    engine, call = engine_in_a_run()
    engine.on_run = traces.append
    engine.model_call(call, lambda _: call.latents)
    engine.abort_run()
    assert not engine.running
    assert traces == []


def test_an_unfinished_run_is_ended_by_the_next_and_says_so() -> None:
    traces: list[Any] = []
    engine, call = engine_in_a_run()
    engine.on_run = traces.append
    engine.model_call(call, lambda _: call.latents)
    info = run(FULL_STEPS, 3).infos[0]
    engine.begin_run(info)
    assert [trace.complete for trace in traces] == [False]


def test_merged_branches_share_one_record_and_separate_ones_do_not() -> None:
    merged, separate = run(FULL_STEPS, 2, "merged"), run(FULL_STEPS, 2, "separate")
    assert [r.branch for r in merged.trace.records] == ["cond+uncond"] * 2
    assert [r.branch for r in separate.trace.records] == ["cond", "uncond"] * 2
    assert merged.seen[0].call.branches == (BranchRows("cond", 0, 1), BranchRows("uncond", 1, 2))
    assert merged.trace.totals().flops == separate.trace.totals().flops


# The cache ---------------------------------------------------------------------------------------


def test_a_cache_over_its_limit_is_an_error_and_the_pipeline_is_whole() -> None:
    pipeline = CASE.make_pipeline(0)
    bare = CASE.run(pipeline, 3, "none", 0)
    session = accelerate(
        pipeline,
        scripted(FULL, REUSE),
        backbone=CASE.backbone,
        store=StoreSettings(max_bytes=48 * 32 * 2 - 1),
    )
    with session, pytest.raises(CacheBudgetError, match="6,144 bytes, and no less than 3,072"):
        CASE.run(pipeline, 3, "none", 0)
    assert torch.equal(CASE.run(pipeline, 3, "none", 0), bare)


@pytest.mark.parametrize("kv_mode", KVMode)
def test_a_bfloat16_cache_holds_half_and_comes_close(kv_mode: KVMode) -> None:
    partial = PartialSettings(kv_mode=kv_mode)
    policy = scripted(FULL, PARTIAL, REUSE, partial=partial)
    exact, result = watched_run(CASE, policy, steps=6, layout="none")
    small, rounded = watched_run(
        CASE, policy, steps=6, layout="none", store_settings=StoreSettings(dtype="bfloat16")
    )
    assert small.trace.peak_cache_bytes * 2 == exact.trace.peak_cache_bytes
    assert torch.linalg.norm(rounded - result) < 0.02 * torch.linalg.norm(result)


def test_what_a_policy_keeps_is_what_its_mode_needs() -> None:
    """One residual; with cached keys two tensors a block, control included; with reused hints two."""
    tensor = 48 * 32 * 4
    for kv_mode, control_mode, tensors in (
        (KVMode.PRUNED, ControlMode.RECOMPUTE, 1),
        (KVMode.CACHED, ControlMode.RECOMPUTE, 1 + 2 * (LAYERS + 2)),
    ):
        partial = PartialSettings(kv_mode=kv_mode, control_mode=control_mode)
        engine = run(scripted(FULL, PARTIAL, partial=partial), 2)
        assert engine.trace.peak_cache_bytes == tensors * tensor
    reused = PartialSettings(kv_mode=KVMode.PRUNED, control_mode=ControlMode.REUSE)
    engine = run(scripted(FULL, PARTIAL, partial=reused), 2)
    rows = engine.trace.records[1].active
    assert engine.trace.peak_cache_bytes == tensor + 2 * rows * 32 * 4


def test_stored_parts_are_kept_for_every_block_of_both_stacks() -> None:
    policy = CachePolicy(name="parts", blocks=BlockScript(parts=frozenset({SubLayer.FEED_FORWARD})))
    engine = run(policy, 2)
    assert engine.trace.peak_cache_bytes == (LAYERS + 2) * 48 * 32 * 4


def test_a_part_action_compares_without_its_rows() -> None:
    assert PartAction(rows=torch.tensor([1])) == PartAction()
