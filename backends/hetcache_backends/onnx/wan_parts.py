"""The graphs of DiffSynth's Wan DiT and of its control branch."""

from __future__ import annotations

from typing import Any, Final

import torch
from diffsynth.models.wan_video_dit import rope_apply
from torch import Tensor

from hetcache_backends.onnx.modules import BlockCode, Head
from hetcache_backends.onnx.parts import (
    BlockPorts,
    Part,
    Port,
    block_parts,
    embedding_parts,
    require_described,
    row_port,
)

GRID: Final = ("grid_frames", "grid_height", "grid_width")


def wan_parts(dit: Any, vace: Any) -> tuple[Part, ...]:
    """List the graphs of a model.

    Args:
        dit: a ``WanModel`` in float32.
        vace: its ``VaceWanModel``, or None.

    Raises:
        UnsupportedBackboneError: the model is of a kind whose parts are not listed here.
    """
    dtype = next(dit.parameters()).dtype
    reasons = {
        "image tokens (image-to-video)": dit.has_image_input,
        "one timestep for each token (Wan2.2-TI2V-5B)": dit.seperated_timestep,
        "a camera adapter": dit.control_adapter is not None,
        "a reference convolution": dit.has_ref_conv,
        f"{str(dtype).removeprefix('torch.')} weights": dtype != torch.float32,
    }
    require_described("A Wan model", reasons, "Wan2.1-VACE can, loaded in float32.")
    width, heads = int(dit.dim), int(dit.blocks[0].num_heads)
    code = BlockCode(
        heads=heads,
        table="modulation",
        self_attention="self_attn",
        cross_attention="cross_attn",
        cross_norm="norm3",
        feed_forward="ffn",
        projections=("q", "k", "v", "o"),
        rotated=_rotated,
    )
    ports = BlockPorts(
        width=width,
        start=Port(
            name="modulation",
            shape=("times", 6, width),
            meaning="output of time_projection, in six rows",
        ),
        modulation=(1, 6, width),
        angles=("rows", 1, width // heads // 2),
        angle_dtype="float64",
    )
    around, head = _around(dit), dit.head
    return (
        _patch("patch", "latents to tokens", int(dit.in_dim), dit, dit.patch_embedding),
        *around,
        Part(
            kind="head",
            meaning="tokens to the predicted latents of their patch",
            inputs=(
                row_port("hidden", width, "output of the blocks"),
                Port(name="embedding", shape=(1, width), meaning="embedded timestep"),
            ),
            outputs=(row_port("patches", int(head.head.out_features), "flat patches"),),
            modules={"head": Head(head.norm, head.modulation, head.head)},
        ),
        *block_parts(dit.blocks, code, ports),
        *(() if vace is None else _control(dit, vace, code, ports)),
    )


def _around(dit: Any) -> list[Part]:
    text, time = dit.text_embedding, dit.time_embedding
    return embedding_parts(
        int(dit.dim),
        (int(text[0].in_features), text),
        (int(dit.freq_dim), time),
        dit.time_projection,
    )


def _control(dit: Any, vace: Any, code: BlockCode, ports: BlockPorts) -> list[Part]:
    width, blocks = ports.width, list(vace.vace_blocks)
    embed = vace.vace_patch_embedding
    return [
        _patch("control_patch", "control latents to tokens", int(vace.vace_in_dim), dit, embed),
        Part(
            kind="control_before",
            meaning="control tokens before the trunk's input is added to them",
            inputs=(row_port("control", width, "tokens of control_patch at the rows"),),
            outputs=(row_port("projected", width, "add the trunk's input to it"),),
            modules={"control_before": blocks[0].before_proj},
        ),
        *block_parts(blocks, code, ports, "control"),
        Part(
            kind="control.hint",
            meaning="state of a control block to its hint",
            inputs=(row_port("hidden", width, "output of the control block"),),
            outputs=(row_port("hint", width, "to be added after its main block"),),
            modules={f"control{i:02d}.hint": block.after_proj for i, block in enumerate(blocks)},
        ),
    ]


def _patch(name: str, meaning: str, channels: int, dit: Any, module: Any) -> Part:
    sides = tuple(f"{size}*{side}" for size, side in zip(dit.patch_size, GRID, strict=True))
    shape: tuple[int | str, ...] = ("batch", channels, *sides)
    width = int(dit.dim)
    return Part(
        kind=name,
        meaning=meaning,
        inputs=(Port(name="latents", shape=shape, meaning="noisy or control latents"),),
        outputs=(Port(name="tokens", shape=("batch", width, *GRID), meaning="one vector a token"),),
        modules={name: module},
    )


def _rotated(x: Tensor, cosines: Tensor, sines: Tensor, heads: int) -> Tensor:
    """Rotate as the library does, by (n, 1, d / 2) float64 each.

    As an input of a graph a complex tensor is refused, made inside it is decomposed; with cosines in
    float32 the library's float64 rotation is not.
    """
    rotated: Tensor = rope_apply(x, torch.complex(cosines, sines), heads)
    return rotated
