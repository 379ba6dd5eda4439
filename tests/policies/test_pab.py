"""Pyramid attention broadcast: what is reused when, and for whom."""

from __future__ import annotations

import random

import pytest
import torch

from hetcache_core.backbone.adapter import RunInfo
from hetcache_core.errors import ConfigError
from hetcache_core.policy.pieces import BlockAction, BlockDecider, Use
from hetcache_core.policy.recipe import PolicyRecipe, combine
from hetcache_core.records.trace import Trace
from hetcache_core.session import accelerate
from hetcache_core.steps import BlockKey, ModelInfo, Stack, StepInfo, SubLayer
from hetcache_core.testing import TinyConfig, tiny_case
from hetcache_core.tokens import Grid
from hetcache_policies.hetcache import HetCache
from hetcache_policies.none import Uncached
from hetcache_policies.pab import PRESETS, PyramidBroadcast
from hetcache_policies.teacache import TeaCache

MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)
SELF, CROSS, FEED = SubLayer.SELF_ATTENTION, SubLayer.CROSS_ATTENTION, SubLayer.FEED_FORWARD
MAIN_0, MAIN_1 = BlockKey(Stack.MAIN, 0), BlockKey(Stack.MAIN, 1)
CONTROL_0 = BlockKey(Stack.CONTROL, 0)
HIDDEN = torch.zeros(1, 2, 4)


def begin(recipe: PyramidBroadcast, steps: int) -> BlockDecider:
    piece = recipe.compose(MODEL).blocks
    assert piece is not None
    sigmas = tuple(1 - i / steps for i in range(steps))
    return piece.begin(
        RunInfo(
            model=MODEL,
            timesteps=tuple(1000 * s for s in sigmas),
            sigmas=sigmas,
            grid=Grid(frames=1, height=1, width=2, pixel_height=2, pixel_width=2, frame_stride=1),
            mask=None,
            branches=("cond", "uncond"),
            device="cpu",
        )
    )


def step(index: int, total: int) -> StepInfo:
    return StepInfo(index=index, total=total, timestep=1000 - index, sigma=0.5)


def ask(decider: BlockDecider, index: int, total: int, branch: str, key: BlockKey) -> BlockAction:
    if key.stack is Stack.CONTROL:
        return decider.control(step(index, total), branch, key)
    return decider.block(step(index, total), branch, key, HIDDEN)


def letters(actions: list[BlockAction], part: SubLayer) -> str:
    """R for run, S for run and store, r for reuse."""
    found = [action.parts.get(part) for action in actions]
    return "".join(
        "R" if a is None else "r" if a.use is Use.REUSE else "S" if a.store else "R" for a in found
    )


def test_ranges_and_window_by_hand() -> None:
    """Of 21 steps, 4 to 16 lie between 15 % and 85 %; 3 is kept for 4, and 16 for nobody."""
    decider = begin(PyramidBroadcast(), 21)
    actions = [ask(decider, i, 21, "cond", MAIN_0) for i in range(21)]
    assert letters(actions, SELF) == "RRRS" + "SrSrSrSrSrSrR" + "RRRR"
    assert letters(actions, CROSS) == "RRRS" + "rrSrrrrrSrrrr" + "RRRR"
    assert letters(actions, FEED) == "R" * 21


def test_a_range_of_one_computes_always_and_keeps_nothing() -> None:
    decider = begin(PyramidBroadcast(self_attention=1, cross_attention=1), 21)
    assert all(not ask(decider, i, 21, "cond", MAIN_0).parts for i in range(21))


def test_branches_stacks_and_layers_count_for_themselves() -> None:
    """Whatever the order of calls, each gets what it would get alone."""
    keys = [(b, k) for b in ("cond", "uncond") for k in (MAIN_0, MAIN_1, CONTROL_0)]
    alone = {}
    for branch, key in keys:
        decider = begin(PyramidBroadcast(), 20)
        alone[branch, key] = [ask(decider, i, 20, branch, key) for i in range(20)]
    shuffled = {pair: [] for pair in keys}
    decider, order = begin(PyramidBroadcast(), 20), random.Random(0)
    for i in range(20):
        order.shuffle(keys)
        for branch, key in keys:
            shuffled[branch, key].append(ask(decider, i, 20, branch, key))
    assert shuffled == alone


def test_steps_that_are_left_out_are_not_counted() -> None:
    """Every second step is reused whole: counted by steps, self-attention would never be computed."""
    decider = begin(PyramidBroadcast(window=(0.0, 1.0)), 21)
    actions = [ask(decider, i, 21, "cond", MAIN_0) for i in range(1, 21, 2)]
    assert letters(actions, SELF) == "SrSrSrSrSr"


