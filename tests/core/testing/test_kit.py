"""The contract kit passes what is right, and every kind of mistake is caught by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any, ClassVar, final

import pytest
import torch
from attrs import define, evolve, field, frozen

from hetcache_core import (
    BlockAction,
    BlockDecider,
    BlockPolicy,
    CachePolicy,
    ContractError,
    Decision,
    DitFlops,
    EditRequest,
    LoadRequest,
    Mode,
    ModelInfo,
    PartAction,
    Partition,
    PolicyRecipe,
    Selection,
    StepDecider,
    StepPolicy,
    SubLayer,
    Use,
    accelerate,
    setting,
)
from hetcache_core.testing import (
    BACKBONE_CHECKS,
    FULL_STEPS,
    POLICY_CHECKS,
    BackboneCase,
    BoundCheck,
    NotApplicableError,
    TinyBackbone,
    TinyConfig,
    TinyPipeline,
    check_backbone,
    check_policy,
    parametrize_with_checks,
    scripted,
    tiny_case,
    tiny_video,
)
from hetcache_core.testing.checks.backbone import check_an_error_leaves_the_pipeline_as_it_was
from hetcache_core.testing.comparing import Snapshot, require_close, require_same
from hetcache_core.testing.kit import run_checks
from hetcache_core.testing.scripted import MaskRoles
from hetcache_core.testing.tiny import backbone as tiny_module
from hetcache_core.testing.tiny import trunk as tiny_trunk

FULL, PARTIAL, REUSE = Mode.FULL, Mode.PARTIAL, Mode.REUSE


def half_precision(case: BackboneCase) -> BackboneCase:
    def make(seed: int) -> TinyPipeline:
        pipeline = case.make_pipeline(seed)
        pipeline.model.to(torch.bfloat16)
        return pipeline

    return case.with_values(name="tiny-bf16", make_pipeline=make)


@parametrize_with_checks(
    backbones=[
        tiny_case(),
        tiny_case(reference=True).with_values(name="tiny-reference"),
        tiny_case(experts=2).with_values(name="tiny-experts"),
        tiny_case(TinyConfig(control_layers=())).with_values(name="tiny-no-control"),
        tiny_case(TinyConfig(layers=5, width=48, heads=4, control_layers=(1, 2, 4))).with_values(
            name="tiny-other-sizes"
        ),
        half_precision(tiny_case()),
    ]
)
def test_tiny_backbone_keeps_the_contract(check: BoundCheck) -> None:
    check()


# The mistakes that adapters make -----------------------------------------------------------------


def fails(check: str, case: BackboneCase | None = None) -> str:
    """Run one check and return its message."""
    (found,) = [c for c in BACKBONE_CHECKS if c.__name__ == check]
    with pytest.raises(ContractError) as error:
        found(case or tiny_case())
    return str(error.value)


def test_a_rotary_table_that_does_not_follow_the_rows_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = tiny_trunk.TinyCall.view

    def view(self: Any, rows: torch.Tensor | None) -> Any:
        made = right(self, rows)
        made.rotary = self.rotary[: made.x.shape[1]]
        return made

    monkeypatch.setattr(tiny_trunk.TinyCall, "view", view)
    message = fails("check_a_partial_step_with_cached_keys_is_a_full_step")
    assert "Do rotary table" in message


def test_control_that_does_not_follow_the_rows_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tiny_trunk.TinyView.control

    def control(self: Any, index: int, hooks: Any) -> Any:
        rows = self.rows
        if rows is not None:
            self.rows = torch.arange(len(rows))
        try:
            return right(self, index, hooks)
        finally:
            self.rows = rows

    monkeypatch.setattr(tiny_trunk.TinyView, "control", control)
    message = fails("check_a_partial_step_with_cached_keys_is_a_full_step")
    assert "control recompute" in message


def test_control_blocks_that_run_in_reused_steps_are_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the public implementations do: the hints are computed and thrown away."""
    right = tiny_module._model_stand_in

    def stand_in(model: Any, run: Any) -> Any:
        made = right(model, run)
        hints = made.control

        def control(*arguments: Any) -> Any:
            model.control(*arguments)
            return hints(*arguments)

        made.control = control
        return made

    monkeypatch.setattr(tiny_module, "_model_stand_in", stand_in)
    assert "0 main and 2 control blocks ran" in fails("check_reused_steps_run_no_block")


