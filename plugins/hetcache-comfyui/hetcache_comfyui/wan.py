"""Wan2.1 and Wan2.2 in ComfyUI, with VACE's control branch."""

from __future__ import annotations

from typing import Any, Final, final

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor

from hetcache_comfyui.sampling import DiffusionCall, DitCalls, from_latents
from hetcache_comfyui.trunk import Blocks, VideoTrunk, call_looking
from hetcache_core import (
    BlockHooks,
    DitFlops,
    FlopModel,
    Grid,
    RunTrunk,
    Stack,
    StandIn,
    SubLayer,
    in_fp32,
    matrix_macs,
    own_parameter,
)

PARTS: Final = {
    SubLayer.SELF_ATTENTION: "self_attn",
    SubLayer.CROSS_ATTENTION: "cross_attn",
    SubLayer.FEED_FORWARD: "ffn",
}

LATENT_PIXELS: Final = 8
"""Pixels a latent covers in height and width. Source: Wan2.1's VAE."""

FRAME_STRIDE: Final = 4
"""Pixel frames a latent frame covers, the first frame alone. Source: Wan2.1's VAE."""

INACTIVE, REACTIVE, MASK = 16, 32, 96
"""Ends of a control input's channels: what stays, what is edited, 8 x 8 pixels of the mask a latent.
Source: ComfyUI 0.3.64, ``WanVaceToVideo`` and ``WAN21_Vace.extra_conds``."""

NOTHING: Final = 1e-3
"""Below it, latents in units of their own spread are zeros that were rounded."""


