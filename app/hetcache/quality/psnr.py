"""PSNR: how far the pixels of two videos are apart, by region and by frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, final

from attrs import frozen

from hetcache.quality.metric import QualityTools, Value, VideoMetric
from hetcache.quality.regions import PEAK, psnr_in

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Psnr", "frame_psnr"]


@final
@frozen
class Psnr(VideoMetric):
    """PSNR in every region; there is none where nothing differs."""

    name = "psnr"
    title = "PSNR"
    unit = "dB"
    better = "higher"
    regions = ("whole", "mask", "margin", "background")
    footnote = (
        "PSNR is infinite where nothing differs: such videos are counted as identical, and its mean "
        "is over the others."
    )
    rank = 10

    def measure(
        self,
        result: NDArray[np.uint8],
        wanted: NDArray[np.uint8],
        areas: Mapping[str, NDArray[np.bool_]],
        tools: QualityTools,
    ) -> Mapping[str, Value]:
        """Measure every region."""
        found = psnr_in(areas, result, wanted)
        return {
            region: Value(value=quality.db, note="" if quality.db is not None else str(quality))
            for region, quality in found.items()
        }


def frame_psnr(
    result: NDArray[np.uint8], reference: NDArray[np.uint8], mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Measure how close every frame is to the reference, inside the mask.

    Args:
        result: (F, H, W, 3) uint8.
        reference: (F, H, W, 3) uint8.
        mask: (F, H, W) bool.

    Returns:
        (F,) PSNR in dB; infinite where nothing differs, and NaN where nothing is masked.
    """
    import numpy as np

    found = np.full(len(result), np.nan)
    for index, (one, other, region) in enumerate(zip(result, reference, mask, strict=True)):
        if region.any():
            error = float(np.square(one[region].astype(np.float64) - other[region]).mean())
            found[index] = 10 * np.log10(PEAK**2 / error) if error else np.inf
    return found
