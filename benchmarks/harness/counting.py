"""Models without weights, and what their calls would cost a card: operations, bytes, FLOPs.

Weights are torch's fake tensors, which have shapes and no data, so that models of any size run in seconds
on any machine. What touches one of them becomes fake too; masks, rows and schedules stay real.
"""

# ruff: noqa: SLF001 - torch has no other door to what it dispatches and to how modules are moved

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from attrs import define, frozen
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

aten: Final = torch.ops.aten

SILENT: Final = {
    aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided,
    aten._unsafe_view, aten.lift_fresh, aten.resize_, aten._local_scalar_dense,
}  # fmt: skip
"""They start nothing on a card and move nothing."""

PICKED: Final = {aten.index_select, aten.index, aten.gather, aten.embedding}
"""They read as much of their first argument as they write."""

PUT: Final = {aten.copy_: 1, aten.index_copy_: 3}
"""They read one argument, here its place, and write as much."""


@frozen(kw_only=True)
class Card:
    """What a card can do, at most.

    Attributes:
        name: for people.
        flops: FLOPs a second of matrix products.
        bandwidth: bytes a second.
        host_s: seconds of the host for each operation that is dispatched.
    """

    name: str
    flops: float
    bandwidth: float
    host_s: float


CARDS: Final[Mapping[str, Card]] = {
    "h200": Card(name="H200", flops=788e12, bandwidth=4.8e12, host_s=5e-6)
}
"""Of an H200: what a matrix product in bfloat16 reached, the bandwidth of its data sheet, and what eager
torch takes for an operation."""


@define
class Cost:
    """What some operations cost.

    Attributes:
        operations: dispatched, views and allocations left out.
        bytes: read and written outside matrix products.
        flops: of matrix products and convolutions.
        device_s: seconds by a card's roofline, operation by operation.
    """

    operations: int = 0
    bytes: int = 0
    flops: int = 0
    device_s: float = 0.0

    def seconds(self, card: Card) -> float:
        """What takes longer: the card's work, or the host's."""
        return max(self.device_s, self.operations * card.host_s)


class Meter(TorchDispatchMode):
    """Adds up what is dispatched while it is entered.

    Attributes:
        cost: since ``take`` was last called.
    """

    def __init__(self, card: Card) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.card = card
        self.cost = Cost()

    def take(self) -> Cost:
        """Return what was counted, and begin anew."""
        taken, self.cost = self.cost, Cost()
        return taken

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet is aten._local_scalar_dense and isinstance(args[0], FakeTensor):
            return args[0].dtype.is_floating_point or 1  # a number that nothing here depends on
        if func.namespace == "prim":  # asks a tensor what it is
            return func(*args, **kwargs)
        if packet not in flop_registry:
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = func(*args, **kwargs)
        if not func.is_view and packet not in SILENT:
            self._add(packet, args, kwargs, made)
        return made

    def _add(self, packet: Any, args: Any, kwargs: Any, made: Any) -> None:
        flops = _flops(packet, args, kwargs, made)
        moved = _bytes(packet, args, kwargs, made)
        self.cost.operations += 1
        self.cost.flops += flops
        self.cost.bytes += 0 if flops else moved
        self.cost.device_s += max(flops / self.card.flops, moved / self.card.bandwidth)


def _flops(packet: Any, args: Any, kwargs: Any, made: Any) -> int:
    if "scaled_dot_product" in packet.__name__:
        query, key, value = (
            given.shape
            for given in [*args, *(kwargs[n] for n in ("query", "key", "value") if n in kwargs)][:3]
        )
        return int(sdpa_flop_count(query, key, value))
    formula = flop_registry.get(packet)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=made))


def _bytes(packet: Any, args: Any, kwargs: Any, made: Any) -> int:
    """Bytes read and written; where rows are picked or put, theirs alone."""
    if packet in PUT:
        return 2 * _own_bytes(args[PUT[packet]])
    written = sum(_own_bytes(each) for each in tree_leaves(made) if isinstance(each, Tensor))
    if packet in PICKED:
        return 2 * written
    given = [*args, *(value for name, value in kwargs.items() if name != "out")]
    read = sum(_own_bytes(each) for each in tree_leaves(given) if isinstance(each, Tensor))
    return read + written


def _own_bytes(value: Tensor) -> int:
    """Bytes of a tensor's memory, without those that a stride of 0 repeats."""
    count = 1
    for size, stride in zip(value.shape, value.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count * value.element_size()


@contextmanager
def weightless() -> Iterator[None]:
    """Give every module that is made meanwhile weights without data."""
    fake, apply = FakeTensorMode(allow_non_fake_inputs=True), nn.Module._apply

    def registered(_module: nn.Module, _name: str, parameter: Any) -> Any:
        if parameter is None:
            return None
        with fake:
            data = torch.empty(parameter.shape, dtype=parameter.dtype)
        return nn.Parameter(data, requires_grad=False)

    def applied(self: nn.Module, change: Callable[[Tensor], Tensor], **_: Any) -> nn.Module:
        # torch exchanges the tensors inside of parameters, which fake ones do not allow.
        for module in self.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    changed = nn.Parameter(change(parameter.data), requires_grad=False)
                    module._parameters[name] = changed
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = change(buffer)
        return self

    handle = register_module_parameter_registration_hook(registered)
    nn.Module._apply = applied  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        nn.Module._apply = apply  # type: ignore[method-assign]
        handle.remove()
