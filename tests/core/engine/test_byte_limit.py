"""The byte limit of the cache: what is given up for it, in which order, and when nothing helps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import define, evolve, field, frozen

from hetcache_core import (
    BranchRows,
    CacheBudgetError,
    CachePolicy,
    CacheStore,
    ConfigError,
    Decision,
    Mode,
    ModelCall,
    PartialSettings,
    RunInfo,
    StepDecider,
    StepInfo,
    StepPolicy,
    StoreSettings,
    accelerate,
    discover,
)
from hetcache_core.engine.byte_limit import (
    CONTROL,
    EIGHT,
    HALF,
    HOST,
    PRUNED,
    fit_to_limit,
    kept_bytes,
)
from hetcache_core.engine.footprint import footprint
from hetcache_core.engine.held import own_bytes, played_bytes
from hetcache_core.engine.loop import Engine
from hetcache_core.policy.partial import ControlMode, KVMode
from hetcache_core.session import resolve_policy
from hetcache_core.store import Kind, Slot
from hetcache_core.testing import tiny_case
from hetcache_core.testing.watch import watched_run

REGISTRY = discover()
CASE = tiny_case()
STEPS = 12
"""Enough for every policy to compute as many values as it keeps."""
FLOAT32 = 4


def session_of(policy: str | CachePolicy, limit: int | None, **settings: object) -> tuple[Any, Any]:
    """Run the toy pipeline under a limit; return the session and the latents."""
    pipeline = CASE.make_pipeline(0)
    with accelerate(
        pipeline,
        policy,
        settings=settings,
        backbone=CASE.backbone,
        store=StoreSettings(max_bytes=limit),
    ) as session:
        return session, CASE.run(pipeline, STEPS, "separate", 0)


def run_info() -> tuple[RunInfo, ModelCall]:
    """What the toy pipeline announces, and its first call."""
    policy, _ = resolve_policy(
        "every-nth", {}, None, CASE.backbone.describe(CASE.make_pipeline(0)), REGISTRY
    )
    engine, latents = watched_run(CASE, policy, steps=STEPS, layout="separate")
    call = ModelCall(step=0, latents=latents, branches=(BranchRows("cond", 0, 1),))
    return engine.infos[0], call


RUN, CALL = run_info()


def composed(name: str, **settings: object) -> CachePolicy:
    model = CASE.backbone.describe(CASE.make_pipeline(0))
    return resolve_policy(name, settings, None, model, REGISTRY)[0]


def bytes_of(policy: CachePolicy, dtype: torch.dtype = torch.float32) -> int:
    return 2 * footprint(policy, RUN, latents=CALL.latents.numel()).bytes(dtype)


HETCACHE = composed("hetcache")
PRUNED_KEYS = evolve(HETCACHE, partial=PartialSettings(kv_mode=KVMode.PRUNED))


def fitted(policy: CachePolicy, limit: int, on: str = "cpu", **store: Any) -> Any:
    return fit_to_limit(
        policy,
        StoreSettings(max_bytes=limit, **store),
        evolve(RUN, device=on),
        CALL,
    )


def forecast_and_peak(case: Any, name: str, layout: str, patch: pytest.MonkeyPatch) -> list[int]:
    """Run a policy without a limit; also hold what is counted to what is allocated, after every call."""
    pipeline = case.make_pipeline(0)
    model = case.backbone.describe(pipeline)
    policy, _ = resolve_policy(name, REGISTRY.policy(name).anywhere, None, model, REGISTRY)
    traces: list[Any] = []
    engine = Engine(policy=policy, settings={}, on_run=traces.append)
    forecast: list[int] = []
    answer = Engine.model_call

    def watched(self: Engine, call: ModelCall, forward: Any) -> torch.Tensor:
        run = self._need_run()
        if not forecast:
            kept = kept_bytes(run.policy, StoreSettings(), run.info, call)
            forecast.append(kept + played_bytes(run.policy, run.info, call))
        output = answer(self, call, forward)
        kept_values = [entry.value for held in run.store._values.values() for entry in held]
        allocated = {
            value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
            for value in kept_values
        }
        assert sum(allocated.values()) + own_bytes(run.deciders) == run.store.bytes
        return output

    patch.setattr(Engine, "model_call", watched)
    with case.backbone.attach(pipeline, engine):
        case.run(pipeline, STEPS, layout, 0)
    return [*forecast, traces[0].peak_cache_bytes]


@pytest.mark.parametrize("layout", ["separate", "none"])
@pytest.mark.parametrize("name", [n for n in REGISTRY.names("policy") if n != "replay"])
def test_the_forecast_is_the_peak_and_holds_all_that_is_kept(
    name: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if composed(name, **REGISTRY.policy(name).anywhere).guidance is not None and layout == "none":
        pytest.skip("has nothing to predict")
    forecast, peak = forecast_and_peak(CASE, name, layout, monkeypatch)
    assert forecast == peak


@pytest.mark.parametrize("name", ["hetcache", "fastcache", "dicache", "easycache", "duca"])
@pytest.mark.parametrize("backbone", ["wan-vace", "ltx-video"])
def test_the_forecast_is_the_peak_on_other_models(
    case_of: Any, backbone: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(backbone)
    layout = "separate" if "separate" in case.backbone.features.guidance else "none"
    forecast, peak = forecast_and_peak(case, name, layout, monkeypatch)
    assert forecast == peak > 0


def test_what_a_decider_keeps_by_itself_counts_and_is_refused_before_anything_is_computed() -> None:
    free, _ = session_of("fastcache", None)
    peak = free.trace.peak_cache_bytes
    with pytest.raises(CacheBudgetError) as error:
        session_of("fastcache", peak // 8)
    assert error.value.held_bytes == 0
    assert (error.value.needed_bytes or 0) > peak // 8


def test_a_decider_that_cannot_be_foreseen_is_stopped_at_the_limit() -> None:
    @frozen
    class Hoard(StepPolicy):
        def begin(self, run: RunInfo) -> StepDecider:
            return Hoarding()

    @define(eq=False)
    class Hoarding(StepDecider):
        kept: list[torch.Tensor] = field(factory=list)

        def decide(self, step: StepInfo, signals: Any) -> Decision:
            float(signals.hidden().sum())  # looks at values by itself
            self.kept.append(signals.hidden().clone())
            return Decision(Mode.FULL, "")

    policy = CachePolicy(name="hoard", step=Hoard())
    with pytest.raises(CacheBudgetError, match=r"keep .* bytes by themselves; the limit is"):
        session_of(policy, 3 * bytes_of(policy))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_bytes": float("nan")}, {"max_bytes": True}, {"max_bytes": "1GB"}, {"max_bytes": 1.5},
        {"max_bytes": 0}, {"spill": 1}, {"dtype": torch.float16}, {"device": 0}, {"dtype": "int8"},
    ],
    ids=str,
)  # fmt: skip
def test_store_settings_check_their_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        StoreSettings(**wrong)


@pytest.mark.parametrize(
    ("store", "unsaid"),
    [({"dtype": "bfloat16"}, "in bfloat16"), ({"device": "cpu"}, "on the CPU")],
    ids=["half", "cpu"],
)
def test_the_advice_names_nothing_that_is_done_already(store: dict[str, Any], unsaid: str) -> None:
    kept = CacheStore(StoreSettings(max_bytes=1, **store))
    with pytest.raises(CacheBudgetError) as error:
        kept.put("cond", Slot(Kind.OUTPUT), torch.zeros(8), step=0)
    assert unsaid not in str(error.value)


@pytest.mark.parametrize(
    "name", [n for n in REGISTRY.names("policy") if REGISTRY.policy(n).decides_on]
)
def test_a_run_stays_under_a_limit_at_which_everything_fits(name: str) -> None:
    settings = dict(REGISTRY.policy(name).anywhere)
    free, wanted = session_of(name, None, **settings)
    peak = free.trace.peak_cache_bytes
    if not peak:
        pytest.skip("keeps nothing")
    limited, got = session_of(name, peak, **settings)
    assert limited.trace.peak_cache_bytes == peak
    assert not [note for note in limited.trace.notes if "Cache limit" in note]
    assert torch.equal(got, wanted)


def test_half_of_the_memory_is_reached_in_bfloat16() -> None:
    free, wanted = session_of("hetcache", None)
    limit = free.trace.peak_cache_bytes // 2
    limited, got = session_of("hetcache", limit)
    assert limited.trace.peak_cache_bytes <= limit
    (note,) = [note for note in limited.trace.notes if "Cache limit" in note]
    assert HALF in note
    assert [r.mode for r in limited.trace.records] == [r.mode for r in free.trace.records]
    assert torch.linalg.norm(got - wanted) < 0.02 * torch.linalg.norm(wanted)


def test_below_half_of_the_memory_keys_and_values_go_to_eight_bits() -> None:
    free, wanted = session_of("hetcache", None)
    limit = round(0.35 * free.trace.peak_cache_bytes)
    limited, got = session_of("hetcache", limit)
    assert limited.trace.peak_cache_bytes <= limit
    (note,) = [note for note in limited.trace.notes if "Cache limit" in note]
    assert EIGHT in note
    assert PRUNED not in note
    assert [r.flops for r in limited.trace.records] == [r.flops for r in free.trace.records]
    assert torch.linalg.norm(got - wanted) < 0.05 * torch.linalg.norm(wanted)


def test_bits_that_were_asked_for_stay() -> None:
    kept = composed("hetcache", kv_dtype="bfloat16")
    result = fitted(kept, bytes_of(kept) // 2)
    assert EIGHT not in result.note
    assert PRUNED in result.note


def test_keys_and_values_are_the_last_to_go() -> None:
    free, _ = session_of("hetcache", None)
    limited, _ = session_of("hetcache", free.trace.peak_cache_bytes // 8)
    (note,) = [note for note in limited.trace.notes if "Cache limit" in note]
    assert PRUNED in note
    assert limited.trace.peak_cache_bytes <= free.trace.peak_cache_bytes // 8
    partial = [r for r in limited.trace.records if r.mode.value == "partial"]
    assert partial
    assert partial[0].flops < next(r for r in free.trace.records if r.mode.value == "partial").flops


def test_control_blocks_are_run_where_only_hints_are_too_much() -> None:
    limit = bytes_of(PRUNED_KEYS) - 1
    result = fitted(PRUNED_KEYS, limit)
    assert result.policy.partial.control_mode is ControlMode.RECOMPUTE
    assert result.store.dtype is None
    assert CONTROL in result.note


def test_a_device_of_its_own_spills_instead_of_changing_numbers() -> None:
    result = fitted(HETCACHE, 1, on="cuda:0")
    assert (result.policy, result.store.spill) == (HETCACHE, True)
    assert HOST in result.note


def test_what_was_asked_for_stays() -> None:
    result = fitted(HETCACHE, bytes_of(HETCACHE) // 2, dtype="float32")
    assert result.store.dtype == "float32"
    assert PRUNED in result.note
    with pytest.raises(CacheBudgetError, match="no less than"):
        fitted(HETCACHE, 1, on="cuda:0", device="cuda:0")


def test_where_nothing_helps_the_run_is_refused_before_it_computes() -> None:
    pipeline = CASE.make_pipeline(0)
    bare = CASE.run(pipeline, STEPS, "none", 0)
    calls: list[int] = []
    block = CASE.main_blocks(pipeline)[0]
    handle = block.register_forward_hook(lambda *_: calls.append(1))
    session = accelerate(
        pipeline, "hetcache", backbone=CASE.backbone, store=StoreSettings(max_bytes=100)
    )
    with session, pytest.raises(CacheBudgetError, match="no less than") as error:
        CASE.run(pipeline, STEPS, "none", 0)
    handle.remove()
    assert calls == []
    assert error.value.budget_bytes == 100
    assert (error.value.needed_bytes or 0) > 100
    assert torch.equal(CASE.run(pipeline, STEPS, "none", 0), bare)


def test_spilled_tensors_do_not_count_and_come_back() -> None:

    # A CPU tensor is what spilling makes of a device's; here it is spilled from the start.
    store = CacheStore(StoreSettings(max_bytes=8, spill=True))
    value = torch.arange(12.0).view(1, 4, 3)
    store.put("cond", Slot(Kind.OUTPUT), value, step=0)
    assert (store.bytes, store.peak_spilled_bytes) == (0, 48)
    assert torch.equal(store.get("cond", Slot(Kind.OUTPUT), like=value)[0].value, value)
    store.put("cond", Slot(Kind.OUTPUT), value + 1, step=1)
    assert store.peak_spilled_bytes == 48


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_full_device_spills_to_the_host() -> None:

    store = CacheStore(StoreSettings(max_bytes=48, spill=True))
    value = torch.arange(12.0, device="cuda").view(1, 4, 3)
    for layer in range(3):
        store.put("cond", Slot(Kind.HINT, layer), value, step=0)
    assert (store.bytes, store.peak_spilled_bytes) == (48, 96)
    back = store.get("cond", Slot(Kind.HINT, 2), like=value)[0].value
    assert back.device == value.device
    assert torch.equal(back, value)
