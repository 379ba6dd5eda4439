"""MagCache's ratios: the tables, other numbers of steps, and calibration files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attrs import evolve

from hetcache_core.errors import ConfigError
from hetcache_core.steps import ModelInfo
from hetcache_policies.magcache_ratios import (
    RATIOS,
    RATIOS_OF_MODEL,
    Ratios,
    find_ratios,
    load_ratios,
)

TINY = ModelInfo(backbone="tiny-vace", variant="tiny-vace-1", layers=8, width=128, heads=4)
WAN = ModelInfo(backbone="wan-vace", variant="wan2.1-1.3b", layers=30, width=1536, heads=12)


def calibration(**changes: object) -> dict[str, object]:
    return {
        "version": 1,
        "policy": "magcache",
        "model": {
            "backbone": TINY.backbone,
            "variant": TINY.variant,
            "layers": TINY.layers,
            "width": TINY.width,
        },
        "ratios": [1.0, 0.99, 0.9],
        "shift": 3.0,
        **changes,
    }


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


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


def test_a_calibration_file_is_read(tmp_path: Path) -> None:
    ratios = load_ratios(written(tmp_path / "tiny.json", calibration()), TINY)
    assert ratios == Ratios(
        model="tiny-vace-1",
        shift=3.0,
        source=str(tmp_path / "tiny.json"),
        values=(1.0, 0.99, 0.9),
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"policy": "teacache"}, "no MagCache calibration"),
        ({"version": 2}, "its version is 2, this release reads 1"),
        (
            {"model": {"backbone": "wan-vace"}},
            "made for backbone 'wan-vace', this model has 'tiny-vace'",
        ),
        ({"model": None}, "made for backbone None"),
        ({"ratios": []}, "not a list of positive numbers"),
        ({"ratios": [1.0, "0.9"]}, "not a list of positive numbers"),
        ({"ratios": [1.0, float("nan")]}, "not a list of positive numbers"),
        ({"ratios": [True]}, "not a list of positive numbers"),
    ],
)
def test_a_file_for_something_else_is_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    path = written(tmp_path / "other.json", calibration(**changes))
    with pytest.raises(ConfigError, match=reason) as refused:
        load_ratios(path, TINY)
    assert refused.value.where == f"calibration file {path}"
    assert "hetcache calibrate --backbone tiny-vace --policy magcache" in refused.value.remedy


def test_a_file_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_ratios(tmp_path / "none.json", TINY)
    (tmp_path / "text.json").write_text("ratios")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_ratios(tmp_path / "text.json", TINY)
    with pytest.raises(ConfigError, match="no MagCache calibration"):
        load_ratios(written(tmp_path / "list.json", [1.0]), TINY)
