"""What of a DiT becomes a graph: how graphs are described, and those that all models have.

A partial step and a full one run the same graphs, since the number of rows is left open. Keys and
values leave one graph and enter another, and every sub-layer is a graph of its own, so whatever a
policy keeps or leaves out lies between two graphs. The user's modules are called from in here and
never changed.

Dimensions that are left open: ``batch``, ``rows`` (active tokens), ``keys`` (tokens attended to),
``words``, ``times`` and the token grid; the others are written as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from attrs import Factory, field, frozen
from torch import nn

from hetcache_backends.onnx.modules import (
    Attend,
    BlockCode,
    BlockPart,
    CrossAttention,
    FeedForward,
    Modulation,
    Queries,
)
from hetcache_core import UnsupportedBackboneError


@final
@frozen(kw_only=True)
class Port:
    """An input or output of a graph.

    Attributes:
        name: its name.
        shape: its dimensions; names and multiples ("2*grid_height") are open ones.
        meaning: what it is.
        dtype: of torch.
    """

    name: str
    shape: tuple[int | str, ...]
    meaning: str
    dtype: str = "float32"


@final
@frozen(eq=False, kw_only=True)
class Part:
    """Graphs of one kind, which differ in their weights alone.

    Attributes:
        kind: what they are called together.
        like: kinds with the same name here have the same structure; by default their own.
        meaning: what they compute.
        inputs: of each graph.
        outputs: of each graph.
        modules: by the names of the graphs.
    """

    kind: str
    meaning: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    modules: Mapping[str, nn.Module]
    like: str = field(default=Factory(lambda part: part.kind, takes_self=True))


@final
@frozen(eq=False, kw_only=True)
class BlockPorts:
    """What the graphs of a model's blocks take.

    Attributes:
        width: trunk width ``D``.
        start: what all blocks start from, which a block's table is added to.
        modulation: dimensions of a block's modulation, six rows among them.
        angles: dimensions of the rotary angles' cosines and of their sines.
        angle_dtype: of those.
        text: what cross-attention reads beside the embedded prompt.
    """

    width: int
    start: Port
    modulation: tuple[int | str, ...]
    angles: tuple[int | str, ...]
    angle_dtype: str = "float32"
    text: tuple[Port, ...] = ()


def block_parts(
    blocks: Sequence[Any], code: BlockCode, ports: BlockPorts, stack: str = "main"
) -> list[Part]:
    """List the five graphs of every block.

    Args:
        blocks: the library's.
        code: how they compute.
        ports: what they take.
        stack: "main" or "control".
    """
    width = ports.width
    hidden = row_port("hidden", width, "state at the active rows")
    queries = row_port("queries", width, "normalized, rotated; heads joined")
    gated = "before the gate, to be multiplied by it and added to hidden"
    six = Port(
        name="modulation",
        shape=ports.modulation,
        meaning="output of the block's own modulation graph: shift, scale, gate of self-attention, "
        "then of the feed-forward",
    )
    total = Port(name="total", shape=ports.start.shape, meaning="modulation of this block")
    cosines, sines = (
        Port(
            name=name,
            shape=ports.angles,
            meaning="of the rotary angles of the rows",
            dtype=ports.angle_dtype,
        )
        for name in ("cosines", "sines")
    )

    def stored(count: str) -> tuple[Port, Port]:
        keys, values = (
            Port(name=name, shape=("batch", count, width), meaning="kept from step to step")
            for name in ("keys", "values")
        )
        return keys, values

    def part(
        name: str, kind: type[BlockPart], meaning: str, takes: Sequence[Port], gives: Sequence[Port]
    ) -> Part:
        return Part(
            kind=f"{stack}.{name}",
            meaning=meaning,
            inputs=tuple(takes),
            outputs=tuple(gives),
            modules={f"{stack}{i:02d}.{name}": kind(b, code) for i, b in enumerate(blocks)},
            like=name,
        )

    return [
        part("modulation", Modulation, "adds the block's own table", [ports.start], [total]),
        part(
            "queries",
            Queries,
            "queries, keys and values of self-attention",
            [hidden, six, cosines, sines],
            [queries, *stored("rows")],
        ),
        part(
            "attend",
            Attend,
            "self-attention over keys of any step, and its output projection",
            [queries, *stored("keys")],
            [row_port("attended", width, gated)],
        ),
        part(
            "cross_attention",
            CrossAttention,
            "attention to the prompt",
            [hidden, _context(width), *ports.text],
            [row_port("attended", width, "to be added to hidden")],
        ),
        part(
            "feed_forward",
            FeedForward,
            "feed-forward",
            [hidden, six],
            [row_port("fed", width, gated)],
        ),
    ]


def embedding_parts(
    width: int, text: tuple[int, nn.Module], time: tuple[int, nn.Module], projection: nn.Module
) -> list[Part]:
    """List the graphs that embed a prompt and timesteps.

    Args:
        width: trunk width ``D``.
        text: width of an encoded word, and what embeds them.
        time: width of a timestep's waves, and what embeds those.
        projection: of the embedded timesteps.
    """
    embedding = Port(name="embedding", shape=("times", width), meaning="embedded timesteps")
    return [
        Part(
            kind="text",
            meaning="encoded prompt to the trunk's width",
            inputs=(
                Port(
                    name="words",
                    shape=("batch", "words", text[0]),
                    meaning="output of the text encoder",
                ),
            ),
            outputs=(_context(width),),
            modules={"text": text[1]},
        ),
        Part(
            kind="time",
            meaning="timesteps to their embedding",
            inputs=(
                Port(
                    name="waves",
                    shape=("times", time[0]),
                    meaning="cosines and sines of the timesteps",
                ),
            ),
            outputs=(embedding,),
            modules={"time": time[1]},
        ),
        Part(
            kind="time_projection",
            meaning="their embedding to the modulation that all blocks start from",
            inputs=(embedding,),
            outputs=(
                Port(name="modulation", shape=("times", 6 * width), meaning="six rows of width D"),
            ),
            modules={"time_projection": projection},
        ),
    ]


def require_described(what: str, reasons: Mapping[str, bool], remedy: str) -> None:
    """Refuse a model with something that the parts do not describe.

    Args:
        what: the kind of model.
        reasons: whether it has each of these.
        remedy: which models can be exported.

    Raises:
        UnsupportedBackboneError: it has one.
    """
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise UnsupportedBackboneError(
            f"{what} with {' and '.join(found)} cannot be exported", remedy=remedy
        )


def row_port(name: str, width: int, meaning: str) -> Port:
    """Describe (B, n, width) of the rows."""
    return Port(name=name, shape=("batch", "rows", width), meaning=meaning)


def _context(width: int) -> Port:
    return Port(name="context", shape=("batch", "words", width), meaning="embedded prompt")
