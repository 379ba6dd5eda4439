"""Sessions: from a policy's name to a pipeline that runs with it, and back."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import pytest
import torch
from attrs import evolve, frozen

from hetcache_core import (
    CachePolicy,
    CacheStateError,
    CallRecord,
    ConfigError,
    Guards,
    Mode,
    ModelInfo,
    PolicyRecipe,
    Registration,
    Registry,
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
    session = accelerate(TinyPipeline(), "nth", registry=registry)
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
    assert runs == session.traces
    assert [trace.steps for trace in runs] == [2, 1]


def test_observers_of_plugins_get_the_trace(registry: Registry) -> None:
    seen: list[Trace] = []
    observer = Observer(plugin=PluginRecord(name="o"), call=seen.append, argnames=("trace",))
    registry = evolve(registry, observers=(observer,))
    pipeline = TinyPipeline()
    with accelerate(pipeline, "nth", registry=registry) as session:
        run(pipeline)
    assert seen == [session.trace]


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
