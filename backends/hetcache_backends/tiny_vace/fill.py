"""What the embedded model is shown in the place of masked pixels: a smooth fill from around them.

Wan-VACE sees what is behind the mask as the control video's second half. A model this small learns
much faster to improve on a smooth surface than to invent the region from grey, and what the user's
video shows there is to be painted over anyway. So the pipeline fills the region before it is encoded,
in training as in use.

Legend: `B` batch, `F` frames, `H` height, `W` width in pixels.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from diffsynth.diffusion.base_pipeline import PipelineUnit
from PIL import Image
from torch import Tensor
from torch.nn import functional

from hetcache_core import binary_mask

SWEEPS: Final = 4
"""Means over 3 x 3 pixels a level. On the holes of the built-in clips, none is 0.4 to 0.7 dB worse, and
three times as many are 0.1 dB better."""
SMALLEST: Final = 4
"""Pixels of the shorter side of the coarsest level."""
VACE_UNIT: Final = "WanVideoUnit_VACE"


def smooth_fill(video: Tensor, mask: Tensor) -> Tensor:
    """Fill the masked region of each frame with a smooth surface that meets its surroundings.

    Known pixels are averaged to ever coarser levels until nothing is missing; on the way back, every
    level is filled from the coarser one and smoothed where it was missing.

    Args:
        video: `(B, 3, F, H, W)`, any range of values.
        mask: `(B, 1, F, H, W)`, 1 where to fill and 0 elsewhere.

    Returns:
        `(B, 3, F, H, W)`, equal to `video` outside the mask; black (0) in a frame that is all masked.

    Source: the pull-push algorithm of Gortler et al., "The Lumigraph", SIGGRAPH 1996.
    """
    image = video.transpose(1, 2).flatten(0, 1)  # (B * F, 3, H, W)
    hole = mask.transpose(1, 2).flatten(0, 1)
    levels = [(image, hole)]
    while min(image.shape[-2:]) > SMALLEST and bool(hole.any()):
        known = functional.avg_pool2d(1 - hole, 2, ceil_mode=True, count_include_pad=False)
        total = functional.avg_pool2d(
            image * (1 - hole), 2, ceil_mode=True, count_include_pad=False
        )
        image, hole = total / known.clamp(min=1e-6), (known == 0).to(video)
        levels.append((image, hole))
    pixels = (1 - hole).sum((2, 3), keepdim=True).clamp(min=1)
    filled = image * (1 - hole)
    filled = filled + hole * filled.sum((2, 3), keepdim=True) / pixels
    for finer, missing in reversed(levels):
        if filled.shape[-2:] != finer.shape[-2:]:
            filled = functional.interpolate(
                filled, size=finer.shape[-2:], mode="bilinear", align_corners=False
            )
        filled = torch.where(missing > 0, filled, finer)
        for _ in range(SWEEPS):
            around = functional.avg_pool2d(
                functional.pad(filled, (1, 1, 1, 1), mode="replicate"), 3, 1
            )
            filled = torch.where(missing > 0, around, finer)
    frames: Tensor = filled.unflatten(0, (video.shape[0], -1))
    return frames.transpose(1, 2)


class MaskFill(PipelineUnit):  # type: ignore[misc]  # diffsynth has no type information
    """The pipeline unit that fills the masked region of `vace_video`."""

    def __init__(self) -> None:
        """Declare the inputs and outputs that the pipeline routes."""
        super().__init__(
            input_params=("vace_video", "vace_video_mask"), output_params=("vace_video",)
        )

    def process(
        self,
        pipe: Any,  # what every unit is called with
        vace_video: list[Image.Image] | None,
        vace_video_mask: list[Image.Image] | None,
    ) -> dict[str, list[Image.Image]]:
        """Return the filled frames, or nothing where there is no video or no mask."""
        if vace_video is None or vace_video_mask is None:
            return {}
        count = min(len(vace_video), len(vace_video_mask))
        frames = [np.asarray(frame.convert("RGB")) for frame in vace_video[:count]]
        mask = binary_mask(vace_video_mask[:count]).float()[None, None]
        video = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)[None].float()
        filled = smooth_fill(video, mask)[0].permute(1, 2, 3, 0).round().clamp(0, 255).byte()
        return {"vace_video": [Image.fromarray(frame) for frame in filled.numpy()]}


def add_fill(pipe: Any) -> None:
    """Let a pipeline fill the masked region before the control video is encoded."""
    names = [type(unit).__name__ for unit in pipe.units]
    pipe.units.insert(names.index(VACE_UNIT), MaskFill())