@final
class WanCalls(DitCalls):
    """What the calls of ``WanModel`` and ``VaceWanModel`` mean."""

    def grid(self, call: DiffusionCall) -> Grid:
        """Lay out the tokens, those of VACE's reference picture before the video's."""
        patch_t, patch_h, patch_w = call.model.patch_size
        frames, height, width = call.x.shape[2:]
        rows, columns = -(-height // patch_h), -(-width // patch_w)
        references = self._references(call)
        return Grid(
            frames=-(-frames // patch_t) - references,
            height=rows,
            width=columns,
            prefix=references * rows * columns,
            pixel_height=patch_h * LATENT_PIXELS,
            pixel_width=patch_w * LATENT_PIXELS,
            frame_stride=FRAME_STRIDE,
        )

    def mask(self, call: DiffusionCall, grid: Grid) -> Tensor | None:
        """Take the mask input, else VACE's own mask, else the noise mask."""
        found = super().mask(call, grid)
        context = call.given.get("vace_context")
        if context is None or getattr(call.guider, "edit_mask", None) is not None:
            return found
        channels = context[0, :, REACTIVE:MASK].amax(0)  # (64, T, h, w)
        side = LATENT_PIXELS
        frames, height, width = channels.shape[1:]
        spread = channels.view(side, side, frames, height, width).permute(2, 3, 0, 4, 1)
        full = spread.reshape(frames, height * side, width * side)  # (T, H, W)
        references = grid.prefix // (grid.height * grid.width)
        return from_latents(full[references:], grid)

    def answer(self, call: DiffusionCall, run: RunTrunk) -> Tensor:
        """Run the model with one block, the trunk, and a control branch that runs nothing itself."""
        model, options, control = call.model, call.options, None
        context = call.given.get("vace_context")
        changed: dict[str, Any] = {}
        if context is not None:
            control = Control(model, context, tuple(call.given["vace_strength"]))
            changed = {"vace_layers_mapping": {}, "vace_patch_embedding": _embed_nothing}
        replaced = options.get("patches_replace", {})

        def trunk(x: Tensor, **given: Any) -> Tensor:
            given["transformer_options"] = options
            blocks = WanBlocks(model, given, control, replaced.get("dit", {}))
            return run(VideoTrunk(x=x, blocks=blocks, flops=_flops(x, blocks, call)))

        without = {name: blocks for name, blocks in replaced.items() if name != "dit"}
        return call.library(StandIn(model, blocks=[trunk], **changed), patches_replace=without)

    @staticmethod
    def _references(call: DiffusionCall) -> int:
        """Count the leading frames in which nothing is edited, as there are no pixels to edit."""
        context = call.given.get("vace_context")
        if context is None:
            return 0
        edited = context[0, :, INACTIVE:].abs().amax((0, 1, 3, 4)) > NOTHING  # (T,)
        frames: int = edited.long().argmax().item() if bool(edited.any()) else 0
        return frames


def _embed_nothing(context: Tensor) -> Tensor:
    """Stand for the embedding of the control input, which is made where it is used."""
    return context.new_zeros(len(context), 1, 1, 1, 1)


@final
@frozen(eq=False)
class Control:
    """VACE's control branch in one call.

    Attributes:
        model: the model.
        context: (B, V, C, T, H, W) control inputs.
        strengths: factor of the hints of each.
    """

    model: Any
    context: Tensor
    strengths: tuple[float, ...]

    def embedded(self, rows: Tensor | None) -> list[Tensor]:
        """Embed the control inputs: (B, n, D) each."""
        inputs = self.context.movedim(0, 1).flatten(0, 1)  # (V * B, C, T, H, W)
        made = self.model.vace_patch_embedding(inputs.float()).to(inputs.dtype)
        made = made.flatten(2).transpose(1, 2)  # (V * B, N, D)
        made = made if rows is None else made.index_select(1, rows)
        return list(made.split(self.context.shape[0]))


@final
@define(eq=False)
class WanBlocks(Blocks):
    """The arguments that ComfyUI gave to the first block.

    Attributes:
        model: the model.
        given: modulation ``e`` (B, 6, D) or (B, m, 6, D), rotary table ``freqs`` (1, N, ...), text
            ``context`` (B, L, D) and the rest.
        branch: VACE's control branch, or None.
        replaced: what other nodes run in place of blocks.
    """

    model: Any
    given: dict[str, Any]
    branch: Control | None
    replaced: dict[Any, Any] = field(factory=dict)

    @property
    def layers(self) -> int:  # type: ignore[override]
        """Blocks ``L``."""
        return len(self.model.blocks)

    @property
    def heads(self) -> int:  # type: ignore[override]
        """Attention heads."""
        return int(self.model.num_heads)

    @property
    def control_layers(self) -> tuple[int, ...]:  # type: ignore[override]
        """Main block of each hint."""
        return control_layers(self.model) if self.branch is not None else ()

    def at(self, rows: Tensor, tokens: int) -> WanBlocks:
        """Gather the rotary table, and modulation that tokens have of their own."""
        given = {**self.given, "freqs": self.given["freqs"].index_select(1, rows)}
        e = given["e"]
        if e.dim() > 3 and e.shape[1] > 1:  # noqa: PLR2004 - (B, m, 6, D)
            times = -(-tokens // e.shape[1])
            given["e"] = e.index_select(1, rows // times)  # (B, n, 6, D)
        return evolve(self, given=given)

    def run(self, index: int, hidden: Tensor, hooks: BlockHooks | None) -> Tensor:
        """Run a block, or what another node runs in its place."""
        names = {"txt": "context", "vec": "e", "pe": "freqs"}
        options = {"transformer_options": self.given["transformer_options"]}

        def original(args: dict[str, Any]) -> dict[str, Any]:
            given = {name: args[key] for key, name in names.items()}
            given["transformer_options"] = args["transformer_options"]
            block = self.model.blocks[index]
            return {"img": self._call(block, hooks, args["img"], **{**self.given, **given})}

        args = {"img": hidden, **{key: self.given[name] for key, name in names.items()}, **options}
        replace = self.replaced.get(("double_block", index))
        out = original(args) if replace is None else replace(args, {"original_block": original})
        output: Tensor = out["img"]
        return output

    def control(
        self, index: int, state: list[Tensor], view: VideoTrunk, hooks: BlockHooks | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run a control block on every control input, and add their hints up."""
        if self.branch is None:
            return super().control(index, state, view, hooks)
        block, hint, left = self.model.vace_blocks[index], None, []
        states = state or self.branch.embedded(view.rows)
        for each, strength in zip(states, self.branch.strengths, strict=True):
            made, after = self._call(block, hooks, each, x=view.x, **self.given)
            scaled = made * strength
            hint = scaled if hint is None else hint + scaled
            left.append(after)
        return torch.as_tensor(hint), left

    def embed(self, timesteps: Tensor) -> Tensor:
        """Embed timesteps, as ``sinusoidal_embedding_1d`` and two layers do."""
        half = self.model.freq_dim // 2
        powers = torch.arange(half, device=timesteps.device, dtype=torch.float32) / half
        angles = torch.outer(timesteps, torch.pow(10000, -powers))
        return in_fp32(self.model.time_embedding, torch.cat([angles.cos(), angles.sin()], dim=1))

    def project(self, embedded: Tensor) -> Tensor:
        """Project embedded timesteps."""
        return in_fp32(self.model.time_projection, embedded)

    def modulate(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Normalize and modulate as the first block does."""
        block = self.model.blocks[0]
        table = own_parameter(block, "modulation")[0].to(x.device)
        shift, scale = (table + modulation)[:2]
        made: Tensor = in_fp32(block.norm1, x) * (1 + scale) + shift
        return made

    @staticmethod
    def _call(block: Any, hooks: BlockHooks | None, *args: Any, **kwargs: Any) -> Any:
        if hooks is None:
            return block(*args, **kwargs)
        return call_looking(block, PARTS, hooks, *args, **kwargs)


def control_layers(model: Any) -> tuple[int, ...]:
    """Main block of each hint of a model, ascending; empty without a control branch."""
    return tuple(sorted(getattr(model, "vace_layers_mapping", {})))


def _flops(x: Tensor, blocks: WanBlocks, call: DiffusionCall) -> FlopModel:
    model, (batch, tokens, _) = blocks.model, x.shape
    read = blocks.given["context"].shape[1]
    pictures = call.given.get("clip_fea")
    seen = 0 if pictures is None or model.img_emb is None else pictures.shape[-2]
    times = call.given["timestep" if "timestep" in call.given else "t"].numel()
    around = batch * tokens * matrix_macs(model.patch_embedding, model.head.head)
    around += batch * (read - seen) * matrix_macs(model.text_embedding)
    around += times * matrix_macs(model.time_embedding, model.time_projection)
    if seen:
        around += batch * seen * matrix_macs(model.img_emb)
    branch = blocks.branch
    embedding = 0 if branch is None else matrix_macs(model.vace_patch_embedding)
    counted = DitFlops.of_blocks(
        x,
        around=around,
        ffn=model.blocks[0].ffn[0].out_features,
        text=read,
        control_batch=0 if branch is None else batch,
        control_call=batch * tokens * embedding,
    )
    return counted if branch is None else Chained(counted, len(branch.strengths))


@final
@frozen
class Chained(FlopModel):
    """Costs where the control branch runs once for each of several control inputs."""

    one: DitFlops
    inputs: int

    def outside(self) -> int:
        """Everything around the trunk."""
        return self.one.outside()

    def sub_layer(self, stack: Stack, part: SubLayer, *, rows: int, keys: int) -> int:
        """One sub-layer; control blocks run as often as there are inputs."""
        times = self.inputs if stack is Stack.CONTROL else 1
        return times * self.one.sub_layer(stack, part, rows=rows, keys=keys)

    def control_extra(self, index: int, *, rows: int) -> int:
        """Projections of a control block, for every input."""
        return self.inputs * self.one.control_extra(index, rows=rows)
