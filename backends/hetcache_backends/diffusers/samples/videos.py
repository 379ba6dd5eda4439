"""Small random models of the described classes that make videos and sound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from hetcache_backends.diffusers.samples.sample import TIME, Sample, allegro_rotary, small

VIDEOS: Final[Mapping[str, Sample]] = {
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
    "WanAnimateTransformer3DModel": Sample(
        small(
            "WanAnimateTransformer3DModel", num_attention_heads=2, attention_head_dim=12,
            in_channels=12, latent_channels=4, out_channels=4, text_dim=16, freq_dim=32, ffn_dim=32,
            num_layers=4, image_dim=8, rope_max_seq_len=32, inject_face_latents_blocks=2,
            motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16}, motion_encoder_size=16,
            motion_style_dim=8, motion_dim=4, motion_encoder_dim=16, face_encoder_hidden_dim=16,
            face_encoder_num_heads=2,
        ),
        lambda r: {
            "hidden_states": r(1, 12, 3, 8, 8),
            "timestep": TIME,
            "encoder_hidden_states": r(1, 5, 16),
            "encoder_hidden_states_image": r(1, 7, 8),
            "pose_hidden_states": r(1, 4, 2, 8, 8),
            "face_pixel_values": r(1, 3, 5, 16, 16),
        },
    ),
}  # fmt: skip
"""By the name of the class."""
