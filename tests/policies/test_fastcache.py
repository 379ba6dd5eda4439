"""FastCache: which blocks are left out, and that leaving one out keeps its residual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import pytest
import torch
from attrs import define, evolve, field, frozen
from torch import Tensor

from hetcache_core.backbone.adapter import RunInfo
from hetcache_core.errors import ConfigError
from hetcache_core.policy.guards import Guards
from hetcache_core.policy.pieces import BlockAction, BlockDecider, BlockPolicy, Use
from hetcache_core.policy.recipe import CachePolicy
from hetcache_core.policy.signals import Signals
from hetcache_core.records.trace import Trace
from hetcache_core.session import accelerate
from hetcache_core.steps import BlockKey, BranchRows, Mode, ModelInfo, Stack, StepInfo
from hetcache_core.testing import BoundCheck, parametrize_with_checks, tiny_case
from hetcache_core.tokens import Grid
from hetcache_policies.fastcache import SKETCH_TOKENS, FastCache

MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)
CASE = tiny_case()
TOLIST = Tensor.tolist
INFO = RunInfo(
    model=MODEL,
    timesteps=(1000.0,),
    sigmas=(1.0,),
    grid=Grid(frames=1, height=1, width=2, pixel_height=2, pixel_width=2, frame_stride=4),
    mask=None,
    branches=("cond", "uncond"),
    device="cpu",
)
KEY = BlockKey(Stack.MAIN, 1)


# The decider, by hand -------------------------------------------------------------------------------


@define(eq=False)
class Numbers:
    """Signals of which only numbers are read."""

    threshold_factor: float = 1.0
    reads: int = field(default=0, init=False)

    def read_many(self, values: Tensor) -> list[float]:
        self.reads += 1
        return TOLIST(values)  # type: ignore[no-any-return]


def begin(recipe: FastCache | None = None) -> BlockDecider:
    piece = (recipe or FastCache()).compose(MODEL).blocks
    assert piece is not None
    return piece.begin(INFO)


def at(index: int, total: int = 99) -> StepInfo:
    """A step of a run whose last one is guarded, as the policy wants it to be."""
    last = index == total - 1
    return StepInfo(index=index, total=total, timestep=1000 - index, sigma=0.5, computed=last)


COND, UNCOND = (BranchRows("cond", 0, 1),), (BranchRows("uncond", 0, 1),)


def drive(
    levels: Sequence[float],
    recipe: FastCache | None = None,
    numbers: Numbers | None = None,
    steps: Sequence[int] | None = None,
    total: int = 99,
) -> str:
    """Play one block whose input is constant over tokens: R for run, h for left out."""
    decider, uses = begin(recipe), ""
    for index, level in zip(steps or range(len(levels)), levels, strict=True):
        step = at(index, total)
        decider.enter_call(step, COND)
        decider.prepare(step, numbers or Numbers())  # type: ignore[arg-type]
        action = decider.block(step, "cond", KEY, torch.full((1, 2, 4), level))
        uses += "h" if action.use is Use.REUSE else "R"
    return uses


def rising(rate: float, steps: int) -> list[float]:
    return [1 + rate * i for i in range(steps)]


def test_a_block_is_left_out_while_its_input_is_near_that_of_its_last_run() -> None:
    """Of 2 % a step, two steps are within 5 %, three are not. The first two runs measure."""
    assert drive(rising(0.02, 11)) == "RR" + "hhR" * 3


def test_small_drifts_add_up() -> None:
    """Compared with the step before, and not with the last run, 2 % would be left out for ever."""
    assert drive(rising(0.02, 11), FastCache(max_hits=50)) == "RR" + "hhR" * 3


def test_a_block_that_never_moves_is_left_out_three_times_in_a_row_at_most() -> None:
    assert drive([1.0] * 14) == "RR" + "hhhR" * 3


def test_fast_inputs_are_never_left_out() -> None:
    assert drive(rising(0.1, 12)) == "R" * 12


def test_a_jump_is_noticed_one_step_later() -> None:
    """The price of not waiting: the jump into step 4 is measured there and acted upon at step 5."""
    assert drive([1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0]) == "RRhhhRR"


def test_distances_are_taken_on_to_the_step_that_they_decide() -> None:
    """Where a step policy leaves out every second step, 2 % a step are 4 % from run to run."""
    assert drive(rising(0.04, 6), steps=range(0, 12, 2)) == "RRhRhR"


def test_the_last_step_runs() -> None:
    assert drive([1.0] * 6, total=6) == "RRhhhR"
    assert drive([1.0] * 5, total=5) == "RRhhR"


def test_a_number_that_is_none_runs_the_block() -> None:
    assert drive([1.0, float("nan"), 1.0, 1.0]) == "RRRR"


def test_a_threshold_factor_stretches_the_threshold() -> None:
    assert drive(rising(0.04, 5)) == "RRhRh"
    assert drive(rising(0.04, 5), numbers=Numbers(3.0)) == "RRhhh"


def test_one_read_a_step_and_none_inside_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*_: object) -> None:
        raise AssertionError("waited for the device")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, wait)
    numbers = Numbers()
    assert drive(rising(0.02, 11), numbers=numbers) == "RR" + "hhR" * 3
    assert numbers.reads == 9  # two steps are needed for a first distance


def test_only_the_middle_of_the_depth_is_left_out() -> None:
    for layers, expected in ((1, [0]), (2, [0, 1]), (4, [1, 2]), (30, list(range(10, 20)))):
        blocks = FastCache().compose(evolve(MODEL, layers=layers)).blocks
        assert list(blocks.blocks) == expected  # type: ignore[union-attr]


def test_the_branch_that_comes_first_decides_for_the_other() -> None:
    decider, uses = begin(), []
    for index in range(6):
        decider.enter_call(at(index), COND)
        decider.prepare(at(index), Numbers())  # type: ignore[arg-type]
        first = decider.block(at(index), "cond", KEY, torch.ones(1, 2, 4))
        decider.enter_call(at(index), UNCOND)
        other = decider.block(at(index), "uncond", KEY, torch.full((1, 2, 4), 3.0**index))
        assert first == other
        uses.append(first.use)
    assert Use.REUSE in uses


def test_a_merged_call_is_judged_by_its_first_branch() -> None:
    """Whose rows need not come first."""
    decider, uses = begin(), ""
    for index in range(6):
        hidden = torch.cat([torch.full((1, 2, 4), 3.0**index), torch.ones(1, 2, 4)])
        decider.enter_call(at(index), (BranchRows("cond", 1, 2), BranchRows("uncond", 0, 1)))
        decider.prepare(at(index), Numbers())  # type: ignore[arg-type]
        uses += (
            "h" if decider.block(at(index), "cond+uncond", KEY, hidden).use is Use.REUSE else "R"
        )
    assert uses == "RRhhhR"


def test_a_branch_that_missed_the_last_run_runs() -> None:
    """Its residual is older than the one that the decision is about."""
    decider = begin()
    uses = []
    for index in range(4):
        decider.enter_call(at(index), COND)
        decider.prepare(at(index), Numbers())  # type: ignore[arg-type]
        decider.block(at(index), "cond", KEY, torch.ones(1, 2, 4))
        if index != 1:
            decider.enter_call(at(index), UNCOND)
            uses.append(decider.block(at(index), "uncond", KEY, torch.ones(1, 2, 4)).use)
    assert uses == [Use.RUN, Use.RUN, Use.RUN]


def test_a_probe_before_the_plan_runs_its_blocks() -> None:
    decider = begin()
    for index in range(3):
        decider.enter_call(at(index), COND)
        decider.prepare(at(index), Numbers())  # type: ignore[arg-type]
        last = decider.block(at(index), "cond", KEY, torch.ones(1, 2, 4))
    assert last.use is Use.REUSE
    assert decider.block(at(3), "cond", KEY, torch.ones(1, 2, 4)).use is Use.RUN


def test_inputs_are_kept_as_sketches() -> None:
    decider = begin()
    decider.enter_call(at(0), COND)
    decider.block(at(0), "cond", KEY, torch.randn(1, 4 * SKETCH_TOKENS, 3))
    (known,) = decider._known.values()  # type: ignore[attr-defined]
    assert known.sketch.shape == (1, SKETCH_TOKENS, 3)
    assert known.sketch.untyped_storage().nbytes() == SKETCH_TOKENS * 3 * 4


def test_shares_with_no_block_between_them_are_refused() -> None:
    with pytest.raises(ConfigError, match="no block to leave out") as caught:
        FastCache(blocks=(0.5, 0.5)).compose(MODEL)
    assert caught.value.setting == "blocks"
    assert "4 blocks" in str(caught.value)


# On a model -----------------------------------------------------------------------------------------


@final
@frozen(eq=False)
class Spy(BlockPolicy):
    """Asks another block policy and keeps the input of every block and what was answered."""

    inner: BlockPolicy
    seen: dict[tuple[int, str, int], tuple[Tensor, Use]] = field(factory=dict)

    def begin(self, run: RunInfo) -> BlockDecider:
        return _Spying(self.inner.begin(run), self.seen)


@final
@define(eq=False)
class _Spying(BlockDecider):
    _inner: BlockDecider
    _seen: dict[tuple[int, str, int], tuple[Tensor, Use]]

    def enter_call(self, step: StepInfo, branches: tuple[BranchRows, ...]) -> None:
        self._inner.enter_call(step, branches)

    def prepare(self, step: StepInfo, signals: Signals) -> None:
        self._inner.prepare(step, signals)

    def block(self, step: StepInfo, branch: str, key: BlockKey, hidden: Tensor) -> BlockAction:
        action = self._inner.block(step, branch, key, hidden)
        self._seen[step.index, branch, key.index] = (hidden.clone(), action.use)
        return action


def edit(
    policy: str | FastCache | CachePolicy, steps: int = 20, **options: Any
) -> tuple[Tensor, Trace]:
    pipeline = CASE.make_pipeline(0)
    with accelerate(pipeline, policy, backbone=CASE.backbone, **options) as session:
        return CASE.run(pipeline, steps, "separate", 0), session.trace


def test_a_hit_adds_the_residual_of_the_blocks_last_run() -> None:
    """The published code puts an untrained map, or nothing at all, in the block's place."""
    blocks = FastCache().compose(MODEL).blocks
    assert blocks is not None
    spy = Spy(blocks)
    edit(CachePolicy(name="spied", blocks=spy))
    change: dict[tuple[str, int], Tensor] = {}
    hits = 0
    for (step, branch, layer), (hidden, use) in spy.seen.items():
        after = spy.seen.get((step, branch, layer + 1))
        if after is None:
            continue
        residual = after[0] - hidden
        if use is Use.RUN:
            change[branch, layer] = residual
            continue
        hits += 1
        # Adding and subtracting the input rounds twice, by 2**-24 of numbers of about its size.
        bound = 4 * 2**-24 * float(after[0].abs().max())
        assert (residual - change[branch, layer]).abs().max() <= bound
        assert residual.abs().max() > 100 * bound
    assert hits > 10