def test_feed_forward_outputs_are_kept_at_starts_and_reused_for_some_steps() -> None:
    recipe = PyramidBroadcast(
        feed_forward_starts=(0.5, 0.8), feed_forward_skip=2, feed_forward_blocks=1
    )
    decider = begin(recipe, 11)
    actions = [ask(decider, i, 11, "cond", MAIN_0) for i in range(11)]
    assert letters(actions, FEED) == "RRRRRSrrSrr"
    other = [ask(decider, i, 11, "cond", MAIN_1) for i in range(11)]
    assert letters(other, FEED) == "R" * 11


def test_feed_forward_outputs_of_a_start_that_was_left_out_are_not_taken_from_an_older_one() -> (
    None
):
    decider = begin(PyramidBroadcast(feed_forward_starts=(0.2, 0.6), feed_forward_skip=2), 11)
    actions = [ask(decider, i, 11, "cond", MAIN_0) for i in range(11) if i != 6]
    assert letters(actions, FEED) == "RRSrrR" + "RRRR"


def test_a_window_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"window must begin before it ends") as caught:
        PyramidBroadcast(window=(0.8, 0.2))
    assert caught.value.setting == "window"


# On a model --------------------------------------------------------------------------------------

CASE = tiny_case(TinyConfig(layers=2, control_layers=(0,)))


def edit(
    recipe: PolicyRecipe, guidance: str = "separate", steps: int = 12
) -> tuple[torch.Tensor, Trace]:
    pipeline = CASE.make_pipeline(0)
    with accelerate(pipeline, recipe, backbone=CASE.backbone) as session:
        return CASE.run(pipeline, steps, guidance, 0), session.trace


def test_ranges_of_one_are_the_uncached_model() -> None:
    plain, _ = edit(Uncached())
    found, trace = edit(PyramidBroadcast(self_attention=1, cross_attention=1))
    assert torch.equal(found, plain)
    assert sum(record.parts_reused for record in trace.records) == 0


def test_attention_is_reused_in_main_and_control_blocks_of_both_branches() -> None:
    """Of 12 steps, 2 to 9 are in the window: self-attention is reused at 3, 5, 7, 9, cross-attention
    at all but 6, in 2 main blocks and 1 control block."""
    _, trace = edit(PyramidBroadcast())
    for branch in ("cond", "uncond"):
        reused = [record.parts_reused for record in trace.records if record.branch == branch]
        assert reused == [0, 0, 3, 6, 3, 6, 0, 6, 3, 6, 0, 0]
    saved = [record.flops < record.flops_full for record in trace.records]
    assert saved == [record.parts_reused > 0 for record in trace.records]


def test_merged_guidance_gives_what_separate_calls_give() -> None:
    separate, _ = edit(PyramidBroadcast())
    merged, _ = edit(PyramidBroadcast(), "merged")
    plain, _ = edit(Uncached())
    assert (merged - separate).norm() < 1e-4 * plain.norm()
    assert (separate - plain).norm() > 1e-4 * plain.norm()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_faster_preset_of_pab_runs_less(preset: str) -> None:
    names = list(PRESETS)
    flops = [
        edit(PyramidBroadcast(**PyramidBroadcast.preset(name, MODEL)))[1].totals().flops
        for name in (preset, *names[names.index(preset) + 1 :])
    ]
    assert flops == sorted(flops, reverse=True)


def test_pab_goes_with_teacache_and_not_with_hetcache() -> None:
    both = combine(PyramidBroadcast().compose(MODEL), TeaCache().compose(MODEL))
    assert both.name == "pab+teacache"
    assert both.step is not None
    assert both.blocks is not None
    with pytest.raises(ConfigError, match="partial steps with block-level reuse"):
        combine(PyramidBroadcast().compose(MODEL), HetCache().compose(MODEL))


def test_with_teacache_parts_are_reused_in_the_steps_that_run() -> None:
    pipeline = CASE.make_pipeline(0)
    both = combine(
        PyramidBroadcast(window=(0.0, 1.0)).compose(MODEL), TeaCache(threshold=1.5).compose(MODEL)
    )
    with accelerate(pipeline, both, backbone=CASE.backbone) as session:
        CASE.run(pipeline, 12, "separate", 0)
    records = [record for record in session.trace.records if record.branch == "cond"]
    ran = [record.parts_reused for record in records if record.active]
    assert len(ran) < 12
    # The first in the window keeps, then self-attention is computed at every second, cross at every 6th.
    assert ran[:3] == [0, 6, 3]
