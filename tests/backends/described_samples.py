"""Small random models of the described classes, and what each is called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from attrs import frozen
from torch import Tensor


@frozen
class Sample:
    """One class at a small size.

    Attributes:
        make: makes the transformer.
        arguments: makes what it is called with, of a generator.
        latents: argument with the latents.
        timestep: argument with the timestep.
        scale: what the timestep of 0 to 1000 is multiplied with.
        left: whether it is counted from the other end.
        counts: whether FLOPs can be counted exactly.
    """

    make: Callable[[], Any]
    arguments: Callable[[Callable[..., Tensor]], dict[str, Any]]
    latents: str = "hidden_states"
    timestep: str = "timestep"
    scale: float = 1.0
    left: bool = False
    counts: bool = True

    def inputs(self, seed: int) -> dict[str, Any]:
        """Arguments of one branch."""
        draw = torch.Generator().manual_seed(seed)
        return self.arguments(lambda *size: torch.randn(*size, generator=draw) * (1 + 4 * seed))

    def at(self, given: Tensor, t: Tensor) -> Tensor:
        """The timestep as the class takes it."""
        value = (1000 - t if self.left else t) * self.scale
        return torch.ones_like(given) * value.to(given.dtype)


TIME = torch.ones(1)


def ids(rows: int, columns: int = 0) -> Tensor:
    """Places of tokens in a picture (N, 3); all at the origin where there are no columns."""
    if not columns:
        return torch.zeros(rows, 3)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(x), y, x], dim=-1).reshape(-1, 3).float()


def allegro_rotary(width: int, frames: int, height: int, columns: int) -> Any:
    """Rotary table of Allegro, as its pipeline makes it."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    made: Any = get_3d_rotary_pos_embed_allegro(
        embed_dim=width,
        crops_coords=((0, 0), (height, columns)),
        grid_size=(height, columns),
        temporal_size=frames,
    )
    *tables, times, rows, lines = made
    places = torch.cartesian_prod(times.long(), rows.long(), lines.long()).T.reshape(3, 1, -1)
    return tuple(tables), tuple(places.contiguous())


def small(kind: str, **config: Any) -> Callable[[], Any]:
    """Make a transformer of a class of diffusers by its name."""
    return lambda: getattr(diffusers, kind)(**config)


