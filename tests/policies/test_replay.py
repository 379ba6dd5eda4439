"""A replayed run does what the recorded one did, bit by bit, and decides nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor

from hetcache_core import (
    BlockAction,
    ConfigError,
    ControlMode,
    Guards,
    KVMode,
    Mode,
    PartAction,
    PartialSettings,
    Partition,
    PluginLoadError,
    SelectionRequest,
    Signals,
    StoreSettings,
    SubLayer,
    Trace,
    UnsupportedBackboneError,
    Use,
    accelerate,
    discover,
)
from hetcache_core.engine import active_rows as active
from hetcache_core.records.plan import (
    Plan,
    action_text,
    fingerprint,
    pack_places,
    pack_rows,
    read_action,
    unpack_places,
    unpack_rows,
)
from hetcache_core.records.schedule import Schedule
from hetcache_core.settings.fitting import structure
from hetcache_core.testing import (
    POLICY_CHECKS,
    BackboneCase,
    BoundCheck,
    NotApplicableError,
    PolicySubject,
    TinyConfig,
    TinyPipeline,
    bind,
    scripted,
    tiny_case,
    tiny_video,
)
from hetcache_core.testing.watch import BlockCounter
from hetcache_policies.replay import Replay
from hetcache_policies.shared import kmeans
from hetcache_policies.shared.replayed import ReplayedRows

REGISTRY = discover()
STEPS = 12
CASE = tiny_case()

Settings = Mapping[str, object]

ALONE: list[tuple[str, Settings]] = [
    (name, REGISTRY.policy(name).anywhere)
    for name in REGISTRY.names("policy")
    if not REGISTRY.policy(name).needs_settings()
]
SET: list[tuple[str, Settings]] = [
    ("pab+teacache", {}),
    ("adacache+teacache", {}),
    ("hetcache+taylorseer", {}),
    ("auto", {"partials": 1.0}),
    ("teacache+fastercache-cfg", {}),
    ("fbcache+pab", {}),
    ("dicache+pab", {"dicache.threshold": 10.0}),
    ("dicache+toca", {"dicache.threshold": 10.0}),
    ("fastcache+dicache", {"dicache.threshold": 10.0}),
    ("dicache", {"threshold": 10.0}),
    ("dbcache", {"threshold": 10.0, "back": 1, "predictor": "taylor"}),
    ("taylorseer", {"level": "sub_layer", "interval": 3}),
    ("hetcache", {"pattern": "Fpps", "margin": 0, "context_ratio": 0.4, "kv_mode": "pruned"}),
    (
        "hetcache",
        {"pattern": "Fpsp", "margin": 0, "kv_dtype": "float8_e4m3fn", "kv_layers": (0, -1),
         "kv_stride": 2, "kv_predictor": "linear"},
    ),
    (
        "hetcache",
        {"pattern": "Fpsp", "margin": 0, "context_ratio": 0.4, "selector": "random",
         "control_mode": "reuse", "refresh_after": 1, "residual_ema": 0.3},
    ),
]  # fmt: skip


def run(
    case: BackboneCase,
    policy: str,
    settings: Settings = MappingProxyType({}),
    *,
    steps: int = STEPS,
    layout: str = "separate",
    seed: int = 0,
    pipeline: Any = None,
    **options: Any,
) -> tuple[Tensor, Trace]:
    pipeline = case.make_pipeline(0) if pipeline is None else pipeline
    session = accelerate(
        pipeline, policy, settings=settings, backbone=case.backbone, registry=REGISTRY, **options
    )
    with session:
        result = case.run(pipeline, steps, layout, seed)
    return result, session.trace


def schedule_of(trace: Trace, folder: Path) -> dict[str, object]:
    """The settings of a replay of a trace that has been written and read back."""
    trace.save(folder / "trace.json")
    Schedule.of(Trace.load(folder / "trace.json")).save(folder / "schedule.json")
    return {"schedule": str(folder / "schedule.json")}


def modes(trace: Trace) -> list[tuple[int, str, Mode]]:
    return [(record.step, record.branch, record.mode) for record in trace.records]


def check_replayed(
    case: BackboneCase, policy: str, settings: Settings, folder: Path, **options: Any
) -> tuple[Trace, Trace]:
    asked = {"target_speedup": options.pop("target_speedup", None)}
    result, trace = run(case, policy, settings, **asked, **options)
    again, replayed = run(case, "replay", schedule_of(trace, folder), **options)
    assert torch.equal(again, result)
    assert modes(replayed) == modes(trace)
    assert replayed.totals().host_reads == 0
    assert replayed.totals().flops <= trace.totals().flops
    return trace, replayed


@pytest.mark.parametrize(
    ("layout", "target"), [("separate", None), ("separate", 2.0), ("merged", None), ("none", 2.0)]
)
@pytest.mark.parametrize(("policy", "settings"), [*ALONE, *SET])
def test_every_policy_is_replayed_bit_by_bit(
    policy: str, settings: Settings, layout: str, target: float | None, tmp_path: Path
) -> None:
    check_replayed(CASE, policy, settings, tmp_path, layout=layout, target_speedup=target)


@pytest.mark.parametrize("policy", ["hetcache", "toca", "dicache+pab", "teacache"])
def test_an_expert_that_takes_over_and_a_reference_are_replayed(
    policy: str, tmp_path: Path
) -> None:
    check_replayed(tiny_case(experts=2), policy, {}, tmp_path)
    check_replayed(tiny_case(reference=True), policy, {}, tmp_path)


@pytest.mark.parametrize("policy", ["pab", "hetcache", "easycache"])
def test_steps_that_guards_ran_in_full_are_replayed_without_the_guards(
    policy: str, tmp_path: Path
) -> None:
    guards = Guards(first_steps=0.3, longest_reuse=1, full_steps=(7,))
    result, trace = run(CASE, policy, guards=guards)
    again, replayed = run(CASE, "replay", schedule_of(trace, tmp_path))
    assert torch.equal(again, result)
    assert modes(replayed) == modes(trace)


@cache
def case_of(backbone: str) -> BackboneCase:
    """Skip where the backbone's library is missing."""
    try:
        models = REGISTRY.backbone(backbone)().random_models
        case = None if models is None else models.case()
        if case is not None:
            case.make_pipeline(0)
    except (UnsupportedBackboneError, PluginLoadError, ModuleNotFoundError) as error:
        pytest.skip(str(error))
    if case is None:
        pytest.skip(f"{backbone} has no random models")
    return case


