"""What of diffusers' LTX-Video transformer becomes a graph: its parts, as modules that torch exports.

The graphs are cut where those of Wan are (see ``onnx.parts``). A masked edit has a timestep for each
token, so the modulation has a row for each, and it is gathered with the rows. Guidance branches are
rows of one batch, each with a rotary table of its own.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from hetcache_backends.onnx.ltx_modules import (
    LtxAttend,
    LtxBlockPart,
    LtxCrossAttention,
    LtxFeedForward,
    LtxHead,
    LtxModulation,
    LtxQueries,
)
from hetcache_backends.onnx.port import Part, Port
from hetcache_core import UnsupportedBackboneError


def ltx_parts(model: Any) -> tuple[Part, ...]:
    """List the graphs of a model.

    Args:
        model: an ``LTXVideoTransformer3DModel`` in float32.

    Raises:
        UnsupportedBackboneError: the model is of a kind whose parts are not listed here.
    """
    _check(model)
    return (*_around(model), *_blocks(model))


def _check(model: Any) -> None:
    others = {str(p.dtype).removeprefix("torch.") for p in model.parameters()} - {"float32"}
    block = model.transformer_blocks[0]
    reasons = {
        "adapters (LoRA)": bool(getattr(model, "peft_config", None)),
        "weights in the norms of its blocks": block.norm1.weight is not None,
        f"{' and '.join(sorted(others))} weights": bool(others),
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise UnsupportedBackboneError(
            f"An LTX-Video model with {' and '.join(found)} cannot be exported",
            remedy="LTX-Video 0.9 can, loaded in float32, adapters fused into it.",
        )


def _around(model: Any) -> list[Part]:
    width, embedder = _width(model), model.time_embed.emb
    embedding = Port(name="embedding", shape=("times", width), meaning="embedded timesteps")
    return [
        Part(
            kind="patch",
            meaning="packed latents to tokens",
            inputs=(
                Port(
                    name="latents",
                    shape=("batch", "rows", int(model.proj_in.in_features)),
                    meaning="noisy latents, those of a token in one row",
                ),
            ),
            outputs=(
                Port(name="tokens", shape=("batch", "rows", width), meaning="one vector a token"),
            ),
            modules={"patch": model.proj_in},
        ),
        Part(
            kind="text",
            meaning="encoded prompt to the trunk's width",
            inputs=(
                Port(
                    name="words",
                    shape=("batch", "words", int(model.caption_projection.linear_1.in_features)),
                    meaning="output of the text encoder",
                ),
            ),
            outputs=(_context(width),),
            modules={"text": model.caption_projection},
        ),
        Part(
            kind="time",
            meaning="timesteps to their embedding",
            inputs=(
                Port(
                    name="waves",
                    shape=("times", int(embedder.time_proj.num_channels)),
                    meaning="cosines and sines of the timesteps",
                ),
            ),
            outputs=(embedding,),
            modules={"time": embedder.timestep_embedder},
        ),
        Part(
            kind="time_projection",
            meaning="their embedding to the modulation that all blocks start from",
            inputs=(embedding,),
            outputs=(
                Port(name="modulation", shape=("times", 6 * width), meaning="six rows of width D"),
            ),
            modules={
                "time_projection": nn.Sequential(model.time_embed.silu, model.time_embed.linear)
            },
        ),
        Part(
            kind="head",
            meaning="tokens to their predicted latents",
            inputs=(
                _rows(width, "hidden", "output of the blocks"),
                _rows(width, "embedding", "embedded timestep of each token"),
            ),
            outputs=(
                Port(
                    name="latents",
                    shape=("batch", "rows", int(model.proj_out.out_features)),
                    meaning="packed as those that came in",
                ),
            ),
            modules={"head": LtxHead(model)},
        ),
    ]


def _blocks(model: Any) -> list[Part]:
    width = _width(model)
    hidden = _rows(width, "hidden", "state at the active rows")
    queries = _rows(width, "queries", "normalized, rotated; heads joined")
    six = Port(
        name="modulation",
        shape=("batch", "rows", 6, width),
        meaning="output of the block's own modulation graph: shift, scale, gate of self-attention, "
        "then of the feed-forward",
    )
    gated = "before the gate, to be multiplied by it and added to hidden"

    def made(kind: type[LtxBlockPart], what: str) -> dict[str, nn.Module]:
        return {f"main{i:02d}.{what}": kind(b) for i, b in enumerate(model.transformer_blocks)}

    def stored(name: str, count: str) -> Port:
        return Port(name=name, shape=("batch", count, width), meaning="kept from step to step")

    return [
        Part(
            kind="main.modulation",
            meaning="adds the block's own table",
            inputs=(
                Port(
                    name="modulation",
                    shape=("batch", "rows", 6, width),
                    meaning="output of time_projection for each token, in six rows",
                ),
            ),
            outputs=(
                Port(
                    name="total",
                    shape=("batch", "rows", 6, width),
                    meaning="modulation of this block",
                ),
            ),
            modules=made(LtxModulation, "modulation"),
        ),
        Part(
            kind="main.queries",
            meaning="queries, keys and values of self-attention",
            inputs=(
                hidden,
                six,
                _rows(width, "cosines", "of the rotary angles of the rows"),
                _rows(width, "sines", "of the rotary angles of the rows"),
            ),
            outputs=(queries, stored("keys", "rows"), stored("values", "rows")),
            modules=made(LtxQueries, "queries"),
        ),
        Part(
            kind="main.attend",
            meaning="self-attention over keys of any step, and its output projection",
            inputs=(queries, stored("keys", "keys"), stored("values", "keys")),
            outputs=(_rows(width, "attended", gated),),
            modules=made(LtxAttend, "attend"),
        ),
        Part(
            kind="main.cross_attention",
            meaning="attention to the prompt",
            inputs=(
                hidden,
                _context(width),
                Port(
                    name="bias",
                    shape=("batch", 1, "words"),
                    meaning="added to the scores of the words; 0, or far below it for padding",
                ),
            ),
            outputs=(_rows(width, "attended", "to be added to hidden"),),
            modules=made(LtxCrossAttention, "cross_attention"),
        ),
        Part(
            kind="main.feed_forward",
            meaning="feed-forward",
            inputs=(hidden, six),
            outputs=(_rows(width, "fed", gated),),
            modules=made(LtxFeedForward, "feed_forward"),
        ),
    ]


def _width(model: Any) -> int:
    return int(model.proj_in.out_features)


def _rows(width: int, name: str, meaning: str) -> Port:
    return Port(name=name, shape=("batch", "rows", width), meaning=meaning)


def _context(width: int) -> Port:
    return Port(name="context", shape=("batch", "words", width), meaning="embedded prompt")
