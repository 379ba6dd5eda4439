"""Sessions: from a policy's name to a pipeline that runs with it, and back."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import pytest
import torch
from attrs import evolve, frozen

from hetcache_core import (
    CachePolicy,
    CacheStateError,
    CacheStore,
    CallRecord,
    ConfigError,
    Guards,
    HetCacheError,
    Mode,
    ModelInfo,
    PolicyRecipe,
    Registration,
    Registry,
    RunCancelledError,
    StepInfo,
    StoreSettings,
    Trace,
    UnsupportedBackboneError,
    accelerate,
    setting,
)
from hetcache_core.plugins.registry import Observer, PluginRecord
from hetcache_core.testing import FULL_STEPS, TinyBackbone, TinyPipeline, scripted, tiny_video
from hetcache_core.testing.scripted import BlockScript, ScriptedError

FULL, REUSE = Mode.FULL, Mode.REUSE


def test_an_error_that_is_caught_inside_the_session_frees_the_cache() -> None:
    video, mask = tiny_video()
    for place in ("block", "on_step"):
        pipeline = TinyPipeline()

        def fail(step: StepInfo, _records: Sequence[CallRecord], place: str = place) -> None:
            if place == "on_step" and step.index == 1:
                raise ScriptedError("raised on purpose")

        policy = scripted(FULL, raises_at=1) if place == "block" else scripted(FULL)
        with accelerate(pipeline, policy, backbone=TinyBackbone(), on_step=fail) as session:
            with pytest.raises(ScriptedError):
                pipeline(video, mask, steps=3)
            assert not session._engine.running
            assert session.traces == []


def test_many_runs_in_one_process_leave_nothing_behind() -> None:
    (video, mask), pipeline = tiny_video(), TinyPipeline()

    def run(times: int) -> int:
        for _ in range(times):
            with accelerate(pipeline, scripted(FULL, REUSE), backbone=TinyBackbone()):
                pipeline(video, mask, steps=2)
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    first = run(5)
    assert run(500 - 5) == first


@final
@frozen(kw_only=True)
class Nth(PolicyRecipe):
    """A step policy."""

    name: ClassVar[str] = "nth"
    summary: ClassVar[str] = "computes every n-th step"
    source: ClassVar[str] = "made up"
    every: int = setting(2, ge=1, doc="compute every n-th step")
    span: int = setting(0, ge=0, doc="blocks in front that always run")

    def compose(self, model: ModelInfo) -> CachePolicy:
        return evolve(scripted(FULL, *[REUSE] * (self.every - 1)), name=self.name)

    @classmethod
    def preset(cls, preset: str, model: ModelInfo) -> Mapping[str, object]:
        return {"every": {"quality": 2, "balanced": 3, "fast": 4}[preset], "span": 1}


@final
@frozen(kw_only=True)
class Parts(PolicyRecipe):
    """A block policy."""

    name: ClassVar[str] = "parts"
    summary: ClassVar[str] = "stores sub-layers"
    source: ClassVar[str] = "made up"
    reuses: bool = setting(False, doc="reuse what is stored")

    def compose(self, model: ModelInfo) -> CachePolicy:
        return CachePolicy(name=self.name, blocks=BlockScript(reuses=self.reuses))


@pytest.fixture
def registry() -> Registry:
    policies = [Registration(name=p.name, target=p, summary=p.summary) for p in (Nth, Parts)]
    tiny = Registration(name="tiny", target=TinyBackbone, summary=TinyBackbone.summary)
    return Registry().with_registrations("policy", *policies).with_registrations("backbone", tiny)


def run(pipeline: TinyPipeline, steps: int = 4, **arguments: Any) -> torch.Tensor:
    video, mask = tiny_video()
    return pipeline(video, mask, steps=steps, guidance_scale=1.0, **arguments)


def test_a_policy_by_name_runs_with_its_defaults(registry: Registry) -> None:
    pipeline = TinyPipeline()
    with accelerate(pipeline, "nth", registry=registry) as session:
        run(pipeline)
    assert session.trace.modes() == [FULL, REUSE] * 2
    assert session.trace.settings == {"every": 2, "span": 0}
    assert session.backbone.name == "tiny"


def test_settings_are_checked_and_recorded(registry: Registry) -> None:
    session = accelerate(TinyPipeline(), "nth", settings={"every": 3}, registry=registry)
    with session:
        run(session.pipeline, 6)
    assert session.trace.modes() == [FULL, REUSE, REUSE] * 2
    assert session.trace.settings["every"] == 3
    with pytest.raises(ConfigError, match=r"'evry' .did you mean 'every'"):
        accelerate(TinyPipeline(), "nth", settings={"evry": 3}, registry=registry)
    with pytest.raises(ConfigError, match=">= 1"):
        accelerate(TinyPipeline(), "nth", settings={"every": 0}, registry=registry)


def test_settings_go_on_top_of_a_preset(registry: Registry) -> None:
    pipeline = TinyPipeline()
    options: dict[str, Any] = {"preset": "fast", "settings": {"span": 3}}
    with accelerate(pipeline, "nth", registry=registry, **options) as session:
        run(pipeline)
    assert session.trace.settings == {"every": 4, "span": 3}


def test_names_are_composed_and_each_keeps_its_settings(registry: Registry) -> None:
    pipeline = TinyPipeline()
    settings = {"nth.every": 4, "parts.reuses": True}
    with accelerate(pipeline, "nth + parts", settings=settings, registry=registry) as session:
        run(pipeline)
    assert session.policy.name == "nth+parts"
    assert session.trace.settings == {"nth.every": 4, "nth.span": 0, "parts.reuses": True}
    assert session.trace.modes() == [FULL, REUSE, REUSE, REUSE]


def test_a_setting_of_a_composition_must_say_whose_it_is(registry: Registry) -> None:
    with pytest.raises(ConfigError, match=r"write nth\.every"):
        accelerate(TinyPipeline(), "nth+parts", settings={"every": 2}, registry=registry)


def test_two_policies_of_one_kind_are_refused(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="both bring a step piece"):
        accelerate(TinyPipeline(), "nth+nth", registry=registry)


@pytest.mark.parametrize("name", ["nht", "", "nth+"])
def test_an_unknown_policy_is_refused_with_those_known(name: str, registry: Registry) -> None:
    with pytest.raises(ConfigError, match="nth"):
        accelerate(TinyPipeline(), name, registry=registry)


def test_a_recipe_and_a_composition_are_taken_as_they_are(registry: Registry) -> None:
    pipeline = TinyPipeline()
    with accelerate(pipeline, Nth(every=4), registry=registry) as session:
        run(pipeline)
    assert session.trace.settings == {"every": 4, "span": 0}
    with accelerate(pipeline, FULL_STEPS, registry=registry) as session:
        run(pipeline)
    assert session.trace.settings == {}
    with pytest.raises(ConfigError, match="go with a policy's name"):
        accelerate(pipeline, Nth(), settings={"every": 2}, registry=registry)


def test_the_backbone_may_be_named_given_or_found(registry: Registry) -> None:
    for backbone in (None, "tiny", TinyBackbone()):
        session = accelerate(TinyPipeline(), "nth", backbone=backbone, registry=registry)
        assert isinstance(session.backbone, TinyBackbone)


def test_a_pipeline_that_no_backbone_takes_is_refused_by_its_class(registry: Registry) -> None:
    with pytest.raises(UnsupportedBackboneError, match=r"takes a builtins\.dict") as error:
        accelerate({}, "nth", registry=registry)
    assert "Known backbones: tiny" in str(error.value)


def test_a_missing_feature_is_refused_before_anything_runs(registry: Registry) -> None:
    policy = CachePolicy(name="wants", features=frozenset({"clairvoyance", "rows"}))
    with pytest.raises(UnsupportedBackboneError, match=r"'wants'.*lacks: clairvoyance"):
        accelerate(TinyPipeline(), policy, registry=registry)


def test_nothing_changes_before_the_session_is_entered(registry: Registry) -> None:
    pipeline = TinyPipeline()
    before = dict(vars(pipeline))
    session = accelerate(pipeline, "nth", registry=registry)
    assert dict(vars(pipeline)) == before
    with session:
        assert pipeline.model_fn is not before["model_fn"]
    assert dict(vars(pipeline)) == before


def test_an_active_session_cannot_be_entered_again(registry: Registry) -> None:
    with (
        accelerate(TinyPipeline(), "nth", registry=registry) as session,
        pytest.raises(CacheStateError, match="already active"),
    ):
        session.__enter__()


def test_a_session_can_be_entered_again_after_it_was_left(registry: Registry) -> None:
    session = accelerate(TinyPipeline(), "nth", registry=registry, keep_traces=None)
    for _ in range(2):
        with session:
            run(session.pipeline)
    assert len(session.traces) == 2


def test_a_trace_before_any_run_has_ended_is_an_error(registry: Registry) -> None:
    session = accelerate(TinyPipeline(), "nth", registry=registry)
    with pytest.raises(CacheStateError, match="No run has finished"):
        _ = session.trace


def test_callbacks_get_every_step_and_every_run(registry: Registry) -> None:
    steps: list[tuple[int, list[str]]] = []
    runs: list[Trace] = []

    def on_step(step: StepInfo, records: Sequence[CallRecord]) -> None:
        steps.append((step.index, [record.branch for record in records]))

    pipeline = TinyPipeline()
    with accelerate(
        pipeline, "nth", registry=registry, on_step=on_step, on_run=runs.append
    ) as session:
        video, mask = tiny_video()
        pipeline(video, mask, steps=2)
        run(pipeline, 1)
    assert steps == [(0, ["cond", "uncond"]), (1, ["cond", "uncond"]), (0, ["cond"])]
    assert session.traces == runs[-1:]
    assert [trace.steps for trace in runs] == [2, 1]


def test_observers_of_plugins_get_the_trace(registry: Registry) -> None:
    seen: list[Trace] = []
    observer = Observer(plugin=PluginRecord(name="o"), call=seen.append, argnames=("trace",))
    registry = evolve(registry, observers=(observer,))
    pipeline = TinyPipeline()
    with accelerate(pipeline, "nth", registry=registry) as session:
        run(pipeline)
    assert seen == [session.trace]
    assert seen[0] is not session.trace


def test_a_run_that_broke_off_leaves_no_trace(registry: Registry) -> None:
    pipeline = TinyPipeline()

    def fail(*_arguments: object) -> None:
        raise ScriptedError

    with accelerate(pipeline, "nth", registry=registry) as session:
        handle = pipeline.model.blocks[0].register_forward_hook(fail)
        with pytest.raises(ScriptedError):
            run(pipeline)
        handle.remove()
        assert session.traces == []
        run(pipeline)
    assert [trace.complete for trace in session.traces] == [True]


def test_notices_of_the_backbone_go_into_the_trace(registry: Registry) -> None:
    pipeline = TinyPipeline()
    with accelerate(pipeline, FULL_STEPS, registry=registry) as session:
        run(pipeline)
    assert session.trace.notes == [TinyBackbone().notice(pipeline)]


def test_store_settings_and_guards_reach_the_run(registry: Registry) -> None:
    pipeline = TinyPipeline()
    options: dict[str, Any] = {
        "store": StoreSettings(dtype="bfloat16"),
        "guards": Guards(full_steps=[1]),
    }
    with accelerate(pipeline, "nth", registry=registry, **options) as session:
        run(pipeline)
    assert session.trace.modes() == [FULL, FULL, FULL, REUSE]
    assert session.trace.peak_cache_bytes == 48 * 32 * 2


@pytest.mark.parametrize("target", [0.5, float("nan"), float("inf")])
def test_a_speed_up_that_cannot_be_is_refused(target: float, registry: Registry) -> None:
    with pytest.raises(ConfigError, match="target speed-up"):
        accelerate(TinyPipeline(), "nth", registry=registry, target_speedup=target)


def test_a_step_is_described_with_its_own_timestep_and_sigma() -> None:
    seen: list[StepInfo] = []
    (video, mask), pipeline = tiny_video(), TinyPipeline()
    with accelerate(
        pipeline, scripted(FULL), backbone=TinyBackbone(), on_step=lambda s, _: seen.append(s)
    ) as run:
        pipeline(video, mask, steps=4)
    timesteps, sigmas = pipeline.scheduler.timesteps, pipeline.scheduler.sigmas
    assert [step.timestep for step in seen] == pytest.approx(timesteps.tolist())
    assert [step.sigma for step in seen] == pytest.approx(sigmas[:4].tolist())
    assert [record.timestep for record in run.trace.records][::2] == [s.timestep for s in seen]


def test_as_many_traces_are_kept_as_were_asked_for(registry: Registry) -> None:
    pipeline = TinyPipeline()
    for keep, kept in ((1, [3]), (2, [2, 3]), (None, [1, 2, 3])):
        with accelerate(pipeline, "nth", registry=registry, keep_traces=keep) as session:
            for steps in (1, 2, 3):
                run(pipeline, steps)
        assert [trace.steps for trace in session.traces] == kept
    with pytest.raises(ConfigError, match="keep_traces is 0"):
        accelerate(pipeline, "nth", registry=registry, keep_traces=0)


@pytest.mark.parametrize("place", ["step", "call", "before"])
def test_a_run_that_is_cancelled_ends_before_its_next_step_and_keeps_its_trace(
    registry: Registry, place: str
) -> None:
    """From on_step, from another thread while a step's model runs, and before the first call."""
    pipeline, ends, calls = TinyPipeline(), list[Trace](), list[int]()

    def on_step(step: StepInfo, _records: Sequence[CallRecord]) -> None:
        if place == "step" and step.index == 1:
            session.cancel()

    def in_call(*_arguments: object) -> None:
        calls.append(session._engine._need_run().index)
        if place == "call" and calls[-1] == 1:
            other = threading.Thread(target=session.cancel)
            other.start()
            other.join()

    policy = scripted(FULL)
    session = accelerate(
        pipeline, policy, backbone=TinyBackbone(), on_step=on_step, on_run=ends.append
    )
    hook = pipeline.model.blocks[0].register_forward_hook(in_call)
    with session:
        if place == "before":
            session.cancel()
        with pytest.raises(RunCancelledError) as caught:
            run(pipeline, 4)
        hook.remove()
        done = 0 if place == "before" else 2
        assert sorted(set(calls)) == list(range(done))
        assert (caught.value.steps_done, caught.value.steps) == (done, 4)
        assert caught.value.run_id == session.trace.run_id
        assert not session._engine.running
        assert ends == [session.trace]
        assert not session.trace.complete
        assert len(session.trace.modes()) == done
        assert session.trace.notes[0] == f"Cancelled after {done} of 4 steps."
        run(pipeline, 2)  # the next one is not
    assert session.trace.complete


