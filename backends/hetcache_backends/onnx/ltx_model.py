"""An LTX-Video model whose parts are graphs, as diffusers' pipelines see it.

The modules have no parameters. Rotary table and waves of a timestep are the library's own modules,
which have none either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, final

import torch
from diffusers.models.embeddings import Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_ltx import LTXVideoRotaryPosEmbed
from torch import Tensor, nn

from hetcache_backends.onnx.block import OnnxBlock, graphs_of
from hetcache_backends.onnx.folder import LtxSizes
from hetcache_backends.onnx.session import Graph
from hetcache_core import UnsupportedBackboneError

MASKED: Final = -10000.0
"""Bias of a word that is padding. Source: diffusers 0.42.1, ``LTXVideoTransformer3DModel.forward``."""


@final
class OnnxLtxBlock(OnnxBlock):
    """A block as the library calls it."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
        encoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Run the block on all tokens."""
        text = (encoder_hidden_states, bias_of(encoder_hidden_states, encoder_attention_mask))
        modulation = temb.unflatten(2, (6, -1)).expand(-1, hidden_states.shape[1], -1, -1)
        return self.run(hidden_states, text, modulation, image_rotary_emb, None)


@final
class OnnxLtxModel(nn.Module):
    """The transformer in the place of an ``LTXVideoTransformer3DModel``."""

    transformer_blocks: Any

    is_cache_enabled = False
    gradient_checkpointing = False
    dtype = torch.float32

    def __init__(self, graphs: Mapping[str, Graph], sizes: LtxSizes, device: str) -> None:
        """Take the model's graphs.

        Args:
            graphs: by their names.
            sizes: of the model; the pipeline reads them as its configuration.
            device: where the graphs run.
        """
        super().__init__()
        self.config = sizes
        self.device = torch.device(device)
        self.patch = graphs["patch"]
        self.text = graphs["text"]
        self.time = graphs["time"]
        self.time_projection = graphs["time_projection"]
        self.head = graphs["head"]
        self.transformer_blocks = nn.ModuleList(
            OnnxLtxBlock(graphs_of(graphs, f"main{i:02d}"), sizes.heads)
            for i in range(sizes.layers)
        )
        self.waves = Timesteps(sizes.freq_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.rope = LTXVideoRotaryPosEmbed(
            dim=sizes.width, patch_size=sizes.patch_size, patch_size_t=sizes.patch_size_t
        )

    @contextmanager
    def cache_context(self, _name: str, **_arguments: Any) -> Iterator[None]:
        """Do nothing; the library's own caches are not for graphs."""
        yield

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        encoder_attention_mask: Tensor | None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        rope_interpolation_scale: Any = None,
        video_coords: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Predict noise as the library does.

        Args:
            hidden_states: (B, N, C) packed latents.
            encoder_hidden_states: (B, L, E) encoded prompt.
            timestep: (B,), (B, 1), or (B, N) where each token has its own.
            encoder_attention_mask: (B, L), 1 for words and 0 for padding; or their bias (B, 1, L).
            num_frames: latent frames, where there are no coordinates.
            height: latent rows.
            width: latent columns.
            rope_interpolation_scale: factors of the positions, where there are no coordinates.
            video_coords: (B, 3, N) positions.
            attention_kwargs: None; graphs take none.
            return_dict: whether to wrap the output.

        Raises:
            UnsupportedBackboneError: there are ``attention_kwargs``.
        """
        if attention_kwargs:
            raise UnsupportedBackboneError(
                f"Exported graphs take no attention_kwargs ({', '.join(attention_kwargs)})",
                option="attention_kwargs",
                remedy="Leave them out.",
            )
        sizes = (num_frames, height, width, rope_interpolation_scale, video_coords)
        rotary = self.rope(hidden_states, *sizes)
        bias = encoder_attention_mask
        if bias is not None and bias.dim() == 2:  # noqa: PLR2004 - (B, L)
            bias = ((1 - bias.to(hidden_states.dtype)) * MASKED).unsqueeze(1)  # (B, 1, L)
        batch, tokens, _ = hidden_states.shape
        hidden = self.patch(hidden_states)  # (B, N, D)
        embedded = self.time(self.waves(timestep.flatten()))  # (B * 1 or B * N, D)
        modulation = self.time_projection(embedded).unflatten(0, (batch, -1))
        context = self.text(encoder_hidden_states)  # (B, L, D)
        for block in self.transformer_blocks:
            hidden = block(
                hidden_states=hidden,
                encoder_hidden_states=context,
                temb=modulation,
                image_rotary_emb=rotary,
                encoder_attention_mask=bias,
            )
        each = embedded.unflatten(0, (batch, -1)).expand(-1, tokens, -1)  # (B, N, D)
        output = self.head(hidden, each)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)


def bias_of(context: Tensor, bias: Tensor | None) -> Tensor:
    """Return the bias (B, 1, L) of the words (B, L, D), zeros where there is none."""
    return context.new_zeros(context.shape[0], 1, context.shape[1]) if bias is None else bias
