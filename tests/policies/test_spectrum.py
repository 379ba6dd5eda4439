"""Spectrum and FoCa: which steps are computed, and by what the others are predicted."""

from __future__ import annotations

import pytest
import torch

from hetcache_core.steps import Mode, ModelInfo
from hetcache_core.store import Stored
from hetcache_core.testing import decide, tiny_case
from hetcache_core.testing.watch import watched_run
from hetcache_policies.foca import FoCa
from hetcache_policies.shared.predictors import Chebyshev, Foca
from hetcache_policies.spectrum import Spectrum

MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)


def test_the_published_gaps_grow_by_three_quarters_of_a_step() -> None:
    """2, 2.75, 3.5, 4.25, 5, 5.75 and so on, rounded down, after five first steps."""
    found = decide(Spectrum(), steps=32).letters()
    assert found == "FFFFF" + "sF" + "sF" + "ssF" + "sssF" + "ssssF" + "ssssF" + "sssss" + "F"
    assert decide(Spectrum(growth=0.0, first_steps=1), steps=7).letters() == "FsFsFsF"
    assert decide(Spectrum(window=1, growth=0.0), steps=7).letters() == "F" * 7


def test_a_step_that_a_guard_computes_starts_the_gaps_anew() -> None:
    found = decide(Spectrum(first_steps=1, full_steps=(8,)), steps=14).letters()
    assert found == "FsFsFssFF" + "sFsFF"


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("speedup", [2.0, 4.0])
def test_an_asked_speed_up_is_reached_by_stretched_gaps(steps: int, speedup: float) -> None:
    found = decide(Spectrum(), steps=steps, target_speedup=speedup).letters()
    assert abs(found.count("F") - steps / speedup) <= 1
    gaps = [len(gap) for gap in found.rstrip("F").split("F") if gap]
    assert gaps[:-1] == sorted(gaps[:-1])  # the last one ends with the run, or with the budget


def test_foca_computes_every_fifth_step_and_the_last() -> None:
    assert decide(FoCa(), steps=12).letters() == "FssssFssssFF"


@pytest.mark.parametrize(
    ("recipe", "predictor"),
    [(Spectrum(first_steps=2), Chebyshev()), (FoCa(interval=3), Foca())],
    ids=["spectrum", "foca"],
)
def test_what_is_reused_is_what_the_predictor_makes_of_the_residuals(
    recipe: Spectrum | FoCa, predictor: Chebyshev | Foca
) -> None:
    engine, _ = watched_run(tiny_case(), recipe.composed(MODEL), steps=10, layout="none")
    computed: list[Stored] = []
    reused = 0
    for seen, record in zip(engine.seen, engine.trace.records, strict=True):
        assert seen.trunk is not None
        assert seen.trunk_output is not None
        residual = seen.trunk_output - seen.trunk.x
        if record.mode is Mode.FULL:
            computed.append(Stored(residual, record.step))
            continue
        values = computed[-predictor.history :]
        expected = predictor.predict(values, step=record.step, gain=None)
        torch.testing.assert_close(residual, expected, rtol=1e-3, atol=1e-4)
        reused += 1
    assert reused >= 4