def test_a_cancellation_in_the_last_step_is_not_meant_for_the_next_run(registry: Registry) -> None:
    pipeline = TinyPipeline()

    def on_step(step: StepInfo, _records: Sequence[CallRecord]) -> None:
        if step.is_last and not session.traces:
            session.cancel()

    session = accelerate(pipeline, "nth", registry=registry, on_step=on_step, keep_traces=None)
    with session:
        run(pipeline, 2)
        run(pipeline, 2)
    assert [trace.complete for trace in session.traces] == [True, True]


def test_a_cancelled_run_frees_its_cache_while_its_error_is_still_held() -> None:
    pipeline = TinyPipeline()
    stores: list[weakref.ref[CacheStore]] = []

    def on_step(step: StepInfo, _records: Sequence[CallRecord]) -> None:
        kept = session._engine._need_run()
        stores.append(weakref.ref(kept.store))
        assert kept.store.bytes > 0
        session.cancel()

    session = accelerate(pipeline, scripted(FULL, REUSE), backbone=TinyBackbone(), on_step=on_step)
    with session, pytest.raises(RunCancelledError) as caught:
        run(pipeline, 4)
    gc.collect()
    assert caught.value.steps_done == 1
    assert stores[0]() is None


def test_a_session_that_waits_can_be_cancelled(registry: Registry) -> None:
    pipeline, raised = TinyPipeline(), list[HetCacheError]()
    waiting = accelerate(pipeline, "nth", registry=registry, wait=True)

    def enter() -> None:
        try:
            with waiting:
                pass
        except HetCacheError as error:
            raised.append(error)

    thread = threading.Thread(target=enter)
    with accelerate(pipeline, "nth", registry=registry):
        thread.start()
        waiting.cancel()
        thread.join(60)
    assert [type(error) for error in raised] == [RunCancelledError]
    with waiting:
        run(pipeline, 1)
    waiting.cancel()  # after the run: forgotten
    with pytest.raises(RunCancelledError), waiting:
        pass
    with waiting:
        waiting.cancel()
    with waiting:
        run(pipeline, 1)


