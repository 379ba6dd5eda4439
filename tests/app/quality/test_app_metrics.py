"""PSNR by region."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torchmetrics")

import numpy as np

from hetcache.quality.regions import MARGIN_TOKENS, REGIONS, compare, regions

TOKEN = 4


def square_mask() -> np.ndarray:
    mask = np.zeros((2, 64, 64), bool)
    mask[:, 24:40, 24:40] = True
    return mask


def test_regions_divide_the_video() -> None:
    mask = square_mask()
    parts = regions(mask, TOKEN)
    assert tuple(parts) == REGIONS
    assert (sum(parts[name].astype(int) for name in REGIONS[1:]) == 1).all()
    assert (parts["mask"] == mask).all()
    reach = MARGIN_TOKENS * TOKEN
    expected = np.zeros_like(mask)
    expected[:, 24 - reach : 40 + reach, 24 - reach : 40 + reach] = True
    assert (parts["margin"] == (expected & ~mask)).all()


def test_the_margin_is_that_of_the_same_frame() -> None:
    mask = square_mask()
    mask[1] = False
    assert not regions(mask, TOKEN)["margin"][1].any()


def test_psnr_is_measured_in_each_region_on_its_own() -> None:
    """The expected values are the definition: 20 log10(255 / difference)."""
    mask = square_mask()
    reference = np.full((2, 64, 64, 3), 100, np.uint8)
    result = reference.copy()
    result[mask] += 10
    quality = compare(result, reference, mask, TOKEN)
    assert quality["mask"].db == pytest.approx(20 * math.log10(255 / 10))
    assert not quality["mask"].identical
    assert quality["mask"].pixels == mask.sum()
    for name in ("margin", "background"):
        assert quality[name].identical
        assert quality[name].db is None
        assert str(quality[name]) == "identical"
    share = mask.mean()
    assert quality["whole"].db == pytest.approx(10 * math.log10(255**2 / (share * 100)))


def test_a_single_different_value_is_not_identical() -> None:
    reference = np.zeros((8, 64, 64, 3), np.uint8)
    result = reference.copy()
    result[0, 0, 0, 0] = 1
    quality = compare(result, reference, np.zeros((8, 64, 64), bool), TOKEN)
    assert not quality["background"].identical
    assert quality["background"].db == pytest.approx(10 * math.log10(255**2 * result.size))


def test_a_region_without_pixels_says_so() -> None:
    frames = np.zeros((1, 16, 16, 3), np.uint8)
    quality = compare(frames, frames, np.ones((1, 16, 16), bool), TOKEN)
    assert quality["background"].pixels == 0
    assert not quality["background"].identical
    assert str(quality["background"]) == "no pixels"