@pytest.mark.parametrize(
    "policy",
    ["auto", "hetcache", "toca", "pab+teacache", "dicache", "easycache", "fastercache-cfg"],
)
@pytest.mark.parametrize(
    "backbone", ["tiny-vace", "wan-vace", "wan-vace-diffusers", "ltx-video", "onnx-runtime"]
)
def test_policies_are_replayed_on_the_backbones_of_libraries(
    backbone: str, policy: str, tmp_path: Path
) -> None:
    case = case_of(backbone)
    try:
        check_replayed(case, policy, {}, tmp_path, steps=8, layout=case.layouts[-1])
    except UnsupportedBackboneError as error:
        pytest.skip(str(error))


def test_a_schedule_recorded_on_torch_runs_on_exported_graphs(tmp_path: Path) -> None:
    """The same model: the schedule belongs to it, and not to what runs it."""
    torch_case, onnx_case = case_of("wan-vace"), case_of("onnx-runtime")
    result, trace = run(torch_case, "toca", steps=8)
    other, replayed = run(onnx_case, "replay", schedule_of(trace, tmp_path), steps=8)
    assert modes(replayed) == modes(trace)
    assert float((other - result).abs().max()) < 1e-4 * float(result.abs().max())


def test_a_probe_that_decided_is_not_run_again(tmp_path: Path) -> None:
    trace, replayed = check_replayed(CASE, "dicache", {"threshold": 10.0}, tmp_path)
    reused = [i for i, mode in enumerate(trace.modes()) if mode is Mode.REUSE]
    assert reused
    looked = [r.blocks_run for r in trace.records if r.step in reused and r.branch == "cond"]
    assert set(looked) == {1}
    pipeline, counter = CASE.make_pipeline(0), BlockCounter()
    settings = {"schedule": str(tmp_path / "schedule.json")}
    with counter.counting(CASE, pipeline):
        run(CASE, "replay", settings, pipeline=pipeline)
    layers = TinyConfig().layers
    assert counter.main == sum(r.blocks_run for r in replayed.records)
    assert counter.main == 2 * layers * (STEPS - len(reused))


