"""Flicker: how unsteady the difference between two videos is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, final

from attrs import frozen

from hetcache.quality.metric import QualityTools, Value, VideoMetric
from hetcache.quality.regions import parts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Flicker", "flicker"]


@final
@frozen
class Flicker(VideoMetric):
    """Flicker over the reference; an evaluation measures it over the right answer."""

    name = "flicker"
    title = "flicker"
    unit = "levels"
    better = "lower"
    against = ("reference",)
    rank = 40

    def measure(
        self,
        result: NDArray[np.uint8],
        wanted: NDArray[np.uint8],
        areas: Mapping[str, NDArray[np.bool_]],
        tools: QualityTools,
    ) -> Mapping[str, Value]:
        """Measure the whole frames."""
        return {"whole": flicker(result, wanted)}


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
