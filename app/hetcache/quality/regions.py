"""How close a cached result is to the uncached one: PSNR by region of the picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torchmetrics.image import PeakSignalNoiseRatio

__all__ = [
    "MARGIN_TOKENS",
    "REGIONS",
    "RegionQuality",
    "as_pictures",
    "compare",
    "parts",
    "psnr_in",
    "regions",
    "to_tensor",
]

REGIONS: Final = ("whole", "mask", "margin", "background")

MARGIN_TOKENS: Final = 2
"""Width of the ring around the mask, in tokens: where an edit meets what must not change."""

PEAK: Final = 255.0
"""Largest value of a pixel."""

PART_PIXELS: Final = 2**20
"""Pixels that are converted to floats at once, but at least a frame, so that memory stays small."""


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
    from torch.nn.functional import max_pool2d

    reach = MARGIN_TOKENS * token_pixels
    near = np.empty_like(mask)
    for part in parts(mask):
        grown = to_tensor(mask[part])[:, None].float()  # (n, 1, H, W)
        grown = max_pool2d(grown, (2 * reach + 1, 1), stride=1, padding=(reach, 0))
        grown = max_pool2d(grown, (1, 2 * reach + 1), stride=1, padding=(0, reach))
        near[part] = grown[:, 0].bool().numpy()  # (n, H, W)
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
    return psnr_in(regions(mask, token_pixels), result, reference)


def psnr_in(
    areas: Mapping[str, NDArray[np.bool_]], result: NDArray[np.uint8], wanted: NDArray[np.uint8]
) -> dict[str, RegionQuality]:
    """Measure PSNR in areas.

    Args:
        areas: (F, H, W) bool by name.
        result: (F, H, W, 3) uint8.
        wanted: (F, H, W, 3) uint8.
    """
    import torch
    from torchmetrics.image import PeakSignalNoiseRatio

    found = {}
    for name, area in areas.items():
        # Double precision: a single differing value among 10^8 does not get lost in the sum.
        measure = PeakSignalNoiseRatio(data_range=PEAK)
        measure.set_dtype(torch.float64)
        for part in parts(result):
            if area[part].any():
                given, aim = (
                    torch.from_numpy(frames[part][area[part]]).double()
                    for frames in (result, wanted)
                )  # (n, 3)
                measure.update(given, aim)
        found[name] = _quality(measure, int(area.sum()))
    return found


def parts(frames: NDArray[Any]) -> Iterator[slice]:
    """Divide a video into parts that are small enough to be converted to floats.

    Args:
        frames: (F, H, W, ...) of any type.

    Yields:
        Slices of its frames, in order.
    """
    count = max(1, PART_PIXELS // max(1, math.prod(frames.shape[1:3])))
    for start in range(0, len(frames), count):
        yield slice(start, min(start + count, len(frames)))


def to_tensor(values: NDArray[Any]) -> torch.Tensor:
    """Share an array's memory with torch; one that cannot be written to or is turned is copied."""
    import numpy as np
    import torch

    return torch.from_numpy(np.require(values, requirements=("C", "W")))


def as_pictures(frames: NDArray[np.uint8], device: str = "cpu") -> torch.Tensor:
    """Convert frames to what networks and torchmetrics take.

    Args:
        frames: (F, H, W, 3) uint8.
        device: Where the result goes.

    Returns:
        (F, 3, H, W) float32 in [0, 1].
    """
    pictures = to_tensor(frames).to(device)
    return pictures.permute(0, 3, 1, 2).float() / 255  # (F, 3, H, W)


def _quality(measure: PeakSignalNoiseRatio, pixels: int) -> RegionQuality:
    if not pixels:
        return RegionQuality(db=None, identical=False, pixels=0)
    db = float(measure.compute())
    identical = math.isinf(db)
    return RegionQuality(db=None if identical else db, identical=identical, pixels=pixels)
