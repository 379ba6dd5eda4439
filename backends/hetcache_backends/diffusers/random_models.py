"""Small pipelines with random weights, for the contract kit and for whoever has no checkpoint."""

from __future__ import annotations

from typing import Any, final

from attrs import frozen

from hetcache_backends.diffusers.cases import (
    TEXT_WIDTH,
    ltx_case,
    small_ltx,
    small_wan_vace,
    wan_vace_case,
)
from hetcache_backends.wan.case import RANDOM_NOTICE, RANDOM_SEED
from hetcache_core import Backbone, LoadRequest, RandomModels
from hetcache_core.testing import BackboneCase

__all__ = ["LtxModels", "WanVaceModels"]


@final
@frozen
class LtxModels(RandomModels):
    """Small LTX-Videos.

    Attributes:
        backbone: the adapter.
    """

    backbone: Backbone

    def pipeline(self, request: LoadRequest) -> Any:
        """Make a ``MaskedLTXPipeline`` that reads prompts."""
        pipeline = _ready(self.backbone.name, small_ltx(RANDOM_SEED), request)
        _cast(pipeline.vae, request)
        return pipeline

    def case(self) -> BackboneCase:
        """Return a case of 36 tokens, without a text encoder."""
        return ltx_case(self.backbone)


@final
@frozen
class WanVaceModels(RandomModels):
    """Small Wan-VACEs.

    Attributes:
        backbone: the adapter.
    """

    backbone: Backbone

    def pipeline(self, request: LoadRequest) -> Any:
        """Make a ``WanVACEPipeline`` that reads prompts; the VAE is kept in fp32, as Wan asks."""
        return _ready(self.backbone.name, small_wan_vace(RANDOM_SEED), request)

    def case(self) -> BackboneCase:
        """Return a case of 48 tokens, without a text encoder."""
        return wan_vace_case(self.backbone)


def _ready(name: str, pipeline: Any, request: LoadRequest) -> Any:
    import torch
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
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
    pipeline.hetcache_notice = RANDOM_NOTICE.format(name=name)
    return pipeline


def _cast(model: Any, request: LoadRequest) -> None:
    import torch

    # Not the library's own ``to``, which advises against what is meant here.
    torch.nn.Module.to(model, getattr(torch, request.dtype))
