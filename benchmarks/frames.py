"""Where a difference to the uncached video can be seen: one frame, cached more and more, as a picture.

    python benchmarks/frames.py --output docs/fidelity.webp

Edits a clip of the built-in set uncached and with ever higher speed-ups. The upper row shows its middle frame
with the PSNR to the uncached video inside the mask, the lower one what is different, ten times as bright.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

from hetcache_backends.tiny_vace import builtin_clips
from hetcache_backends.tiny_vace.backbone import TinyVace
from hetcache_core import EditRequest, LoadRequest, accelerate

mpl.use("Agg")

RUNS = (
    ("auto", 3.0),
    ("auto", 6.0),
    ("every-nth", 4.0),
    ("every-nth", 6.0),
    ("every-nth", 9.0),
    ("every-nth", 14.0),
)
BRIGHTER = 10


def main() -> None:
    """Write the picture."""
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", default="large-moving-object-1")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    backbone = TinyVace()
    pipeline = backbone.load(LoadRequest())
    specs = {spec.name: spec for spec in builtin_clips(frames=9, height=128, width=128)}
    clip = specs[options.clip].render()
    mask = clip.mask > 0
    request = EditRequest(
        video=clip.video, mask=mask, prompt=clip.prompt, steps=options.steps, seed=0,
        guidance_scale=backbone.guidance_scale,
    )  # fmt: skip
    wanted = backbone.edit(pipeline, request)
    shown = [("uncached", wanted)]
    for policy, speedup in RUNS:
        with accelerate(pipeline, policy, backbone=backbone, target_speedup=speedup) as session:
            video = backbone.edit(pipeline, request)
        error = np.square(video[mask].astype(np.float64) - wanted[mask]).mean()
        decibels = 10 * np.log10(255**2 / error)
        totals = session.trace.totals()
        shown.append((f"{policy}, {totals.flops_speedup:.1f}x\n{decibels:.1f} dB", video))
    at = len(wanted) // 2
    figure, axes = pyplot.subplots(2, len(shown), figsize=(1.9 * len(shown), 4.3))
    for (title, video), (above, below) in zip(shown, axes.T, strict=True):
        apart = np.abs(video[at].astype(np.int16) - wanted[at])
        above.imshow(video[at])
        above.set_title(title, fontsize=9)
        below.imshow(np.minimum(BRIGHTER * apart, 255).astype(np.uint8))
        for axis in (above, below):
            axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(options.output, dpi=80, pil_kwargs={"quality": 85})
    print(options.output)


if __name__ == "__main__":
    main()
