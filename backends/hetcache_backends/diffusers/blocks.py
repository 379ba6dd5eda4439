"""Running blocks of diffusers' transformers with something inside them seen or replaced.

A block's own ``forward`` runs with a stand-in for ``self`` whose sub-layers ask the hooks. Inside
self-attention the library's processor runs from its own code, in which only the name of the attention
function means ours, so norms, rotary embedding and projections stay the library's in every version.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from hetcache_core import (
    BlockCompiler,
    BlockHooks,
    SubLayer,
    UnsupportedBackboneError,
    call_inside,
    call_through,
)

ATTENTION_FUNCTION: Final = "dispatch_attention_fn"
"""What diffusers' processors call with q, k and v, each (B, n, heads, d). Since diffusers 0.35."""


def run_block(
    block: Any,
    hooks: BlockHooks | None,
    parts: Mapping[str, SubLayer],
    *args: Any,
    compiler: BlockCompiler | None,
    **kwargs: Any,
) -> Any:
    """Run a block with its own arguments.

    Args:
        block: the library's block.
        hooks: what to see or replace; None calls the block as it is.
        parts: sub-layer that each attribute of the block is.
        *args: of the block's ``forward``.
        compiler: what blocks that nothing looks into are run with, or None to run them as they are.
        **kwargs: of the block's ``forward``.
    """
    if hooks is None:
        if compiler is not None and compiler.takes(block, None):
            return compiler.run_plain(block, *args, **kwargs)
        return block(*args, **kwargs)
    replaced = {
        name: functools.partial(_sub_layer, part, getattr(block, name), hooks)
        for name, part in parts.items()
    }
    return call_inside(block, replaced, *args, **kwargs)


def _sub_layer(part: SubLayer, layer: Any, hooks: BlockHooks, *args: Any, **kwargs: Any) -> Tensor:
    """Stand in for one sub-layer of a block, called as the block calls it with hidden states (B, n, D)."""

    def compute(rows: Tensor | None = None) -> Tensor:
        if part is SubLayer.SELF_ATTENTION:
            if rows is not None or hooks.attends:
                return _self_attention(layer, hooks, rows, *args, **kwargs)
        elif rows is not None:
            if args:
                return layer(args[0].index_select(1, rows), *args[1:], **kwargs)  # type: ignore[no-any-return]
            hidden = kwargs["hidden_states"].index_select(1, rows)
            return layer(**{**kwargs, "hidden_states": hidden})  # type: ignore[no-any-return]
        out: Tensor = layer(*args, **kwargs)
        return out

    return hooks.sub_layer(part, compute) if part in hooks.parts else compute()


def _self_attention(
    layer: Any, hooks: BlockHooks, rows: Tensor | None, *args: Any, **kwargs: Any
) -> Tensor:
    """Run a self-attention's processor with its product of q, k and v ours.

    Args:
        layer: the attention module.
        hooks: asked for the product where they attend.
        rows: (k,) rows whose queries attend, to all keys; None for all rows.
        *args: of the processor, after the module.
        **kwargs: of the processor.

    Returns:
        (B, n, D), or (B, k, D).
    """
    code = processor_code(layer.processor)
    library = code.__globals__[ATTENTION_FUNCTION]

    def dispatch(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        heads = query.shape[2]

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            split = (t.unflatten(2, (heads, -1)) for t in (q, k, v))  # (B, n, heads, d)
            out: Tensor = library(*split, **options).flatten(2)
            return out  # (B, n, D)

        queries = query.flatten(2) if rows is None else query.flatten(2).index_select(1, rows)
        keys, values = key.flatten(2), value.flatten(2)  # (B, n, D)
        if hooks.attends:
            attended = hooks.attend(queries, keys, values, attend)
        else:
            attended = attend(queries, keys, values)
        out: Tensor = attended.unflatten(2, (heads, -1))  # (B, n, heads, d)
        return out

    run = types.FunctionType(
        code.__code__,
        {**code.__globals__, ATTENTION_FUNCTION: dispatch},
        code.__name__,
        code.__defaults__,
        code.__closure__,
    )
    run.__kwdefaults__ = code.__kwdefaults__
    processed = functools.partial(run, layer.processor, layer)
    attended: Tensor = call_through(layer, processed, *args, **kwargs)
    return attended


def processor_code(processor: Any) -> types.FunctionType:
    """Return the code of an attention processor.

    Raises:
        UnsupportedBackboneError: it does not call diffusers' attention function by its name.
    """
    code: Any = getattr(processor.__call__, "__func__", None)
    if ATTENTION_FUNCTION not in getattr(getattr(code, "__code__", None), "co_names", ()):
        raise UnsupportedBackboneError(
            f"This policy looks into self-attention, which the attention processor "
            f"{type(processor).__name__} does not allow",
            remedy="Use diffusers' own processor (set_attention_backend() chooses the kernel), or a "
            "policy that runs whole blocks, such as teacache.",
        )
    function: types.FunctionType = code
    return function
