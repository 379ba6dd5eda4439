"""What is said of a class of diffusers' transformers, so that one adapter carries it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from attrs import field, frozen

from hetcache_core import ContractError

Axes = int | tuple[int | None, ...]
"""Axis of the tokens in an argument, or in each of several that it holds."""


@frozen(kw_only=True)
class BlockList:
    """A list of blocks that a transformer's ``forward`` runs through.

    Attributes:
        name: attribute of the transformer.
        state: arguments of a block's ``forward`` that it changes, in the order in which it returns them;
            everything else is handed to each block as the library does.
        follow: arguments with one row a token, by name, and the axis that the tokens lie on: rotary
            tables, modulation that each token has. They describe the video's tokens or all of them. An
            axis for each where the argument holds several, None for what has no such rows.
    """

    name: str
    state: tuple[str, ...]
    follow: Mapping[str, Axes] = field(factory=dict)


def blocks(name: str, *state: str, **follow: Axes) -> BlockList:
    """Describe a list by its name, its state and the axes of what follows the tokens."""
    return BlockList(name=name, state=state or ("hidden_states",), follow=follow)


@frozen
class MaskedPipeline:
    """A pipeline whose own mask says which tokens are edited.

    Attributes:
        name: its class.
        pinned: tokens that every partial step computes beside those of the picture.
        guidance: how it runs its branches.
        kept: what keeps the rest of the picture.
    """

    name: str
    pinned: str = "text"
    guidance: str = "two calls"
    kept: str = "put back after each step"


@frozen(kw_only=True)
class ModelDescription:
    """One class of transformers.

    Attributes:
        transformer: name of the class in diffusers.
        name: short name, in traces and listings.
        lists: its lists of blocks, in the order in which they run.
        video: argument of the blocks that holds the tokens of what is made.
        latents: argument of the transformer's ``forward`` with the noisy latents: a tensor, or a list
            with one for each batch row.
        timestep: argument with the timestep, as it is or as a share of 1000, also of what is left.
        cond_first: whether the conditional rows come first where both branches are one batch.
        other_times: whether the timestep is given in yet another way, so that it cannot be held against
            the scheduler's.
        guessed: whether nobody has written it: it is held against the library before it is used.
        token_axis: axis of the state that the tokens lie on.
        output: whether ``forward`` returns one tensor, of the shape of its latents where the model has as
            many channels going in as coming out: whole calls can be left out then.
        tokens: whether blocks run on some of the tokens: ``follow`` then names all that has one row a
            token, and attention is over all of the trunk's tokens. Those of what is made come first in
            the video's state; references, or a text, may come after them.
        masked: pipelines whose masks are carried, each of which a test runs.
        patch: latents that a token is wide and high.
        masks: arguments of the blocks that mask attention, (B, N) over all of the trunk's tokens.
        attends_last: whether other tokens come after the video's in attention, and not before them.
        beside: list of modules that are called between blocks with the first state, and whose results are
            added to it; "" for none.
        modulated: sub-module of the first block whose input tells how the step differs from the last,
            "" to look for its first attention.
        time: modules that embed a timestep, applied in turn, by their path in the transformer; empty
            to look for ``Timesteps`` and ``TimestepEmbedding`` side by side.
    """

    transformer: str
    name: str
    lists: tuple[BlockList, ...]
    video: str = "hidden_states"
    latents: str = "hidden_states"
    timestep: str = "timestep"
    cond_first: bool = False
    other_times: bool = False
    guessed: bool = False
    token_axis: int = 1
    output: bool = False
    tokens: bool = False
    masked: tuple[MaskedPipeline, ...] = ()
    patch: int = 2
    masks: tuple[str, ...] = ()
    attends_last: bool = False
    beside: str = ""
    modulated: str = ""
    time: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ContractError: there is no list, or the last one does not hold the video.
        """
        if not self.lists or self.video not in self.lists[-1].state:
            raise ContractError(
                f"no list of blocks ends with {self.video!r} in its state",
                where=f"description of {self.transformer}",
                remedy="Name the lists in the order in which they run, and in video the argument with "
                "the tokens that are predicted",
            )


class ModelSet(ABC):
    """Descriptions that come together. Subclasses are final and are made without arguments."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def models(self) -> Sequence[ModelDescription]:
        """Return the descriptions; imports no model library."""
