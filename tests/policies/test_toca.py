"""ToCa and DuCa: the cycle, the tokens that are chosen, and what the others reuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hetcache_core.backbone.adapter import RunInfo
from hetcache_core.errors import ConfigError
from hetcache_core.policy.guards import Guards
from hetcache_core.policy.pieces import BlockAction, PartAction, Use
from hetcache_core.records.trace import Trace
from hetcache_core.session import accelerate
from hetcache_core.steps import BlockKey, BranchRows, Mode, ModelInfo, Stack, StepInfo, SubLayer
from hetcache_core.testing import BoundCheck, parametrize_with_checks, tiny_case
from hetcache_core.tokens import Grid
from hetcache_policies.toca import DuCa, ToCa

MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)
CASE = tiny_case()
SELF, CROSS, FEED = SubLayer.SELF_ATTENTION, SubLayer.CROSS_ATTENTION, SubLayer.FEED_FORWARD
TOKENS = 40
MAIN, CONTROL = BlockKey(Stack.MAIN, 1), BlockKey(Stack.CONTROL, 1)
HIDDEN = torch.zeros(1, TOKENS, 4)


# The decider, by hand -------------------------------------------------------------------------------


def begin(recipe: ToCa | DuCa, branches: tuple[str, ...] = ("cond", "uncond")) -> Any:
    piece = recipe.compose(MODEL).blocks
    assert piece is not None
    return piece.begin(
        RunInfo(
            model=MODEL,
            timesteps=(1000.0,),
            sigmas=(1.0,),
            grid=Grid(frames=2, height=4, width=5, pixel_height=2, pixel_width=2, frame_stride=4),
            mask=None,
            branches=branches,
            device="cpu",
        )
    )


COND, UNCOND = (BranchRows("cond", 0, 1),), (BranchRows("uncond", 0, 1),)


def at(index: int, total: int = 99) -> StepInfo:
    """A step of a run whose first three steps and last one are guarded, as ToCa wants them to be."""
    guarded = index < 3 or index == total - 1
    return StepInfo(index=index, total=total, timestep=1000 - index, sigma=0.5, computed=guarded)


def letter(act: PartAction) -> str:
    """S for run and store, R for run, t for some tokens, r for reuse."""
    if act.use is Use.RUN:
        return "S" if act.store else "R"
    return "r" if act.rows is None else "t"


def letters(decider: Any, steps: int, part: SubLayer, key: BlockKey = MAIN) -> str:
    found = ""
    for index in range(steps):
        step = at(index, steps)
        action = (
            decider.control(step, "cond", key)
            if key.stack is Stack.CONTROL
            else decider.block(step, "cond", key, HIDDEN)
        )
        found += letter(action.parts[part])
        for seen in action.observe:
            decider.observe(step, "cond", key, seen, HIDDEN)
    return found


@pytest.mark.parametrize("key", [MAIN, CONTROL])
def test_the_cycle_by_hand(key: BlockKey) -> None:
    """Three full steps, then one in three; the last is full; with 6, cross-attention lasts longer."""
    steps = 12
    assert letters(begin(ToCa()), steps, SELF, key) == "SSS" + "rrS" * 2 + "rrR"
    assert letters(begin(ToCa()), steps, FEED, key) == "SSS" + "ttS" * 2 + "ttR"
    assert letters(begin(ToCa()), steps, CROSS, key) == "SSS" + "rrS" * 2 + "rrR"
    assert letters(begin(ToCa(cross_cycle=6)), steps, CROSS, key) == "SSS" + "rrr" + "rrS" + "rrR"


def test_shares_of_nothing_and_of_all() -> None:
    recipe = ToCa(feed_forward_share=0.0, cross_attention_share=1.0)
    assert letters(begin(recipe), 9, FEED) == "SSSrrSrrR"
    assert letters(begin(recipe), 9, CROSS)[3:5] == "tt"


def test_every_second_step_between_full_ones_reuses_the_trunk_in_duca() -> None:
    decider = begin(DuCa(cycle=5))
    modes, reasons = "", []
    for index in range(14):
        decision = decider.decide(at(index, 14), None)
        modes += "F" if decision.mode is Mode.FULL else "."
        reasons.append(decision.reason)
        if decision.mode is Mode.FULL:
            decider.block(at(index, 14), "cond", MAIN, HIDDEN)
    assert modes == "FFF" + ".F.FF" + ".F.FF" + "F"
    assert reasons[3:5] == ["aggressive step of the cycle", "conservative step of the cycle"]


def test_a_full_step_that_another_policy_left_out_is_made_up_for() -> None:
    """Steps that never get here are not computed, so the cycle goes on from the last full one."""
    decider = begin(ToCa())
    for index in (0, 1, 2, 3):
        decider.block(at(index), "cond", MAIN, HIDDEN)
    action = decider.block(at(6), "cond", MAIN, HIDDEN)  # 5 was due, and left out
    assert action.parts[FEED] == PartAction(store=True)


def test_a_guard_makes_a_full_step_of_an_aggressive_one() -> None:
    decider = begin(DuCa())
    for index in range(3):
        decider.decide(at(index), None)
        decider.block(at(index), "cond", MAIN, HIDDEN)
    assert decider.decide(at(3), None).mode is Mode.REUSE
    assert decider.block(at(3), "cond", MAIN, HIDDEN).parts[SELF] == PartAction(store=True)


# Which tokens -----------------------------------------------------------------------------------------


def after_full_steps(
    recipe: ToCa | DuCa, output: Tensor, branches: tuple[BranchRows, ...] = COND
) -> Any:
    decider, branch = begin(recipe), "+".join(each.name for each in branches)
    for index in range(3):
        decider.enter_call(at(index), branches)
        action = decider.block(at(index), branch, MAIN, HIDDEN)
        for part in action.observe:
            decider.observe(at(index), branch, MAIN, part, output)
    return decider


def rows_at(decider: Any, index: int, branch: str = "cond", key: BlockKey = MAIN) -> list[int]:
    action: BlockAction = decider.block(at(index), branch, key, HIDDEN)
    rows = action.parts[FEED].rows
    assert rows is not None
    return rows.tolist()  # type: ignore[no-any-return]


def norms(*values: float) -> Tensor:
    """An attention output of one channel whose tokens have these norms."""
    return torch.tensor(values).view(1, -1, 1)


def test_tokens_of_least_attention_output_are_chosen_first() -> None:
    output = norms(*(float((7 * i) % TOKENS + 1) for i in range(TOKENS)))
    expected = sorted(range(TOKENS), key=lambda i: float(output[0, i, 0]))[:6]
    assert rows_at(after_full_steps(ToCa(), output), 3) == sorted(expected)


def test_the_longer_a_token_has_waited_the_sooner_it_is_chosen() -> None:
    """Of equal importance, every token is computed once before any of them is computed twice."""
    decider = after_full_steps(ToCa(cycle=9, feed_forward_share=0.25), norms(*[1.0] * TOKENS))
    chosen = [row for index in range(3, 7) for row in rows_at(decider, index)]
    assert sorted(chosen) == list(range(TOKENS))


def test_a_full_step_makes_all_tokens_fresh() -> None:
    output = norms(*(float(i + 1) for i in range(TOKENS)))
    decider = after_full_steps(ToCa(), output)
    first = rows_at(decider, 3)
    rows_at(decider, 4)
    decider.block(at(5), "cond", MAIN, HIDDEN)
    assert rows_at(decider, 6) == first


@pytest.mark.parametrize("score", ["norm", "random"])
def test_both_branches_compute_the_same_tokens(score: Any) -> None:
    """The difference of the branches is amplified by guidance; each choosing its own would show."""
    decider = after_full_steps(ToCa(score=score), torch.randn(1, TOKENS, 4))
    for index in (3, 4):
        assert rows_at(decider, index, "cond") == rows_at(decider, index, "uncond")


def test_only_the_branch_that_comes_first_is_looked_at() -> None:
    decider = begin(ToCa())
    observed = []
    for branches in (COND, UNCOND):
        decider.enter_call(at(0), branches)
        observed.append(decider.block(at(0), branches[0].name, MAIN, HIDDEN).observe)
    assert observed == [{SELF}, set()]


def test_a_merged_call_is_judged_by_its_first_branch() -> None:
    output = torch.randn(1, TOKENS, 4, generator=torch.Generator().manual_seed(0))
    alone = after_full_steps(ToCa(), output)
    both = (BranchRows("cond", 1, 2), BranchRows("uncond", 0, 1))
    merged = after_full_steps(ToCa(), torch.cat([-9 * output.flip(1), output]), both)
    assert rows_at(merged, 3, "cond+uncond") == rows_at(alone, 3)


def test_random_tokens_differ_by_step_block_and_seed_and_need_no_look() -> None:
    recipe = ToCa(score="random")
    decider = begin(recipe)
    decider.enter_call(at(0), COND)
    assert not decider.block(at(0), "cond", MAIN, HIDDEN).observe
    again, other = begin(recipe), begin(ToCa(score="random", seed=1))
    for each in (decider, again, other):
        for index in range(3):
            each.block(at(index), "cond", MAIN, HIDDEN)
    rows = rows_at(decider, 3)
    assert len(set(rows)) == round(0.15 * TOKENS)
    assert rows_at(again, 3) == rows
    assert rows_at(other, 3) != rows
    assert rows_at(decider, 3, key=BlockKey(Stack.MAIN, 2)) != rows


# On a model ------------------------------------------------------------------------------------------


def edit(
    policy: str | ToCa | DuCa, guidance: str = "separate", steps: int = 12, **options: Any
) -> tuple[Tensor, Trace]:
    pipeline = CASE.make_pipeline(0)
    with accelerate(pipeline, policy, backbone=CASE.backbone, **options) as session:
        return CASE.run(pipeline, steps, guidance, 0), session.trace


def test_a_cycle_of_one_is_the_uncached_model() -> None:
    bare, _ = edit("none")
    result, _ = edit(ToCa(cycle=1))
    # The parts are called one by one, so sums may round in another order: fp32 has 2**-23.
    assert torch.allclose(result, bare, rtol=0, atol=64 * 2**-23 * float(bare.abs().max()))


def test_all_tokens_of_all_that_can_be_recomputed_leave_only_attention_reused() -> None:
    _, trace = edit(ToCa(feed_forward_share=1.0, cross_attention_share=1.0))
    cheap = [r for r in trace.records if r.parts_reused]
    # 4 main and 2 control blocks, three parts each; the model's own count of what was computed.
    assert {r.parts_reused for r in cheap} == {18}
    _, none = edit(ToCa(feed_forward_share=0.0, cross_attention_share=0.0))
    fewer = [r for r in none.records if r.parts_reused]
    assert max(r.flops for r in fewer) < min(r.flops for r in cheap) < cheap[0].flops_full


def test_more_recomputed_tokens_come_nearer_to_the_uncached_result() -> None:
    """So the recomputed rows are written at their own place."""
    bare, _ = edit("none")
    errors = []
    for share in (0.0, 0.5, 1.0):
        recipe = ToCa(feed_forward_share=share, cross_attention_share=share)
        errors.append(float((edit(recipe)[0] - bare).norm()))
    assert errors == sorted(errors, reverse=True)


def test_duca_computes_less_than_toca() -> None:
    _, toca = edit("toca")
    _, duca = edit("duca")
    assert toca.modes().count(Mode.REUSE) == 0
    assert duca.modes().count(Mode.REUSE) == 3
    assert all(r.blocks_run + r.control_run == 0 for r in duca.records if r.mode is Mode.REUSE)
    assert duca.totals().flops < toca.totals().flops < 0.7 * toca.totals().flops_full


@pytest.mark.parametrize("name", ["toca", "duca"])
def test_presets_compute_less_and_less(name: str) -> None:
    shares = [edit(name, preset=p)[1].totals().flops for p in ("quality", "balanced", "fast")]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == 3


@pytest.mark.parametrize("name", ["toca", "duca"])
def test_nothing_waits_for_the_device(name: str) -> None:
    _, trace = edit(name)
    assert {r.host_reads for r in trace.records} == {0}


def test_guarded_steps_reuse_nothing() -> None:
    _, trace = edit("duca", guards=Guards(full_steps=(3, 4)))
    guarded = [r for r in trace.records if r.step in {3, 4}]
    assert {(r.mode, r.blocks_run, r.parts_reused) for r in guarded} == {(Mode.FULL, 4, 0)}


def test_inside_the_steps_of_teacache_toca_recomputes_tokens() -> None:
    _, alone = edit("teacache")
    _, both = edit("toca+teacache")
    assert both.modes() == alone.modes()
    assert both.totals().flops < alone.totals().flops


@pytest.mark.parametrize(
    ("name", "both", "piece"),
    [
        ("duca+teacache", ("duca", "teacache"), "step"),
        ("toca+pab", ("toca", "pab"), "blocks"),
        ("toca+duca", ("toca", "duca"), "blocks"),
    ],
)
def test_two_answers_to_one_question_are_refused_by_name(
    name: str, both: tuple[str, str], piece: str
) -> None:
    with pytest.raises(ConfigError, match=piece) as caught:
        edit(name)
    assert all(f"'{policy}'" in str(caught.value) for policy in both)


@parametrize_with_checks(policies=[lambda: DuCa(score="random", cross_attention_share=0.2)])
def test_contract(check: BoundCheck) -> None:
    check()
