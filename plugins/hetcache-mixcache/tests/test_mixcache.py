"""MixCache: which way a step is made cheaper, how often, and what is never mixed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import define
from torch import Tensor

from hetcache_core import (
    Calibration,
    ConfigError,
    Hold,
    Mode,
    ModelInfo,
    Predictor,
    Span,
    Stored,
    Trace,
    accelerate,
)
from hetcache_core.testing import BoundCheck, parametrize_with_checks, tiny_case
from hetcache_mixcache.interval import Interval
from hetcache_mixcache.policy import LONGEST, MixCache

MODEL = ModelInfo(backbone="tiny", variant="", layers=30, width=4, heads=2)
CASE = tiny_case()


@parametrize_with_checks(policies=[MixCache], expected_failures=MixCache.expected_failures)
def test_contract(check: BoundCheck) -> None:
    check()


def run(steps: int = 50, guidance: str = "separate", **settings: Any) -> Trace:
    pipeline = CASE.make_pipeline(0)
    with accelerate(pipeline, MixCache(**settings), backbone=CASE.backbone) as session:
        CASE.run(pipeline, steps, guidance, 0)
    return session.trace


def ways(trace: Trace) -> str:
    """What each step does: F full, s step, c cfg, b block."""
    letters = ""
    for _, calls in groupby(trace.records, key=lambda record: record.step):
        modes = [(record.mode, record.blocks_run) for record in calls]
        if any(mode is Mode.PREDICT for mode, _ in modes):
            letters += "c"
        elif modes[0][0] is Mode.FULL:
            letters += "F"
        else:
            letters += "b" if modes[0][1] else "s"
    return letters


def test_all_three_ways_are_taken() -> None:
    assert set(ways(run())) == set("Fscb")


def test_the_warm_up_and_the_last_step_are_full() -> None:
    taken = ways(run())
    assert taken[:7] == "F" * 7  # 15 % of 50 steps, rounded down
    assert taken[7] != "F"
    assert taken[-1] == "F"


def test_no_more_cheaper_steps_in_a_row_than_asked() -> None:
    for longest in (1, 3):
        taken = ways(run(longest=longest))
        assert max(len(cheaper) for cheaper in taken.split("F")) == longest


def test_after_a_predicted_branch_nothing_reuses_its_old_residual() -> None:
    """The conditional branch has a newer one then; guidance would amplify the difference."""
    taken = ways(run(100))
    assert "c" in taken
    assert "cs" not in taken
    assert "cb" not in taken


def test_a_predicted_branch_is_the_other_one_and_the_kept_difference() -> None:
    trace = run()
    predicted = [record for record in trace.records if record.mode is Mode.PREDICT]
    assert {record.branch for record in predicted} == {"uncond"}
    assert {record.blocks_run for record in predicted} == {0}


@pytest.mark.parametrize("guidance", ["merged", "none"])
def test_without_a_call_of_its_own_no_branch_is_predicted(guidance: str) -> None:
    assert set(ways(run(guidance=guidance))) == set("Fsb")


def test_an_impact_says_how_much_a_way_is_avoided() -> None:
    assert "c" not in ways(run(cfg_impact=100.0))
    assert "s" not in ways(run(step_impact=1000.0))


def test_at_most_one_read_a_step() -> None:
    trace = run()
    for _, calls in groupby(trace.records, key=lambda record: record.step):
        assert sum(record.host_reads for record in calls) <= 1


def test_the_middle_lies_between_a_sixth_at_either_end() -> None:
    assert MixCache().compose(MODEL).spans == (Span(), Span(5, 5))


def test_a_model_of_two_blocks_has_no_middle() -> None:
    two = ModelInfo(backbone="tiny", variant="", layers=2, width=4, heads=2)
    assert MixCache().compose(two).spans == (Span(),)


def test_an_interval_grows_while_the_output_moves_slowly_and_shrinks_when_it_does_not() -> None:
    interval = Interval(4, low=0.1, high=0.2)
    steps = []
    for deviation in (0.05, 0.05, 0.15, 0.05, 0.05, 0.3, 0.3, 0.3, 0.3):
        interval.follow(deviation, 1.0)
        steps.append(interval.steps)
    assert steps == [2, 3, 3, 4, 4, 3, 2, 1, 1]


def test_an_interval_without_thresholds_follows_what_it_has_seen() -> None:
    interval = Interval(4, low=None, high=None)
    for deviation in (1.0, 1.0, 1.0, 0.5):
        interval.follow(deviation, 1.0)
    assert interval.steps == 2
    interval.follow(2.0, 1.0)
    assert interval.steps == 1


def test_a_threshold_factor_lets_the_interval_grow() -> None:
    interval = Interval(4, low=0.1, high=0.2)
    interval.follow(0.15, 2.0)
    assert interval.steps == 2


@define
class Half(Predictor):
    """Half of the last value, which is seen in any result."""

    history = 1

    def predict(self, values: Sequence[Stored], *, step: int, gain: float | None) -> Tensor:
        return values[-1].value / 2


def test_what_stands_in_for_reused_steps_comes_from_the_predictor() -> None:
    """Half of a residual gives another result than all of it, in the same steps."""
    results = []
    for predictor in (Hold(), Half()):
        pipeline = CASE.make_pipeline(0)
        recipe = MixCache(predictor=predictor)
        with accelerate(pipeline, recipe, backbone=CASE.backbone) as session:
            results.append(CASE.run(pipeline, 12, "none", 0))
        assert Mode.REUSE in session.trace.modes()
    assert not torch.equal(*results)


def test_presets_are_intervals() -> None:
    assert {name: MixCache.preset(name, MODEL)["longest"] for name in LONGEST} == LONGEST
    with pytest.raises(ConfigError, match="no preset 'slow'"):
        MixCache.preset("slow", MODEL)


def test_thresholds_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="low must not be above high"):
        MixCache(low=0.3, high=0.1)


def test_a_calibration_gives_both_thresholds_and_refuses_other_steps(tmp_path: Path) -> None:
    calibrator = MixCache.calibrator()
    pipeline = CASE.make_pipeline(0)
    with accelerate(pipeline, calibrator.watch(), backbone=CASE.backbone) as session:
        CASE.run(pipeline, 20, "separate", 0)
    file = tmp_path / "mixcache.json"
    sigmas = tuple(r.sigma for r in session.trace.records if r.branch == "cond")
    Calibration(
        policy="mixcache",
        model=CASE.backbone.describe(pipeline),
        sigmas=sigmas,
        clips=1,
        data=calibrator.result(),
    ).save(file)
    measured = calibrator.result()
    assert 0 < measured["low"] < measured["high"]
    assert measured["changes"] == 19
    assert run(20, calibration=str(file)).complete
    with pytest.raises(ConfigError, match="measured with 20 steps, this run has 12"):
        run(12, calibration=str(file))
