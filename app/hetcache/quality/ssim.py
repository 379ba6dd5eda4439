"""SSIM: how alike the structures of two videos are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, final

from attrs import frozen

from hetcache.quality.metric import QualityTools, Value, VideoMetric
from hetcache.quality.regions import as_pictures, parts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Ssim", "ssim"]

SSIM_WINDOW: Final = 11
"""Side of SSIM's Gaussian window. Source: Wang et al., IEEE TIP 2004, section III.C."""


@final
@frozen
class Ssim(VideoMetric):
    """SSIM over whole frames."""

    name = "ssim"
    title = "SSIM"
    better = "higher"
    digits = 4
    rank = 20

    def measure(
        self,
        result: NDArray[np.uint8],
        wanted: NDArray[np.uint8],
        areas: Mapping[str, NDArray[np.bool_]],
        tools: QualityTools,
    ) -> Mapping[str, Value]:
        """Measure the whole frames."""
        return {"whole": ssim(result, wanted)}


def ssim(result: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> Value:
    """Measure SSIM, the mean over whole frames; 1 where both are identical.

    Computed in single precision, which is right to about 0.0001: double precision takes PyTorch
    a hundred times as long on a CPU.

    Args:
        result: (F, H, W, 3) uint8.
        wanted: (F, H, W, 3) uint8.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity",
    IEEE TIP 13(4), 2004; torchmetrics, with its Gaussian window of 11 pixels.
    """
    import numpy as np
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(result.shape[1:3]) < SSIM_WINDOW:
        return Value(value=None, note=f"needs {SSIM_WINDOW} pixels a side")
    total = 0.0
    for part in parts(result):
        differ = (result[part] != wanted[part]).any(axis=(1, 2, 3))  # (n,)
        total += int(np.count_nonzero(~differ))  # 1 each, which single precision just misses
        if differ.any():
            given, aim = (as_pictures(frames[part][differ]) for frames in (result, wanted))
            found = structural_similarity_index_measure(
                given, aim, data_range=1.0, reduction="none"
            )
            total += float(torch.as_tensor(found).double().sum())
    return Value(value=total / len(result))
