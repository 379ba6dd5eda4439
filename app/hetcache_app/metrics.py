"""How close a cached result is to the uncached one: PSNR by region of the picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MARGIN_TOKENS", "REGIONS", "RegionQuality", "compare", "regions"]

REGIONS: Final = ("whole", "mask", "margin", "background")

MARGIN_TOKENS: Final = 2
"""Width of the ring around the mask, in tokens: where an edit meets what must not change."""

PEAK: Final = 255.0
"""Largest value of a pixel."""


@frozen(kw_only=True)
class RegionQuality:
    """PSNR in one region.

    Attributes:
        db: PSNR in dB; None where both are identical, or where the region has no pixel.
        identical: Whether no value differs.
        pixels: Pixels of the region, over all frames.
    """

    db: float | None
    identical: bool
    pixels: int

    def __str__(self) -> str:
        """Write it for a table."""
        if not self.pixels:
            return "no pixels"
        return "identical" if self.db is None else f"{self.db:.1f} dB"


def regions(mask: NDArray[np.bool_], token_pixels: int) -> dict[str, NDArray[np.bool_]]:
    """Divide a video into mask, margin and background.

    Args:
        mask: (F, H, W) bool; ``True`` is edited.
        token_pixels: Height and width of a token in pixels.

    Returns:
        (F, H, W) bool for each name in ``REGIONS``; the margin is a ring of ``MARGIN_TOKENS``
        tokens around the mask of the same frame.
    """
    import numpy as np
    import torch
    from torch.nn.functional import max_pool2d

    reach = MARGIN_TOKENS * token_pixels
    grown = torch.from_numpy(mask)[:, None].float()  # (F, 1, H, W)
    grown = max_pool2d(grown, (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    grown = max_pool2d(grown, (1, 2 * reach + 1), stride=1, padding=(0, reach))
    near = grown[:, 0].bool().numpy()  # (F, H, W)
    return {
        "whole": np.ones_like(mask),
        "mask": mask,
        "margin": near & ~mask,
        "background": ~near,
    }


def compare(
    result: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    token_pixels: int,
) -> dict[str, RegionQuality]:
    """Measure PSNR in every region.

    Args:
        result: (F, H, W, 3) uint8.
        reference: (F, H, W, 3) uint8.
        mask: (F, H, W) bool.
        token_pixels: Height and width of a token in pixels.

    Returns:
        One value for each name in ``REGIONS``.
    """
    return {
        name: _psnr(result[region], reference[region])
        for name, region in regions(mask, token_pixels).items()
    }


def _psnr(result: NDArray[np.uint8], reference: NDArray[np.uint8]) -> RegionQuality:
    """Compare the pixels (n, 3) of one region."""
    import torch
    from torchmetrics.functional.image import peak_signal_noise_ratio

    pixels = len(result)
    if not pixels:
        return RegionQuality(db=None, identical=False, pixels=0)
    # Double precision: a single differing value among 10^8 does not get lost in the mean.
    given, wanted = (torch.from_numpy(values).double() for values in (result, reference))
    db = float(peak_signal_noise_ratio(given, wanted, data_range=PEAK))
    identical = math.isinf(db)
    return RegionQuality(db=None if identical else db, identical=identical, pixels=pixels)
