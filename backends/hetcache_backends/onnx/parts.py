"""What of DiffSynth's Wan DiT becomes a graph: its parts, as modules that torch can export.

A partial step and a full one run the same graphs, since the number of rows is left open. Keys and
values leave one graph and enter another, and every sub-layer is a graph of its own, so whatever a
policy keeps or leaves out lies between two graphs. The user's modules are called from in here and
never changed.

Dimensions that are left open: ``batch``, ``rows`` (active tokens), ``keys`` (tokens attended to),
``words``, ``times`` and the token grid; the others are written as numbers.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from hetcache_backends.onnx.modules import (
    Attend,
    BlockPart,
    CrossAttention,
    FeedForward,
    Head,
    Modulation,
    Queries,
)
from hetcache_backends.onnx.port import Part, Port
from hetcache_core import UnsupportedBackboneError

GRID: Final = ("grid_frames", "grid_height", "grid_width")


def wan_parts(dit: Any, vace: Any) -> tuple[Part, ...]:
    """List the graphs of a model.

    Args:
        dit: a ``WanModel`` in float32.
        vace: its ``VaceWanModel``, or None.

    Raises:
        UnsupportedBackboneError: the model is of a kind whose parts are not listed here.
    """
    _check(dit)
    parts = [*_around(dit), *_blocks(dit, list(dit.blocks), "main")]
    if vace is not None:
        parts += _control(dit, vace)
    return tuple(parts)


def _check(dit: Any) -> None:
    first = next(dit.parameters())
    reasons = {
        "image tokens (image-to-video)": dit.has_image_input,
        "one timestep for each token (Wan2.2-TI2V-5B)": dit.seperated_timestep,
        "a camera adapter": dit.control_adapter is not None,
        "a reference convolution": dit.has_ref_conv,
        f"{str(first.dtype).removeprefix('torch.')} weights": first.dtype != torch.float32,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise UnsupportedBackboneError(
            f"A Wan model with {' and '.join(found)} cannot be exported",
            remedy="Wan2.1-VACE can, loaded in float32.",
        )


def _around(dit: Any) -> list[Part]:
    width, patch = int(dit.dim), tuple(dit.patch_size)
    channels = int(dit.head.head.out_features)
    hidden = Port(name="hidden", shape=("batch", "rows", width), meaning="output of the blocks")
    embedding = Port(name="embedding", shape=("times", width), meaning="embedded timesteps")
    return [
        Part(
            kind="patch",
            meaning="latents to tokens",
            inputs=(_latents(int(dit.in_dim), patch),),
            outputs=(_tokens(width),),
            modules={"patch": dit.patch_embedding},
        ),
        Part(
            kind="text",
            meaning="encoded prompt to the trunk's width",
            inputs=(
                Port(
                    name="words",
                    shape=("batch", "words", int(dit.text_embedding[0].in_features)),
                    meaning="output of the text encoder",
                ),
            ),
            outputs=(_context(width),),
            modules={"text": dit.text_embedding},
        ),
        Part(
            kind="time",
            meaning="timesteps to their embedding",
            inputs=(
                Port(
                    name="waves",
                    shape=("times", int(dit.freq_dim)),
                    meaning="cosines and sines of the timesteps",
                ),
            ),
            outputs=(embedding,),
            modules={"time": dit.time_embedding},
        ),
        Part(
            kind="time_projection",
            meaning="their embedding to the modulation that all blocks start from",
            inputs=(embedding,),
            outputs=(
                Port(name="modulation", shape=("times", 6 * width), meaning="six rows of width D"),
            ),
            modules={"time_projection": dit.time_projection},
        ),
        Part(
            kind="head",
            meaning="tokens to the predicted latents of their patch",
            inputs=(
                hidden,
                Port(name="embedding", shape=(1, width), meaning="embedded timestep"),
            ),
            outputs=(
                Port(name="patches", shape=("batch", "rows", channels), meaning="flat patches"),
            ),
            modules={"head": Head(dit.head)},
        ),
    ]


def _blocks(dit: Any, blocks: list[Any], stack: str) -> list[Part]:
    width = int(dit.dim)
    half = width // int(dit.blocks[0].num_heads) // 2
    names = [f"{stack}{i:02d}" for i in range(len(blocks))]
    rows = ("batch", "rows", width)
    hidden = Port(name="hidden", shape=rows, meaning="state at the active rows")
    six = Port(
        name="modulation",
        shape=(1, 6, width),
        meaning="output of the block's own modulation graph: shift, scale, gate of self-attention, "
        "then of the feed-forward",
    )
    queries = Port(name="queries", shape=rows, meaning="normalized, rotated; heads joined")
    attended = "before the gate, to be multiplied by it and added to hidden"

    def made(kind: type[BlockPart], what: str) -> dict[str, nn.Module]:
        return {f"{name}.{what}": kind(block) for name, block in zip(names, blocks, strict=True)}

    def rotary(name: str) -> Port:
        return Port(
            name=name,
            shape=("rows", 1, half),
            meaning="of the rotary angles of the rows",
            dtype="float64",
        )

    def stored(name: str, count: str) -> Port:
        return Port(name=name, shape=("batch", count, width), meaning="kept from step to step")

    return [
        Part(
            kind=f"{stack}.modulation",
            meaning="adds the block's own table",
            inputs=(
                Port(
                    name="modulation",
                    shape=("times", 6, width),
                    meaning="output of time_projection, in six rows",
                ),
            ),
            outputs=(
                Port(name="total", shape=("times", 6, width), meaning="modulation of this block"),
            ),
            modules=made(Modulation, "modulation"),
            like="modulation",
        ),
        Part(
            kind=f"{stack}.queries",
            meaning="queries, keys and values of self-attention",
            inputs=(hidden, six, rotary("cosines"), rotary("sines")),
            outputs=(queries, stored("keys", "rows"), stored("values", "rows")),
            modules=made(Queries, "queries"),
            like="queries",
        ),
        Part(
            kind=f"{stack}.attend",
            meaning="self-attention over keys of any step, and its output projection",
            inputs=(queries, stored("keys", "keys"), stored("values", "keys")),
            outputs=(Port(name="attended", shape=rows, meaning=attended),),
            modules=made(Attend, "attend"),
            like="attend",
        ),
        Part(
            kind=f"{stack}.cross_attention",
            meaning="attention to the prompt",
            inputs=(hidden, _context(width)),
            outputs=(Port(name="attended", shape=rows, meaning="to be added to hidden"),),
            modules=made(CrossAttention, "cross_attention"),
            like="cross_attention",
        ),
        Part(
            kind=f"{stack}.feed_forward",
            meaning="feed-forward",
            inputs=(hidden, six),
            outputs=(Port(name="fed", shape=rows, meaning=attended),),
            modules=made(FeedForward, "feed_forward"),
            like="feed_forward",
        ),
    ]


def _control(dit: Any, vace: Any) -> list[Part]:
    width, blocks = int(dit.dim), list(vace.vace_blocks)
    rows = ("batch", "rows", width)
    return [
        Part(
            kind="control_patch",
            meaning="control latents to tokens",
            inputs=(_latents(int(vace.vace_in_dim), tuple(dit.patch_size)),),
            outputs=(_tokens(width),),
            modules={"control_patch": vace.vace_patch_embedding},
        ),
        Part(
            kind="control_before",
            meaning="control tokens before the trunk's input is added to them",
            inputs=(
                Port(name="control", shape=rows, meaning="tokens of control_patch at the rows"),
            ),
            outputs=(Port(name="projected", shape=rows, meaning="add the trunk's input to it"),),
            modules={"control_before": blocks[0].before_proj},
        ),
        *_blocks(dit, blocks, "control"),
        Part(
            kind="control.hint",
            meaning="state of a control block to its hint",
            inputs=(Port(name="hidden", shape=rows, meaning="output of the control block"),),
            outputs=(Port(name="hint", shape=rows, meaning="to be added after its main block"),),
            modules={f"control{i:02d}.hint": block.after_proj for i, block in enumerate(blocks)},
        ),
    ]


def _latents(channels: int, patch: tuple[int, ...]) -> Port:
    sides = tuple(f"{size}*{name}" for size, name in zip(patch, GRID, strict=True))
    return Port(
        name="latents", shape=("batch", channels, *sides), meaning="noisy or control latents"
    )


def _tokens(width: int) -> Port:
    return Port(name="tokens", shape=("batch", width, *GRID), meaning="one vector a token")


def _context(width: int) -> Port:
    return Port(name="context", shape=("batch", "words", width), meaning="embedded prompt")
