"""Pipelines of every backbone at any size, with random weights; and the embedded model.

The transformers are the libraries' own classes. Encoding and decoding are no part of what is measured, so
the codecs in front of them are the smallest that give latents of the right shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from attrs import frozen
from torch import Tensor, nn

from harness.sizes import ModelSize, model_size
from hetcache_core import Backbone, ConfigError, LoadRequest, discover

if TYPE_CHECKING:
    from hetcache_backends.tiny_vace.config import TinyVaceConfig

EMBEDDED: Final = "tiny-vace"
SEED: Final = 0
LATENT_CHANNELS: Final = 16
WAN_STRIDES: Final = (4, 8)
"""Frames and pixels that a latent of Wan covers."""


def make_model(name: str, scale: str, device: str, dtype: str) -> tuple[Backbone, Any]:
    """Make a backbone and a pipeline of it.

    Args:
        name: of the backbone; ``tiny-vace`` is the embedded model, with its weights, at every scale.
        scale: "tiny", "small" or "published".
        device: where it is put.
        dtype: of weights and activations.

    Raises:
        ConfigError: there is no such backbone or scale.
        UnsupportedBackboneError: its library is not installed.
    """
    size = model_size(scale, name)
    makers = _MAKERS
    if name not in makers:
        raise ConfigError(
            f"There is no model of {name!r} to measure", remedy=f"Use one of {', '.join(makers)}."
        )
    backbone: Backbone = discover().backbone(name)()
    request = LoadRequest(device=device, dtype=dtype)
    return backbone, makers[name](backbone, size, request)


def transformers(pipeline: Any) -> list[nn.Module]:
    """Return the models that run at every step."""
    parts = (getattr(pipeline, name, None) for name in ("dit", "vace", "transformer"))
    return [part for part in parts if isinstance(part, nn.Module)]


def weight_bytes(pipeline: Any) -> int:
    """Bytes of the weights that run at every step."""
    return sum(
        weight.numel() * weight.element_size()
        for model in transformers(pipeline)
        for weight in model.parameters()
    )


def text_options(pipeline: Any, name: str, size: ModelSize) -> dict[str, Any]:
    """Arguments that carry prompts to a pipeline without a text encoder; none for DiffSynth's."""
    if name not in {"wan-vace-diffusers", "ltx-video"}:
        return {}
    model = pipeline.transformer
    generator = torch.Generator().manual_seed(SEED)
    text = torch.randn(2, 1, size.words, size.text_width, generator=generator)
    text = text.to(model.device, model.dtype)
    options: dict[str, Any] = {"prompt_embeds": text[0], "negative_prompt_embeds": text[1]}
    if name == "ltx-video":
        seen = torch.ones(1, size.words, device=model.device, dtype=torch.bool)
        options |= {"prompt_attention_mask": seen, "negative_prompt_attention_mask": seen}
    return options


def wan_config(size: ModelSize) -> TinyVaceConfig:
    """Give a size to DiffSynth's classes, by the names of the embedded model's configuration."""
    from hetcache_backends.tiny_vace.config import TinyVaceConfig

    return TinyVaceConfig(
        z_dim=LATENT_CHANNELS,
        dim=size.width,
        num_heads=size.heads,
        num_layers=size.layers,
        control_layers=size.control,
        ffn_dim=size.ffn,
        text_dim=size.text_width,
        text_length=size.words,
    )


def wan_diffusers_transformer(size: ModelSize) -> Any:
    """Make diffusers' Wan-VACE with random weights."""
    import diffusers

    return diffusers.WanVACETransformer3DModel(
        num_attention_heads=size.heads,
        attention_head_dim=size.width // size.heads,
        text_dim=size.text_width,
        ffn_dim=size.ffn,
        num_layers=size.layers,
        vace_layers=list(size.control),
    )


def ltx_transformer(size: ModelSize) -> Any:
    """Make diffusers' LTX-Video with random weights."""
    import diffusers

    return diffusers.LTXVideoTransformer3DModel(
        num_attention_heads=size.heads,
        attention_head_dim=size.width // size.heads,
        cross_attention_dim=size.width,
        num_layers=size.layers,
        caption_channels=size.text_width,
    )


def _embedded(backbone: Backbone, _size: ModelSize, request: LoadRequest) -> Any:
    return backbone.load(request)


