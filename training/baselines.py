"""Ways to fill a hole without a model: what the trained one has to beat.

Legend: `F` frames, `H` height, `W` width. Videos are `(F, H, W, 3)` uint8, masks `(F, H, W)` bool.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

Video = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

HARMONIC_SWEEPS: Final = 300
TELEA_RADIUS: Final = 5


def mean_fill(video: Video, mask: Mask) -> Video:
    """Fill with the mean colour of each frame's known pixels."""
    out = video.copy()
    for t in range(len(video)):
        out[t][mask[t]] = video[t][~mask[t]].mean(0)
    return out


def nearest_frame(video: Video, mask: Mask) -> Video:
    """Fill a pixel from the nearest frame in which it is known, else with the mean."""
    out = mean_fill(video, mask)
    for t in range(len(video)):
        missing = mask[t].copy()
        for other in sorted(range(len(video)), key=lambda other: abs(other - t)):
            take = missing & ~mask[other]
            out[t][take] = video[other][take]
            missing &= ~take
    return out


def harmonic_fill(video: Video, mask: Mask) -> Video:
    """Fill each frame with the smoothest surface that meets the known pixels (Laplace's equation).

    Solved from coarse to fine, each level started from the one below.
    """
    return np.stack([_harmonic(f.astype(np.float32), m) for f, m in zip(video, mask, strict=True)])


def _harmonic(frame: npt.NDArray[np.float32], mask: Mask) -> Video:
    levels = [(frame, mask)]
    while min(levels[-1][1].shape) > 16 and levels[-1][1].any():
        image, hole = levels[-1]
        known = (~hole).astype(np.float32)
        size = (hole.shape[1] // 2, hole.shape[0] // 2)
        weight = cv2.resize(known, size, interpolation=cv2.INTER_AREA)
        total = cv2.resize(image * known[..., None], size, interpolation=cv2.INTER_AREA)
        levels.append((total / np.maximum(weight, 1e-6)[..., None], weight < 1e-6))
    image, hole = levels[-1]
    guess = np.where(hole[..., None], image[~hole].mean(0), image)
    for image, hole in reversed(levels):
        guess = cv2.resize(guess, hole.shape[::-1], interpolation=cv2.INTER_LINEAR)
        guess = np.where(hole[..., None], guess, image)
        for _ in range(HARMONIC_SWEEPS):
            around = cv2.blur(guess, (3, 3), borderType=cv2.BORDER_REFLECT_101)
            guess[hole] = around[hole]
    return np.clip(np.round(guess), 0, 255).astype(np.uint8)


def telea(video: Video, mask: Mask) -> Video:
    """Fill each frame with OpenCV's fast-marching inpainting (Telea 2004)."""
    frames = [
        cv2.inpaint(frame, hole.astype(np.uint8), TELEA_RADIUS, cv2.INPAINT_TELEA)
        for frame, hole in zip(video, mask, strict=True)
    ]
    return np.stack(frames).astype(np.uint8)


BASELINES: Final[dict[str, Callable[[Video, Mask], Video]]] = {
    "mean": mean_fill,
    "nearest frame": nearest_frame,
    "harmonic": harmonic_fill,
    "telea": telea,
}
