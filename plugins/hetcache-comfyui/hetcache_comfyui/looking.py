"""What is looked at after a sampling: how near two videos are, tokens by role, and what was decided."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from hetcache_core import Grid, Mode, Role, Trace, discover

MARGIN: Final = 2
"""Width of the ring around the mask in tokens, as hetcache's own comparisons have it."""

TINTS: Final = {Role.GENERATIVE: (0.93, 0.26, 0.21), Role.MARGIN: (0.98, 0.80, 0.18)}
"""Colours of masked tokens and of their margin; context is left as it is."""

STRENGTH: Final = 0.45

STEPS: Final = {
    Mode.FULL: (0.85, 0.33, 0.24),
    Mode.PARTIAL: (0.95, 0.72, 0.25),
    Mode.REUSE: (0.30, 0.55, 0.78),
    Mode.PREDICT: (0.55, 0.45, 0.75),
}
"""Colours of what a step did."""

SHOWN: Final = 5
"""Frames in the picture of roles."""

COLUMN, HEIGHT, GAP = 24, 96, 4
"""Of the picture of steps, in pixels."""

PAPER: Final = 0.1

WINDOW: Final = 11
SPREAD: Final = 1.5
CONSTANTS: Final = (0.01**2, 0.03**2)
"""Of SSIM on values in [0, 1]. Source: Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from
error visibility to structural similarity", IEEE Transactions on Image Processing 13(4), 2004."""


def areas(mask: Tensor, token: int) -> dict[str, Tensor]:
    """Divide a video into mask, margin and background.

    Args:
        mask: (F, H, W) bool.
        token: height and width of a token in pixels.

    Returns:
        (F, H, W) bool by name, "whole" first.
    """
    reach = MARGIN * token
    near = mask[:, None].float()
    near = max_pool2d(near, (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    near = max_pool2d(near, (1, 2 * reach + 1), stride=1, padding=(0, reach))[:, 0] > 0
    whole = torch.ones_like(mask)
    return {"whole": whole, "mask": mask, "margin": near & ~mask, "background": ~near}


def psnr(one: Tensor, other: Tensor, area: Tensor) -> float | None:
    """Measure decibels between videos (F, H, W, 3) in [0, 1] in an area (F, H, W); None without pixels."""
    if not bool(area.any()):
        return None
    error = float((one[area].double() - other[area].double()).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim_map(one: Tensor, other: Tensor) -> Tensor:
    """Compare the structure around each pixel of videos (F, H, W, 3) in [0, 1]: (F, H, W)."""
    places = torch.arange(WINDOW) - WINDOW // 2
    curve = torch.exp(-(places**2) / (2 * SPREAD**2))
    curve /= curve.sum()
    kernel = (curve[:, None] * curve)[None, None]

    def blurred(x: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(x, [WINDOW // 2] * 4, mode="reflect")
        return conv2d(padded, kernel)

    found = []
    for pair in zip(one, other, strict=True):  # a frame at a time, so that memory stays small
        a, b = (frame.movedim(-1, 0)[:, None].float() for frame in pair)  # (3, 1, H, W)
        mean_a, mean_b = blurred(a), blurred(b)
        var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
        both = blurred(a * b) - mean_a * mean_b
        light, contrast = CONSTANTS
        alike = (2 * mean_a * mean_b + light) * (2 * both + contrast)
        alike /= (mean_a**2 + mean_b**2 + light) * (var_a + var_b + contrast)
        found.append(alike.mean((0, 1)))
    return torch.stack(found)


def compared(one: Tensor, other: Tensor, mask: Tensor, token: int) -> str:
    """Write PSNR and SSIM of two videos in every area, a line each."""
    alike, lines = ssim_map(one, other), [f"{'':<12}{'PSNR':>10}{'SSIM':>9}"]
    for name, area in areas(mask, token).items():
        db = psnr(one, other, area)
        if db is None:
            lines.append(f"{name:<12}{'no pixels':>10}")
            continue
        shown = "identical" if math.isinf(db) else f"{db:.1f} dB"
        lines.append(f"{name:<12}{shown:>10}{float(alike[area].mean()):>9.4f}")
    return "\n".join(lines)


def roles_picture(video: Tensor, mask: Tensor, token: int, stride: int) -> Tensor:
    """Tint the tokens of frames by their roles.

    Args:
        video: (F, H, W, 3) in [0, 1].
        mask: (F, H, W) bool.
        token: height and width of a token in pixels.
        stride: frames that a token covers but for the first; ignored where they do not come out even.

    Returns:
        (n, h, w, 3): some of the frames, cut to whole tokens.
    """
    frames, height, width = mask.shape
    stride = stride if (frames - 1) % stride == 0 else 1
    rows, columns = height // token, width // token
    grid = Grid(
        frames=(frames - 1) // stride + 1,
        height=rows,
        width=columns,
        pixel_height=token,
        pixel_width=token,
        frame_stride=stride,
    )
    cut = mask[:, : rows * token, : columns * token]
    partitioner = discover().load("partitioner", "mask")(margin=MARGIN)
    roles = partitioner.partition(cut, grid).roles.view(grid.frames, rows, columns)
    chosen = torch.linspace(0, frames - 1, min(SHOWN, frames)).round().long()
    shown = video[chosen, : rows * token, : columns * token].clone()
    of_frames = roles[(chosen + stride - 1) // stride]  # (n, h, w)
    large = of_frames.repeat_interleave(token, 1).repeat_interleave(token, 2)
    for role, tint in TINTS.items():
        where = large == int(role)
        shown[where] = shown[where] * (1 - STRENGTH) + torch.tensor(tint) * STRENGTH
    return shown


def steps_picture(trace: Trace) -> Tensor:
    """Draw the steps of a run as bars: (1, h, w, 3); how high is the share of the FLOPs, at least a tenth."""
    steps: dict[int, list[Any]] = {}
    for record in trace.records:
        steps.setdefault(record.step, []).append(record)
    width = max(1, len(steps)) * (COLUMN + GAP) + GAP
    picture = torch.full((1, HEIGHT + 2 * GAP, width, 3), PAPER)
    for place, records in enumerate(steps.values()):
        whole = sum(record.flops_full for record in records) or 1
        share = max(sum(record.flops for record in records) / whole, 0.1)
        top, left = GAP + round(HEIGHT * (1 - min(share, 1))), GAP + place * (COLUMN + GAP)
        picture[0, top : GAP + HEIGHT, left : left + COLUMN] = torch.tensor(STEPS[records[0].mode])
    return picture


def told(trace: Trace) -> str:
    """Write what was decided, a line a step."""
    lines = [trace.summary(), *trace.notes, ""]
    seen = set()
    for record in trace.records:
        if record.step not in seen:
            seen.add(record.step)
            lines.append(f"step {record.step + 1:>3}  {record.mode.value:<8} {record.reason}")
    return "\n".join(lines)
