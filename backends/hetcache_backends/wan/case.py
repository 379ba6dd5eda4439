"""Small Wan pipelines with random weights: for the contract kit, and for who has no checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
from attrs import frozen

from hetcache_backends.tiny_vace.config import TinyVaceConfig
from hetcache_backends.wan.loading import import_diffsynth
from hetcache_core import Backbone, LoadRequest, RandomModels
from hetcache_core.testing import BackboneCase

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALL: Final = TinyVaceConfig(
    dim=48, num_heads=4, num_layers=4, control_layers=(0, 2), ffn_dim=96, freq_dim=32
)
"""Dimensions of a model that stands for Wan-VACE."""

RANDOM_NOTICE: Final = (
    "{name} runs on a small random model: traces and FLOPs mean something, the picture and the "
    "clock do not."
)
RANDOM_SEED: Final = 0

FRAMES: Final = 5
HEIGHT: Final = 64
WIDTH: Final = 96
GUIDANCE: Final[dict[str, dict[str, Any]]] = {
    "separate": {"cfg_scale": 5.0},
    "merged": {"cfg_scale": 5.0, "cfg_merge": True},
    "none": {"cfg_scale": 1.0},
}


@final
@frozen
class WanModels(RandomModels):
    """Small models of DiffSynth's Wan classes, with the codec and the words of ``tiny-vace``.

    Attributes:
        backbone: the adapter.
        config: dimensions of the model.
    """

    backbone: Backbone
    config: TinyVaceConfig

    def pipeline(self, request: LoadRequest) -> Any:
        """Make a pipeline that takes any edit."""
        import torch

        import_diffsynth()
        from hetcache_backends.tiny_vace.pipeline import build_pipeline

        pipeline: Any = build_pipeline(
            device=request.device,
            dtype=getattr(torch, request.dtype),
            seed=RANDOM_SEED,
            config=self.config,
        )
        pipeline.hetcache_backbone = self.backbone.name
        pipeline.hetcache_notice = RANDOM_NOTICE.format(name=self.backbone.name)
        return pipeline

    def case(self) -> BackboneCase:
        """Return a case of 48 tokens, with seeded weights and the embedded codec."""
        import_diffsynth()

        return BackboneCase(
            name=self.backbone.name,
            backbone=self.backbone,
            make_pipeline=self._seeded,
            run=_run,
            main_blocks=lambda pipeline: _feed_forwards(pipeline.dit.blocks),
            control_blocks=lambda pipeline: _feed_forwards(pipeline.vace.vace_blocks),
        )

    def _seeded(self, seed: int) -> Any:
        from hetcache_backends.tiny_vace.pipeline import build_pipeline

        pipeline: Any = build_pipeline(seed=seed, config=self.config)
        pipeline.hetcache_backbone = self.backbone.name
        return pipeline


def _feed_forwards(blocks: Any) -> list[nn.Module]:
    return [block.ffn for block in blocks]


def _run(pipeline: Any, steps: int, guidance: str, seed: int) -> Tensor:
    """Edit a noise clip under a box that moves; return the final latents."""
    noise = np.random.default_rng(seed).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    mask = np.zeros_like(noise)
    for frame in range(FRAMES):
        left = 8 + 6 * frame
        mask[frame, 16:30, left : left + 16] = 255
    caught: list[Tensor] = []
    decode = pipeline.vae.decode

    from PIL import Image

    def catch(latents: Tensor, **arguments: Any) -> Tensor:
        caught.append(latents.clone())
        decoded: Tensor = decode(latents, **arguments)
        return decoded

    pipeline.vae.decode = catch
    try:
        pipeline(
            prompt="a red circle",
            negative_prompt="blue",
            vace_video=[Image.fromarray(frame) for frame in noise],
            vace_video_mask=[Image.fromarray(frame) for frame in mask],
            num_frames=FRAMES,
            height=HEIGHT,
            width=WIDTH,
            seed=seed,
            num_inference_steps=steps,
            tiled=False,
            output_type="floatpoint",
            progress_bar_cmd=iter,
            **GUIDANCE[guidance],
        )
    finally:
        del pipeline.vae.decode
    return caught[0]
