"""Metrics that compare pixels and need no weights: SSIM and flicker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hetcache.quality.regions import parts, to_tensor
from hetcache.quality.types import Value

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["as_pictures", "flicker", "ssim"]

SSIM_WINDOW: Final = 11
"""Side of SSIM's Gaussian window. Source: Wang et al., IEEE TIP 2004, section III.C."""


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


def flicker(result: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> Value:
    """Measure how unsteady the difference to another video is.

    With ``d = result - wanted``, it is the mean of ``|d[t+1] - d[t]|`` over all pixels, channels
    and pairs of neighbouring frames, in levels of 8 bits (0 to 510). Motion that both share cancels
    out, so no optical flow is needed; a difference that stands still is none.

    Args:
        result: (F, H, W, 3) uint8.
        wanted: (F, H, W, 3) uint8.

    Source: the temporal error of dtSSD (Erofeev et al., "Perceptually motivated benchmark for video
    matting", BMVC 2015), with the mean absolute difference that VBench's temporal
    flickering takes (Huang et al., CVPR 2024) in the place of the root mean square.
    """
    import numpy as np

    if len(result) <= 1:
        return Value(value=None, note="needs 2 frames")
    total = 0
    for part in parts(result[1:]):
        both = slice(part.start, part.stop + 1)
        difference = result[both].astype(np.int16) - wanted[both]  # (n + 1, H, W, 3)
        total += int(np.abs(np.diff(difference, axis=0)).sum(dtype=np.int64))
    return Value(value=total / result[1:].size)
