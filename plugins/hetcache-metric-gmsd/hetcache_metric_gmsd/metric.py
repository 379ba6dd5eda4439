"""Gradient magnitude similarity deviation: how unevenly the edges of two videos differ.

Source: Xue, Zhang, Mou and Bovik, "Gradient magnitude similarity deviation: a highly efficient perceptual
image quality index", IEEE Transactions on Image Processing 23(2), 2014.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, final

import numpy as np
from attrs import frozen

from hetcache.quality import QualityTools, Value, VideoMetric

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Gmsd"]

STABLE: Final = 170.0
"""The constant c for pixels from 0 to 255. Source: section II.B, and the authors' program."""

LUMA: Final = (0.299, 0.587, 0.114)
"""Weights of red, green and blue. Source: ITU-R BT.601, as the authors' rgb2gray takes them."""

SMALLEST: Final = 4
"""Side below which nothing is left to take gradients of."""


@final
@frozen
class Gmsd(VideoMetric):
    """GMSD, the mean over the frames; 0 where the gradients are alike."""

    name = "gmsd"
    title = "GMSD"
    better = "lower"
    digits = 4
    regions = ("whole", "mask")
    footnote = "GMSD: the deviation of gradient similarity in each frame, the mean over the frames."

    def measure(
        self,
        result: NDArray[np.uint8],
        wanted: NDArray[np.uint8],
        areas: Mapping[str, NDArray[np.bool_]],
        tools: QualityTools,
    ) -> Mapping[str, Value]:
        """Measure the whole frames and the mask."""
        regions = [region for region in self.regions if region in areas]
        if min(result.shape[1:3]) < SMALLEST:
            return {
                name: Value(value=None, note=f"needs {SMALLEST} pixels a side") for name in regions
            }
        found: dict[str, list[float]] = {region: [] for region in regions}
        for index, (one, other) in enumerate(zip(result, wanted, strict=True)):
            alike = _similarity(_gradients(one), _gradients(other))  # (H / 2, W / 2)
            for region in regions:
                inside = alike[_halved(areas[region][index]) > 0]  # (n,)
                if inside.size:
                    found[region].append(float(inside.std()))
        return {
            region: Value(value=float(np.mean(values)))
            if values
            else Value(value=None, note="no pixels")
            for region, values in found.items()
        }


def _gradients(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Take the magnitudes of Prewitt gradients of (H, W, 3) uint8 at half the size."""
    grey = np.pad(_halved(frame @ np.asarray(LUMA)), 1, mode="edge")  # (H / 2 + 2, W / 2 + 2)
    across = (grey[:, :-2] - grey[:, 2:]) / 3  # (H / 2 + 2, W / 2)
    down = (grey[:-2] - grey[2:]) / 3  # (H / 2, W / 2 + 2)
    magnitudes: NDArray[np.float64] = np.hypot(
        across[:-2] + across[1:-1] + across[2:], down[:, :-2] + down[:, 1:-1] + down[:, 2:]
    )  # (H / 2, W / 2)
    return magnitudes


def _halved(values: NDArray[np.floating] | NDArray[np.bool_]) -> NDArray[np.float64]:
    """Average (H, W) values in squares of two pixels; an odd last row or column is left out."""
    height, width = (side // 2 for side in values.shape)
    squares = values[: 2 * height, : 2 * width].reshape(height, 2, width, 2)
    halved: NDArray[np.float64] = squares.mean(axis=(1, 3))  # (H / 2, W / 2)
    return halved


def _similarity(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equation 4: 1 where both magnitudes are the same."""
    return (2 * one * other + STABLE) / (one**2 + other**2 + STABLE)
