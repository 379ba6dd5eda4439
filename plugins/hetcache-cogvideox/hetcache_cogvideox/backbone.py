"""CogVideoX on diffusers: text and video run through the blocks as one sequence, text first."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from torch import Tensor

from hetcache_cogvideox.case import SmallModels
from hetcache_cogvideox.pipeline import MaskedCogVideoX, token_grid
from hetcache_core import (
    Backbone,
    BlockTrunk,
    BranchRows,
    DitFlops,
    EditRequest,
    Engine,
    Features,
    Geometry,
    Grid,
    LoadRequest,
    ModelCalls,
    ModelInfo,
    StandIn,
    attached,
    check_options,
    in_fp32,
    load_pipeline,
    matrix_macs,
    run_edit,
)


class CogVideoX(Backbone):
    """Adapter for diffusers' pipelines around CogVideoX 1.0 (2B and 5B)."""

    name = "cogvideox"
    summary = "CogVideoX, masked video-to-video (diffusers)"
    library = "diffusers"
    features = Features(sub_layers=False, guidance=frozenset({"merged", "none"}))
    geometry = Geometry(
        size_multiple=16, frame_stride=4, default_size=(480, 720), default_frames=49
    )

    @property
    def random_models(self) -> SmallModels:
        """What makes a small pipeline."""
        return SmallModels(self)

    def accepts(self, pipeline: object) -> bool:
        """Whether it holds a CogVideoX 1.0; tokens of 1.5 cover two latent frames."""
        model = getattr(pipeline, "transformer", None)
        return isinstance(model, CogVideoXTransformer3DModel) and model.config.patch_size_t is None

    def describe(self, pipeline: Any) -> ModelInfo:
        """Describe the transformer."""
        model, heads = pipeline.transformer, pipeline.transformer.config.num_attention_heads
        width, layers = heads * model.config.attention_head_dim, len(model.transformer_blocks)
        return ModelInfo(backbone=self.name, variant="", layers=layers, width=width, heads=heads)

    def attach(self, pipeline: Any, engine: Engine) -> Any:
        """Route the transformer's calls."""
        return attached(self, engine, _Calls(pipeline), [pipeline.transformer])

    def load(self, request: LoadRequest) -> Any:
        """Load a folder or hub id."""
        example = "THUDM/CogVideoX-2b"
        return load_pipeline(MaskedCogVideoX, request, accepts=self.accepts, example=example)

    def check_options(self, options: Any) -> None:
        """Refuse what ``MaskedCogVideoX.__call__`` does not take."""
        base = MaskedCogVideoX.__base__.__call__
        passed = ("video", "edit_mask", "strength")
        check_options(options, MaskedCogVideoX.__call__, base, passed=passed)

    def edit(self, pipeline: Any, request: EditRequest) -> Any:
        """Run one masked edit: uint8 frames (F, H, W, 3)."""
        video = {"video": list(request.video / 255), "edit_mask": request.mask}
        return run_edit(pipeline, {**video, "strength": 1.0}, request)


class _Calls(ModelCalls):
    """What the calls of a transformer mean."""

    def grid(self, model: Any, arguments: Any) -> Grid:
        words = arguments["encoder_hidden_states"].shape[1]
        return token_grid(self.pipeline, arguments["hidden_states"], words)

    def branches(self, arguments: Any, context: str | None, call: int) -> tuple[BranchRows, ...]:
        names = ("uncond", "cond") if self.pipeline.guidance_scale > 1 else ("cond",)
        return BranchRows.split(len(arguments["hidden_states"]), *names)

    def stand_in(self, model: Any, arguments: Any, run: Any) -> tuple[Any, dict[str, Any]]:
        first, embed = model.transformer_blocks[0], model.time_embedding
        norm, patch = first.norm1, model.patch_embed

        def trunk(hidden_states: Tensor, encoder_hidden_states: Tensor, **others: Any) -> Any:
            words, rotary = encoder_hidden_states.shape[1], others.pop("image_rotary_emb") or ()

            def run_block(block: Any, x: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
                joint = {"hidden_states": x[:, words:], "encoder_hidden_states": x[:, :words]}
                video, text = block(**joint, image_rotary_emb=rotary or None, **others)
                return torch.cat([text, video], dim=1)

            def modulate(x: Tensor, modulation: Tensor) -> Tensor:
                shift, scale, _, text_shift, text_scale, _ = modulation
                text, video = in_fp32(norm.norm, x).tensor_split([words], dim=1)
                text = text * (1 + text_scale) + text_shift
                return torch.cat([text, video * (1 + scale) + shift], dim=1)

            around = matrix_macs(embed, model.norm_out) + words * matrix_macs(patch.text_proj)
            around += hidden_states.shape[1] * matrix_macs(patch.proj, model.proj_out)
            parts = {"self_attention": (first.attn1, norm), "feed_forward": (first.ff, first.norm2)}
            x = torch.cat([encoder_hidden_states, hidden_states], dim=1)
            call = BlockTrunk(
                x=x,
                blocks=model.transformer_blocks,
                heads=model.config.num_attention_heads,
                run_block=run_block,
                embed=lambda times: in_fp32(embed, model.time_proj(times)),
                project=lambda embedded: in_fp32(norm.linear, norm.silu(embedded)),
                modulate=modulate,
                flops=DitFlops.of(x, around=around, **parts),
                follow=rotary,
                prefix=words,
            )
            return run(call).tensor_split([words], dim=1)[::-1]

        return StandIn(model, transformer_blocks=[trunk]), {}
