"""An asked quality: what it allows, how gaps follow, and the fit of the line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hetcache_core.errors import ConfigError
from hetcache_core.records.calibration import Calibration
from hetcache_core.session import accelerate
from hetcache_core.steps import ModelInfo
from hetcache_core.testing import tiny_case
from hetcache_policies.auto import Auto
from hetcache_policies.shared.quality import QualityCalibrator, QualityLine, QualitySteps

MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)


def run_of(steps: int = 30, **asked: Any) -> Any:
    case = tiny_case()
    pipeline = case.make_pipeline(0)
    with accelerate(pipeline, "auto", backbone=case.backbone, **asked) as session:
        case.run(pipeline, steps, "separate", 0)
    return session.trace


def test_ten_times_the_error_is_a_slope_of_decibels_less() -> None:
    line = QualityLine(base=20.0, slope=15.0, margin=5.0)
    assert line.allowed(45.0) == pytest.approx(0.01)
    assert line.allowed(30.0) == pytest.approx(0.1)


def test_more_quality_takes_more_steps() -> None:
    computed = [run_of(target_quality=asked).letters() for asked in (25.0, 50.0, 75.0)]
    counts = [letters.count("F") for letters in computed]
    assert counts[0] < counts[2]
    assert counts == sorted(counts)
    assert all(letters.startswith("FsF") and letters.endswith("F") for letters in computed)


def test_a_run_of_few_steps_ends() -> None:
    assert [run_of(steps, target_quality=40.0).complete for steps in (1, 2, 3, 4, 8)] == [True] * 5


def test_the_host_waits_once_for_every_gap() -> None:
    trace = run_of(target_quality=30.0)
    gaps = sum(decision.error is not None for decision in trace.decisions)
    assert sum(record.host_reads for record in trace.records) in {gaps - 1, gaps}


def test_without_a_fit_the_margin_is_said() -> None:
    assert any("aimed 6.0 dB higher" in note for note in run_of(target_quality=30.0).notes)


def test_the_line_is_fitted_and_read_back(tmp_path: Path) -> None:
    calibrator = Auto.calibrator()
    assert isinstance(calibrator, QualityCalibrator)
    for allowed, off in zip(calibrator.trials(), (1.0, -1.0, 0.0, -1.0, 1.0), strict=True):
        calibrator.tried(allowed, 22.0 - 12.0 * math.log10(allowed) + off)
    found = calibrator.result()
    assert found["slope"] == pytest.approx(12.0, abs=1)
    assert found["base"] == pytest.approx(22.0, abs=1)
    assert 0.8 < found["spread"] < 1.5
    file = tmp_path / "fit.json"
    made = Calibration(policy="auto", model=MODEL, sigmas=(1.0,), clips=1, data=found)
    made.save(file)
    composed = Auto(target_quality=30.0, calibration=str(file)).compose(MODEL)
    assert isinstance(composed.step, QualitySteps)
    line = QualityLine.of(made)
    assert composed.step.allowed == pytest.approx(line.allowed(30.0))
    assert line.margin == pytest.approx(1.28 * found["spread"])
    assert "nine of ten" in composed.notes[0]


def test_a_quality_that_rises_with_the_error_is_no_fit() -> None:
    calibrator = Auto.calibrator()
    for allowed in calibrator.trials():
        calibrator.tried(allowed, 30.0 + math.log10(allowed))
    with pytest.raises(ConfigError, match="does not fall"):
        calibrator.result()


@pytest.mark.parametrize(
    "asked",
    [
        {"policy": "teacache", "target_quality": 35.0},
        {"policy": "auto", "target_quality": 35.0, "target_speedup": 2.0},
        {"policy": "auto", "target_quality": 35.0, "settings": {"partials": 1.0}},
        {
            "policy": "auto",
            "target_quality": 35.0,
            "settings": {"corrector": "none", "predictor": "linear"},
        },
    ],
)
def test_what_contradicts_a_quality_is_refused(asked: dict[str, Any]) -> None:
    case = tiny_case()
    with pytest.raises(ConfigError, match="quality"):
        accelerate(case.make_pipeline(0), backbone=case.backbone, **asked)
