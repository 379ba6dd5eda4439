"""How good a result is: against the uncached output, the ground truth and the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hetcache_app.frechet import frechet_distance, video_features
from hetcache_app.metrics import RegionQuality, compare
from hetcache_app.quality_learned import clip_score, lpips
from hetcache_app.quality_pixels import flicker, ssim
from hetcache_app.quality_types import METRICS, MetricInfo, QualityTools, Value
from hetcache_core.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "METRICS",
    "MetricInfo",
    "QualityTools",
    "Value",
    "cut_to",
    "frechet_distance",
    "measure_quality",
    "psnr_value",
    "video_features",
]

NO_TOOLS: Final = QualityTools()

ABSENT: Final = {
    "uncached": "no uncached output",
    "truth": "no ground truth",
    "prompt": "no prompt",
}
"""What a metric says when there is nothing to hold the result against."""


def measure_quality(
    result: NDArray[np.uint8],
    *,
    mask: NDArray[np.bool_],
    token_pixels: int,
    reference: NDArray[np.uint8] | None = None,
    truth: NDArray[np.uint8] | None = None,
    prompt: str | None = None,
    tools: QualityTools = NO_TOOLS,
) -> dict[str, Value]:
    """Measure every metric of one clip.

    Args:
        result: (F, H, W, 3) uint8, what is judged.
        mask: (F, H, W) bool; ``True`` is edited.
        token_pixels: Height and width of a token in pixels, for the margin around the mask.
        reference: (F, H, W, 3) uint8, the uncached output of the same seed.
        truth: (F or more, H, W, 3) uint8, the ground truth; what is longer than the result is cut.
        prompt: What the result should show.
        tools: Files of weights.

    Returns:
        A value for every metric in ``METRICS`` that belongs to a clip, in their order; those that
        cannot be measured have no value and say why.

    Raises:
        ConfigError: Two videos do not go together, or a file of weights cannot be used.
    """
    found = {
        name: Value(value=None, note=ABSENT[info.against])
        for name, info in METRICS.items()
        if info.level == "clip"
    }
    if reference is not None:
        _check(result, reference, "the uncached output")
        for region, quality in compare(result, reference, mask, token_pixels).items():
            name = "psnr_uncached" if region == "whole" else f"psnr_uncached_{region}"
            found[name] = psnr_value(quality)
        found["ssim_uncached"] = ssim(result, reference)
        found["lpips_uncached"] = lpips(result, reference, tools)
        found["flicker"] = flicker(result, reference)
    if truth is not None:
        truth = cut_to(truth, result)
        regions = compare(result, truth, mask, token_pixels)
        found["psnr_truth"] = psnr_value(regions["whole"])
        found["psnr_truth_mask"] = psnr_value(regions["mask"])
        found["ssim_truth"] = ssim(result, truth)
        found["lpips_truth"] = lpips(result, truth, tools)
    if prompt:
        found["clip_score"] = clip_score(result, prompt, tools)
    return found


def psnr_value(quality: RegionQuality) -> Value:
    """Turn the PSNR of a region into a value, with its note where there is none."""
    return Value(value=quality.db, note="" if quality.db is not None else str(quality))


def cut_to(truth: NDArray[np.uint8], result: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut a ground truth to the length of a result.

    Args:
        truth: (F or more, H, W, 3) uint8.
        result: (F, H, W, 3) uint8.

    Returns:
        (F, H, W, 3) uint8.

    Raises:
        ConfigError: It is shorter than the result, or of another size.
    """
    cut = truth[: len(result)]
    _check(result, cut, "the ground truth")
    return cut


def _check(result: NDArray[np.uint8], other: NDArray[np.uint8], name: str) -> None:
    if result.shape != other.shape:
        frames, height, width = other.shape[:3]
        raise ConfigError(
            f"{name} has {frames} frames of {height}x{width} (height x width), but the result "
            f"{len(result)} of {result.shape[1]}x{result.shape[2]}"
        )