def test_a_probe_that_kept_what_later_steps_take_is_run_again(tmp_path: Path) -> None:
    _, replayed = check_replayed(CASE, "dicache+pab", {"dicache.threshold": 10.0}, tmp_path)
    plan = Schedule.of(Trace.load(tmp_path / "trace.json")).plan
    probing = [i for i, step in enumerate(plan.steps) if step.probe]
    assert probing
    ran = {r.step: r.blocks_run for r in replayed.records if r.branch == "cond"}
    assert {ran[step] for step in probing} == {1}


def test_no_signal_and_no_clustering_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"pattern": "Fps", "margin": 0, "context_ratio": 0.4}
    result, trace = run(CASE, "hetcache", settings)

    def forbidden(*_arguments: object, **_named: object) -> None:
        raise AssertionError("a replay looks at something")

    for name in ("timestep_modulation", "modulated_input", "latent", "probe", "read", "read_many"):
        monkeypatch.setattr(Signals, name, forbidden)
    monkeypatch.setattr(kmeans, "cluster", forbidden)
    monkeypatch.setattr(active, "attention_scores", forbidden)
    again, _ = run(CASE, "replay", schedule_of(trace, tmp_path))
    assert torch.equal(again, result)


def test_the_modes_of_partial_steps_are_those_that_a_byte_limit_left(tmp_path: Path) -> None:
    """What a limit changed in the recorded run holds in a replay that has no limit."""
    settings = {"pattern": "Fps", "margin": 0, "control_mode": "reuse"}
    result, trace = run(CASE, "hetcache", {**settings, "kv_mode": "pruned", "context_ratio": 0.0})
    schedule = Schedule.of(trace)
    assert (schedule.plan.kv_mode, schedule.plan.control_mode) == (KVMode.PRUNED, ControlMode.REUSE)
    asked = {**trace.settings, "kv_mode": "cached", "control_mode": "recompute"}
    evolve(schedule, settings=asked).save(tmp_path / "schedule.json")
    again, _ = run(CASE, "replay", {"schedule": str(tmp_path / "schedule.json")})
    assert torch.equal(again, result)


@pytest.mark.parametrize(
    ("policy", "settings", "share"),
    [
        ("hetcache", {"pattern": "Fps", "margin": 0}, 0.8),
        ("hetcache", {"pattern": "Fps", "margin": 0}, 0.35),
        ("toca", {}, 0.8),
    ],
)
def test_a_run_under_a_byte_limit_is_replayed_under_it(
    policy: str, settings: Settings, share: float, tmp_path: Path
) -> None:
    _, unlimited = run(CASE, policy, settings)
    store = StoreSettings(max_bytes=int(share * unlimited.peak_cache_bytes))
    result, trace = run(CASE, policy, settings, store=store)
    assert trace.peak_cache_bytes < unlimited.peak_cache_bytes
    again, replayed = run(CASE, "replay", schedule_of(trace, tmp_path), store=store)
    assert torch.equal(again, result)
    # What decisions kept is not kept again.
    assert 0 < replayed.peak_cache_bytes <= trace.peak_cache_bytes


# Other clips


def edit_elsewhere(pipeline: TinyPipeline, policy: str, settings: Settings) -> tuple[Tensor, Trace]:
    """Edit another clip in another place."""
    video, _ = tiny_video(1)
    mask = torch.zeros(5, 32, 32, dtype=torch.bool)
    mask[:, 18:28, 4:12] = True
    with accelerate(
        pipeline, policy, settings=settings, backbone=CASE.backbone, registry=REGISTRY
    ) as session:
        result: Tensor = pipeline(
            video, mask, prompt="a dog", steps=STEPS, guidance_scale=5.0, seed=1
        )
    return result, session.trace


