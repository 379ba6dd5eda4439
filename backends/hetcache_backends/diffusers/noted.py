"""A transformer's own ``forward``, with as many stand-ins as blocks: the last one runs them all.

All others take note of what they are called with and hand their state back, so that every block gets the
arguments that the library made for it, in every release.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor, nn

from hetcache_core import (
    ContractError,
    SeenAttention,
    StandIn,
    TrunkCall,
    TrunkView,
    UnsupportedBackboneError,
    in_fp32,
)

if TYPE_CHECKING:
    from hetcache_backends.diffusers.counting import BlockCosts
    from hetcache_backends.diffusers.description import BlockList, ModelDescription
    from hetcache_core import BlockCompiler, BlockHooks, FlopModel

ATTENTIONS = ("attn1", "attn", "self_attn", "attention", "self_attention", "self_attn1")
"""What blocks call their first attention."""

_names = functools.cache(
    lambda forward: [
        name
        for name, parameter in inspect.signature(forward).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ][1:]
)


@final
class BlockStandIn:
    """One block, which takes note of its calls; attributes are the block's own."""

    def __init__(self, target: nn.Module, called: Callable[..., Any]) -> None:
        self._target, self._called = target, called

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Take note of a call, and return a state."""
        return self._called(self._target, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


@frozen(eq=False)
class NotedCall:
    """One call of a block, as the library makes it.

    Attributes:
        block: the block.
        described: the list that it is in.
        args: its positional arguments.
        kwargs: its other ones.
        beside: modules that run on the block's result, with what follows it in their arguments; what
            they return is added to it.
    """

    block: Any
    described: BlockList
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    beside: tuple[Callable[[Tensor], Tensor], ...] = ()

    def named(self) -> dict[str, Any]:
        """All arguments by name."""
        names = _names(type(self.block).forward)
        return dict(zip(names, self.args, strict=False)) | dict(self.kwargs)

    def state(self) -> dict[str, Tensor]:
        """The arguments that are state, in their order.

        Raises:
            UnsupportedBackboneError: one is missing.
        """
        given = self.named()
        missing = [name for name in self.described.state if not isinstance(given.get(name), Tensor)]
        if missing:
            raise UnsupportedBackboneError(
                f"a {type(self.block).__name__} is called without {', '.join(missing)}, which its "
                "description names as state",
                where=f"list {self.described.name}",
                remedy=f"It is called with: {', '.join(given)}. Correct the description",
            )
        return {name: given[name] for name in self.described.state}

    def with_values(self, **values: Any) -> NotedCall:
        """Replace arguments, each in the way it was passed."""
        names = _names(type(self.block).forward)[: len(self.args)]
        args = tuple(values.get(name, old) for name, old in zip(names, self.args, strict=False))
        args += self.args[len(names) :]
        changed = {name: value for name, value in values.items() if name not in names}
        return evolve(self, args=args, kwargs={**self.kwargs, **changed})

    def run(self, compiler: BlockCompiler | None = None) -> dict[str, Tensor]:
        """Run the block; its new state."""
        if compiler is not None and compiler.takes(self.block, None):
            made = compiler.run_plain(self.block, *self.args, **self.kwargs)
        else:
            made = self.block(*self.args, **self.kwargs)
        return self.after(made)

    def after(self, made: Any) -> dict[str, Tensor]:
        """Take the new state from what the block has returned, and run what runs beside it."""
        values = (made,) if isinstance(made, Tensor) else tuple(made)
        old = self.state()
        # The last block of some models makes nothing of the text any more.
        state = {
            name: old[name] if value is None else value
            for name, value in zip(self.described.state, values, strict=False)
        }
        for module in self.beside:
            name = self.described.state[0]
            state[name] = module(state[name]) + state[name]
        return state


@frozen
class Order:
    """Where the library has the tokens that come first in the trunk: before and after the others.

    Attributes:
        before: how many come before them.
        after: how many come after them.
    """

    before: int
    after: int

    def turned(self, x: Tensor) -> Tensor:
        """Put rows (B, n, D) in the trunk's order."""
        return self._swapped(x, x.shape[1] - self.after)

    def back(self, x: Tensor) -> Tensor:
        """Put rows (B, n, D) back in the library's order."""
        return self._swapped(x, self.before + self.after)

    def places(self, own: Tensor, tokens: int) -> Tensor:
        """Find rows in the library's order, with all that come first in the trunk.

        Args:
            own: (m,) rows among those that do not.
            tokens: of the library.

        Returns:
            (before + m + after,) rows, in the library's order.
        """
        first = torch.arange(self.before, device=own.device)
        last = torch.arange(tokens - self.after, tokens, device=own.device)
        return torch.cat([first, own + self.before, last])

    def _swapped(self, x: Tensor, at: int) -> Tensor:
        if not self.after:
            return x
        return torch.cat([x[:, : self.before], x[:, at:], x[:, self.before : at]], dim=1)


