"""Small random models of the described classes that make pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from hetcache_backends.diffusers.samples.sample import TIME, Sample, ids, small

IMAGES: Final[Mapping[str, Sample]] = {
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
    "HunyuanImageTransformer2DModel": Sample(
        small(
            "HunyuanImageTransformer2DModel", in_channels=4, out_channels=4, num_attention_heads=2,
            attention_head_dim=16, num_layers=1, num_single_layers=2, num_refiner_layers=1,
            patch_size=(1, 1), text_embed_dim=16, text_embed_2_dim=8, rope_axes_dim=(8, 8),
        ),
        lambda r: {
            "hidden_states": r(1, 4, 4, 4),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 6, 16),
            "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
            "encoder_hidden_states_2": r(1, 3, 8),
            "encoder_attention_mask_2": torch.tensor([[1, 1, 0]]),
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
            "txt_seq_lens": [7],  # up to diffusers 0.36
            "img_shapes": [(1, 4, 4)],
        },
        scale=0.001,
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
        side=8,
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
}  # fmt: skip
"""By the name of the class."""
