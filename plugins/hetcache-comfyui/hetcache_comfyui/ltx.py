"""LTX-Video in ComfyUI."""

from __future__ import annotations

from typing import Any, Final, final

from attrs import define, evolve
from torch import Tensor

from hetcache_comfyui.sampling import DiffusionCall, DitCalls
from hetcache_comfyui.trunk import Blocks, VideoTrunk, call_looking
from hetcache_core import (
    BlockHooks,
    DitFlops,
    Grid,
    RunTrunk,
    StandIn,
    SubLayer,
    in_fp32,
    matrix_macs,
    own_parameter,
)

PARTS: Final = {
    SubLayer.SELF_ATTENTION: "attn1",
    SubLayer.CROSS_ATTENTION: "attn2",
    SubLayer.FEED_FORWARD: "ff",
}

NORM_EPS: Final = 1e-6
"""Of the norms without weights. Source: ComfyUI 0.3.64, ``common_dit.rms_norm``."""


@final
class LtxCalls(DitCalls):
    """What the calls of ``LTXVModel`` mean."""

    def grid(self, call: DiffusionCall) -> Grid:
        """Lay out the tokens, one a latent."""
        frames, height, width = call.x.shape[2:]
        stride, pixel_height, pixel_width = call.model.vae_scale_factors
        return Grid(
            frames=frames,
            height=height,
            width=width,
            pixel_height=pixel_height,
            pixel_width=pixel_width,
            frame_stride=stride,
        )

    def answer(self, call: DiffusionCall, run: RunTrunk) -> Tensor:
        """Run the model with one block, the trunk."""
        model, options = call.model, call.options
        replaced = options.get("patches_replace", {})

        def trunk(x: Tensor, **given: Any) -> Tensor:
            given["transformer_options"] = options
            blocks = LtxBlocks(model, given, replaced.get("dit", {}))
            return run(VideoTrunk(x=x, blocks=blocks, flops=_flops(x, blocks)))

        without = {name: blocks for name, blocks in replaced.items() if name != "dit"}
        stand_in = StandIn(model, transformer_blocks=[trunk])
        return call.library(stand_in, patches_replace=without)


@final
@define(eq=False)
class LtxBlocks(Blocks):
    """The arguments that ComfyUI gave to the first block.

    Attributes:
        model: the model.
        given: modulation ``timestep`` (B, 1 or N, 6 * D), rotary tables ``pe`` (B, N, D) twice, text
            ``context`` (B, L, D) and the rest.
        replaced: what other nodes run in place of blocks.
    """

    model: Any
    given: dict[str, Any]
    replaced: dict[Any, Any]

    @property
    def layers(self) -> int:  # type: ignore[override]
        """Blocks ``L``."""
        return len(self.model.transformer_blocks)

    @property
    def heads(self) -> int:  # type: ignore[override]
        """Attention heads."""
        return int(self.model.transformer_blocks[0].attn1.heads)

    def at(self, rows: Tensor, tokens: int) -> LtxBlocks:
        """Gather the rotary tables, and timesteps that tokens have of their own."""
        given, times = dict(self.given), self.given["timestep"]
        given["pe"] = tuple(table.index_select(1, rows) for table in given["pe"])
        if times.shape[1] > 1:
            given["timestep"] = times.index_select(1, rows)
        return evolve(self, given=given)

    def run(self, index: int, hidden: Tensor, hooks: BlockHooks | None) -> Tensor:
        """Run a block, or what another node runs in its place."""
        names = {"txt": "context", "vec": "timestep", "pe": "pe"}
        passed = ("attention_mask", "transformer_options")

        def original(args: dict[str, Any]) -> dict[str, Any]:
            given = {name: args[key] for key, name in names.items()}
            given |= {name: args[name] for name in passed}
            block, x = self.model.transformer_blocks[index], args["img"].clone()  # it writes to x
            if hooks is None:
                return {"img": block(x, **given)}
            return {"img": call_looking(block, PARTS, hooks, x, **given)}

        args = {"img": hidden, **{key: self.given[name] for key, name in names.items()}}
        args |= {name: self.given[name] for name in passed}
        replace = self.replaced.get(("double_block", index))
        out = original(args) if replace is None else replace(args, {"original_block": original})
        output: Tensor = out["img"]
        return output

    def embed(self, timesteps: Tensor) -> Tensor:
        """Embed timesteps."""
        embedder = self.model.adaln_single.emb
        return in_fp32(embedder.timestep_embedder, embedder.time_proj(timesteps))

    def project(self, embedded: Tensor) -> Tensor:
        """Project embedded timesteps."""
        return in_fp32(self.model.adaln_single.linear, self.model.adaln_single.silu(embedded))

    def modulate(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Normalize and modulate as the first block does."""
        table = own_parameter(self.model.transformer_blocks[0], "scale_shift_table")
        shift, scale = (table.to(x.device) + modulation)[:2]
        normed: Tensor = x * (x.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
        made: Tensor = normed * (1 + scale) + shift
        return made


def _flops(x: Tensor, blocks: LtxBlocks) -> DitFlops:
    model, (batch, tokens, _) = blocks.model, x.shape
    text = blocks.given["context"].shape[1]
    around = batch * tokens * matrix_macs(model.patchify_proj, model.proj_out)
    around += batch * text * matrix_macs(model.caption_projection)
    around += batch * blocks.given["timestep"].shape[1] * matrix_macs(model.adaln_single)
    ffn = model.transformer_blocks[0].ff.net[2].in_features
    return DitFlops.of_blocks(x, around=around, ffn=ffn, text=text)