def test_hints_that_the_library_adds_once_more_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """What diffusers' first-block cache does on WanVACE: hints on top of a residual with hints."""
    right, block = tiny_module._model_stand_in, tiny_trunk.TinyView.block
    ran: list[int] = []

    def noting(self: Any, index: int, *arguments: Any) -> Any:
        ran.append(index)
        return block(self, index, *arguments)

    def stand_in(model: Any, run: Any) -> Any:
        made = right(model, run)
        trunk = made.blocks[0]

        def trunk_and_hints(x: Any, *arguments: Any) -> Any:
            ran.clear()
            output = trunk(x, *arguments)
            return output if ran else output + 0.1 * x

        made.blocks = [trunk_and_hints]
        return made

    monkeypatch.setattr(tiny_trunk.TinyView, "block", noting)
    monkeypatch.setattr(tiny_module, "_model_stand_in", stand_in)
    message = fails("check_reuse_repeats_the_full_step_on_the_same_inputs")
    assert "Are control hints" in message


def test_a_hint_that_is_added_twice_beside_hooks_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tiny_trunk.TinyView.block

    def block(self: Any, index: int, hidden: Any, hint: Any, hooks: Any) -> Any:
        output = right(self, index, hidden, hint, hooks)
        return output if hint is None or hooks is None else output + hint

    monkeypatch.setattr(tiny_trunk.TinyView, "block", block)
    fails("check_full_steps_that_store_are_the_bare_model")


def test_a_sub_layer_whose_replacement_is_ignored_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def part(hooks: Any, name: SubLayer, compute: Callable[..., torch.Tensor]) -> torch.Tensor:
        if name in hooks.parts:
            hooks.sub_layer(name, compute)
        return compute() * (1.5 if name in hooks.parts else 1)

    monkeypatch.setattr(tiny_trunk, "_part", part)
    fails("check_full_steps_that_store_are_the_bare_model")


def test_a_flop_formula_that_is_two_percent_off_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = DitFlops.sub_layer
    monkeypatch.setattr(
        DitFlops,
        "sub_layer",
        lambda self, *a, **k: int(1.025 * right(self, *a, **k)),
    )
    assert "torch counts" in fails("check_flops_are_those_that_torch_counts")


def test_a_rounded_timestep_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tiny_trunk.TinyCall.timestep_embeddings

    def rounded(self: Any, timesteps: Any) -> torch.Tensor:
        return right(self, [float(torch.tensor(t, dtype=torch.bfloat16)) for t in timesteps])

    monkeypatch.setattr(tiny_trunk.TinyCall, "timestep_embeddings", rounded)
    message = fails("check_signals_are_fp32_and_know_the_timestep")
    assert "is the timestep rounded?" in message


def test_branches_told_apart_by_nothing_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tiny_module._branches

    def nameless(rows: int, *, positive: bool | None) -> Any:
        return tuple(evolve(b, name="cond") for b in right(rows, positive=positive))

    monkeypatch.setattr(tiny_module, "_branches", nameless)
    fails("check_it_announces_the_run")


def test_a_step_that_is_never_closed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: Any, *arguments: Any) -> Any:
        self.step += 1
        return self.scheduler.step(*arguments)

    monkeypatch.setattr(tiny_module._Link, "scheduler_step", step)
    assert "0 steps were ended" in fails("check_it_announces_the_run")


def test_a_sampler_that_is_not_asked_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def set_timesteps(self: Any, steps: int) -> None:
        self.engine.abort_run()
        self.scheduler.set_timesteps(steps)
        self.step = 0

    monkeypatch.setattr(tiny_module._Link, "set_timesteps", set_timesteps)
    assert "4 taken" in fails("check_the_policy_may_take_fewer_steps")


