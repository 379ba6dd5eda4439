"""Does it matter which context stays active, and where control hints come from?

Runs HetCache's settings and plain skipping on clips of the embedded model's evaluation set and prints,
for each, the fidelity to the uncached output of the same seed and the share of FLOPs computed:

    python benchmarks/selection.py --clips 4,8,12,14 --output benchmarks/results/selection.csv
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch

from hetcache_backends.tiny_vace.backbone import TinyVace
from hetcache_backends.tiny_vace.clips import builtin_clips
from hetcache_core import EditRequest, LoadRequest, accelerate

SELECTORS = ("uniform", "random", "kmeans", "attention", "both")
CONTEXT = 0.3
VARIANTS: list[tuple[str, dict[str, object]]] = [
    *(
        ("hetcache", {"kv_mode": keys, "context_ratio": CONTEXT, "selector": selector})
        for keys in ("pruned", "cached")
        for selector in SELECTORS
    ),
    ("hetcache", {"control_mode": "reuse"}),
    ("hetcache", {"control_mode": "recompute"}),
    ("every-nth", {"every": 3}),
    ("every-nth", {"every": 4}),
    ("teacache", {"threshold": 2.5}),
    ("taylorseer", {"interval": 4}),
]


def psnr(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    """Return the PSNR in dB of (F, H, W, 3) uint8 videos over a mask (F, H, W)."""
    missed = (one.astype(np.float64) - other.astype(np.float64))[where]
    return float(10 * np.log10(255**2 / max((missed**2).mean(), 1e-9)))


def main() -> None:
    """Run the grid and print a line a variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", default="4,8,12,14", help="indices into the evaluation set")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="CSV file, a row a clip and variant")
    options = parser.parse_args()
    torch.set_num_threads(1)
    backbone = TinyVace()
    pipeline = backbone.load(LoadRequest())
    specs = builtin_clips(frames=17, height=options.size, width=options.size)
    rows: list[dict[str, object]] = []
    for index in map(int, options.clips.split(",")):
        clip = specs[index].render()
        mask = clip.mask > 0
        request = EditRequest(
            video=clip.video,
            mask=mask,
            prompt=clip.prompt,
            steps=options.steps,
            seed=options.seed,
            guidance_scale=backbone.guidance_scale,
        )
        with accelerate(pipeline, "none", backbone=backbone):
            reference = backbone.edit(pipeline, request)
        for policy, settings in VARIANTS:
            session = accelerate(pipeline, policy, settings=settings, backbone=backbone)
            with session as run:
                edited = backbone.edit(pipeline, request)
            rows.append(
                {
                    "clip": specs[index].name,
                    "policy": policy,
                    "settings": " ".join(f"{k}={v}" for k, v in settings.items()),
                    "share": 1 / run.trace.totals().flops_speedup,
                    "psnr_mask": psnr(edited, reference, mask),
                    "psnr_background": psnr(edited, reference, ~mask),
                }
            )
    for policy, settings in VARIANTS:
        words = " ".join(f"{k}={v}" for k, v in settings.items())
        own = [r for r in rows if (r["policy"], r["settings"]) == (policy, words)]
        mean = {
            k: np.mean([float(str(r[k])) for r in own])
            for k in ("share", "psnr_mask", "psnr_background")
        }
        spread = np.std([float(str(r["psnr_mask"])) for r in own])
        print(
            f"{policy:12} {words:52} share {mean['share']:.3f}  "
            f"mask {mean['psnr_mask']:.2f} +- {spread:.2f} dB  "
            f"background {mean['psnr_background']:.2f} dB"
        )
    if options.output is not None:
        with options.output.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