def test_a_threshold_of_nothing_is_the_uncached_model() -> None:
    bare = CASE.run(CASE.make_pipeline(0), 8, "separate", 0)
    result, trace = edit(FastCache(threshold=0.0), 8)
    assert torch.equal(result, bare)
    assert {r.blocks_run for r in trace.records} == {4}


@pytest.mark.parametrize("steps", [20, 50])
def test_default_settings_leave_blocks_out_and_read_once_a_step(steps: int) -> None:
    _, trace = edit("fastcache", steps)
    assert sum(r.blocks_run for r in trace.records) < 0.9 * 4 * len(trace.records)
    for index in range(steps):
        assert sum(r.host_reads for r in trace.records if r.step == index) <= 1
    assert {r.blocks_run for r in trace.records if r.step in {0, steps - 1}} == {4}


def test_control_blocks_whose_hints_nobody_needs_do_not_run() -> None:
    """Block 2 takes the second hint; where it is left out, so is the control block."""
    _, trace = edit("fastcache")
    assert {(r.blocks_run, r.control_run) for r in trace.records} == {(4, 2), (2, 1)}


def test_inside_the_steps_of_teacache_it_leaves_blocks_out() -> None:
    _, alone = edit("teacache")
    _, both = edit("fastcache+teacache")
    assert both.modes() == alone.modes()
    assert Mode.REUSE in both.modes()
    assert sum(r.blocks_run for r in both.records) < sum(r.blocks_run for r in alone.records)