@frozen(eq=False, kw_only=True)
class Form:
    """How the state of a model becomes one (B, N, D): other tokens first, then those of what is made.

    Attributes:
        description: the model.
        shapes: shape of each state at the trunk's entrance, by name.
        width: ``D``; narrower states are filled up with zeros.
        trailing: tokens that come after those of what is made, in the video's state: of references,
            of a text. They come before them in the trunk.
    """

    description: ModelDescription
    shapes: Mapping[str, tuple[int, ...]]
    width: int
    trailing: int = 0

    @classmethod
    def of(
        cls, description: ModelDescription, state: Mapping[str, Tensor], trailing: int = 0
    ) -> Form:
        """Take the form of the state at the trunk's entrance."""
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        width = max(s[-1] for s in shapes.values())
        return cls(description=description, shapes=shapes, width=width, trailing=trailing)

    @property
    def others(self) -> int:
        """Tokens outside of the video's state."""
        return sum(self._count(s) for n, s in self.shapes.items() if n != self.description.video)

    @property
    def leading(self) -> int:
        """Tokens before those of what is made, in the trunk."""
        return self.others + self.trailing

    @property
    def attended(self) -> Order:
        """The order in which attention has the tokens."""
        before = 0 if self.description.attends_last else self.others
        return Order(before, self.leading - before)

    def joined(self, state: Mapping[str, Tensor]) -> Tensor:
        """Join a state; (B, n, D)."""
        order = Order(self.others, self.trailing)
        if len(state) == 1:
            return order.turned(self._rows(next(iter(state.values()))))
        parts = [self._rows(state[name]) for name in self._order(state)]
        return order.turned(torch.cat([self._filled(part) for part in parts], dim=1))

    def parted(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Part (B, n, D) into a state of these names, with so many rows as are left for the video."""
        video, x = self.description.video, Order(self.others, self.trailing).back(x)
        if len(names) == 1:
            # Two lists whose states are joined between them end with all rows in one.
            return {names[0]: self._as(x, self.shapes[video])}
        state, first = {}, 0
        for name in self._order(names):
            shape = self.shapes[name]
            count = x.shape[1] - first if name == video else self._count(shape)
            part = x[:, first : first + count, : shape[-1]].contiguous()
            state[name], first = self._as(part, shape), first + count
        return {name: state[name] for name in names}

    def _order(self, names: Mapping[str, Any] | Sequence[str]) -> list[str]:
        return sorted(names, key=lambda name: name == self.description.video)

    def _rows(self, value: Tensor) -> Tensor:
        if value.dim() == 2:  # noqa: PLR2004 - without a batch
            return value[None]
        if value.dim() > 3:  # noqa: PLR2004 - tokens lie in several axes
            return value.flatten(1, -2)
        return value.transpose(0, 1) if self.description.token_axis == 0 else value

    def _count(self, shape: tuple[int, ...]) -> int:
        if len(shape) == 2:  # noqa: PLR2004
            return shape[0]
        if len(shape) > 3:  # noqa: PLR2004
            return torch.Size(shape[1:-1]).numel()
        return shape[self.description.token_axis]

    def _as(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 2:  # noqa: PLR2004
            return rows[0]
        if len(shape) > 3:  # noqa: PLR2004
            return rows.reshape(shape)
        return rows.transpose(0, 1).contiguous() if self.description.token_axis == 0 else rows

    def _filled(self, part: Tensor) -> Tensor:
        missing = self.width - part.shape[-1]
        return torch.nn.functional.pad(part, (0, missing)) if missing else part


@final
@define(eq=False, kw_only=True)
class NotedTrunk(TrunkCall, TrunkView):
    """One call of the trunk, over all of its tokens or over some.

    Attributes:
        model: the transformer.
        form: how its state becomes (B, N, D).
        calls: the blocks with their arguments, in order.
        x: (B, n, D) trunk input.
        around: FLOPs of embeddings and head.
        costs: counts blocks.
        compiler: what blocks are run with, or None to run them as they are.
        counted: costs of all processes together, where they share the tokens.
        every: the same with the arguments for all tokens, where these are some.
        places: (n,) which of the library's these are, in its order; None for all of them.
    """

    model: Any
    form: Form
    calls: Sequence[NotedCall]
    x: Tensor
    around: int
    costs: BlockCosts
    compiler: BlockCompiler | None = None
    counted: FlopModel | None = None
    every: Sequence[NotedCall] = ()
    places: Tensor | None = None
    _last: tuple[Tensor, dict[str, Tensor]] | None = field(default=None, init=False)

    @property
    def layers(self) -> int:
        """Number ``L`` of blocks."""
        return len(self.calls)

    @property
    def leading(self) -> int:
        """Tokens before those of what is made."""
        return self.form.leading

    @property
    def control_layers(self) -> tuple[int, ...]:
        """There is no control branch."""
        return ()

    @property
    def heads(self) -> int:
        """Attention heads."""
        return heads_of(self.model)

    @property
    def flops(self) -> FlopModel:
        """Costs of this call."""
        from hetcache_backends.diffusers.counting import CountedFlops

        return self.counted or CountedFlops(self.around, self.x.shape[1], self.count)

    def view(self, rows: Tensor | None) -> NotedTrunk:
        """Gather the input and what follows the rows."""
        if rows is None:
            return self
        own, tokens = rows[self.leading :] - self.leading, self.x.shape[1]
        video = tokens - self.form.others
        masks = dict.fromkeys(self.form.description.masks, 1)
        places = {
            tokens: self.form.attended.places(own, tokens),
            video: Order(0, self.form.trailing).places(own, video),
        }
        calls = []
        for call in self.calls:
            given = call.named()
            known = {*call.described.follow, *masks}
            if any(
                (isinstance(v, dict) and any(map(torch.is_tensor, v.values())))
                or (name.endswith("_mask") and name not in known and torch.is_tensor(v))
                for name, v in given.items()
            ):
                raise UnsupportedBackboneError(
                    "texts of different lengths mask the attention of all tokens, which some of "
                    "them cannot have",
                    remedy="Run one prompt at a time, or a policy of whole steps, such as teacache",
                )
            followed = {
                name: _followed(given[name], axes, places)
                for name, axes in {**call.described.follow, **masks}.items()
                if given.get(name) is not None
            }
            calls.append(call.with_values(**followed))
        return evolve(
            self,
            x=self.x.index_select(1, rows),
            calls=calls,
            every=self.calls,
            places=places[tokens],
        )

    def block(
        self, index: int, hidden: Tensor, hint: Tensor | None, hooks: BlockHooks | None
    ) -> Tensor:
        """Run one block: (B, n, D)."""
        if hooks is not None and hooks.parts:
            raise ContractError(
                "sub-layers of a described model cannot be seen",
                remedy="Its backbone's features say sub_layers=False.",
            )
        call = self.calls[index]
        call = call.with_values(**self.state(hidden, call.described.state))
        if hooks is None:
            state = call.run(self.compiler)
        else:
            # The keys may be those of all tokens, and so is what masks them.
            whole = self.every[index].named() if self.every else {}
            masks = {n: whole[n] for n in self.form.description.masks if n in whole}
            call = call.with_values(**masks)
            with SeenAttention(_InOrder(hooks, self.form.attended), 0, self.places) as seen:
                state = call.run()
            if not seen.calls:
                raise UnsupportedBackboneError(
                    f"This policy looks into self-attention, which a {type(call.block).__name__} does "
                    "without torch's scaled_dot_product_attention",
                    remedy='Call set_attention_backend("native") on the transformer, or choose a '
                    "policy that runs whole blocks, such as teacache",
                )
        joined = self.form.joined(state)
        self._last = joined, state
        return joined

    def state(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Part (B, n, D) into a state of these names, that of the last block as it made it."""
        if self._last is not None and x is self._last[0] and set(self._last[1]) == set(names):
            return self._last[1]
        if self.places is None and x is self.x and set(self.form.shapes) == set(names):
            return self.calls[0].state()  # the library's own tensors
        return self.form.parted(x, names)

    def control(self, index: int, hooks: BlockHooks | None) -> Tensor:
        """Refuse: there is no control branch.

        Raises:
            ContractError: always.
        """
        raise ContractError("This call has no control branch.")

    def timestep_embeddings(self, timesteps: Sequence[float]) -> Tensor:
        """Embed timesteps in fp32: (S, E)."""
        times = torch.tensor(timesteps, dtype=torch.float32, device=self.x.device)
        return embedded_times(self.model, self.form.description, times)

    def timestep_modulations(self, timesteps: Sequence[float]) -> Tensor:
        """Return the embeddings: how a class makes its modulation of them is not described; (S, E)."""
        return self.timestep_embeddings(timesteps)

    def modulated_input(self, modulation: Tensor) -> Tensor:
        """First block's input to its first attention (B, n, E) in fp32, at this call's own timestep."""
        call = self.calls[0]
        name = self.form.description.modulated or next(
            (name for name in ATTENTIONS if isinstance(getattr(call.block, name, None), nn.Module)),
            "",
        )
        if not name:
            return self.x.float()
        try:
            stand_in = StandIn(call.block, **{name: _seen})
            type(call.block).forward(stand_in, *call.args, **call.kwargs)
        except _Seen as seen:
            return self.form._rows(seen.value).float()  # noqa: SLF001 - as the state's
        return self.x.float()

    def count(self, index: int, rows: int) -> tuple[int, int]:
        """Count a block on some rows: FLOPs of attention products, and of the rest."""
        from hetcache_backends.diffusers.counting import shapes_of

        call, view = self.calls[index], self
        if rows != self.x.shape[1]:
            view = self.view(torch.arange(rows, device=self.x.device))
            call = view.calls[index]

        def run() -> None:
            given = call.with_values(**self.form.parted(view.x, call.described.state))
            # Hooks on the block are somebody's who wants to see its real runs.
            given.after(type(call.block).forward(call.block, *given.args, **given.kwargs))

        others = (
            shapes_of([v for v in call.named().values() if v is not None]),
            len(call.beside),
        )
        return self.costs.count(call.block, run, (rows, others), rows * self.x.shape[0])


class _Seen(Exception):  # noqa: N818 - no error: it stops a block early
    """Carries the input of a block's attention out of it."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


def _seen(*args: Any, **kwargs: Any) -> Any:
    """Stand in for an attention, and stop there."""
    value = kwargs.get("hidden_states", args[0] if args else None)
    if value is None:
        value = next(v for v in kwargs.values() if isinstance(v, Tensor))
    raise _Seen(value)


def _followed(value: Any, axes: Any, places: Mapping[int, Tensor]) -> Any:
    """Gather rows of a table, or of each of several, by the number that it has of them."""
    if isinstance(value, list | tuple):
        each = axes if isinstance(axes, tuple) else (axes,) * len(value)
        return type(value)(
            v if axis is None else _followed(v, axis, places)
            for v, axis in zip(value, each, strict=True)
        )
    if not isinstance(value, Tensor) or value.shape[axes] == 1:
        return value
    if value.shape[axes] not in places:
        raise ContractError(
            f"an argument that follows the tokens has {value.shape[axes]} rows, and there are "
            + " or ".join(map(str, places)),
            remedy="Correct follow or masks in the description",
        )
    return value.index_select(axes, places[value.shape[axes]])


@final
@define(eq=False)
class _InOrder:
    """Hands attention on in the trunk's order where the library has another.

    Attributes:
        hooks: what wants to see it.
        order: the library's.
    """

    hooks: BlockHooks
    order: Order

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attend: Any) -> Tensor:
        """Turn the rows round, and those of the result back; all (B, n, D)."""
        turned, back = self.order.turned, self.order.back

        def attended(*given: Tensor) -> Tensor:
            return turned(attend(*map(back, given)))

        return back(self.hooks.attend(turned(q), turned(k), turned(v), attended))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.hooks, name)


def made_stand_in(
    model: Any,
    description: ModelDescription,
    run: Callable[[list[NotedCall]], dict[str, Tensor]],
    split: Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Any] | None = None,
) -> tuple[StandIn, list[NotedCall]]:
    """Make a transformer whose blocks take note of their calls.

    Args:
        model: the transformer.
        description: of its class.
        run: answers all noted calls with the state that the last one returns.
        split: takes this process's rows out of what a block is called with, where several share them.

    Returns:
        The stand-in, and the list of the calls that it will note.
    """
    calls: list[NotedCall] = []
    answered: list[bool] = []
    lists = [(described, list(getattr(model, described.name))) for described in description.lists]
    last = [block for _, found in lists for block in found][-1]

    def called(described: BlockList, block: Any, args: Any, kwargs: Any) -> Any:
        if split is not None:
            args, kwargs = split(block, args, kwargs)
        call = NotedCall(block, described, args, kwargs)
        calls.append(call)
        state = run(calls) if block is last else call.state()
        if block is last:
            answered.append(True)
        values = tuple(state[name] for name in described.state)
        return values if len(values) > 1 else values[0]

    def beside(module: Any, args: Any, kwargs: Any) -> Any:
        hidden, *rest = args
        if answered:  # behind the last block there is a result to run on
            return module(hidden, *rest, **kwargs)
        run_later = functools.partial(_on_first, module, rest, kwargs)
        calls[-1] = evolve(calls[-1], beside=(*calls[-1].beside, run_later))
        return torch.zeros_like(hidden)

    replaced = {
        described.name: [BlockStandIn(b, functools.partial(called, described)) for b in found]
        for described, found in lists
    }
    if description.beside:
        modules = getattr(model, description.beside)
        replaced[description.beside] = [BlockStandIn(module, beside) for module in modules]
    return StandIn(model, **replaced), calls


def _on_first(module: Any, rest: Sequence[Any], kwargs: Mapping[str, Any], hidden: Tensor) -> Any:
    """Call a module with another first argument."""
    return module(hidden, *rest, **kwargs)


def heads_of(model: Any) -> int:
    """Attention heads of a transformer, 1 where its configuration does not say."""
    names = ("num_attention_heads", "num_heads", "n_heads", "heads", "num_query_heads")
    return next((int(v) for n in names if isinstance(v := model.config.get(n), int)), 1)


def embedded_times(model: Any, description: ModelDescription, times: Tensor) -> Tensor:
    """Embed timesteps (S,) fp32 as the transformer does, in fp32; (S, E)."""
    path = description.time or _time_modules(model)
    if not path:
        from diffusers.models.embeddings import get_timestep_embedding

        return get_timestep_embedding(times, 256)
    x = times
    for name in path:
        module = model.get_submodule(name)
        x = in_fp32(module, x) if list(module.parameters()) else module(x)
    return x


def _time_modules(model: nn.Module) -> tuple[str, ...]:
    """Find ``Timesteps`` and ``TimestepEmbedding`` that lie side by side."""
    for path, module in model.named_modules():
        # The first of each kind: sizes of pictures are embedded behind the timestep, in its way.
        children = reversed([*module.named_children()])
        kinds = {type(child).__name__: name for name, child in children}
        if {"Timesteps", "TimestepEmbedding"} <= kinds.keys():
            before = f"{path}." if path else ""
            return before + kinds["Timesteps"], before + kinds["TimestepEmbedding"]
    return ()
