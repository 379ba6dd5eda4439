"""The pipeline of ``TinyBackbone`` that the contract kit runs."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from hetcache_core.testing.case import BackboneCase
from hetcache_core.testing.tiny.backbone import TinyBackbone
from hetcache_core.testing.tiny.model import TinyBlock, TinyConfig
from hetcache_core.testing.tiny.pipeline import TinyPipeline


def tiny_video(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Make a small clip (5, 32, 32, 3) uint8 of noise and a mask (5, 32, 32) that moves."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (5, 32, 32, 3), generator=generator, dtype=torch.uint8)
    mask = torch.zeros(5, 32, 32, dtype=torch.bool)
    for frame in range(5):
        mask[frame, 8:16, 6 + 2 * frame : 14 + 2 * frame] = True
    return video, mask


def tiny_case(
    config: TinyConfig | None = None, *, experts: int = 1, reference: bool = False
) -> BackboneCase:
    """Make a case of ``TinyBackbone``.

    Args:
        config: sizes of the model.
        experts: 2 for a second model that takes over at low noise.
        reference: whether the edit has a reference image, whose tokens come before the video's.
    """
    config = config or TinyConfig()

    def run(pipeline: TinyPipeline, steps: int, guidance: str, seed: int) -> Tensor:
        video, mask = tiny_video(seed)
        return pipeline(
            video,
            mask,
            prompt="a cat",
            reference=video[0] if reference else None,
            steps=steps,
            guidance_scale=1.0 if guidance == "none" else 5.0,
            merge_guidance=guidance == "merged",
            seed=seed,
        )

    def blocks(pipeline: TinyPipeline) -> list[nn.Module]:
        return [cast("TinyBlock", block).feed_forward for block in pipeline.model.blocks]

    def control_blocks(pipeline: TinyPipeline) -> list[nn.Module]:
        control = pipeline.model.control
        found = control.blocks if control is not None else ()
        return [cast("TinyBlock", block).feed_forward for block in found]

    return BackboneCase(
        name="tiny",
        backbone=TinyBackbone(),
        make_pipeline=lambda seed: TinyPipeline(seed, config, experts=experts),
        run=run,
        main_blocks=blocks,
        control_blocks=control_blocks,
        features=TinyBackbone.features.with_values(control=bool(config.control_layers)),
    )