@final
class Careless(TinyBackbone):  # type: ignore[misc]  # final, so that only a test bends it
    """Restores only what came to its end, and takes any number of sessions."""

    @contextmanager
    def attach(self, pipeline: Any, engine: Any) -> Iterator[None]:
        link = tiny_module._Link(pipeline, engine)
        pipeline.model_fn = link.call_model
        pipeline.scheduler = tiny_module._StandIn(
            link.scheduler, set_timesteps=link.set_timesteps, step=link.scheduler_step
        )
        yield
        if link.step == len(link.scheduler.timesteps):
            pipeline.model_fn, pipeline.scheduler = link.model_fn, link.scheduler


def test_an_adapter_that_does_not_restore_after_an_error_is_caught() -> None:
    case = tiny_case().with_values(backbone=Careless())
    assert "changed: " in fails("check_an_error_leaves_the_pipeline_as_it_was", case)


def test_what_the_library_leaves_after_an_error_is_no_fault_of_the_adapter() -> None:
    case = tiny_case()

    def leaving(pipeline: Any, *arguments: Any) -> torch.Tensor:
        pipeline.under_way = torch.zeros(1)
        result = case.run(pipeline, *arguments)
        pipeline.under_way = None
        return result

    check_an_error_leaves_the_pipeline_as_it_was(evolve(case, run=leaving))


def test_an_adapter_that_takes_a_second_session_is_caught() -> None:
    case = tiny_case().with_values(backbone=Careless())
    assert "nothing was raised" in fails("check_a_second_session_on_a_pipeline_is_refused", case)


def test_a_class_that_is_patched_is_caught() -> None:
    class Patching(TinyBackbone):  # type: ignore[misc]  # final, so that only a test bends it
        @contextmanager
        def attach(self, pipeline: Any, engine: Any) -> Iterator[None]:
            kind = type(pipeline.model)
            original = kind.forward
            kind.forward = partialmethod(original)
            with super().attach(pipeline, engine):
                yield

    from hetcache_core.testing.tiny import model as tiny_model

    original = tiny_model.TinyDiT.forward
    try:
        case = tiny_case().with_values(backbone=Patching())
        assert "changed: forward of" in fails("check_a_session_leaves_the_pipeline_as_it_was", case)
    finally:
        tiny_model.TinyDiT.forward = original  # type: ignore[method-assign]  # puts it back


def test_a_mask_that_does_not_arrive_is_caught() -> None:
    def without_mask(pipeline: Any, steps: int, guidance: str, seed: int) -> Any:
        return pipeline(tiny_video(seed)[0], steps=steps, guidance_scale=1.0)

    case = tiny_case().with_values(run=without_mask)
    assert "the run has none" in fails("check_the_mask_reaches_the_engine", case)


def test_a_case_without_control_blocks_to_count_is_caught() -> None:
    case = tiny_case().with_values(control_blocks=lambda _pipeline: ())
    assert "the case has 0" in fails("check_it_describes_the_model", case)


# The mistakes that policies make -----------------------------------------------------------------


def policy_fails(check: str, make: Callable[[], Any]) -> str:
    (bound,) = [b for b in parametrized(make) if b.name == check]
    with pytest.raises(ContractError) as error:
        bound()
    return str(error.value)


def parametrized(make: Callable[[], Any]) -> list[BoundCheck]:
    mark = parametrize_with_checks(policies=[make])
    return [parameter.values[0] for parameter in mark.args[1]]


@define(eq=False)
class Forgetful(StepPolicy, StepDecider):
    """Keeps its state on the policy instead of in a decider."""

    calls: int = 0

    def begin(self, run: Any) -> StepDecider:
        return self

    def decide(self, step: Any, signals: Any) -> Decision:
        self.calls += 1
        return Decision(REUSE if self.calls % 3 else FULL, "counted")


def test_state_that_outlives_its_run_is_caught() -> None:
    message = policy_fails(
        "check_two_runs_decide_alike", lambda: CachePolicy(name="forgetful", step=Forgetful())
    )
    assert "run again" in message