@pytest.mark.parametrize("other", ["pab", "toca"])
def test_another_block_policy_is_refused_by_name(other: str) -> None:
    with pytest.raises(ConfigError, match="blocks") as caught:
        edit(f"fastcache+{other}")
    assert "'fastcache'" in str(caught.value)
    assert f"'{other}'" in str(caught.value)


def test_partial_steps_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"hetcache\+fastcache"):
        edit("hetcache+fastcache")


def test_guarded_steps_run_every_block() -> None:
    _, free = edit("fastcache")
    left_out = next(r.step for r in free.records if r.blocks_run < 4)
    _, guarded = edit("fastcache", guards=Guards(full_steps=(left_out,)))
    assert {r.blocks_run for r in guarded.records if r.step == left_out} == {4}


@pytest.mark.parametrize("steps", [20, 50])
def test_an_asked_speed_up_is_reached(steps: int) -> None:
    _, trace = edit("fastcache", steps, target_speedup=1.3)
    assert trace.totals().flops_speedup == pytest.approx(1.3, rel=0.05)


def test_presets_compute_less_and_less() -> None:
    shares = [
        edit("fastcache", preset=p)[1].totals().flops for p in ("quality", "balanced", "fast")
    ]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == 3


@parametrize_with_checks(policies=[lambda: FastCache(threshold=0.2, blocks=(0.0, 1.0))])
def test_contract(check: BoundCheck) -> None:
    check()
