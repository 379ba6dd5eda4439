"""MagCache's ratios: the tables, other numbers of steps, and measured ones."""

from __future__ import annotations

import pytest
from attrs import evolve

from hetcache_core.errors import ConfigError
from hetcache_core.records.calibration import Calibration
from hetcache_core.steps import ModelInfo
from hetcache_policies.fits.magcache_ratios import (
    RATIOS,
    RATIOS_OF_MODEL,
    Ratios,
    find_ratios,
    ratios_of,
)

TINY = ModelInfo(backbone="tiny-vace", variant="tiny-vace-1", layers=8, width=128, heads=4)
WAN = ModelInfo(backbone="wan-vace", variant="wan2.1-1.3b", layers=30, width=1536, heads=12)


def calibration(ratios: object, steps: int = 3) -> Calibration:
    return Calibration(
        policy="magcache",
        model=TINY,
        sigmas=tuple(1 - index / steps for index in range(steps)),
        clips=2,
        data={"ratios": ratios},
    )


@pytest.mark.parametrize("ratios", RATIOS.values(), ids=RATIOS)
def test_a_table_is_of_50_steps_starts_at_1_and_falls_at_the_end(ratios: Ratios) -> None:
    assert len(ratios.values) == 50
    assert ratios.values[0] == 1
    assert all(0.8 < ratio < 1.03 for ratio in ratios.values)
    assert list(ratios.values[30:]) == sorted(ratios.values[30:], reverse=True)
    assert ratios.source.startswith("MagCache")
    assert ratios.shift


def test_every_model_of_the_table_has_ratios() -> None:
    assert set(RATIOS_OF_MODEL.values()) == RATIOS.keys()


def test_a_control_branch_tells_vace_from_text_to_video() -> None:
    assert find_ratios(WAN) is RATIOS["t2v-1.3b"]
    assert find_ratios(evolve(WAN, control_layers=(0, 2))) is RATIOS["vace-1.3b"]
    assert find_ratios(TINY) is None


def test_other_numbers_of_steps_take_the_nearest_measured_step() -> None:
    ratios = Ratios(model="m", shift=None, source="s", values=(1.0, 0.9, 0.8, 0.7, 0.6))
    assert ratios.at(5) == ratios.values
    assert ratios.at(3) == (1.0, 0.8, 0.6)
    assert ratios.at(9) == (1.0, 1.0, 0.9, 0.8, 0.8, 0.8, 0.7, 0.6, 0.6)
    assert ratios.at(2) == (1.0, 0.6)
    assert ratios.at(1) == (0.6,)


def test_measured_ratios_are_taken_as_they_are() -> None:
    assert ratios_of(calibration([1, 0.99, 0.9])) == Ratios(
        model="tiny-vace-1", shift=None, source="measured on 2 clips", values=(1.0, 0.99, 0.9)
    )


@pytest.mark.parametrize(
    "ratios",
    [
        None,
        [],
        [1.0, 0.9],
        [1.0, "0.9", 0.9],
        [1.0, float("nan"), 0.9],
        [True, 0.9, 0.9],
        [1, 0, 1],
    ],
)
def test_what_is_not_one_positive_number_a_step_is_refused(ratios: object) -> None:
    with pytest.raises(ConfigError, match="no 3 ratios, one positive number a step") as refused:
        ratios_of(calibration(ratios))
    assert refused.value.setting == "calibration"