def test_with_another_mask_rows_follow_it_and_the_context_is_evenly_spread(tmp_path: Path) -> None:
    settings = {"pattern": "Fps", "margin": 0, "context_ratio": 0.4, "selector": "both"}
    _, trace = run(CASE, "hetcache", settings)
    schedule = schedule_of(trace, tmp_path)
    result, replayed = edit_elsewhere(CASE.make_pipeline(0), "replay", schedule)
    assert replayed.modes() == trace.modes()
    spread = {**settings, "selector": "uniform"}
    expected, _ = edit_elsewhere(CASE.make_pipeline(0), "hetcache", spread)
    assert torch.equal(result, expected)
    guided, _ = edit_elsewhere(CASE.make_pipeline(0), "hetcache", settings)
    assert not torch.equal(guided, expected)


def test_with_the_same_mask_the_recorded_rows_serve_another_clip(tmp_path: Path) -> None:
    settings = {"pattern": "Fps", "margin": 0, "context_ratio": 0.4, "selector": "random"}
    _, trace = run(CASE, "hetcache", settings)
    schedule = schedule_of(trace, tmp_path)
    result, _ = run(CASE, "replay", schedule, seed=3)
    expected, _ = run(CASE, "hetcache", settings, seed=3)  # random choice looks at no clip
    assert torch.equal(result, expected)


def test_a_step_that_the_other_mask_makes_too_large_runs_in_full(tmp_path: Path) -> None:
    _, trace = run(CASE, "hetcache", {"pattern": "Fps", "margin": 0, "max_active_share": 0.5})
    schedule = schedule_of(trace, tmp_path)
    pipeline, (video, mask) = CASE.make_pipeline(0), tiny_video()
    with accelerate(pipeline, "replay", settings=schedule, backbone=CASE.backbone) as session:
        pipeline(video, torch.ones_like(mask), prompt="", steps=STEPS, guidance_scale=1.0)
    assert Mode.PARTIAL in trace.modes()
    assert Mode.PARTIAL not in session.trace.modes()


def test_recorded_tokens_come_first_in_the_order_of_the_selector(tmp_path: Path) -> None:
    settings = {"pattern": "Fps", "margin": 0, "context_ratio": 0.4, "selector": "random"}
    _, trace = run(CASE, "hetcache", settings)
    plan = trace.plan
    assert plan is not None
    plan = evolve(plan, selections=plan.selections[:1])
    rows = unpack_rows(plan.rows[plan.selections[0]], plan.grid.tokens)
    roles = torch.zeros(plan.grid.tokens, dtype=torch.uint8)
    partition = Partition(roles, plan.grid)
    request = SelectionRequest(
        partition=partition,
        count=len(rows),
        scores=lambda: roles,
        features=lambda: roles,
        seed=0,
    )
    known = ReplayedRows(evolve(plan, roles=fingerprint(roles)))
    chosen = known.select(request)
    assert chosen.order[: len(rows)].tolist() == rows.tolist()
    assert sorted(chosen.order.tolist()) == list(range(plan.grid.tokens))
    later = known.select(evolve(request, previous=chosen))
    spread = ReplayedRows(plan).select(request)
    assert later.order.tolist() == spread.order.tolist() != chosen.order.tolist()


# What is refused


@pytest.fixture
def teacache(tmp_path: Path) -> dict[str, object]:
    return schedule_of(run(CASE, "teacache")[1], tmp_path)


@pytest.mark.parametrize("policy", ["teacache", "pab", "fastercache-cfg", "none", "fewer-steps"])
def test_another_number_of_steps_is_refused(policy: str, tmp_path: Path) -> None:
    settings = schedule_of(run(CASE, policy)[1], tmp_path)
    with pytest.raises(ConfigError, match=r"recorded with \d+ steps, this run has \d+"):
        run(CASE, "replay", settings, steps=20)


