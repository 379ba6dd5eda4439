"""PSNR to the uncached output frame by frame, to find the worst ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FRAME_PSNR", "frame_psnr"]

FRAME_PSNR: Final = "frame_psnr.npy"
"""In the folder of a run: what ``frame_psnr`` found on the exact frames."""

PEAK: Final = 255.0
"""Largest value of a pixel."""


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
