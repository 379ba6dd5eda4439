"""Small pipelines with random weights, for whoever has no checkpoint: they take any edit."""

from __future__ import annotations

from typing import Any

from hetcache_backends.diffusers.cases import TEXT_WIDTH, small_ltx, small_wan_vace
from hetcache_backends.wan.case import STAND_IN_NOTICE, STAND_IN_SEED
from hetcache_core import LoadRequest

__all__ = ["ltx_stand_in", "wan_vace_stand_in"]


def ltx_stand_in(name: str, request: LoadRequest) -> Any:
    """Make a ``MaskedLTXPipeline`` that reads prompts.

    Args:
        name: of the backbone.
        request: device and dtype.
    """
    pipeline = _ready(name, small_ltx(STAND_IN_SEED), request)
    _cast(pipeline.vae, request)
    return pipeline


def wan_vace_stand_in(name: str, request: LoadRequest) -> Any:
    """Make a ``WanVACEPipeline`` that reads prompts; the VAE is kept in fp32, as Wan asks.

    Args:
        name: of the backbone.
        request: device and dtype.
    """
    return _ready(name, small_wan_vace(STAND_IN_SEED), request)


def _ready(name: str, pipeline: Any, request: LoadRequest) -> Any:
    import torch
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(STAND_IN_SEED)
        # Reads the bytes of a text, so it needs no file of words.
        tokenizer = ByT5Tokenizer()
        encoder = T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizer),
                d_model=TEXT_WIDTH,
                d_kv=TEXT_WIDTH // 2,
                d_ff=2 * TEXT_WIDTH,
                num_layers=1,
                num_heads=2,
            )
        )
    encoder.requires_grad_(False).train(False)
    pipeline.register_modules(text_encoder=encoder, tokenizer=tokenizer)
    pipeline.to(request.device)
    _cast(pipeline.transformer, request)
    _cast(encoder, request)
    pipeline.hetcache_notice = STAND_IN_NOTICE.format(name=name)
    return pipeline


def _cast(model: Any, request: LoadRequest) -> None:
    import torch

    # Not the library's own ``to``, which advises against what is meant here.
    torch.nn.Module.to(model, getattr(torch, request.dtype))