def test_another_grid_is_refused_with_both(teacache: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"on 3 x 4 x 4 tokens .* and 16 before them"):
        run(tiny_case(reference=True), "replay", teacache)


def test_another_model_is_refused_with_what_differs(teacache: dict[str, object]) -> None:
    other = tiny_case(TinyConfig(layers=6))
    with pytest.raises(ConfigError, match="model with layers 4, this one has 6"):
        run(other, "replay", teacache)


def test_other_noise_levels_are_refused(tmp_path: Path) -> None:
    schedule = Schedule.of(run(CASE, "teacache")[1])
    sigmas = tuple(sigma * 0.9 for sigma in schedule.plan.sigmas)
    evolve(schedule, plan=evolve(schedule.plan, sigmas=sigmas)).save(tmp_path / "shifted.json")
    with pytest.raises(ConfigError, match="other noise levels"):
        run(CASE, "replay", {"schedule": str(tmp_path / "shifted.json")})


def test_blocks_of_calls_that_were_not_recorded_are_refused(tmp_path: Path) -> None:
    settings = schedule_of(run(CASE, "pab", layout="merged")[1], tmp_path)
    with pytest.raises(ConfigError, match=r"calls of cond\+uncond, this run calls cond"):
        run(CASE, "replay", settings, layout="separate")


def test_steps_are_replayed_in_any_layout_of_guidance(teacache: dict[str, object]) -> None:
    _, merged = run(CASE, "replay", teacache, layout="merged")
    _, separate = run(CASE, "replay", teacache, layout="separate")
    assert merged.modes() == separate.modes()


