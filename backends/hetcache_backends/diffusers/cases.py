"""Small seeded pipelines of diffusers' own classes, for the contract kit and for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from hetcache_backends.diffusers.common import missing_library
from hetcache_core.testing import BackboneCase

if TYPE_CHECKING:
    from hetcache_core import Backbone

TEXT_TOKENS: Final = 7
TEXT_WIDTH: Final = 24


def small_ltx(seed: int) -> Any:
    """Make a ``MaskedLTXPipeline`` around a model of 4 blocks and width 48, without text encoder.

    Args:
        seed: of the weights; the global random state is left as it was.
    """
    library = _diffusers()
    from hetcache_backends.diffusers import ltx_pipeline

    kind: Any = ltx_pipeline.MaskedLTXPipeline
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = library.LTXVideoTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=24,
            cross_attention_dim=48,
            num_layers=4,
            caption_channels=TEXT_WIDTH,
        )
        vae = library.AutoencoderKLLTXVideo(
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
        )
    pipeline = kind(
        scheduler=library.FlowMatchEulerDiscreteScheduler(),
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def small_wan_vace(seed: int) -> Any:
    """Make a ``WanVACEPipeline`` around a model of 4 blocks, 2 control blocks and width 24.

    Args:
        seed: of the weights; the global random state is left as it was.
    """
    library = _diffusers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = library.WanVACETransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            text_dim=TEXT_WIDTH,
            freq_dim=32,
            ffn_dim=48,
            num_layers=4,
            vace_layers=[0, 2],
        )
        vae = library.AutoencoderKLWan(base_dim=4, num_res_blocks=1, dim_mult=[1, 1, 1, 1])
    pipeline = library.WanVACEPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        scheduler=library.FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer.eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise missing_library(error) from error
    return diffusers


def sample_video(frames: int, height: int, width: int) -> tuple[list[Any], Tensor]:
    """Draw a moving pattern and a box that moves over a part of it.

    Returns:
        F images, and the mask, (F, H, W) bool.
    """
    from PIL import Image

    time = torch.arange(frames).view(-1, 1, 1)
    rows, columns = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    red = (rows + 2 * columns + 8 * time) % 256  # (F, H, W)
    green = (2 * rows + columns + 0 * time) % 256
    blue = (rows * columns // 16 + 4 * time) % 256
    video = torch.stack([red, green, blue], dim=-1).to(torch.uint8)  # (F, H, W, 3)
    left = width // 4 + time
    mask = (rows >= height // 4) & (rows < height // 2)
    mask = mask & (columns >= left) & (columns < left + width // 4)
    return [Image.fromarray(frame) for frame in video.numpy()], mask


def sample_text(seed: int) -> tuple[Tensor, Tensor]:
    """Draw the embeddings of a prompt and of a negative prompt, each (1, L, width)."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(2, 1, TEXT_TOKENS, TEXT_WIDTH, generator=generator)
    return text[0], text[1]


def ltx_arguments(seed: int = 0, *, guided: bool = True) -> dict[str, Any]:
    """Arguments of one masked edit of 17 x 96 x 128 pixels, 36 tokens."""
    video, mask = sample_video(17, 96, 128)
    text, negative = sample_text(seed)
    words = torch.ones(text.shape[:2])
    words[:, -2:] = 0
    return {
        "source_video": video,
        "edit_mask": mask,
        "prompt_embeds": text,
        "prompt_attention_mask": words,
        "negative_prompt_embeds": negative,
        "negative_prompt_attention_mask": torch.ones(text.shape[:2]),
        "guidance_scale": 3.0 if guided else 1.0,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
    }


def wan_vace_arguments(seed: int = 0, *, guided: bool = True) -> dict[str, Any]:
    """Arguments of one masked edit of 5 x 64 x 96 pixels, 48 tokens."""
    from PIL import Image

    video, mask = sample_video(5, 64, 96)
    text, negative = sample_text(seed)
    return {
        "video": video,
        "mask": [Image.fromarray(frame) for frame in (mask.to(torch.uint8) * 255).numpy()],
        "height": 64,
        "width": 96,
        "num_frames": 5,
        "prompt_embeds": text,
        "negative_prompt_embeds": negative,
        "guidance_scale": 5.0 if guided else 1.0,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
    }


def _sample(pipeline: Any, steps: int, arguments: dict[str, Any]) -> Tensor:
    latents: Tensor = pipeline(num_inference_steps=steps, **arguments).frames
    return latents


def ltx_case(backbone: Backbone) -> BackboneCase:
    """Make the contract kit's case of LTX-Video."""

    def run(pipeline: Any, steps: int, guidance: str, seed: int) -> Tensor:
        arguments = ltx_arguments(seed, guided=guidance != "none")
        return _sample(pipeline, steps, arguments)

    return BackboneCase(
        name=backbone.name,
        backbone=backbone,
        make_pipeline=small_ltx,
        run=run,
        main_blocks=lambda pipeline: [b.ff for b in pipeline.transformer.transformer_blocks],
    )


def wan_vace_case(backbone: Backbone) -> BackboneCase:
    """Make the contract kit's case of Wan-VACE."""

    def run(pipeline: Any, steps: int, guidance: str, seed: int) -> Tensor:
        arguments = wan_vace_arguments(seed, guided=guidance != "none")
        return _sample(pipeline, steps, arguments)

    return BackboneCase(
        name=backbone.name,
        backbone=backbone,
        make_pipeline=small_wan_vace,
        run=run,
        main_blocks=lambda pipeline: [b.ffn for b in pipeline.transformer.blocks],
        control_blocks=lambda pipeline: [b.ffn for b in pipeline.transformer.vace_blocks],
    )