SAMPLES = {
    "WanTransformer3DModel": Sample(
        small(
            "WanTransformer3DModel", num_attention_heads=2, attention_head_dim=12, in_channels=4,
            out_channels=4, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 2, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
        },
    ),
    "FluxTransformer2DModel": Sample(
        small(
            "FluxTransformer2DModel", in_channels=4, num_layers=1, num_single_layers=2,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
            pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
        ),
        lambda r: {
            "hidden_states": r(1, 16, 4),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 6, 32),
            "pooled_projections": r(1, 32),
            "img_ids": ids(4, 4),
            "txt_ids": ids(6),
        },
        scale=0.001,
    ),
    "QwenImageTransformer2DModel": Sample(
        small(
            "QwenImageTransformer2DModel", in_channels=16, out_channels=4, num_layers=2,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
        lambda r: {
            "hidden_states": r(1, 16, 16),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 7, 16),
            "encoder_hidden_states_mask": torch.ones(1, 7, dtype=torch.long),
            "img_shapes": [(1, 4, 4)],
        },
        scale=0.001,
    ),
    "SD3Transformer2DModel": Sample(
        small(
            "SD3Transformer2DModel", sample_size=16, patch_size=2, in_channels=4, num_layers=3,
            attention_head_dim=8, num_attention_heads=2, joint_attention_dim=32,
            caption_projection_dim=16, pooled_projection_dim=32, out_channels=4,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 16, 16),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 9, 32),
            "pooled_projections": r(1, 32),
        },
    ),
    "Flux2Transformer2DModel": Sample(
        small(
            "Flux2Transformer2DModel", in_channels=4, num_layers=1, num_single_layers=2,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
            timestep_guidance_channels=32, axes_dims_rope=[4, 4, 4, 4],
        ),
        lambda r: {
            "hidden_states": r(1, 16, 4),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 6, 32),
            "guidance": torch.ones(1),
            "img_ids": torch.cat([ids(4, 4), torch.zeros(16, 1)], dim=1),
            "txt_ids": torch.cat([ids(6), torch.arange(6.0)[:, None]], dim=1),
        },
        scale=0.001,
    ),
    "PixArtTransformer2DModel": Sample(
        small(
            "PixArtTransformer2DModel", num_layers=2, num_attention_heads=2, attention_head_dim=8,
            in_channels=4, out_channels=8, cross_attention_dim=16, caption_channels=16, sample_size=8,
            use_additional_conditions=False,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 6, 16),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
    "AllegroTransformer3DModel": Sample(
        small(
            "AllegroTransformer3DModel", num_layers=2, num_attention_heads=2, attention_head_dim=12,
            in_channels=4, out_channels=4, cross_attention_dim=24, caption_channels=16,
            sample_height=8, sample_width=8, sample_frames=2, interpolation_scale_h=1.0,
            interpolation_scale_w=1.0, interpolation_scale_t=1.0,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 2, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 6, 16),
            "encoder_attention_mask": torch.ones(1, 6, dtype=torch.long),
            "image_rotary_emb": allegro_rotary(12, 2, 4, 4),
        },
    ),
    "AuraFlowTransformer2DModel": Sample(
        small(
            "AuraFlowTransformer2DModel", sample_size=16, in_channels=4, num_mmdit_layers=1,
            num_single_dit_layers=2, num_attention_heads=2, attention_head_dim=8,
            joint_attention_dim=16, caption_projection_dim=16, pos_embed_max_size=64,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 16, 16),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 9, 16),
        },
        scale=0.001,
    ),
    "BriaTransformer2DModel": Sample(
        small(
            "BriaTransformer2DModel", in_channels=4, num_layers=1, num_single_layers=2,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
            axes_dims_rope=[4, 4, 8],
        ),
        lambda r: {
            "hidden_states": r(1, 16, 4),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 6, 32),
            "img_ids": ids(4, 4),
            "txt_ids": ids(6),
        },
    ),
    "ChromaTransformer2DModel": Sample(
        small(
            "ChromaTransformer2DModel", in_channels=4, num_layers=1, num_single_layers=2,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
            axes_dims_rope=(4, 4, 8), approximator_num_channels=8, approximator_hidden_dim=16,
            approximator_layers=1,
        ),
        lambda r: {
            "hidden_states": r(1, 16, 4),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 6, 32),
            "img_ids": ids(4, 4),
            "txt_ids": ids(6),
        },
        scale=0.001,
    ),
    "OvisImageTransformer2DModel": Sample(
        small(
            "OvisImageTransformer2DModel", in_channels=4, out_channels=4, num_layers=1,
            num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, axes_dims_rope=(4, 4, 8),
        ),
        lambda r: {
            "hidden_states": r(1, 16, 4),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 6, 32),
            "img_ids": ids(4, 4),
            "txt_ids": ids(6),
        },
        scale=0.001,
    ),
    "LongCatImageTransformer2DModel": Sample(
        small(
            "LongCatImageTransformer2DModel", in_channels=4, num_layers=1, num_single_layers=2,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
            pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
        ),
        lambda r: {
            "hidden_states": r(1, 16, 4),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 6, 32),
            "img_ids": ids(4, 4),
            "txt_ids": ids(6),
        },
        scale=0.001,
    ),
    "Flux3Transformer2DModel": Sample(
        small(
            "Flux3Transformer2DModel", in_channels=16, cond_in_channels=16, num_layers=1,
            num_single_layers=3, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, timestep_channels=32, axes_dims_rope=(4, 4, 4, 4),
        ),
        lambda r: {
            "hidden_states": r(1, 16, 16),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 6, 32),
            "img_ids": torch.cat([ids(4, 4), torch.zeros(16, 1)], dim=1),
            "txt_ids": torch.cat([ids(6), torch.arange(6.0)[:, None]], dim=1),
        },
        scale=0.001,
    ),
    "ChronoEditTransformer3DModel": Sample(
        small(
            "ChronoEditTransformer3DModel", num_attention_heads=2, attention_head_dim=12,
            in_channels=4, out_channels=4, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=2,
            rope_max_seq_len=32, rope_temporal_skip_len=2,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 2, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
        },
    ),
    "SkyReelsV2Transformer3DModel": Sample(
        small(
            "SkyReelsV2Transformer3DModel", num_attention_heads=2, attention_head_dim=12,
            in_channels=4, out_channels=4, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=2,
            rope_max_seq_len=32,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 2, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
        },
    ),
    "CogVideoXTransformer3DModel": Sample(
        small(
            "CogVideoXTransformer3DModel", num_attention_heads=2, attention_head_dim=16,
            in_channels=4, out_channels=4, time_embed_dim=12, text_embed_dim=24, num_layers=2,
            sample_width=8, sample_height=8, sample_frames=5, max_text_seq_length=5,
        ),
        lambda r: {
            "hidden_states": r(1, 2, 4, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 24),
        },
    ),
    "CogView3PlusTransformer2DModel": Sample(
        small(
            "CogView3PlusTransformer2DModel", in_channels=4, out_channels=4, num_layers=2,
            attention_head_dim=8, num_attention_heads=2, text_embed_dim=16, time_embed_dim=16,
            condition_dim=4, pos_embed_max_size=8, sample_size=8,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
            "original_size": torch.tensor([[64.0, 64.0]]),
            "target_size": torch.tensor([[64.0, 64.0]]),
            "crop_coords": torch.tensor([[0.0, 0.0]]),
        },
    ),
    "CogView4Transformer2DModel": Sample(
        small(
            "CogView4Transformer2DModel", in_channels=4, out_channels=4, num_layers=2,
            attention_head_dim=8, num_attention_heads=2, text_embed_dim=16, time_embed_dim=16,
            condition_dim=4, pos_embed_max_size=8, sample_size=8, rope_axes_dim=(4, 4),
        ),
        lambda r: {
            "hidden_states": r(1, 4, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
            "original_size": torch.tensor([[64.0, 64.0]]),
            "target_size": torch.tensor([[64.0, 64.0]]),
            "crop_coords": torch.tensor([[0.0, 0.0]]),
        },
    ),
    "CosmosTransformer3DModel": Sample(
        small(
            "CosmosTransformer3DModel", in_channels=4, out_channels=4, num_attention_heads=2,
            attention_head_dim=12, num_layers=2, mlp_ratio=2, text_embed_dim=16, adaln_lora_dim=4,
            max_size=(4, 16, 16), extra_pos_embed_type="learnable",
        ),
        lambda r: {
            "hidden_states": r(1, 4, 2, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
            "attention_mask": torch.ones(1, 5),
            "fps": 24,
            "padding_mask": torch.zeros(1, 1, 64, 64),
        },
    ),
    "EasyAnimateTransformer3DModel": Sample(
        small(
            "EasyAnimateTransformer3DModel", num_attention_heads=2, attention_head_dim=16,
            in_channels=4, out_channels=4, patch_size=2, time_embed_dim=16, num_layers=2,
            mmdit_layers=2, text_embed_dim=16, sample_height=8, sample_width=8,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 2, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
        },
    ),
    "ErnieImageTransformer2DModel": Sample(
        small(
            "ErnieImageTransformer2DModel", hidden_size=32, num_attention_heads=2, num_layers=2,
            ffn_hidden_size=48, in_channels=4, out_channels=4, text_in_dim=16,
            rope_axes_dim=(4, 4, 8),
        ),
        lambda r: {
            "hidden_states": r(1, 4, 4, 4),
            "timestep": TIME,
            "text_bth": r(1, 5, 16),
            "text_lens": torch.tensor([5]),
        },
    ),
    "GlmImageTransformer2DModel": Sample(
        small(
            "GlmImageTransformer2DModel", in_channels=4, out_channels=4, num_layers=2,
            attention_head_dim=8, num_attention_heads=2, text_embed_dim=16, time_embed_dim=16,
            condition_dim=4, prior_vq_quantizer_codebook_size=32,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
            "prior_token_id": torch.zeros(1, 16, dtype=torch.long),
            "prior_token_drop": torch.zeros(1, dtype=torch.bool),
            "target_size": torch.tensor([[64.0, 64.0]]),
            "crop_coords": torch.tensor([[0.0, 0.0]]),
        },
    ),
    "HeliosTransformer3DModel": Sample(
        small(
            "HeliosTransformer3DModel", num_attention_heads=2, attention_head_dim=12, in_channels=4,
            out_channels=4, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=2, rope_dim=(4, 4, 4),
        ),
        lambda r: {
            "hidden_states": r(1, 4, 2, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
            "indices_hidden_states": torch.arange(2.0)[None] + 5,
            "indices_latents_history_short": torch.arange(1.0)[None],
            "indices_latents_history_mid": torch.arange(2.0)[None],
            "indices_latents_history_long": torch.arange(4.0)[None],
            "latents_history_short": r(1, 4, 1, 8, 8),
            "latents_history_mid": r(1, 4, 2, 8, 8),
            "latents_history_long": r(1, 4, 4, 8, 8),
        },
    ),
    "HunyuanVideoTransformer3DModel": Sample(
        small(
            "HunyuanVideoTransformer3DModel", in_channels=4, out_channels=4, num_attention_heads=2,
            attention_head_dim=16, num_layers=1, num_single_layers=2, num_refiner_layers=1,
            mlp_ratio=2.0, text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(4, 4, 8),
        ),
        lambda r: {
            "hidden_states": r(1, 4, 2, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 6, 16),
            "encoder_attention_mask": torch.ones(1, 6),
            "pooled_projections": r(1, 8),
            "guidance": torch.ones(1) * 1000,
        },
    ),
    "HunyuanVideo15Transformer3DModel": Sample(
        small(
            "HunyuanVideo15Transformer3DModel", in_channels=4, out_channels=4,
            num_attention_heads=2, attention_head_dim=16, num_layers=2, num_refiner_layers=1,
            mlp_ratio=2.0, text_embed_dim=16, text_embed_2_dim=8, image_embed_dim=12,
            rope_axes_dim=(4, 4, 8), target_size=16,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 1, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 6, 16),
            "encoder_attention_mask": torch.ones(1, 6),
            "encoder_hidden_states_2": r(1, 4, 8),
            "encoder_attention_mask_2": torch.ones(1, 4),
            "image_embeds": r(1, 3, 12),
        },
    ),
    "HunyuanVideoFramepackTransformer3DModel": Sample(
        small(
            "HunyuanVideoFramepackTransformer3DModel", in_channels=4, out_channels=4,
            num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=2,
            num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=16, pooled_projection_dim=8,
            rope_axes_dim=(4, 4, 8), has_image_proj=True, image_proj_dim=12,
            has_clean_x_embedder=True,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 3, 4, 4),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 6, 16),
            "encoder_attention_mask": torch.ones(1, 6),
            "pooled_projections": r(1, 8),
            "image_embeds": r(1, 3, 12),
            "indices_latents": torch.arange(3),
            "guidance": torch.ones(1) * 1000,
            "latents_clean": r(1, 4, 1, 4, 4),
            "indices_latents_clean": torch.ones(1),
            "latents_history_2x": r(1, 4, 1, 4, 4),
            "indices_latents_history_2x": torch.ones(1),
            "latents_history_4x": r(1, 4, 4, 4, 4),
            "indices_latents_history_4x": torch.ones(4),
        },
    ),
    "Ideogram4Transformer2DModel": Sample(
        small(
            "Ideogram4Transformer2DModel", in_channels=16, num_layers=2, attention_head_dim=16,
            num_attention_heads=2, intermediate_size=32, adaln_dim=16, llm_features_dim=16,
            mrope_section=(4, 2, 2),
        ),
        lambda r: {
            "hidden_states": r(1, 8, 16),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 8, 16),
            "position_ids": torch.arange(8)[None, :, None].expand(1, 8, 3),
            "segment_ids": torch.zeros(1, 8, dtype=torch.long),
            "indicator": torch.tensor([[3, 3, 3, 2, 2, 2, 2, 2]]),
        },
        scale=0.001,
        left=True,
    ),
    "JoyImageEditTransformer3DModel": Sample(
        small(
            "JoyImageEditTransformer3DModel", in_channels=4, hidden_size=32, num_attention_heads=2,
            text_dim=16, num_layers=2, rope_dim_list=[4, 4, 8],
        ),
        lambda r: {
            "hidden_states": r(1, 1, 4, 1, 4, 4),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
        },
    ),
    "Krea2Transformer2DModel": Sample(
        small(
            "Krea2Transformer2DModel", in_channels=16, num_layers=2, attention_head_dim=16,
            num_attention_heads=2, num_key_value_heads=1, intermediate_size=32,
            timestep_embed_dim=16, text_hidden_dim=16, num_text_layers=2,
            text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=16,
            num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 4, 8),
        ),
        lambda r: {
            "hidden_states": r(1, 4, 16),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 4, 2, 16),
            "position_ids": torch.arange(8)[:, None].expand(8, 3),
        },
        scale=0.001,
    ),
    "LongCatAudioDiTTransformer": Sample(
        small(
            "LongCatAudioDiTTransformer", dit_dim=32, dit_depth=2, dit_heads=2, dit_text_dim=16,
            latent_dim=8,
        ),
        lambda r: {
            "hidden_states": r(1, 16, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
            "encoder_attention_mask": torch.ones(1, 5, dtype=torch.bool),
            "latent_cond": r(1, 16, 8),
        },
        scale=0.001,
    ),
    "LTX2VideoTransformer3DModel": Sample(
        small(
            "LTX2VideoTransformer3DModel", in_channels=8, out_channels=8, num_attention_heads=2,
            attention_head_dim=16, cross_attention_dim=32, audio_in_channels=6,
            audio_out_channels=6, audio_num_attention_heads=2, audio_attention_head_dim=8,
            audio_cross_attention_dim=16, num_layers=2, caption_channels=24,
        ),
        lambda r: {
            "hidden_states": r(1, 32, 8),
            "audio_hidden_states": r(1, 9, 6),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 24),
            "audio_encoder_hidden_states": r(1, 5, 24),
            "num_frames": 2,
            "height": 4,
            "width": 4,
            "audio_num_frames": 9,
        },
    ),
    "LuminaNextDiT2DModel": Sample(
        small(
            "LuminaNextDiT2DModel", sample_size=16, in_channels=4, hidden_size=32, num_layers=2,
            num_attention_heads=2, num_kv_heads=1, multiple_of=16, cross_attention_dim=16,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 16, 16),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
            "encoder_mask": torch.ones(1, 5),
            "image_rotary_emb": torch.view_as_complex(r(384, 384, 8, 2)),
            "cross_attention_kwargs": {"base_sequence_length": None},
        },
        scale=0.001,
        left=True,
    ),
    "Lumina2Transformer2DModel": Sample(
        small(
            "Lumina2Transformer2DModel", sample_size=16, in_channels=4, hidden_size=24,
            num_layers=2, num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1,
            multiple_of=2, axes_dim_rope=(4, 2, 2), axes_lens=(32, 32, 32), cap_feat_dim=16,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 16, 16),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 7, 16),
            "encoder_attention_mask": torch.ones(1, 7, dtype=torch.bool),
        },
        scale=0.001,
        left=True,
    ),
    "MochiTransformer3DModel": Sample(
        small(
            "MochiTransformer3DModel", num_attention_heads=2, attention_head_dim=16, num_layers=2,
            pooled_projection_dim=16, in_channels=4, text_embed_dim=16, time_embed_dim=8,
            max_sequence_length=6,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 2, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 6, 16),
            "encoder_attention_mask": torch.ones(1, 6, dtype=torch.bool),
        },
    ),
    "MotifVideoTransformer3DModel": Sample(
        small(
            "MotifVideoTransformer3DModel", in_channels=4, out_channels=4, num_attention_heads=2,
            attention_head_dim=16, num_layers=1, num_single_layers=2, mlp_ratio=2.0,
            text_embed_dim=16, rope_axes_dim=(4, 4, 8),
        ),
        lambda r: {
            "hidden_states": r(1, 4, 2, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 6, 16),
        },
    ),
    "NucleusMoEImageTransformer2DModel": Sample(
        small(
            "NucleusMoEImageTransformer2DModel", in_channels=16, out_channels=4, num_layers=2,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4), moe_enabled=False, capacity_factors=[8.0, 8.0],
        ),
        lambda r: {
            "hidden_states": r(1, 16, 16),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 7, 16),
            "encoder_hidden_states_mask": torch.ones(1, 7, dtype=torch.long),
            "img_shapes": [(1, 4, 4)],
        },
        scale=0.001,
    ),
    "PRXTransformer2DModel": Sample(
        small(
            "PRXTransformer2DModel", in_channels=4, context_in_dim=16, hidden_size=32, mlp_ratio=2.0,
            num_heads=2, depth=2, axes_dim=[8, 8],
        ),
        lambda r: {
            "hidden_states": r(1, 4, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
        },
        scale=0.001,
    ),
    "QwenImage21Transformer2DModel": Sample(
        small(
            "QwenImage21Transformer2DModel", in_channels=16, out_channels=16, num_layers=2,
            attention_head_dim=16, num_attention_heads=2, context_in_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
        lambda r: {
            "hidden_states": r(1, 16, 16),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 7, 16),
            "img_shapes": [[(1, 4, 4)]],
            "img_mask": torch.tensor([[False] * 7 + [True] * 4]),
        },
    ),
    "SanaTransformer2DModel": Sample(
        small(
            "SanaTransformer2DModel", in_channels=4, out_channels=4, num_attention_heads=2,
            attention_head_dim=8, num_layers=2, num_cross_attention_heads=2,
            cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16, sample_size=8,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
        },
    ),
    "SanaVideoTransformer3DModel": Sample(
        small(
            "SanaVideoTransformer3DModel", in_channels=4, out_channels=4, num_attention_heads=2,
            attention_head_dim=12, num_layers=2, num_cross_attention_heads=2,
            cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=16, sample_size=8,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 2, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
        },
    ),
    "StableAudio3DiTModel": Sample(
        small(
            "StableAudio3DiTModel", io_channels=4, embed_dim=32, depth=2, num_heads=2,
            cond_token_dim=16, global_cond_dim=16, local_add_cond_dim=3, timestep_features_dim=16,
            num_memory_tokens=3,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 16),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
            "global_hidden_states": r(1, 16),
        },
        scale=0.001,
    ),
    "ZImageTransformer2DModel": Sample(
        small(
            "ZImageTransformer2DModel", in_channels=4, dim=32, n_layers=2, n_refiner_layers=1,
            n_heads=2, n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
        ),
        lambda r: {
            "x": [r(4, 1, 8, 8)],
            "t": TIME,
            "cap_feats": [r(6, 16)],
        },
        latents="x",
        timestep="t",
        scale=0.001,
        left=True,
    ),
    "Kandinsky5Transformer3DModel": Sample(
        small(
            "Kandinsky5Transformer3DModel", in_visual_dim=4, out_visual_dim=4, in_text_dim=16,
            in_text_dim2=8, time_dim=16, model_dim=32, ff_dim=48, num_text_blocks=1,
            num_visual_blocks=2, axes_dims=(4, 4, 8),
        ),
        lambda r: {
            "hidden_states": r(1, 3, 8, 8, 4),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
            "pooled_projections": r(1, 8),
            "visual_rope_pos": [torch.arange(3), torch.arange(4), torch.arange(4)],
            "text_rope_pos": torch.arange(5),
        },
    ),
    "AnyFlowTransformer3DModel": Sample(
        small(
            "AnyFlowTransformer3DModel", num_attention_heads=2, attention_head_dim=12, in_channels=4,
            out_channels=4, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
        ),
        lambda r: {
            "hidden_states": r(1, 2, 4, 8, 8),
            "timestep": torch.ones(1, 2),
            "r_timestep": torch.zeros(1, 2),
            "encoder_hidden_states": r(1, 5, 16),
        },
    ),
    "MiniMaxMusic3Transformer1DModel": Sample(
        small(
            "MiniMaxMusic3Transformer1DModel", in_channels=8, condition_dim=16, num_layers=2,
            num_attention_heads=2, attention_head_dim=16, ff_inner_dim=32, rotary_dim=8,
            fourier_embedding_dim=16,
        ),
        lambda r: {
            "hidden_states": r(1, 8, 24),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 24, 16),
        },
        scale=0.001,
    ),
    "AceStepTransformer1DModel": Sample(
        small(
            "AceStepTransformer1DModel", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, in_channels=24,
            audio_acoustic_hidden_dim=8, sliding_window=4,
        ),
        lambda r: {
            "hidden_states": r(1, 8, 8),
            "timestep": TIME,
            "timestep_r": torch.zeros(1),
            "encoder_hidden_states": r(1, 5, 32),
            "context_latents": r(1, 8, 16),
        },
        scale=0.001,
    ),
    "OmniGenTransformer2DModel": Sample(
        small(
            "OmniGenTransformer2DModel", in_channels=4, hidden_size=32, num_attention_heads=2,
            num_key_value_heads=2, intermediate_size=48, num_layers=2, vocab_size=50, pad_token_id=0,
            time_step_dim=16, pos_embed_max_size=8,
            rope_scaling={"long_factor": [1.0] * 8, "short_factor": [1.0] * 8},
        ),
        lambda r: {
            "hidden_states": r(1, 4, 8, 8),
            "timestep": TIME,
            "input_ids": (r(1, 24).abs() * 10).long() % 50,
            "input_img_latents": [],
            "input_image_sizes": {},
            "attention_mask": torch.ones(1, 41, 41, dtype=torch.long),
            "position_ids": torch.arange(41)[None],
        },
        scale=0.001,
    ),
    "MiniMaxH3Transformer3DModel": Sample(
        small(
            "MiniMaxH3Transformer3DModel", num_attention_heads=2, attention_head_dim=16,
            hidden_size=32, num_layers=2, num_refiner_layers=1, ffn_dim=48, in_channels=4,
            audio_in_channels=6, text_dim=16, freq_dim=16, time_embed_hidden_dim=16,
            time_embed_dim=16, rope_freq_dim=2,
        ),
        lambda r: {
            "hidden_states": r(1, 9, 16),
            "audio_hidden_states": r(1, 5, 6),
            "encoder_hidden_states": r(1, 4, 16),
            "timestep": TIME,
            "timestep_indices": torch.zeros(18, dtype=torch.long),
            "token_tags": torch.tensor([0] * 4 + [1] * 9 + [2] * 5),
            "position_ids": torch.arange(18)[:, None].expand(18, 3).float(),
            "video_indices": torch.arange(4, 13),
            "audio_indices": torch.arange(13, 18),
            "text_indices": torch.arange(4),
        },
    ),
    "BriaFibo2Transformer2DModel": Sample(
        small(
            "BriaFibo2Transformer2DModel", in_channels=4, dim=32, n_layers=3, n_refiner_layers=1,
            n_heads=2, cap_feat_dim=16, injection_layer_ids=(1,), perceiver_num_layers=1,
            min_num_gist_tokens=2, max_num_gist_tokens=4, gist_step=2, gist_min_text_len=2,
            gist_max_text_len=16, axes_dims=(8, 4, 4), axes_lens=(64, 32, 32),
        ),
        lambda r: {
            "hidden_states": r(1, 4, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 2, 6, 16),
        },
        scale=0.001,
    ),
    "DiTTransformer2DModel": Sample(
        small(
            "DiTTransformer2DModel", num_attention_heads=2, attention_head_dim=8, in_channels=4,
            out_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=8, norm_num_groups=4,
        ),
        lambda r: {
            "hidden_states": r(1, 4, 8, 8),
            "timestep": TIME.long(),
            "class_labels": (r(1).abs() * 2).long() % 8,
        },
    ),
    "AnyFlowFARTransformer3DModel": Sample(
        small(
            "AnyFlowFARTransformer3DModel", num_attention_heads=2, attention_head_dim=12,
            in_channels=4, out_channels=4, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=2,
            rope_max_seq_len=32, chunk_partition=(1, 1),
        ),
        lambda r: {
            "hidden_states": r(1, 2, 4, 8, 8),
            "timestep": torch.ones(1, 2),
            "r_timestep": torch.zeros(1, 2),
            "encoder_hidden_states": r(1, 5, 16),
            "chunk_partition": [1, 1],
        },
        counts=False,
    ),
}  # fmt: skip