def test_a_speed_up_is_refused(teacache: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="can compute neither more nor less"):
        run(CASE, "replay", teacache, target_speedup=2.0)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no schedule .*none\.json"):
        Replay(schedule=str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("[]", "is no schedule"),
        ('{"kind": "other"}', "is no schedule"),
        ('{"kind": "hetcache schedule", "version": 9}', "its version is 9"),
        ('{"kind": "hetcache schedule", "version": 1}', "is not whole"),
    ],
)
def test_a_file_that_is_no_schedule_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        run(CASE, "replay", {"schedule": str(path)})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda plan: plan["steps"].pop(),
        lambda plan: plan["steps"].clear(),
        lambda plan: plan["steps"][0].update(mode="sideways"),
        lambda plan: plan["actions"].append("run what=run"),
        lambda plan: plan["actions"].append("jump"),
        lambda plan: plan["actions"].append("run+more"),
        lambda plan: plan["actions"].append("run feed_forward=reuse@999"),
        lambda plan: plan["calls"][0].update(main="0*3 99"),
        lambda plan: plan["calls"][0].update(control="x"),
        lambda plan: plan["rows"].append("!"),
        lambda plan: plan["rows"].append("AAAA"),
        lambda plan: plan["rows"].append("=5,1000"),
        lambda plan: plan["selections"].append(10**6),
        lambda plan: plan.pop("grid"),
    ],
)
def test_a_spoilt_plan_is_refused_when_it_is_read(
    spoil: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    settings = schedule_of(run(CASE, "toca")[1], tmp_path)
    path = Path(str(settings["schedule"]))
    plain = json.loads(path.read_text())
    spoil(plain["plan"])
    path.write_text(json.dumps(plain))
    with pytest.raises(ConfigError, match="is not whole"):
        run(CASE, "replay", settings)


def test_a_policy_that_is_gone_is_refused_with_its_name(tmp_path: Path) -> None:
    schedule = evolve(Schedule.of(run(CASE, "teacache")[1]), policy="long-gone")
    schedule.save(tmp_path / "gone.json")
    with pytest.raises(ConfigError, match="its policy long-gone cannot be composed"):
        run(CASE, "replay", {"schedule": str(tmp_path / "gone.json")})


def test_an_older_trace_and_one_that_broke_off_make_no_schedule() -> None:
    _, trace = run(CASE, "teacache")
    plain = {**trace.to_dict(), "schema_version": 1}
    del plain["plan"]
    older = Trace.from_dict(plain)
    assert older.records == trace.records
    with pytest.raises(ConfigError, match=r"schema 1.*Record the run again"):
        Schedule.of(older)
    with pytest.raises(ConfigError, match="broke off after 12 of 12 steps"):
        Schedule.of(evolve(trace, complete=False))


# The contract kit

OTHER_RUNS = {
    "check_it_runs_any_number_of_steps",
    "check_it_composes_for_other_models",
}
"""They ask for what a schedule refuses: other steps, and another model."""


@pytest.mark.parametrize("policy", ["hetcache", "dicache+pab", "fastercache-cfg", "easycache"])
def test_a_replay_keeps_the_contract_of_policies(policy: str, tmp_path: Path) -> None:
    settings = schedule_of(run(CASE, policy, steps=8)[1], tmp_path)
    # Blocks are recorded by the calls that were made; other layouts of guidance make others.
    alike = CASE.features.with_values(guidance=frozenset({"separate"}))
    case = CASE.with_values(features=alike)
    subject = PolicySubject(name="replay", make=lambda: Replay(**settings), case=case)
    checks: list[BoundCheck] = bind(
        [check for check in POLICY_CHECKS if check.__name__ not in OTHER_RUNS], subject, "replay"
    )
    passed = set()
    for check in checks:
        try:
            check()
        except NotApplicableError:
            continue
        passed.add(check.name)
    assert {"check_the_bytes_are_those_held", "check_branches_do_not_mix"} <= passed


# How it is written


def test_places_are_written_as_runs() -> None:
    places = [0, 0, 0, 1, None, None, 0]
    assert pack_places(places) == "0*3 1 -*2 0"
    assert unpack_places(pack_places(places)) == places
    assert unpack_places(pack_places([])) == []


@pytest.mark.parametrize("rows", [[], [0], [3, 4, 5, 9], list(range(10)), [9, 3], [4, 4]])
def test_rows_come_back_as_they_were(rows: list[int]) -> None:
    import numpy as np

    packed = pack_rows(np.array(rows, np.int32), 10)
    assert unpack_rows(packed, 10).tolist() == rows


def test_random_rows_take_less_than_a_number_each() -> None:
    import numpy as np

    tokens, count = 14040, 1000  # 33 frames of 480x832, a fourteenth of them
    rows = np.sort(np.random.default_rng(0).permutation(tokens)[:count])
    assert len(pack_rows(rows, tokens)) < 1.5 * count


def test_an_action_comes_back_as_it_was() -> None:
    parts = {
        SubLayer.SELF_ATTENTION: PartAction(Use.REUSE),
        SubLayer.FEED_FORWARD: PartAction(Use.REUSE, store=True),
    }
    action = BlockAction(store=True, parts=parts)
    text = action_text(action, {SubLayer.FEED_FORWARD: 4})
    assert text == "run+store self_attention=reuse feed_forward=reuse+store@4"
    assert read_action(text) == (action, {SubLayer.FEED_FORWARD: 4})
    assert action_text(BlockAction(), {}) == "run"


def test_a_plan_says_nothing_of_blocks_that_simply_ran() -> None:
    plan = run(CASE, "adacache")[1].plan
    assert plan is not None
    assert (plan.actions, plan.calls, plan.rows) == ((), (), ())
    assert structure(json.loads(json.dumps(plan.to_dict())), Plan) == plan


def test_a_policy_that_was_composed_by_hand_is_recorded_too() -> None:
    policy = scripted(Mode.FULL, Mode.PARTIAL, Mode.REUSE, partial=PartialSettings())
    pipeline = CASE.make_pipeline(0)
    with accelerate(pipeline, policy, backbone=CASE.backbone) as session:
        CASE.run(pipeline, 6, "none", 0)
    plan = session.trace.plan
    assert plan is not None
    assert [step.mode for step in plan.steps] == [Mode.FULL, Mode.PARTIAL, Mode.REUSE] * 2