@define
class Mutable(StepPolicy, StepDecider):
    seen: int = 0

    def begin(self, run: Any) -> StepDecider:
        return self

    def decide(self, step: Any, signals: Any) -> Decision:
        self.seen += 1
        return Decision(FULL, "looked")


def test_a_policy_that_a_run_changes_is_caught() -> None:
    message = policy_fails(
        "check_deciding_changes_nothing", lambda: CachePolicy(name="mutable", step=Mutable())
    )
    assert "a run has changed the policy" in message


@frozen
class Chatty(StepPolicy, StepDecider):
    def begin(self, run: Any) -> StepDecider:
        return self

    def decide(self, step: Any, signals: Any) -> Decision:
        signals.read(signals.hidden().sum())
        signals.read(signals.latent().sum())
        return Decision(FULL, "read")


def test_a_decision_that_waits_for_the_device_twice_is_caught() -> None:
    message = policy_fails(
        "check_the_host_waits_once_a_step", lambda: CachePolicy(name="chatty", step=Chatty())
    )
    assert "read 2 numbers" in message


@define(eq=False)
class SharedCounter(BlockDecider):
    """One counter for all branches, as HetCache's port of PAB has it."""

    calls: dict[Any, int] = field(factory=dict)

    def block(self, step: Any, branch: str, key: Any, hidden: Any) -> BlockAction:
        self.calls[key] = self.calls.get(key, -1) + 1
        use = Use.REUSE if self.calls[key] % 2 else Use.RUN
        part = PartAction(use=use, store=use is Use.RUN)
        return BlockAction(parts={SubLayer.CROSS_ATTENTION: part})


@frozen
class Shared(BlockPolicy):
    def begin(self, run: Any) -> BlockDecider:
        return SharedCounter()


def test_a_counter_that_the_branches_share_is_caught() -> None:
    message = policy_fails(
        "check_branches_do_not_mix", lambda: CachePolicy(name="shared", blocks=Shared())
    )
    assert "against the branch alone" in message


@frozen
class NoRoles(MaskRoles):  # type: ignore[misc]  # final, so that only a test bends it
    def partition(self, mask: Any, grid: Any) -> Partition:
        return Partition(torch.zeros(grid.tokens, dtype=torch.uint8), grid)


@frozen
class Repeating:
    needs_scores = False
    needs_features = False

    def select(self, request: Any) -> Selection:
        count = request.partition.count(0)
        return Selection(torch.zeros(count, dtype=torch.long))


def test_a_partitioner_that_misses_the_mask_is_caught() -> None:
    policy = scripted(FULL)
    policy = evolve(policy, partitioner=NoRoles())
    assert "are generative" in policy_fails("check_the_roles_cover_the_mask", lambda: policy)


def test_a_selector_that_repeats_itself_is_caught() -> None:
    policy = evolve(scripted(FULL), partitioner=MaskRoles(), selector=Repeating())
    message = policy_fails("check_the_selector_orders_all_context", lambda: policy)
    assert "no permutation" in message


@final
@frozen(kw_only=True)
class Recipe(PolicyRecipe):
    """A recipe as it should be."""

    name: ClassVar[str] = "recipe"
    summary: ClassVar[str] = "full and reused steps by turns"
    source: ClassVar[str] = "made up"
    every: int = setting(2, ge=1, doc="compute every n-th step")

    def compose(self, model: ModelInfo) -> CachePolicy:
        return evolve(scripted(FULL, *[REUSE] * (self.every - 1)), name=self.name)


def test_a_recipe_as_it_should_be_passes_every_check() -> None:
    results = check_policy(Recipe)
    assert [r.check for r in results] == [c.__name__ for c in POLICY_CHECKS]
    skipped = {r.check for r in results if r.status == "not applicable"}
    assert skipped == {"check_the_roles_cover_the_mask", "check_the_selector_orders_all_context"}


