"""First-block caches: what the probe is compared with, the limits, and what a reused step runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor

from hetcache_core.errors import ConfigError
from hetcache_core.policy.guards import Guards
from hetcache_core.policy.pieces import Hold
from hetcache_core.policy.recipe import PolicyRecipe
from hetcache_core.records.trace import Trace
from hetcache_core.steps import Mode, ModelInfo, Span
from hetcache_core.testing import BoundCheck, decide, parametrize_with_checks, tiny_case
from hetcache_core.testing.watch import WatchedEngine, watched_run
from hetcache_policies.fbcache import DBCache, FBCache
from hetcache_policies.shared.predictors import Taylor
from hetcache_policies.shared.probe import ProbeSteps, some_tokens
from hetcache_policies.shared.signals import SIGNAL_TOKENS

MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)
WAN = ModelInfo(backbone="wan-vace", variant="wan2.1-1.3b", layers=30, width=1536, heads=12)
STEPS = (8, 20, 50, 100)
LAYOUTS = ["separate", "merged", "none"]
SLOW = [1.0, 1.02, 1.04, 1.06, 1.08, 1.10, 1.12, 1.14]
"""What the first block adds, drifting by 2 % a step."""


def played(recipe: PolicyRecipe, added: Sequence[float], **more: Any) -> Trace:
    """A run whose blocks add the same known number everywhere."""
    return decide(recipe, steps=len(added), model=MODEL, added=added, **more)


def fbcache(**settings: object) -> FBCache:
    return FBCache(**{"threshold": 0.05, "longest_reuse": 1.0, **settings})


def dbcache(**settings: object) -> DBCache:
    return DBCache(**{"threshold": 0.05, "longest_reuse": 1.0, "first_steps": 0, **settings})


def run(recipe: PolicyRecipe, steps: int, layout: str) -> tuple[WatchedEngine, Tensor]:
    return watched_run(tiny_case(), recipe.composed(MODEL), steps=steps, layout=layout)


# The rule


def test_the_probe_is_compared_with_that_of_the_last_computed_step() -> None:
    found = played(fbcache(), SLOW)
    assert found.letters() == "FssFssFF"
    # Compared with the last step alone, 2 % a step would never reach 5 %.
    assert found.records[2].signal == pytest.approx(0.04, rel=1e-4)
    assert found.records[3].signal == pytest.approx(0.06, rel=1e-4)
    assert found.records[4].signal == pytest.approx(0.02 / 1.06, rel=1e-4)
    assert [found.records[index].reason for index in (0, 2, 3, 7)] == [
        "nothing to compare with yet",
        "probe 0.040 < 0.050",
        "probe 0.060 >= 0.050",
        "guard: last steps",
    ]


def test_a_step_that_is_computed_in_any_case_is_the_one_to_compare_with() -> None:
    found = played(fbcache(), SLOW, guards=Guards(full_steps=(2,)))
    assert found.letters() == "FsFssFsF"
    assert found.records[3].signal == pytest.approx(0.02 / 1.04, rel=1e-4)


def test_every_decision_carries_the_span() -> None:
    trace = played(dbcache(front=2, back=1), SLOW)
    assert {step.span for step in trace.plan.steps} == {Span(front=2, back=1)}


def test_threshold_zero_computes_every_step() -> None:
    assert played(fbcache(threshold=0.0), [1.0] * 8).letters() == "F" * 8


def test_a_probe_that_is_not_a_number_is_never_reused() -> None:
    assert played(fbcache(), [float("nan")] * 8).letters() == "F" * 8


def test_first_steps_may_be_a_share_of_the_run() -> None:
    assert played(fbcache(first_steps=0.5), [1.0] * 8).letters() == "FFFFsssF"
    assert played(fbcache(first_steps=0.25), [1.0] * 16).letters().startswith("FFFFs")


def test_the_last_step_is_computed_unless_told_not_to() -> None:
    assert played(fbcache(last_steps=0), [1.0] * 4).letters() == "Fsss"


@pytest.mark.parametrize("recipe", [FBCache(), DBCache()], ids=["fbcache", "dbcache"])
@pytest.mark.parametrize("steps", STEPS)
def test_a_probe_that_stands_still_is_still_computed_again(
    recipe: PolicyRecipe, steps: int
) -> None:
    found = played(recipe, [1.0] * steps).letters()
    longest = max(len(list(same)) for mode, same in groupby(found) if mode == "s")
    assert longest <= max(1, steps // 5)
    assert found.endswith("F")


def test_dbcache_limits_the_steps_reused_in_all() -> None:
    assert played(dbcache(most_reuse=0.25), [1.0] * 12).letters() == "FsssFFFFFFFF"


def test_dbcache_limits_the_sum_of_differences() -> None:
    found = played(dbcache(max_sum=0.07), SLOW)
    assert found.letters() == "FssFssFF"
    assert played(dbcache(max_sum=0.05), SLOW).letters() == "FsFsFsFF"
    assert played(dbcache(max_sum=0.05), SLOW).records[2].reason == "probes add up to 0.060"


def test_a_larger_factor_reuses_more() -> None:
    drift = [1.05**index for index in range(50)]
    counts = [
        played(fbcache(), drift, threshold_factor=f).letters().count("F") for f in (0.5, 2.0, 6.0)
    ]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 3


def test_tokens_are_thinned_out_evenly_where_there_are_many() -> None:
    few, many = torch.zeros(1, 7, 2), torch.zeros(1, 3 * SIGNAL_TOKENS, 2)
    assert some_tokens(few).shape == few.shape
    assert some_tokens(many).shape == (1, SIGNAL_TOKENS, 2)


# Settings


def test_fbcache_has_a_threshold_for_each_model() -> None:
    def threshold(model: ModelInfo, **settings: object) -> float:
        piece = FBCache(**settings).compose(model).step
        assert isinstance(piece, ProbeSteps)
        return piece.threshold

    assert threshold(MODEL) == 0.05
    assert threshold(WAN) == 0.035
    assert threshold(WAN, threshold=0.1) == 0.1
    thresholds = [
        FBCache.preset(name, WAN)["threshold"] for name in ("quality", "balanced", "fast")
    ]
    assert thresholds == pytest.approx([0.021, 0.035, 0.0525])


def test_dbcache_looks_at_8_blocks_of_a_large_model_and_a_third_of_a_small_one() -> None:
    assert DBCache().compose(WAN).spans == (Span(front=8, back=0),)
    assert DBCache().compose(MODEL).spans == (Span(front=1, back=0),)
    assert DBCache(front=2, back=1).compose(MODEL).spans == (Span(front=2, back=1),)


def test_spans_that_leave_no_block_out_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 first and 0 last of the model's 4 blocks") as refused:
        FBCache(blocks=4).compose(MODEL)
    assert (refused.value.where, refused.value.setting) == ("policy fbcache", "blocks")
    with pytest.raises(ConfigError, match="2 first and 2 last"):
        DBCache(front=2, back=2).compose(MODEL)


def test_dbcache_can_predict_its_middle() -> None:
    assert DBCache().compose(MODEL).predictor == Hold()
    assert DBCache(predictor=Taylor(order=1)).compose(MODEL).predictor == Taylor(order=1)


# In a run


@pytest.mark.parametrize(
    ("recipe", "blocks", "control"),
    [
        (FBCache(threshold=10), 1, 1),
        (FBCache(threshold=10, blocks=2), 2, 1),
        (DBCache(threshold=10, front=1, back=1), 2, 1),
        # The last two blocks take the second control hint, and so need the first control block too.
        (DBCache(threshold=10, front=1, back=2), 3, 2),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_reused_step_runs_first_and_last_blocks_and_the_hints_of_those(
    recipe: PolicyRecipe, blocks: int, control: int, layout: str
) -> None:
    engine, _result = run(recipe, 8, layout)
    reused = [record for record in engine.trace.records if record.mode is Mode.REUSE]
    assert len(reused) >= 3
    assert {(record.blocks_run, record.control_run) for record in reused} == {(blocks, control)}
    full = [record for record in engine.trace.records if record.mode is Mode.FULL]
    assert {(record.blocks_run, record.control_run) for record in full} == {(4, 2)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_kept_is_counted_and_read_once_a_step(layout: str) -> None:
    engine, _result = run(FBCache(threshold=10), 8, layout)
    records = engine.trace.records
    assert [seen.held_bytes for seen in engine.seen] == [record.cache_bytes for record in records]
    assert engine.trace.peak_cache_bytes == max(record.cache_bytes for record in records)
    # The middle's residual of each branch, the probe of the last computed step and of this one.
    assert engine.seen[0].trunk is not None
    tokens = engine.seen[0].trunk.x[0].numel() * 4
    branches = 1 if layout == "none" else 2
    assert engine.trace.peak_cache_bytes == (branches + 2) * tokens
    assert max(record.host_reads for record in records) == 1


def test_separate_and_merged_guidance_decide_alike() -> None:
    modes = [run(FBCache(), 20, layout)[0].trace.modes() for layout in ("separate", "merged")]
    assert modes[0] == modes[1]
    assert {Mode.FULL, Mode.REUSE} <= set(modes[0][1:-1])


def test_two_runs_are_the_same() -> None:
    assert torch.equal(run(DBCache(), 8, "separate")[1], run(DBCache(), 8, "separate")[1])


@parametrize_with_checks(policies={"dbcache that predicts": lambda: DBCache(predictor=Taylor())})
def test_contract(check: BoundCheck) -> None:
    check()
