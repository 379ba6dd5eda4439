"""FasterCache's CFG-cache: frequencies, the schedule, and where nothing can be predicted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hetcache_core.backbone.adapter import ModelCall, RunInfo
from hetcache_core.errors import ConfigError, ContractError
from hetcache_core.plugins.discovery import discover
from hetcache_core.policy.pieces import GuidanceDecider
from hetcache_core.policy.recipe import CachePolicy
from hetcache_core.policy.signals import ScheduleSignals, Signals
from hetcache_core.session import accelerate, resolve_policy
from hetcache_core.steps import BranchRows, Mode, ModelInfo, StepInfo
from hetcache_core.store import CacheStore
from hetcache_core.testing import tiny_case, tiny_video
from hetcache_core.testing.watch import WatchedEngine, watched_run
from hetcache_core.tokens import Grid
from hetcache_policies.fastercache_cfg import (
    PRESETS,
    FasterCacheCFG,
    PredictedUncond,
    low_frequencies,
)

MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)
GRID = Grid(frames=2, height=8, width=10, pixel_height=2, pixel_width=2, frame_stride=1)
UNWEIGHTED = FasterCacheCFG(low_weight=1.0, high_weight=1.0)
EVERY_STEP = FasterCacheCFG(every=1)
STEPS = (8, 20, 50, 100)


class Driven:
    """A decider with the signals of a run."""

    def __init__(self, decider: GuidanceDecider) -> None:
        self.decider = decider
        call = ModelCall(step=0, branches=(BranchRows("cond", 0, 1),), latents=torch.zeros(1))
        self.store = CacheStore()
        self.signals = Signals(
            step(0), (1000.0,), GRID, call, None, None, ScheduleSignals(), self.store
        )

    def predicts(self, at: StepInfo, branch: str, mode: Mode = Mode.FULL) -> str | None:
        return self.decider.predicts(at, branch, mode)

    def predict(self, at: StepInfo, branch: str, outputs: dict[str, Tensor]) -> Tensor:
        return self.decider.predict(at, branch, outputs, self.signals)

    def observe(self, at: StepInfo, outputs: dict[str, Tensor], mode: Mode = Mode.FULL) -> None:
        self.decider.observe_outputs(at, outputs, mode, self.signals)


def begin(recipe: FasterCacheCFG, steps: int, *branches: str, grid: Grid = GRID) -> Driven:
    piece = recipe.compose(MODEL).guidance
    assert piece is not None
    sigmas = tuple(1 - index / steps for index in range(steps))
    info = RunInfo(
        model=MODEL,
        timesteps=sigmas,
        sigmas=sigmas,
        grid=grid,
        mask=None,
        branches=branches or ("cond", "uncond"),
        device="cpu",
    )
    return Driven(piece.begin(info))


def step(index: int, total: int = 11) -> StepInfo:
    """A step of a run whose last one is guarded, as the policy wants it to be."""
    last = index == total - 1
    return StepInfo(index=index, total=total, timestep=1000 - index, sigma=0.5, computed=last)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*(shape or (1, 4, 2, 8, 10)), generator=torch.Generator().manual_seed(seed))


def run(recipe: FasterCacheCFG, steps: int, layout: str) -> tuple[WatchedEngine, Tensor]:
    return watched_run(tiny_case(), recipe.composed(MODEL), steps=steps, layout=layout)


def uncond(engine: WatchedEngine) -> str:
    modes = [record.mode for record in engine.trace.records if record.branch == "uncond"]
    return "".join("P" if mode is Mode.PREDICT else "F" for mode in modes)


def uncached(steps: int, layout: str) -> Tensor:
    policy = CachePolicy(name="none")
    return watched_run(tiny_case(), policy, steps=steps, layout=layout)[1]


# Frequencies


def test_a_plane_of_one_value_is_all_low() -> None:
    plane = torch.full((1, 4, 6), 3.0)
    torch.testing.assert_close(low_frequencies(plane, 0.2), plane)


def test_a_chequerboard_has_nothing_low() -> None:
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(10), indexing="ij")
    board = (-1.0) ** (rows + columns)
    torch.testing.assert_close(low_frequencies(board, 0.2), torch.zeros(8, 10))


def test_waves_within_the_radius_are_low_and_those_beyond_are_not() -> None:
    x = torch.arange(20) * 2 * math.pi / 20
    for cycles, low in ((3, True), (4, True), (5, False)):  # a fifth of 20 is 4
        wave = torch.cos(cycles * x).expand(20, 20)
        expected = wave if low else torch.zeros(20, 20)
        torch.testing.assert_close(low_frequencies(wave, 0.2), expected, rtol=0, atol=1e-5)


def test_the_shorter_side_sets_the_radius_for_both_axes() -> None:
    x = torch.arange(40) * 2 * math.pi / 40
    wave = torch.cos(3 * x).expand(10, 40)  # a fifth of 10 is 2, although 40 could have 8
    torch.testing.assert_close(low_frequencies(wave, 0.2), torch.zeros(10, 40), rtol=0, atol=1e-5)


# The rule


def test_the_kept_difference_is_added_with_the_weights_of_the_step() -> None:
    decider = begin(FasterCacheCFG(every=5), 11)
    cond, other = noise(0), noise(1)
    decider.observe(step(5), {"cond": cond, "uncond": other})
    low = low_frequencies(other - cond, 0.2)
    high = other - cond - low
    fresh = noise(2)
    # Low frequencies weigh 1.1 in steps 1 to 9, high ones in steps 7 to 10.
    for index, low_weight, high_weight in ((6, 1.1, 1.0), (8, 1.1, 1.1)):
        assert decider.predicts(step(index), "uncond") == "predicted from cond"
        predicted = decider.predict(step(index), "uncond", {"cond": fresh})
        expected = fresh + low_weight * low + high_weight * high
        torch.testing.assert_close(predicted, expected)


def test_weights_do_not_grow_from_one_predicted_step_to_the_next() -> None:
    decider = begin(FasterCacheCFG(every=5), 11)
    decider.observe(step(5), {"cond": noise(0), "uncond": noise(1)})
    predicted = [decider.predict(step(i), "uncond", {"cond": noise(2)}) for i in (8, 8, 9)]
    assert torch.equal(predicted[0], predicted[1])
    assert torch.equal(predicted[0], predicted[2])


def test_without_weights_the_same_conditional_output_gives_the_same_unconditional_one() -> None:
    decider = begin(UNWEIGHTED, 11)
    cond, other = noise(0), noise(1)
    decider.observe(step(5), {"cond": cond, "uncond": other})
    torch.testing.assert_close(decider.predict(step(6), "uncond", {"cond": cond}), other)


def test_predictions_keep_the_dtype_of_the_outputs() -> None:
    decider = begin(FasterCacheCFG(), 11)
    outputs = {"cond": noise(0).bfloat16(), "uncond": noise(1).bfloat16()}
    decider.observe(step(5), outputs)
    assert decider.predict(step(6), "uncond", outputs).dtype is torch.bfloat16


def test_packed_outputs_are_split_on_the_token_grid() -> None:
    video = begin(FasterCacheCFG(), 11)
    packed = begin(FasterCacheCFG(), 11)
    cond, other, fresh = noise(0), noise(1), noise(2)

    def pack(planes: Tensor) -> Tensor:
        return planes.movedim(1, -1).flatten(1, 3)  # (B, N, C)

    video.observe(step(5), {"cond": cond, "uncond": other})
    packed.observe(step(5), {"cond": pack(cond), "uncond": pack(other)})
    torch.testing.assert_close(
        packed.predict(step(6), "uncond", {"cond": pack(fresh)}),
        pack(video.predict(step(6), "uncond", {"cond": fresh})),
    )


def test_outputs_of_another_layout_are_refused() -> None:
    decider = begin(FasterCacheCFG(), 11)
    with pytest.raises(ContractError, match="neither video latents nor one row for each of 160"):
        decider.observe(step(5), {"cond": noise(0, 1, 7, 3), "uncond": noise(1, 1, 7, 3)})


# When


def test_only_the_unconditional_branch_is_ever_predicted() -> None:
    decider = begin(FasterCacheCFG(), 11)
    assert decider.predicts(step(6), "uncond") is None  # nothing was observed
    decider.observe(step(5), {"cond": noise(0), "uncond": noise(1)})
    assert decider.predicts(step(6), "cond") is None
    assert decider.predicts(step(6), "uncond")


@pytest.mark.parametrize("branches", [("uncond", "cond"), ("cond",), ("cond", "perturbed")])
def test_nothing_is_kept_where_nothing_can_be_predicted(branches: tuple[str, ...]) -> None:
    decider = begin(FasterCacheCFG(), 11, *branches)
    decider.observe(step(5), {name: noise(0) for name in branches})
    assert decider.store.bytes == 0
    assert decider.predicts(step(6), "uncond") is None


def test_both_branches_run_outside_the_window_and_in_every_5th_step() -> None:
    engine, _result = run(FasterCacheCFG(), 20, "separate")
    assert uncond(engine) == "FFFFFFFPPPPFPPPPFPPF"
    assert {record.mode for record in engine.trace.records if record.branch == "cond"} == {
        Mode.FULL
    }
    predicted = [record for record in engine.trace.records if record.mode is Mode.PREDICT]
    assert {(record.flops, record.blocks_run, record.reason) for record in predicted} == {
        (0, 0, "predicted from cond")
    }


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_difference_is_never_older_than_the_distance(steps: int, preset: str) -> None:
    recipe = FasterCacheCFG(**FasterCacheCFG.preset(preset, MODEL))
    found = schedule(recipe, steps)
    assert max(len(predicted) for predicted in found.split("F")) < recipe.every
    assert (found[0], found[-1]) == ("F", "F")


@pytest.mark.parametrize(
    ("preset", "share"), [("quality", 0.80), ("balanced", 0.75), ("fast", 0.64)]
)
def test_presets_run_the_declared_share_of_the_calls(preset: str, share: float) -> None:
    recipe = FasterCacheCFG(**FasterCacheCFG.preset(preset, MODEL))
    for steps in (30, 50, 100):
        predicted = schedule(recipe, steps).count("P")
        assert 1 - predicted / steps / 2 == pytest.approx(share, abs=0.05)


def schedule(recipe: FasterCacheCFG, steps: int) -> str:
    """Return what happens to the unconditional branch where every step is computed."""
    decider, found = begin(recipe, steps), ""
    outputs = {"cond": noise(0, 1, 1, 1, 2, 2), "uncond": noise(1, 1, 1, 1, 2, 2)}
    for index in range(steps):
        if decider.predicts(step(index, steps), "uncond"):
            found += "P"
        else:
            decider.observe(step(index, steps), outputs)
            found += "F"
    return found


def test_a_reused_step_predicts_only_what_a_reused_residual_would_be_older_than() -> None:
    decider = begin(FasterCacheCFG(), 20)
    decider.observe(step(7, 20), {"cond": noise(0), "uncond": noise(1)})
    assert decider.predicts(step(8, 20), "uncond", Mode.REUSE) is None
    assert decider.predicts(step(9, 20), "uncond", Mode.FULL)
    assert decider.predicts(step(10, 20), "uncond", Mode.REUSE)


def test_a_partial_step_is_predicted_while_the_branch_is_stale() -> None:
    decider = begin(FasterCacheCFG(every=3), 20)
    decider.observe(step(7, 20), {"cond": noise(0), "uncond": noise(1)})
    assert decider.predicts(step(8, 20), "uncond", Mode.FULL)
    assert decider.predicts(step(12, 20), "uncond", Mode.PARTIAL)  # the distance has passed
    assert decider.predicts(step(13, 20), "uncond", Mode.FULL) is None
    decider.observe(step(13, 20), {"cond": noise(0), "uncond": noise(1)}, Mode.REUSE)
    assert decider.predicts(step(14, 20), "uncond", Mode.FULL) is None  # reused steps tell nothing


def test_both_branches_in_every_step_is_the_uncached_run() -> None:
    assert torch.equal(run(EVERY_STEP, 8, "separate")[1], uncached(8, "separate"))


@pytest.mark.parametrize("layout", ["merged", "none"])
def test_with_merged_or_no_guidance_every_call_runs(layout: str) -> None:
    engine, result = run(FasterCacheCFG(), 12, layout)
    assert {record.mode for record in engine.trace.records} == {Mode.FULL}
    assert torch.equal(result, uncached(12, layout))


def test_with_the_unconditional_branch_first_every_call_runs() -> None:
    case = tiny_case()
    pipeline = case.make_pipeline(0)
    video, mask = tiny_video()
    bare = pipeline(video, mask, steps=12, uncond_first=True)
    with accelerate(pipeline, FasterCacheCFG(), backbone=case.backbone) as session:
        result = pipeline(video, mask, steps=12, uncond_first=True)
    assert torch.equal(result, bare)
    assert {record.mode for record in session.trace.records} == {Mode.FULL}


# Settings and compositions


@pytest.mark.parametrize("name", ["window", "low_window", "high_window"])
def test_a_window_that_ends_before_it_begins_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must begin before it ends") as refused:
        FasterCacheCFG(**{name: (0.8, 0.2)})
    assert refused.value.setting == name


def test_it_needs_to_leave_out_whole_calls() -> None:
    assert FasterCacheCFG().compose(MODEL).needs() == {"output"}


@pytest.mark.parametrize("names", ["hetcache+fastercache-cfg", "fastercache-cfg+every-nth"])
def test_it_goes_with_policies_that_decide_steps(names: str) -> None:
    policy, _settings = resolve_policy(names, {}, None, MODEL, discover())
    assert policy.step is not None
    assert isinstance(policy.guidance, PredictedUncond)
    for layout in ("separate", "merged", "none"):
        engine, result = watched_run(tiny_case(), policy, steps=12, layout=layout)
        assert result.isfinite().all()
        predicts = any(record.mode is Mode.PREDICT for record in engine.trace.records)
        assert predicts == (layout == "separate")
