"""AdaCache: the rate that a change of attention sets, and what is reused until it has passed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import pytest
import torch
from attrs import define, field
from torch import Tensor

from hetcache_core.backbone.adapter import RunInfo
from hetcache_core.engine.gate import Gate
from hetcache_core.engine.loop import Engine
from hetcache_core.errors import ConfigError
from hetcache_core.policy.guards import Guards
from hetcache_core.policy.pieces import BlockAction, Use
from hetcache_core.records.trace import Trace
from hetcache_core.session import accelerate
from hetcache_core.steps import BlockKey, BranchRows, Mode, ModelInfo, Stack, StepInfo, SubLayer
from hetcache_core.testing import BoundCheck, parametrize_with_checks, tiny_case
from hetcache_core.tokens import Grid
from hetcache_policies.adacache import AdaCache
from hetcache_policies.fits.adacache_codebooks import BOOKS, CodeBook, find_book
from hetcache_policies.shared.adacache_meter import (
    MOTION_GRADIENT,
    MOTION_POWER,
    MOTION_SCALE,
    SKETCH_TOKENS,
)
from hetcache_policies.teacache import TeaCache

MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)
SELF = SubLayer.SELF_ATTENTION
FRAMES, TOKENS, WIDTH = 3, 12, 8
CASE = tiny_case()


# Code books ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "rate"), [(0.0, 6), (0.079, 6), (0.08, 5), (0.3, 3), (0.39, 2), (0.9, 1), (7.0, 1)]
)
def test_a_published_book_at_its_own_number_of_steps(change: float, rate: int) -> None:
    assert BOOKS["fast"][0].rate(change, 30) == rate


@pytest.mark.parametrize(("change", "rate"), [(0.029, 12), (0.04, 10), (0.1, 4), (0.5, 3)])
def test_the_published_book_of_hundred_steps(change: float, rate: int) -> None:
    assert find_book("fast", 100).rate(change, 100) == rate


def test_a_change_that_is_no_number_computes_the_next_step() -> None:
    assert BOOKS["fast"][0].rate(float("nan"), 30) == 1


@pytest.mark.parametrize(
    ("steps", "tuned"), [(8, 30), (20, 30), (30, 30), (50, 30), (60, 100), (100, 100)]
)
def test_the_book_nearest_in_steps_is_taken(steps: int, tuned: int) -> None:
    assert find_book("fast", steps).steps == tuned


def test_a_run_of_double_length_keeps_results_for_twice_as_many_steps() -> None:
    """Its steps are half as long, so the same change per step is twice as fast."""
    book = BOOKS["fast"][0]
    for change in (0.05, 0.1, 0.2, 0.3):
        assert book.rate(change / 2, 60) == 2 * book.rate(change, 30)


@pytest.mark.parametrize("book", [book for books in BOOKS.values() for book in books])
def test_faster_changes_never_have_longer_rates(book: CodeBook) -> None:
    assert list(book.thresholds) == sorted(set(book.thresholds))
    assert list(book.rates) == sorted(book.rates, reverse=True)
    assert len(book.thresholds) == len(book.rates)


def test_a_slower_book_is_never_faster() -> None:
    changes = [i / 100 for i in range(120)]
    fast, medium, slow = (BOOKS[name][0] for name in ("fast", "medium", "slow"))
    for change in changes:
        assert fast.rate(change, 30) >= medium.rate(change, 30) >= slow.rate(change, 30)


# The decider, by hand ------------------------------------------------------------------------------


@define(eq=False)
class Numbers:
    """Signals of which only numbers are read."""

    threshold_factor: float = 1.0
    reads: int = field(default=0, init=False)

    def read_many(self, values: Tensor) -> list[float]:
        self.reads += 1
        return values.tolist()


def run_info(
    steps: int, branches: tuple[str, ...] = ("cond", "uncond"), frames: int = FRAMES
) -> RunInfo:
    sigmas = tuple(1 - i / steps for i in range(steps))
    return RunInfo(
        model=MODEL,
        timesteps=tuple(1000 * s for s in sigmas),
        sigmas=sigmas,
        grid=Grid(
            frames=frames,
            height=1,
            width=TOKENS // frames,
            pixel_height=2,
            pixel_width=2,
            frame_stride=4,
        ),
        mask=None,
        branches=branches,
        device="cpu",
    )


def call_of(key: str, *, reverse: bool = False) -> tuple[BranchRows, ...]:
    """The branches of a call, with a row each; in reverse the first branch has the last row."""
    names = key.split("+")
    rows = range(len(names))[::-1] if reverse else range(len(names))
    return tuple(BranchRows(name, row, row + 1) for name, row in zip(names, rows, strict=True))


def attention(value: float, rows: int = 1) -> Tensor:
    return torch.full((rows, TOKENS, WIDTH), value)


def drive(
    recipe: AdaCache,
    outputs: Sequence[Tensor],
    *,
    order: tuple[str, ...] = ("cond", "uncond"),
    reverse: bool = False,
    numbers: Numbers | None = None,
) -> tuple[str, list[float | None]]:
    """Play a run whose attention at each step is given for the first branch.

    Returns:
        The modes, F or a point for a reused step, and the changes that were compared.
    """
    policy = recipe.composed(MODEL)
    assert policy.step is policy.blocks is not None
    gate = Gate(steps=len(outputs), defaults=policy.guards)
    decider = policy.step.begin(run_info(len(outputs), order))
    modes, changes = "", []
    for index, output in enumerate(outputs):
        step = StepInfo(
            index=index,
            total=len(outputs),
            timestep=1000 - index,
            sigma=0.5,
            computed=gate.computes(index) is not None,
        )
        decision = gate.apply(step, decider.decide(step, numbers or Numbers()), 0)
        modes += "F" if decision.mode is Mode.FULL else "."
        changes.append(decision.signal)
        for branch in order if decision.mode is Mode.FULL else ():
            decider.enter_call(step, call_of(branch, reverse=reverse))
            for layer in range(MODEL.layers):
                key = BlockKey(Stack.MAIN, layer)
                action = decider.block(step, branch, key, output)
                assert action.use is Use.RUN
                for part in action.observe:
                    assert branch == order[0]
                    decider.observe(step, branch, key, part, output)
        decider.settle(step, decision.mode)
    return modes, changes


def steady(change: float, steps: int) -> list[Tensor]:
    """Attention whose relative change per step is the same over any number of steps."""
    level, outputs = 1.0, []
    for _ in range(steps):
        outputs.append(attention(level))
        level += change
    return outputs


def test_a_step_is_computed_when_the_rate_of_the_last_one_has_passed() -> None:
    """The first change is 0.1 / 1, rate 5; the next 0.5 / 1.1 over 5 steps, 0.091, and so on."""
    modes, changes = drive(AdaCache(), steady(0.1, 30))
    assert changes[2] == pytest.approx(0.1)
    assert changes[7] == pytest.approx(0.5 / 1.1 / 5)
    assert changes[12] == pytest.approx(0.5 / 1.6 / 5)
    #      rate 5     rate 5     rate 6 from here on
    assert modes == "FF....F....F.....F.....F....FF"


def test_the_first_and_the_last_two_steps_are_computed() -> None:
    modes, _ = drive(AdaCache(), [attention(1.0)] * 12)
    assert (modes[0], modes[-2:]) == ("F", "FF")


def test_fast_changes_compute_every_step() -> None:
    modes, _ = drive(AdaCache(), [attention((-1.0) ** i) for i in range(12)])
    assert modes == "F" * 12


def test_a_book_of_ones_own_is_taken_as_it_is() -> None:
    recipe = AdaCache(thresholds=(0.5,), rates=(3,))
    assert drive(recipe, steady(0.01, 12))[0] == "FF..F..F..FF"
    assert drive(recipe, [attention(2.0**i) for i in range(6)])[0] == "F" * 6


def test_one_read_a_computed_step() -> None:
    numbers = Numbers()
    modes, _ = drive(AdaCache(), steady(0.1, 30), numbers=numbers)
    # The very first computed step has nothing to compare with, the last has no decision after it.
    assert numbers.reads == modes.count("F") - 2


def test_a_threshold_factor_stretches_all_thresholds() -> None:
    recipe = AdaCache(thresholds=(0.1,), rates=(3,))
    assert drive(recipe, steady(0.15, 9))[0][:3] == "FFF"
    assert drive(recipe, steady(0.15, 9), numbers=Numbers(2.0))[0][:5] == "FF..F"


@pytest.mark.parametrize("reverse", [False, True])
def test_a_merged_call_is_judged_by_its_first_branch(reverse: bool) -> None:
    wild = torch.Generator().manual_seed(0)
    outputs = []
    for output in steady(0.1, 30):
        rows = [output, torch.randn(1, TOKENS, WIDTH, generator=wild)]
        outputs.append(torch.cat(rows[::-1] if reverse else rows))
    found = drive(AdaCache(), outputs, order=("cond+uncond",), reverse=reverse)
    assert found == drive(AdaCache(), steady(0.1, 30))


def test_many_tokens_are_compared_on_a_sketch() -> None:
    frames = 4
    tokens = frames * 2 * SKETCH_TOKENS
    policy = AdaCache().compose(MODEL)
    assert policy.blocks is not None
    decider = policy.blocks.begin(run_info(30, frames=frames))
    step = StepInfo(index=0, total=30, timestep=1000, sigma=1)
    decider.enter_call(step, call_of("cond"))
    decider.observe(step, "cond", BlockKey(Stack.MAIN, 1), SELF, torch.randn(1, tokens, 2))
    ((sketch, _),) = decider._meter.kept.values()  # type: ignore[attr-defined]
    assert sketch.shape == (1, SKETCH_TOKENS, 2)
    assert sketch.untyped_storage().nbytes() == sketch.numel() * sketch.element_size()


# Motion ---------------------------------------------------------------------------------------------


def still(level: float) -> Tensor:
    return attention(level)


def moving(level: float) -> Tensor:
    """Frames 1, 3, 1 times a level: each differs from the next by half of their sum."""
    return (
        attention(level)
        * torch.tensor([1.0, 3.0, 1.0]).repeat_interleave(TOKENS // FRAMES)[:, None]
    )


def test_the_weight_of_motion_by_hand() -> None:
    """Frames differ by |3 - 1| / (3 + 1) = 0.5, so m = (0.5 / 0.385)^8, and its growth counts too."""
    motion = (0.5 / MOTION_SCALE) ** MOTION_POWER
    outputs = [moving(1 + 0.001 * i) for i in range(30)]
    _, changes = drive(AdaCache(motion=True), outputs)
    # Step 1 of 30 lies before the window, whose weight is 1; step 2 (the third) is the first inside.
    assert changes[2] == pytest.approx(0.001, rel=1e-3)
    assert changes[1] is None
    grown = motion + abs(MOTION_GRADIENT * (motion - 1) / 6)
    later = next(i for i, change in enumerate(changes) if i > 2 and change != changes[2])
    assert changes[later] == pytest.approx(0.001 / 1.001 * grown, rel=1e-2)


def test_alike_frames_need_no_computation() -> None:
    """Without motion the weight is its growth alone: from 1 to 0 over the steps in between."""
    _, changes = drive(AdaCache(motion=True), [still(1 + 0.01 * i) for i in range(30)])
    inside = [change for change in changes[3:26] if change is not None]
    assert min(inside) == pytest.approx(0.0, abs=1e-6)


def test_one_frame_has_no_motion() -> None:
    policy = AdaCache(motion=True).compose(MODEL)
    assert policy.blocks is not None
    decider = policy.blocks.begin(run_info(30, frames=1))
    for index in range(2):
        step = StepInfo(index=index, total=30, timestep=1000, sigma=1)
        decider.enter_call(step, call_of("cond"))
        decider.observe(step, "cond", BlockKey(Stack.MAIN, 1), SELF, attention(1.0))


# Settings -------------------------------------------------------------------------------------------


def test_half_a_code_book_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="thresholds and rates go together, got 2 and 1"
    ) as caught:
        AdaCache(thresholds=(0.1, 0.2), rates=(3,))
    assert caught.value.setting == "rates"


def test_thresholds_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ConfigError, match="thresholds must rise") as caught:
        AdaCache(thresholds=(0.2, 0.1), rates=(3, 2))
    assert caught.value.setting == "thresholds"


def test_a_probe_block_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="the model has no block 4") as caught:
        AdaCache(probe_blocks=(1, 4)).compose(MODEL)
    assert caught.value.setting == "probe_blocks"
    assert "0 to 3" in str(caught.value)


# On a model -----------------------------------------------------------------------------------------


def edit(policy: str | AdaCache, steps: int = 20, **options: object) -> tuple[Tensor, Trace]:
    pipeline = CASE.make_pipeline(0)
    with accelerate(pipeline, policy, backbone=CASE.backbone, **options) as session:  # type: ignore[arg-type]
        return CASE.run(pipeline, steps, "separate", 0), session.trace


@pytest.mark.parametrize("steps", [8, 20, 50, 100])
def test_default_settings_skip_and_do_not_run_away(steps: int) -> None:
    """The code that other results were made with never skipped; and a fifth of a run is the most."""
    _, trace = edit("adacache", steps)
    modes = trace.modes()
    assert modes.count(Mode.REUSE) >= steps // 4
    longest = max(len(list(run)) for mode, run in groupby(modes) if mode is Mode.REUSE)
    assert longest < max(2, steps / 4)
    assert max(r.host_reads for r in trace.records) <= 1


def test_a_reused_step_runs_no_block() -> None:
    _, trace = edit("adacache")
    for record in trace.records:
        ran = record.blocks_run + record.control_run
        assert (ran == 0) == (record.mode is Mode.REUSE)


def test_looking_at_attention_changes_no_result() -> None:
    """The block that is looked at is run by its parts; with rates of 1 nothing is reused."""
    bare = CASE.run(CASE.make_pipeline(0), 8, "separate", 0)
    result, trace = edit(AdaCache(thresholds=(9.0,), rates=(1,)), 8)
    assert set(trace.modes()) == {Mode.FULL}
    # The parts are called one by one, so sums may round in another order: fp32 has 2**-23.
    assert torch.allclose(result, bare, rtol=0, atol=64 * 2**-23 * float(bare.abs().max()))


def test_presets_compute_less_and_less() -> None:
    shares = [edit("adacache", preset=p)[1].totals().flops for p in ("quality", "balanced", "fast")]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == 3


@pytest.mark.parametrize("steps", [20, 50])
def test_an_asked_speed_up_is_reached(steps: int) -> None:
    _, trace = edit("adacache", steps, target_speedup=2.5)
    assert trace.totals().flops_speedup == pytest.approx(2.5, rel=0.05)


@parametrize_with_checks(
    policies={
        "adacache deciding blocks": lambda: AdaCache(level="block"),
        "adacache with motion": lambda: AdaCache(
            motion=True, probe_blocks=(0, 1), probe=SubLayer.FEED_FORWARD
        ),
    }
)
def test_contract(check: BoundCheck) -> None:
    check()


# Blocks inside the steps of another policy -------------------------------------------------------------


@pytest.mark.parametrize("name", ["adacache+teacache", "teacache+adacache"])
def test_beside_a_step_policy_it_decides_the_blocks_of_computed_steps(name: str) -> None:
    _, alone = edit("teacache")
    _, both = edit(name)
    assert both.modes() == alone.modes()
    assert sum(r.blocks_run for r in both.records) < sum(r.blocks_run for r in alone.records)
    assert both.settings["adacache.level"] == "block"


def test_alone_it_decides_steps_and_keeps_one_residual_a_branch() -> None:
    _, steps = edit("adacache")
    _, blocks = edit(AdaCache(level="block"))
    assert set(blocks.modes()) == {Mode.FULL}
    assert (
        blocks.peak_cache_bytes
        == CASE.make_pipeline(0).model.config.layers * steps.peak_cache_bytes
    )


@pytest.mark.parametrize(
    ("name", "settings", "both"),
    [
        ("adacache+teacache", {"adacache.level": "step"}, ("adacache", "teacache", "step")),
        ("adacache+pab", {}, ("adacache", "pab", "blocks")),
        ("fastcache+adacache", {}, ("adacache", "fastcache", "blocks")),
    ],
)
def test_two_answers_to_one_question_are_refused_by_name(
    name: str, settings: dict[str, object], both: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        edit(name, settings=settings)
    assert all(f"{word}" in str(caught.value) for word in both)


def test_every_branch_adds_its_own_residuals() -> None:
    """With a branch left out when a block last ran, its residual is of another step: it runs."""
    policy = AdaCache(level="block", thresholds=(9.0,), rates=(4,)).compose(MODEL)
    assert policy.blocks is not None
    decider = policy.blocks.begin(run_info(20))
    key, uses = BlockKey(Stack.MAIN, 0), []
    for index in range(8):
        step = StepInfo(index=index, total=20, timestep=1000, sigma=1)
        decider.prepare(step, Numbers())  # type: ignore[arg-type]  # reads numbers only
        for branch in ("cond", "uncond") if index != 1 else ("cond",):
            decider.enter_call(step, call_of(branch))
            action = decider.block(step, branch, key, attention(1.0))
            uses.append((index, branch, action.use))
            for part in action.observe:
                decider.observe(step, branch, key, part, attention(1.0))
    ran = [(index, branch) for index, branch, use in uses if use is Use.RUN]
    # Run at 0 (nothing known) and 1 (no rate yet), then every 4th step; uncond missed step 1.
    cond = [index for index, branch in ran if branch == "cond"]
    assert cond == [0, 1, 5]
    assert [index for index, branch in ran if branch == "uncond"] == [0, 2, 3, 4, 5]


def test_a_probe_before_the_plan_runs_its_blocks() -> None:
    policy = AdaCache(level="block", thresholds=(9.0,), rates=(4,)).compose(MODEL)
    assert policy.blocks is not None
    decider = policy.blocks.begin(run_info(20))
    key = BlockKey(Stack.MAIN, 0)

    def ask(index: int, *, planned: bool) -> BlockAction:
        step = StepInfo(index=index, total=20, timestep=1000, sigma=1)
        if planned:
            decider.enter_call(step, call_of("cond"))
            decider.prepare(step, Numbers())  # type: ignore[arg-type]
        action = decider.block(step, "cond", key, attention(1.0))
        for part in action.observe:
            decider.observe(step, "cond", key, part, attention(1.0))
        return action

    uses = [ask(index, planned=True).use for index in range(3)]
    assert uses == [Use.RUN, Use.RUN, Use.REUSE]
    assert ask(3, planned=False).use is Use.RUN


def test_guarded_steps_run_every_block() -> None:
    _, trace = edit("adacache+teacache", guards=Guards(full_steps=(6,)))
    layers = MODEL.layers
    assert [r.blocks_run for r in trace.records if r.step == 6] == [layers, layers]


def test_teacache_is_what_decides_the_steps() -> None:
    composed = Engine(policy=TeaCache().compose(MODEL)).policy
    assert AdaCache().beside([composed]).compose(MODEL).step is None
    assert (
        AdaCache().beside([AdaCache(level="block").compose(MODEL)]).compose(MODEL).step is not None
    )