def test_a_setting_without_a_word_on_what_it_does_is_caught() -> None:
    @frozen(kw_only=True)
    class Silent(Recipe):  # type: ignore[misc]  # final, so that only a test bends it
        more: int = 3

    message = policy_fails("check_the_settings_are_described", Silent)
    assert "'more' does not say what it does" in message


def test_a_recipe_without_a_summary_is_caught() -> None:
    @frozen(kw_only=True)
    class Nameless(Recipe):  # type: ignore[misc]  # final, so that only a test bends it
        summary: ClassVar[str] = " "

    # A class inside a function cannot be pickled, which is the check's first complaint.
    globals()["Nameless"] = Nameless
    Nameless.__qualname__ = "Nameless"
    assert "summary is ' '" in policy_fails("check_the_recipe_is_a_value", Nameless)


def test_a_policy_that_the_backbone_cannot_carry_is_not_run_on_it() -> None:
    case = tiny_case()
    case = case.with_values(features=case.features.with_values(sampler=False))
    policy = evolve(FULL_STEPS, name="fewer", sampler_share=0.5)
    results = check_policy(lambda: policy, case=case)
    assert {r.status for r in results} == {"not applicable"}
    assert any("lacks sampler" in r.reason for r in results)


# Running -----------------------------------------------------------------------------------------


def passing() -> None:
    pass


def failing() -> None:
    raise ContractError("is wrong")


def inapplicable() -> None:
    raise NotApplicableError("nothing to look at")


def test_results_say_what_became_of_each_check() -> None:
    checks = [BoundCheck("it", passing, "p"), BoundCheck("it", inapplicable, "i")]
    assert [(r.check, r.status) for r in run_checks(checks, {})] == [
        ("p", "passed"),
        ("i", "not applicable"),
    ]


def test_a_failure_names_the_subject_and_the_check() -> None:
    with pytest.raises(ContractError, match="it, f: is wrong") as error:
        run_checks([BoundCheck("it", failing, "f")], {})
    assert (error.value.subject, error.value.check) == ("it", "f")


def test_an_expected_failure_is_a_result_and_keeps_its_reason() -> None:
    (result,) = run_checks([BoundCheck("it", failing, "f")], {"f": "known"})
    assert (result.status, result.reason) == ("failed as expected", "known")


def test_an_expected_failure_that_passes_is_an_error() -> None:
    with pytest.raises(ContractError, match="was expected to fail: known"):
        run_checks([BoundCheck("it", passing, "p")], {"p": "known"})


def test_an_expected_failure_that_is_no_check_is_an_error() -> None:
    with pytest.raises(ContractError, match="typo, which no check is called"):
        run_checks([BoundCheck("it", passing, "p")], {"typo": "known"})


def test_check_backbone_returns_a_result_for_every_check() -> None:
    results = check_backbone(tiny_case(TinyConfig(layers=2, control_layers=(0,))))
    assert [r.check for r in results] == [c.__name__ for c in BACKBONE_CHECKS]


def test_parameters_are_named_by_subject_and_check() -> None:
    mark = parametrize_with_checks(policies={"mine": Recipe}, backbones=[tiny_case()])
    ids = [parameter.id for parameter in mark.args[1]]
    assert mark.args[0] == "check"
    assert "mine-check_branches_do_not_mix" in ids
    assert "tiny-check_reused_steps_run_no_block" in ids
    assert len(ids) == len(POLICY_CHECKS) + len(BACKBONE_CHECKS)


def test_parameters_of_expected_failures_are_strict_xfails() -> None:
    name = "check_the_totals_add_up"
    mark = parametrize_with_checks(policies=[Recipe], expected_failures={name: "known"})
    (parameter,) = [p for p in mark.args[1] if p.id == f"recipe-{name}"]
    (xfail,) = parameter.marks
    assert xfail.kwargs == {"reason": "known", "strict": True, "raises": ContractError}


def test_a_parameter_that_has_nothing_to_look_at_is_skipped() -> None:
    (bound,) = [b for b in parametrized(Recipe) if b.name == "check_the_roles_cover_the_mask"]
    with pytest.raises(pytest.skip.Exception, match="gives tokens no roles"):
        bound()


