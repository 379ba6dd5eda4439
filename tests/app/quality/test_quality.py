"""Quality metrics that need no weights, against computations of their own."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("torchmetrics")

import numpy as np
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from hetcache.quality import regions as metrics
from hetcache.quality.flicker import flicker
from hetcache.quality.measure import check_tools
from hetcache.quality.measure import measure_quality as measure
from hetcache.quality.metric import QualityTools, SetMetric, Value, columns_of, find_metrics
from hetcache.quality.regions import compare, regions
from hetcache.quality.ssim import ssim
from hetcache_core import discover
from hetcache_core.errors import ConfigError

TOKEN = 4
SHAPE = (5, 48, 64, 3)

UNCACHED = {
    "psnr_reference", "psnr_reference_mask", "psnr_reference_margin", "psnr_reference_background",
    "ssim_reference", "lpips_reference", "flicker",
}  # fmt: skip
TRUTH = {
    "psnr_truth", "psnr_truth_mask", "psnr_truth_margin", "psnr_truth_background",
    "ssim_truth", "lpips_truth",
}  # fmt: skip
METRICS = find_metrics(discover())
COLUMNS = {column.name: column for column in columns_of(METRICS)}


def measure_quality(result: np.ndarray, **given: Any) -> dict[str, Value]:
    return measure(METRICS, result, **given)


def video(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def mask() -> np.ndarray:
    where = np.zeros(SHAPE[:3], bool)
    where[:, 20:28, 24:40] = True
    return where


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """The definition, in double precision."""
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return 10 * math.log10(255**2 / error)


def test_every_metric_of_a_clip_has_a_value_or_says_why_not() -> None:
    found = measure_quality(video(0), mask=mask(), token_pixels=TOKEN)
    assert set(found) == UNCACHED | TRUTH | {"clip_score"}
    assert list(found) == [
        name for name, column in COLUMNS.items() if not isinstance(column.metric, SetMetric)
    ]
    assert {name: value.note for name, value in found.items()} == {
        **dict.fromkeys(UNCACHED, "no uncached output"),
        **dict.fromkeys(TRUTH, "no ground truth"),
        "clip_score": "no prompt",
    }
    assert all(value.value is None for value in found.values())


def test_metrics_whose_weights_are_absent_name_the_option_that_is_missing() -> None:
    result = video(0)
    found = measure_quality(
        result, mask=mask(), token_pixels=TOKEN, reference=video(1), truth=video(2), prompt="a cat"
    )
    missing = {name: value.note for name, value in found.items() if value.value is None}
    assert missing == {
        "lpips_reference": "needs --lpips FILE",
        "lpips_truth": "needs --lpips FILE",
        "clip_score": "needs --clip FOLDER",
    }


def test_psnr_is_that_of_numpy_in_every_region() -> None:
    result, reference, truth = video(0), video(1), video(2)
    found = measure_quality(
        result, mask=mask(), token_pixels=TOKEN, reference=reference, truth=truth
    )
    for name, region in regions(mask(), TOKEN).items():
        end = "" if name == "whole" else f"_{name}"
        expected = psnr(result[region], reference[region])
        assert found[f"psnr_reference{end}"].value == pytest.approx(expected)
    assert found["psnr_truth"].value == pytest.approx(psnr(result, truth))
    assert found["psnr_truth_mask"].value == pytest.approx(psnr(result[mask()], truth[mask()]))


def test_identical_videos_have_no_psnr_and_the_best_of_everything_else() -> None:
    result = video(0)
    found = measure_quality(result, mask=mask(), token_pixels=TOKEN, reference=result.copy())
    for name in ("psnr_reference", "psnr_reference_mask", "psnr_reference_background"):
        assert found[name] == Value(value=None, note="identical")
    assert found["ssim_reference"].value == 1
    assert found["flicker"].value == 0


def test_a_region_without_pixels_says_so() -> None:
    everywhere = np.ones(SHAPE[:3], bool)
    found = measure_quality(video(0), mask=everywhere, token_pixels=TOKEN, reference=video(1))
    assert found["psnr_reference_background"] == Value(value=None, note="no pixels")


def test_a_longer_ground_truth_is_cut() -> None:
    result, truth = video(0), video(1, (9, *SHAPE[1:]))
    where = {"mask": mask(), "token_pixels": TOKEN}
    assert measure_quality(result, truth=truth, **where) == measure_quality(
        result, truth=truth[: len(result)], **where
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"truth": video(1)[:4]}, "the ground truth has 4 frames of 48x64"),
        ({"truth": video(1)[:, :40]}, "the ground truth has 5 frames of 40x64"),
        ({"reference": video(1, (9, *SHAPE[1:]))}, "the uncached output has 9 frames"),
    ],
    ids=["shorter truth", "smaller truth", "longer reference"],
)
def test_videos_that_do_not_go_together_are_refused(
    given: dict[str, np.ndarray], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        measure_quality(video(0), mask=mask(), token_pixels=TOKEN, **given)
    assert said in str(caught.value)
    assert "the result 5 of 48x64" in str(caught.value)


def test_ssim_is_the_mean_of_torchmetrics_over_the_frames() -> None:
    """Single precision, which is off by less than 0.0001 where pictures are bright and flat."""
    result, reference = video(0) // 8 + 200, video(1) // 8 + 200
    pictures = [
        torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 255
        for frames in (result, reference)
    ]
    expected = float(structural_similarity_index_measure(*pictures, data_range=1.0))
    assert ssim(result, reference).value == pytest.approx(expected, abs=1e-4)
    reference[2:] = result[2:]
    two = float(structural_similarity_index_measure(*(p[:2] for p in pictures), data_range=1.0))
    assert ssim(result, reference).value == pytest.approx((2 * two + 3) / 5, abs=1e-4)


def test_ssim_needs_room_for_its_window() -> None:
    small = video(0, (2, 10, 40, 3))
    assert ssim(small, small) == Value(value=None, note="needs 11 pixels a side")


def test_flicker_is_how_much_the_difference_moves() -> None:
    result, reference = video(0), video(1)
    difference = result.astype(int) - reference.astype(int)
    expected = np.abs(difference[1:] - difference[:-1]).mean()
    assert flicker(result, reference).value == pytest.approx(expected)


def test_what_stands_still_or_moves_alike_does_not_flicker() -> None:
    reference = np.stack([np.full((16, 16, 3), 10 * i, np.uint8) for i in range(6)])
    assert flicker(reference + np.uint8(7), reference).value == 0
    unsteady = reference.copy()
    unsteady[::2] += 7
    assert flicker(unsteady, reference).value == 7


def test_a_single_frame_cannot_flicker() -> None:
    assert flicker(video(0)[:1], video(1)[:1]) == Value(value=None, note="needs 2 frames")


def test_videos_are_measured_in_parts_with_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    result, reference = video(0), video(1)
    at_once = compare(result, reference, mask(), TOKEN)
    similar, unsteady = ssim(result, reference), flicker(result, reference)
    monkeypatch.setattr(metrics, "PART_PIXELS", 2 * SHAPE[1] * SHAPE[2])
    assert list(metrics.parts(result)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    for name, quality in compare(result, reference, mask(), TOKEN).items():
        assert quality.db == pytest.approx(at_once[name].db)
        assert quality.pixels == at_once[name].pixels
    assert ssim(result, reference).value == pytest.approx(similar.value)
    assert flicker(result, reference) == unsteady


def test_arrays_that_cannot_be_written_to_or_are_mirrored_are_measured_alike() -> None:
    result, reference = video(0)[:, ::-1], video(1)
    locked = reference.copy()
    locked.flags.writeable = False
    measured = [
        measure_quality(
            result if i else result.copy(), mask=mask(), token_pixels=TOKEN, truth=other
        )
        for i, other in enumerate((reference, locked))
    ]
    assert measured[0] == measured[1]


def test_values_are_shown_with_their_unit_or_their_reason() -> None:
    assert COLUMNS["psnr_truth"].show(Value(value=31.256)) == "31.26 dB"
    assert COLUMNS["ssim_truth"].show(Value(value=0.5)) == "0.5000"
    assert COLUMNS["vfid"].show(Value(value=1.5, note="3 clips")) == "1.5000 (3 clips)"
    assert COLUMNS["psnr_truth"].show(Value(value=None, note="identical")) == "identical"


def test_without_files_of_weights_there_is_nothing_to_check() -> None:
    check_tools(METRICS, QualityTools())
