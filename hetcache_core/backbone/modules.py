"""Calling a library's modules with something inside them replaced, within whatever is wrapped around them.

Forward hooks, offloading and placement hang on a module's call. A policy that looks inside a module must
not go past them, so the module is called, and only its innermost ``forward`` is another one. No library
is imported here.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hetcache_core.backbone.stand_ins import Override, StandIn
from hetcache_core.errors import UnsupportedBackboneError

PLACES: Final = ("forward", "_old_forward")
"""Own attributes of a module under which its innermost ``forward`` may be kept: its own, or accelerate's."""

WEIGHTED: Final = frozenset(
    {nn.functional.linear, nn.functional.layer_norm, nn.functional.rms_norm,
     nn.functional.group_norm, torch.conv2d, torch.conv3d}
)  # fmt: skip
"""Functions that meet weights."""


def _places(module: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """All places of a module that may hold its innermost ``forward``."""
    for name in PLACES:
        yield vars(module), name
    # diffusers chains its hooks in references to the next forward.
    registry = vars(module).get("_diffusers_hook")
    for reference in getattr(registry, "_fn_refs", ()):
        yield vars(reference), "original_forward"
        yield vars(reference), "forward"


def _innermost(module: Any) -> tuple[dict[str, Any], str, Any]:
    """Find the place that holds a module's innermost ``forward``, and that.

    Raises:
        UnsupportedBackboneError: something unknown has taken its place.
    """
    if "forward" not in vars(module):
        return vars(module), "forward", types.MethodType(type(module).forward, module)
    for held, name in _places(module):
        found = held.get(name)
        if isinstance(found, types.MethodType) and found.__self__ is module:
            return held, name, found
    raise UnsupportedBackboneError(
        f"Something else has replaced forward() of this {type(module).__name__}, perhaps another "
        "session that shares the model",
        remedy="Undo that first; where it is a block, policies that run whole blocks, such as teacache, "
        "can do with it.",
    )


def own_forward(module: Any) -> types.FunctionType:
    """Return the code of a module's innermost ``forward``, a function of ``self`` and its arguments.

    That is not always its class's: guidance by perturbation gives single blocks another one.

    Raises:
        UnsupportedBackboneError: something has taken its place that is no method.
    """
    code: types.FunctionType = _innermost(module)[2].__func__
    return code


@contextmanager
def inner_forward(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Route the innermost ``forward`` of a module while the context lasts.

    Args:
        module: the module; what is wrapped around its ``forward`` stays.
        forward: takes the arguments of the bound method.

    Raises:
        UnsupportedBackboneError: something unknown has taken its place.
    """
    held, name, before = _innermost(module)
    there, override = name in held, Override(forward, before)
    held[name] = override
    try:
        yield
    finally:
        # Wrappers may have been put around it, or taken off, in the meantime.
        for held, name in _places(module):
            if held.get(name) is override:
                held[name] = before
        if not there and vars(module).get("forward") is before:
            del vars(module)["forward"]


def call_through(module: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a module as its library does, with another innermost ``forward``.

    Args:
        module: the module; its hooks and its offloading run.
        forward: takes the arguments of the bound method.
        *args: of the call.
        **kwargs: of the call.
    """
    with inner_forward(module, forward):
        # Not by what compile() has made of it, which has other code in it.
        return module._call_impl(*args, **kwargs)  # noqa: SLF001 - what a module's __call__ is


def call_inside(module: Any, replaced: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Call a module whose own code sees other attributes.

    Args:
        module: the module; its hooks and its offloading run.
        replaced: what its ``forward`` finds under the names of attributes.
        *args: of the call.
        **kwargs: of the call.
    """
    code, stand_in = own_forward(module), StandIn(module, **replaced)
    return call_through(module, types.MethodType(code, stand_in), *args, **kwargs)


def own_parameter(module: Any, name: str) -> Tensor:
    """Return a copy of one of a module's own parameters in fp32, wherever offloading keeps it.

    Args:
        module: the module.
        name: of the parameter.
    """

    def forward() -> Tensor:
        value: Tensor = getattr(module, name).detach().to(torch.float32, copy=True)
        return value

    with inner_forward(module, forward):
        found: Tensor = module.forward()  # no call: forward hooks are for those of the library
    return found


def offloaded_groups(model: Any) -> list[Any]:
    """List the groups of several blocks that diffusers brings to the device together."""
    hooks = (vars(module).get("_diffusers_hook") for module in model.modules())
    offloading = (hook.get_hook("group_offloading") for hook in hooks if hook is not None)
    groups = {id(hook.group): hook.group for hook in offloading if hook is not None}
    return [g for g in groups.values() if len(g.modules) > 1 and g.onload_self]


@contextmanager
def any_block_first(groups: Sequence[Any]) -> Iterator[None]:
    """Let any block of a group fetch it, not its first one alone, for one call of the model.

    Args:
        groups: those of the model.
    """
    leaders = [group.onload_leader for group in groups]
    for group in groups:
        group.onload_leader = None  # the library then takes the first that is called
    try:
        yield
    finally:
        for group, leader in zip(groups, leaders, strict=True):
            if group.onload_leader is not None:
                group.offload_()  # its last block may not have been called
            group.onload_leader = leader


@final
class _Fp32(TorchFunctionMode):
    """Computes products with weights, and norms, in fp32."""

    def __torch_function__(
        self, func: Any, kinds: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in WEIGHTED:
            return func(*args, **kwargs)
        device = next(
            value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor)
        )

        def cast(value: Any) -> Any:
            # A quantized one whose dtype is what it stands for changes its scales.
            floats = isinstance(value, Tensor) and value.is_floating_point()
            return value.to(device, torch.float32) if floats else value

        cast_kwargs = {name: cast(value) for name, value in kwargs.items()}
        output: Tensor = func(*map(cast, args), **cast_kwargs)
        return output.float()


def in_fp32(module: Any, x: Tensor) -> Tensor:
    """Run a module in fp32 on the device of its input, whatever the dtype of its weights.

    The module itself runs, so that quantization, LoRA, hooks and offloading are in the result.

    Args:
        module: an embedding, a projection or a norm.
        x: its input, fp32.
    """
    kept = {id(m): (m, m.compute_dtype, m.compute_type_is_set) for m in _undecided(module)}
    with _Fp32():
        # A layer whose activations are quantized too returns codes with scales.
        output: Tensor = module(x).dequantize().float()
    for layer, dtype, is_set in kept.values():
        layer.compute_dtype, layer.compute_type_is_set = dtype, is_set
    return output


def _undecided(module: Any) -> Iterator[Any]:
    """Layers of bitsandbytes that would compute in the dtype of their first input from then on."""
    for layer in module.modules():
        if getattr(layer, "compute_type_is_set", True) is False:
            yield layer