# Comparing ---------------------------------------------------------------------------------------


def test_a_difference_is_told_in_numbers() -> None:
    expected = torch.tensor([1.0, 2.0, 4.0])
    with pytest.raises(ContractError, match=r"x: 1 of 3 values differ, by up to 5.0e-01 where"):
        require_same(expected + torch.tensor([0.0, 0.5, 0.0]), expected, "x")


def test_nan_is_never_close() -> None:
    with pytest.raises(ContractError):
        require_close(torch.tensor([float("nan")]), torch.tensor([1.0]), 10.0, "x")


def test_a_snapshot_sees_weights_hooks_and_attributes() -> None:
    pipeline = TinyPipeline()
    before = Snapshot.of(pipeline)
    before.require_unchanged(pipeline, "at once")
    handle = pipeline.model.blocks[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ContractError, match=r"model.blocks.1._forward_hooks"):
        before.require_unchanged(pipeline, "with a hook")
    handle.remove()
    pipeline.extra = 1
    with pytest.raises(ContractError, match=r"left behind: pipeline.extra"):
        before.require_unchanged(pipeline, "with an attribute")
    del pipeline.extra
    pipeline.scheduler, own = object(), pipeline.scheduler
    with pytest.raises(ContractError, match=r"changed: pipeline.scheduler"):
        before.require_unchanged(pipeline, "with another scheduler")
    pipeline.scheduler = own
    with torch.no_grad():
        pipeline.model.head.bias[0] += 1
    with pytest.raises(ContractError, match=r"changed: pipeline.model.head._parameters"):
        before.require_unchanged(pipeline, "with another weight")


def test_a_snapshot_overlooks_what_a_pipeline_notes_of_its_last_call() -> None:
    pipeline = TinyPipeline()
    pipeline.num_timesteps = 8
    before = Snapshot.of(pipeline)
    pipeline.num_timesteps = 4
    before.require_unchanged(pipeline, "after fewer steps")


# TinyBackbone as a backbone ----------------------------------------------------------------------


def test_tiny_backbone_loads_and_edits() -> None:
    np = pytest.importorskip("numpy")
    backbone = TinyBackbone()
    pipeline = backbone.load(LoadRequest(model="3"))
    video, mask = tiny_video()
    request = EditRequest(video=video.numpy(), mask=mask.numpy(), steps=4, prompt="a cat")
    frames = backbone.edit(pipeline, request)
    assert frames.shape == (5, 32, 32, 3)
    assert frames.dtype == np.uint8
    assert "random" in backbone.notice(pipeline)
    with accelerate(pipeline, FULL_STEPS, backbone=backbone) as session:
        cached = backbone.edit(pipeline, request)
    assert np.array_equal(frames, cached)
    assert session.trace.notes == [backbone.notice(pipeline)]


def test_tiny_pipeline_depends_on_its_prompt_mask_reference_and_seed() -> None:
    pipeline = TinyPipeline()
    video, mask = tiny_video()
    plain = pipeline(video, mask, steps=2)
    others = [
        pipeline(video, mask, steps=2, prompt="a dog"),
        pipeline(video, mask, steps=2, negative_prompt="dull"),
        pipeline(video, ~mask, steps=2),
        pipeline(video, mask, steps=2, reference=video[2]),
        pipeline(video, mask, steps=2, seed=1),
    ]
    assert torch.equal(pipeline(video, mask, steps=2), plain)
    assert not any(torch.equal(other, plain) for other in others)


def test_the_order_of_separate_calls_changes_nothing_in_a_tiny_pipeline() -> None:
    video, mask = tiny_video()
    policy = scripted(FULL, REUSE)
    results = []
    for uncond_first in (False, True):
        pipeline = TinyPipeline()
        with accelerate(pipeline, policy, backbone=TinyBackbone()) as session:
            results.append(pipeline(video, mask, steps=6, uncond_first=uncond_first))
        assert session.trace.modes() == [FULL, REUSE] * 3
    assert torch.equal(*results)
