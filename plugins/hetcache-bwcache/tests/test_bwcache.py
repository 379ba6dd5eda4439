"""BWCache: when steps are reused, for how long, and what is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from attrs import define, field
from torch import Tensor

from hetcache_bwcache.policy import THRESHOLDS, BWCache
from hetcache_core import (
    BlockKey,
    BranchRows,
    ConfigError,
    Grid,
    Hold,
    Mode,
    ModelInfo,
    Predictor,
    RunInfo,
    Stack,
    StepInfo,
    Stored,
    accelerate,
)
from hetcache_core.testing import (
    BoundCheck,
    check_policy,
    decide,
    parametrize_with_checks,
    tiny_case,
)

MODEL = ModelInfo(backbone="tiny", variant="", layers=3, width=4, heads=2)
TOKENS = 64
CASE = tiny_case()


@parametrize_with_checks(policies=[BWCache])
def test_contract(check: BoundCheck) -> None:
    check()


@define(eq=False)
class FakeSignals:
    """Signals that keep and read, as the engine's do."""

    threshold_factor: ClassVar[float] = 1.0
    reads: int = field(default=0, init=False)
    held: dict[str, Tensor] = field(factory=dict, init=False)

    def read(self, value: Tensor) -> float:
        self.reads += 1
        return float(value)

    def keep(self, name: str, value: Tensor) -> None:
        self.held[name] = value

    def kept(self, name: str) -> Tensor | None:
        return self.held.get(name)


def played(recipe: BWCache, levels: Sequence[float], **options: Any) -> str:
    """Play a run through the engine whose blocks all put out one number: one letter a step."""
    trace = decide(recipe, steps=len(levels), hidden=levels, added=0.0, **options)
    return trace.letters()


def drive(recipe: BWCache, levels: Sequence[float], signals: FakeSignals) -> str:
    """Let the decider alone see blocks that all put out one number: F full, a point for reused."""
    steps = len(levels)
    policy: Any = recipe.compose(MODEL).step
    decider = policy.begin(
        RunInfo(
            model=MODEL,
            timesteps=tuple(1000.0 - i for i in range(steps)),
            sigmas=(1.0,) * steps,
            grid=Grid(frames=1, height=8, width=8, pixel_height=2, pixel_width=2, frame_stride=4),
            mask=None,
            branches=("cond", "uncond"),
            device="cpu",
        )
    )
    modes = ""
    for index, level in enumerate(levels):
        step = StepInfo(index=index, total=steps, timestep=1000.0 - index, sigma=1.0)
        mode = decider.decide(step, signals).mode
        modes += "F" if mode is Mode.FULL else "."
        for branch, factor in (("cond", 1.0), ("uncond", -3.0)) if mode is Mode.FULL else ():
            decider.enter_call(step, (BranchRows(branch, 0, 1),))
            for layer in range(MODEL.layers):
                key, output = (
                    BlockKey(Stack.MAIN, layer),
                    torch.full((1, TOKENS, 4), factor * level),
                )
                if decider.block(step, branch, key, output).observe_block:
                    decider.observe(step, branch, key, None, output)
        decider.settle(step, mode)
    return modes


def test_a_tenth_of_the_run_is_reused_after_a_small_change() -> None:
    """Of 40 steps: 4 reused, 1 computed; first passed with 38 left, so the last 19 are computed."""
    assert played(BWCache(), [1.0] * 40) == "FF" + "ssssF" * 3 + "ssss" + "F" * 19


def test_large_changes_compute_every_step() -> None:
    assert played(BWCache(), [2.0**i for i in range(12)]) == "F" * 12


def test_a_change_over_several_steps_is_divided_by_their_number() -> None:
    """0.1 a step: at once 0.1 < 0.15; after a gap of 3 it is 0.3 in all, 0.1 a step."""
    levels = [1.1**i for i in range(20)]
    assert played(BWCache(), levels)[:9] == "FFssFssFs"
    assert played(BWCache(gap_normalize=False), levels)[:9] == "FFssFFssF"


def test_a_threshold_factor_stretches_the_threshold() -> None:
    levels = [1.2**i for i in range(20)]
    assert played(BWCache(), levels) == "F" * 20
    assert played(BWCache(), levels, threshold_factor=2.0)[:4] == "FFss"


def test_one_number_is_read_for_each_computed_step() -> None:
    signals = FakeSignals()
    modes = drive(BWCache(), [1.0] * 40, signals)
    # Nothing to compare the first with; no decision comes after the last.
    assert signals.reads == modes.count("F") - 2


def test_outputs_are_compared_on_some_tokens_of_the_branch_that_comes_first() -> None:
    signals = FakeSignals()
    drive(BWCache(), [1.0] * 8, signals)
    (held,) = signals.held.values()
    assert held.shape == (MODEL.layers, 1, TOKENS // 16, 4)
    assert bool((held == 1).all())


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
        recipe = BWCache(threshold=10.0, predictor=predictor)
        with accelerate(pipeline, recipe, backbone=CASE.backbone) as session:
            results.append(CASE.run(pipeline, 12, "none", 0))
        assert Mode.REUSE in session.trace.modes()
    assert not torch.equal(*results)


def test_presets_are_the_published_thresholds() -> None:
    assert {name: BWCache.preset(name, MODEL)["threshold"] for name in THRESHOLDS} == THRESHOLDS
    with pytest.raises(ConfigError, match="no preset 'slow'"):
        BWCache.preset("slow", MODEL)


def test_default_settings_skip() -> None:
    """``check_policy`` runs the same checks as above in one call, for those who use no pytest."""
    results = check_policy(lambda: BWCache(threshold=0.25))
    assert {result.status for result in results} <= {"passed", "not applicable"}
