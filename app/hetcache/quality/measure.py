"""How good a result is: against the uncached output, the ground truth and the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hetcache.quality.frechet import features_network, frechet_distance, video_features
from hetcache.quality.learned import clip_measure, clip_score, lpips, lpips_network
from hetcache.quality.pixels import flicker, ssim
from hetcache.quality.regions import RegionQuality, compare
from hetcache.quality.types import METRICS, MetricInfo, QualityTools, Value
from hetcache_core import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "METRICS",
    "MetricInfo",
    "QualityTools",
    "Value",
    "check_tools",
    "clip_score",
    "cut_to",
    "frechet_distance",
    "measure_against",
    "measure_quality",
    "psnr_value",
    "video_features",
]

NO_TOOLS: Final = QualityTools()

NO_MASK: Final = Value(value=None, note="needs --mask")

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
    held: dict[str, dict[str, Value]] = {}
    if reference is not None:
        _check(result, reference, "the uncached output")
        held["uncached"] = measure_against(result, reference, mask, token_pixels, tools)
    if truth is not None:
        held["truth"] = measure_against(result, cut_to(truth, result), mask, token_pixels, tools)
    if prompt:
        held["prompt"] = {"clip_score": clip_score(result, prompt, tools)}
    for name in found:
        info = METRICS[name]
        if info.against in held:
            found[name] = held[info.against][info.measure]
    return found


def measure_against(
    result: NDArray[np.uint8],
    wanted: NDArray[np.uint8],
    mask: NDArray[np.bool_] | None,
    token_pixels: int,
    tools: QualityTools = NO_TOOLS,
) -> dict[str, Value]:
    """Measure everything that one video says of another.

    Args:
        result: (F, H, W, 3) uint8, what is judged.
        wanted: (F, H, W, 3) uint8, what it is held against.
        mask: (F, H, W) bool; None where it is not known, and no region has a value.
        token_pixels: Height and width of a token in pixels.
        tools: Files of weights.

    Returns:
        The values of "psnr", "psnr_mask", "psnr_margin", "psnr_background", "ssim", "lpips" and
        "flicker".

    Raises:
        ConfigError: The file of weights cannot be used.
    """
    import numpy as np

    known = np.zeros(result.shape[:3], np.bool_) if mask is None else mask
    found = {}
    for region, quality in compare(result, wanted, known, token_pixels).items():
        if region == "whole":
            found["psnr"] = psnr_value(quality)
        else:
            found[f"psnr_{region}"] = NO_MASK if mask is None else psnr_value(quality)
    found["ssim"] = ssim(result, wanted)
    found["lpips"] = lpips(result, wanted, tools)
    found["flicker"] = flicker(result, wanted)
    return found


def check_tools(tools: QualityTools) -> None:
    """Load every file of weights that was given, so that a bad one is found before long work.

    Args:
        tools: The files; what they hold is kept for the metrics.

    Raises:
        ConfigError: One cannot be used.
    """
    if tools.lpips is not None:
        lpips_network(tools.lpips, tools.device)
    if tools.clip is not None:
        clip_measure(tools.clip, tools.device)
    if tools.video_features is not None:
        features_network(tools.video_features, tools.device)


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
