"""Compiles a backbone's blocks with ``torch.compile``, the ones that the engine looks into included.

A block is compiled as one graph for each number of tokens and each way of attending. Hooks would break
that graph, since they call Python in the middle of a block. So a compiled block runs with a ``Tape`` in
their place: it attends over the keys that the hooks lend, and hands the block's own queries, keys and
values out beside the result, for the hooks to take afterwards. The model's modules stay as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, final

import torch
from attrs import define, field
from torch import nn

from hetcache_core.backbone.trunk import Attend, BlockHooks, Compute, KeyLoan
from hetcache_core.errors import UnsupportedBackboneError
from hetcache_core.steps import SubLayer

Forward = Callable[..., Any]
"""``forward(block, hooks, *arguments)``: runs a block (B, n, D) with hooks that torch can trace."""

MOST_GRAPHS: Final = 256
"""Graphs of one block's code before torch gives up compiling more: sizes x ways x kinds of block. Its own
limit of 8 is reached by the third size of video."""


@final
class Tape:
    """Hooks without side effects outside the graph; see ``BlockHooks``."""

    parts: frozenset[SubLayer] = frozenset()
    attends = True

    def __init__(self, loan: KeyLoan | None) -> None:
        self.loan = loan
        self.seen: tuple[torch.Tensor, ...] = ()

    def sub_layer(self, part: SubLayer, compute: Compute) -> torch.Tensor:
        """Run it; a compiled block hides its sub-layers."""
        return compute()

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """Attend over the lent keys, its own written into them, or else over its own."""
        if self.loan is None:
            self.seen = (q, k, v)
            return attend(q, k, v)
        keys, values, rows = self.loan
        keys.index_copy_(1, rows, k)
        values.index_copy_(1, rows, v)
        return attend(q, keys, values)


@final
@define(eq=False)
class BlockCompiler:
    """Runs blocks compiled.

    Attributes:
        backend: of ``torch.compile``.
        variants: what has been compiled: name of the way and of the block's class, and tokens.
    """

    backend: Any = "inductor"
    variants: set[tuple[str, str, int]] = field(factory=set, init=False)
    _compiled: dict[tuple[str, Forward], Any] = field(factory=dict, init=False)
    _listened: dict[int, bool] = field(factory=dict, init=False)
    _newest: int = field(default=0, init=False)

    def takes(self, block: nn.Module, hooks: BlockHooks | None) -> bool:
        """Whether a block can be run compiled: no sub-layer is replaced, nothing hooks into it.

        Graphs are shared with blocks that have no forward hooks, and would leave them out. They are
        looked for when a block is first seen, and again when any module got a new one.
        """
        newest = torch.utils.hooks.RemovableHandle.next_id
        if newest != self._newest:
            self._newest = newest
            self._listened.clear()
        if id(block) not in self._listened:
            self._listened[id(block)] = any(map(_has_hooks, block.modules()))
        return not self._listened[id(block)] and (hooks is None or not hooks.parts)

    def run_plain(self, block: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        """Run a block as it is.

        Args:
            block: the library's block; ``takes`` has said yes to it without hooks.
            *arguments: of its ``forward``; the first tensor of all is (B, n, D).
            **keywords: likewise.
        """
        return self._run("plain", _call, _library_forward, block, *arguments, **keywords)

    def run(
        self, forward: Forward, block: Any, hooks: BlockHooks | None, *arguments: Any
    ) -> torch.Tensor:
        """Run a block, also where hooks see its attention.

        Args:
            forward: how; a function of a module, so that what it compiles to is found again.
            block: the library's block.
            hooks: what to see; ``takes`` has said yes to them.
            *arguments: of ``forward``; the first is (B, n, D).

        Returns:
            (B, n, D).
        """
        if hooks is None or not hooks.attends:
            plain: torch.Tensor = self._run("plain", _call, forward, block, None, *arguments)
            return plain
        loan = hooks.lend_keys(arguments[0])
        if loan is not None:
            way = "over lent keys"
            lent: torch.Tensor = self._run(way, _over_lent_keys, forward, block, loan, *arguments)
            return lent
        if hooks.needs_keys:
            # The kept keys are in another dtype or place, and go through the hooks.
            hooked: torch.Tensor = forward(block, hooks, *arguments)
            return hooked
        output: torch.Tensor
        output, *seen = self._run("seen", _seen, forward, block, *arguments)
        hooks.take(*seen)
        return output

    def _run(
        self, way: str, run: Any, forward: Forward, block: Any, *arguments: Any, **keywords: Any
    ) -> Any:
        key = (way, forward)
        if key not in self._compiled:
            self._compiled[key] = torch.compile(run, dynamic=False, backend=self.backend)
        given = (*arguments, *keywords.values())
        hidden = next(a for a in given if isinstance(a, torch.Tensor))
        self.variants.add((way, type(block).__name__, hidden.shape[1]))
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._compiled[key](forward, block, *arguments, **keywords)
        except TorchDynamoException as error:
            raise UnsupportedBackboneError(
                f"torch.compile cannot compile a {type(block).__name__}: {_first_line(error)}",
                remedy="Leave compile (--compile) out; on a CPU it needs a C++ compiler such as g++",
            ) from error


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _has_hooks(module: nn.Module) -> bool:
    # torch has no public way to ask.
    own = vars(module)  # offloading wraps forward() instead
    return bool(own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own)


def _library_forward(block: nn.Module, *arguments: Any, **keywords: Any) -> Any:
    return block(*arguments, **keywords)


def _call(forward: Forward, block: Any, *arguments: Any, **keywords: Any) -> Any:
    return forward(block, *arguments, **keywords)


def _seen(forward: Forward, block: Any, *arguments: Any) -> tuple[Any, ...]:
    tape = Tape(None)
    return forward(block, tape, *arguments), *tape.seen


def _over_lent_keys(forward: Forward, block: Any, loan: KeyLoan, *arguments: Any) -> Any:
    return forward(block, Tape(loan), *arguments)


@contextmanager
def many_graphs() -> Iterator[None]:
    """Let torch compile more sizes than it does by default; its own settings come back."""
    from torch._dynamo import config

    # recompile_limit is called cache_size_limit before torch 2.7.
    names = ("recompile_limit", "cache_size_limit")
    name = next(n for n in names if n in config.get_config_copy())
    with config.patch({name: MOST_GRAPHS}):
        yield


@contextmanager
def uncompiled(pipeline: Any) -> Iterator[Any]:
    """Unwrap a pipeline's denoising models that are compiled as a whole, while the context lasts.

    Args:
        pipeline: whose attributes are looked at; a denoising model is one that takes a timestep.

    Yields:
        The backend that they were compiled with, or None where there was none to unwrap.
    """
    backend, undo = None, []
    for name, value in [*vars(pipeline).items(), *vars(pipeline).get("_modules", {}).items()]:
        if not isinstance(value, nn.Module):
            continue
        model: Any = getattr(value, "_orig_mod", value)
        called = vars(model).get("_compiled_call_impl")
        compiled = value if model is not value else called
        if compiled is None or "timestep" not in inspect.signature(type(model).forward).parameters:
            continue
        backend = _backend_of(compiled)
        undo.append((name, value, model, called))
    for name, _, model, called in undo:
        object.__setattr__(pipeline, name, model)
        if called is not None:
            model._compiled_call_impl = None  # noqa: SLF001 - what compile() sets
    try:
        yield backend
    finally:
        for name, value, model, called in undo:
            if getattr(pipeline, name) is model:  # otherwise somebody has put another one there
                object.__setattr__(pipeline, name, value)
            if called is not None:
                model._compiled_call_impl = called  # noqa: SLF001


def _backend_of(compiled: Any) -> Any:
    """Find the backend that something was compiled with; torch's default where it does not tell."""
    cells = getattr(getattr(compiled, "get_compiler_config", None), "__closure__", None) or ()
    contexts = [cell.cell_contents for cell in cells if hasattr(cell.cell_contents, "callback")]
    found = contexts[0].callback if contexts else None
    names = ("_torchdynamo_orig_backend", "_torchdynamo_orig_callable")  # before torch 2.8
    while any(hasattr(found, name) for name in names):
        found = next(getattr(found, name) for name in names if hasattr(found, name))
    return found or "inductor"