def test_log_records_carry_run_and_session(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(trace: Trace) -> None:
        raise ScriptedError

    observer = Observer(plugin=PluginRecord(name="o"), call=fail, argnames=("trace",))
    pipeline = TinyPipeline()
    with (
        caplog.at_level(logging.DEBUG, logger="hetcache"),
        accelerate(pipeline, "nth", registry=evolve(registry, observers=(observer,))) as session,
    ):
        run(pipeline, 1)
        run(pipeline, 1)
    said = [(r.name, r.levelname) for r in caplog.records]
    once = [("hetcache.runs", level) for level in ("INFO", "DEBUG", "INFO")]
    assert said == [*once, ("hetcache.plugins", "ERROR")] * 2
    ids = [(vars(r)["session_id"], vars(r)["run_id"]) for r in caplog.records]
    assert ids == [(session.id, f"{session.id}-{n}") for n in (1, 2) for _ in range(4)]
    assert session.trace.ids() == {"session_id": session.id, "run_id": f"{session.id}-2"}


def test_what_a_notebook_shows_is_short_and_says_what_was_done(registry: Registry) -> None:
    pipeline = TinyPipeline()
    session = accelerate(pipeline, "nth", registry=registry)
    assert repr(session) == f"<Session {session.id}: nth on tiny (TinyPipeline), not active>"
    with session:
        run(pipeline, 200)
        assert "active; last run <Trace" in repr(session)
    assert len(repr(session)) < 400
    trace = session.trace
    assert repr(trace) == f"<Trace {session.id}-1: {trace.summary()}>"
    assert repr(session.policy).startswith("<CachePolicy nth: step=")
    assert len(repr(session.policy)) < 200
    page = session._repr_html_()
    assert page.count('title="step ') == 200
    assert f"<td>{trace.totals().flops_speedup:.2f}x</td>" in page
    broken = evolve(trace, complete=False, notes=["<script>"])
    assert "&lt;script&gt;" in broken._repr_html_()
    assert "ended early" in repr(broken)


def test_a_trace_is_a_frame_with_a_row_for_each_call(registry: Registry) -> None:
    pytest.importorskip("pandas")
    pipeline = TinyPipeline()
    with accelerate(pipeline, scripted(FULL, REUSE), backbone=TinyBackbone()) as session:
        video, mask = tiny_video()
        pipeline(video, mask, steps=2)
    frame = session.trace.to_frame()
    assert list(frame["mode"]) == [r.mode.value for r in session.trace.records]
    assert frame["flops"].sum() == session.trace.totals().flops
    assert list(frame.index) == [0, 1, 2, 3]
    empty = evolve(session.trace, records=[]).to_frame()
    assert list(empty.columns) == list(frame.columns)
