"""GMSD where its value is known."""

from __future__ import annotations

import numpy as np
import pytest

from hetcache.quality import QualityTools, Value
from hetcache_metric_gmsd.metric import STABLE, Gmsd

SHAPE = (3, 32, 48, 3)


def measured(
    result: np.ndarray, wanted: np.ndarray, mask: np.ndarray | None = None
) -> dict[str, Value]:
    areas = {"whole": np.ones(result.shape[:3], bool)}
    if mask is not None:
        areas["mask"] = mask
    return dict(Gmsd().measure(result, wanted, areas, QualityTools()))


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def edge(height: int) -> np.ndarray:
    """Black on the left, grey on the right, at an even column: one edge of the half-sized frame."""
    frames = np.zeros(SHAPE, np.uint8)
    frames[:, :, 24:] = height
    return frames


def test_identical_videos_and_a_change_of_brightness_deviate_by_nothing() -> None:
    video = noise(0) // 2
    assert measured(video, video)["whole"].value == 0
    assert measured(video + np.uint8(40), video)["whole"].value == pytest.approx(0, abs=1e-12)


def test_a_lost_edge_is_the_deviation_of_its_two_columns() -> None:
    """On both sides of an edge of height h the Prewitt gradient is h, elsewhere there is none."""
    alike = STABLE / (90.0**2 + STABLE)
    columns = np.ones(SHAPE[2] // 2)
    columns[:2] = alike
    found = measured(edge(0), edge(90))["whole"]
    assert found.value == pytest.approx(columns.std())


def test_only_what_is_in_the_mask_counts_there() -> None:
    mask = np.zeros(SHAPE[:3], bool)
    mask[:, :, :12] = True
    found = measured(edge(0), edge(90), mask)
    assert found["mask"].value == 0
    assert found["whole"].value > 0


def test_without_a_mask_or_its_pixels_no_value_is_made_up() -> None:
    assert set(measured(noise(0), noise(1))) == {"whole"}
    empty = np.zeros(SHAPE[:3], bool)
    assert measured(noise(0), noise(1), empty)["mask"] == Value(value=None, note="no pixels")


def test_frames_without_room_for_a_gradient_say_so() -> None:
    small = noise(0)[:, :2, :2]
    assert measured(small, small)["whole"] == Value(value=None, note="needs 4 pixels a side")
