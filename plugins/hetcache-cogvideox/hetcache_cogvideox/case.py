"""A small CogVideoX and one edit of it, for the contract kit: ``hetcache plugins check``, and the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import diffusers
import torch
from attrs import frozen
from torch import Tensor

from hetcache_cogvideox.pipeline import MaskedCogVideoX
from hetcache_core import Backbone, LoadRequest, RandomModels

if TYPE_CHECKING:
    from hetcache_core.testing import BackboneCase

WORDS, WORD_WIDTH = 5, 24
FRAMES, HEIGHT, WIDTH = 9, 48, 64


def small_pipeline(seed: int, *, rotary: bool = True) -> Any:
    """Make a pipeline around a model of 3 blocks and width 32, without text encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=12,
            text_embed_dim=WORD_WIDTH,
            num_layers=3,
            sample_width=8,
            sample_height=6,
            sample_frames=FRAMES,
            max_text_seq_length=WORDS,
            use_rotary_positional_embeddings=rotary,
        )
        vae = diffusers.AutoencoderKLCogVideoX(
            block_out_channels=(4, 4, 4, 4),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        )
    pipeline = MaskedCogVideoX(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=diffusers.CogVideoXDDIMScheduler(
            timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
            prediction_type="v_prediction",
            clip_sample=False,
        ),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def arguments(seed: int = 0, *, guided: bool = True) -> dict[str, Any]:
    """Arguments of one masked edit of 9 x 48 x 64 pixels, 36 tokens behind those of the text."""
    draw = torch.Generator().manual_seed(seed)
    text = torch.randn(2, 1, WORDS, WORD_WIDTH, generator=draw)
    mask = torch.zeros(FRAMES, HEIGHT, WIDTH, dtype=torch.bool)
    for frame in range(FRAMES):
        mask[frame, 16:30, 8 + 2 * frame : 24 + 2 * frame] = True
    return {
        "video": list(torch.rand(FRAMES, HEIGHT, WIDTH, 3, generator=draw).numpy()),
        "edit_mask": mask,
        "height": HEIGHT,
        "width": WIDTH,
        "strength": 1.0,
        "prompt_embeds": text[0],
        "negative_prompt_embeds": text[1],
        "guidance_scale": 4.0 if guided else 1.0,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
    }


def run(pipeline: Any, steps: int, guidance: str, seed: int) -> Tensor:
    """Run one edit; its final latents (1, T, C, h, w)."""
    guided = guidance != "none"
    latents: Tensor = pipeline(num_inference_steps=steps, **arguments(seed, guided=guided)).frames
    return latents


def case(backbone: Backbone, name: str, make: Callable[[int], Any]) -> BackboneCase:
    """Make a case of pipelines that differ by a seed."""
    from hetcache_core.testing import BackboneCase

    return BackboneCase(
        name=name,
        backbone=backbone,
        make_pipeline=make,
        run=run,
        main_blocks=lambda pipeline: [b.ff for b in pipeline.transformer.transformer_blocks],
    )


@final
@frozen
class SmallModels(RandomModels):
    """Small CogVideoX with random weights.

    Attributes:
        backbone: the adapter.
    """

    backbone: Backbone

    def pipeline(self, request: LoadRequest) -> Any:
        """Make one whose text encoder reads the bytes of a prompt, so that it needs no file of words."""
        from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

        pipeline, tokenizer = small_pipeline(0), ByT5Tokenizer()
        sizes = {"d_model": WORD_WIDTH, "d_kv": 12, "d_ff": 48, "num_layers": 1, "num_heads": 2}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes)).eval()
        pipeline.register_modules(text_encoder=encoder, tokenizer=tokenizer)
        pipeline.to(request.device, getattr(torch, request.dtype))
        pipeline.hetcache_notice = (
            f"{self.backbone.name} runs on a small random model: traces and FLOPs mean something, the "
            "picture and the clock do not."
        )
        return pipeline

    def case(self) -> BackboneCase:
        """Return the case that the contract kit runs by default."""
        return case(self.backbone, self.backbone.name, small_pipeline)
