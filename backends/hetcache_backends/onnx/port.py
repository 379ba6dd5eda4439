"""How a graph that is to be written is described: what goes in and comes out, and what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from attrs import Factory, field, frozen
from torch import nn


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