def _wan(backbone: Backbone, size: ModelSize, request: LoadRequest) -> Any:
    from hetcache_backends.tiny_vace.pipeline import pipeline_without_models, random_models

    config = wan_config(size)
    dtype = getattr(torch, request.dtype)
    pipeline: Any = pipeline_without_models(config, device=request.device, dtype=dtype)
    with torch.device(request.device):  # billions of random numbers take minutes on a CPU
        pipeline.dit, pipeline.vace = random_models(config, seed=SEED)
    for model in (pipeline.dit, pipeline.vace):
        model.to(device=request.device, dtype=dtype).eval().requires_grad_(requires_grad=False)
    pipeline.vae = PooledCodec()
    pipeline.hetcache_backbone = backbone.name
    return pipeline


def _wan_diffusers(_backbone: Backbone, size: ModelSize, request: LoadRequest) -> Any:
    import diffusers

    with _seeded(request.device):
        transformer = wan_diffusers_transformer(size)
        vae = diffusers.AutoencoderKLWan(base_dim=4, num_res_blocks=1, dim_mult=[1, 1, 1, 1])
    pipeline = diffusers.WanVACEPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=_ready(transformer, request),
    )
    pipeline.to(request.device)
    return pipeline


def _ltx(_backbone: Backbone, size: ModelSize, request: LoadRequest) -> Any:
    import diffusers

    # It warns in every call of how LTXConditionPipeline itself calls the scheduler.
    diffusers.utils.logging.set_verbosity_error()
    from hetcache_backends.diffusers.ltx_pipeline import MaskedLTXPipeline

    with _seeded(request.device):
        transformer = ltx_transformer(size)
        vae = diffusers.AutoencoderKLLTXVideo(
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
        )
    pipeline: Any = MaskedLTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_ready(vae, request),
        text_encoder=None,
        tokenizer=None,
        transformer=_ready(transformer, request),
    )
    pipeline.to(request.device)
    return pipeline


def _ready(model: nn.Module, request: LoadRequest) -> nn.Module:
    # Not diffusers' own ``to``, which advises against what is meant here.
    nn.Module.to(model, device=request.device, dtype=getattr(torch, request.dtype))
    return model.eval().requires_grad_(requires_grad=False)


@contextmanager
def _seeded(device: str) -> Iterator[None]:
    """Draw weights on a device from the seed; the random state is left as it was."""
    place = torch.device(device)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), place:
        torch.manual_seed(SEED)
        yield


_MAKERS: Final[Mapping[str, Callable[[Backbone, ModelSize, LoadRequest], Any]]] = {
    EMBEDDED: _embedded,
    "wan-vace": _wan,
    "wan-vace-diffusers": _wan_diffusers,
    "ltx-video": _ltx,
}
BACKBONES: Final = tuple(_MAKERS)


@frozen
class _CodecShape:
    z_dim: int = LATENT_CHANNELS


class PooledCodec(nn.Module):
    """Latents of Wan's shape by pooling, in the VAE's place; the first frame stands alone."""

    model = _CodecShape()
    upsampling_factor = WAN_STRIDES[1]

    def encode(self, videos: Any, device: Any, **_: Any) -> Tensor:
        """Pool videos (B, 3, F, H, W): (B, C, T, H / 8, W / 8)."""
        frames, side = WAN_STRIDES
        encoded = []
        for video in videos:
            padded = torch.cat([video[:, :1].expand(-1, frames - 1, -1, -1), video], dim=1)
            pooled = nn.functional.avg_pool3d(padded.float(), (frames, side, side))  # (3, T, h, w)
            repeats = -(-LATENT_CHANNELS // pooled.shape[0])
            encoded.append(pooled.repeat(repeats, 1, 1, 1)[:LATENT_CHANNELS])  # (C, T, h, w)
        return torch.stack(encoded).to(device)

    def decode(self, latents: Any, device: Any, **_: Any) -> Tensor:
        """Spread latents (B, C, T, h, w) over the pixels: (B, 3, F, H, W)."""
        latents = torch.stack(list(latents))
        frames, side = WAN_STRIDES
        video = nn.functional.interpolate(
            latents[:, :3].float(), scale_factor=(frames, side, side), mode="nearest"
        )
        return video[:, :, frames - 1 :].clamp(-1, 1)
