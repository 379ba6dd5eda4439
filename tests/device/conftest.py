"""A device that isn't there: tensors that claim ``cuda:0`` and hold their numbers in host memory.

An operation that meets both them and a host tensor is refused, as a GPU refuses it, and whatever would
make the host wait, or copy between the two memories, is written down with the line that asked for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from attrs import define, field, frozen
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from typing_extensions import Self

CUDA = torch.device("cuda:0")
CPU = torch.device("cpu")
aten = torch.ops.aten

WAITS = {
    aten._local_scalar_dense.default: "item",
    aten.equal.default: "equal",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.bincount.default: "bincount",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.repeat_interleave.Tensor: "repeat_interleave",
}
"""What has to know numbers on the host before it can go on."""
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
COPIES = {aten._to_copy.default, aten.copy_.default}
ANYWHERE = COPIES | INDEXED
"""What a GPU, too, lets take its arguments from both memories."""

OURS = ("hetcache", "hetcache_core", "hetcache_backends", "hetcache_policies")


@frozen
class Event:
    """Something that the host asked of the device.

    Attributes:
        what: "wait", "to host" or "to device"; a copy from the pageable memory of the host waits too.
        how: the operation.
        where: file and line that asked for it, the innermost outside torch and the tests' own device.
        ours: whether that is a line of this project.
    """

    what: str
    how: str
    where: str
    ours: bool


def caller() -> tuple[str, bool]:
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        inside = path.parts
        if path != Path(__file__) and "torch" not in inside and "attr" not in inside:
            return f"{'/'.join(inside[-2:])}:{frame.f_lineno}", bool({*OURS} & {*inside[:-1]})
        frame = frame.f_back
    return "?", False


@define(eq=False)
class Log:
    """What was asked of the device since it was last emptied."""

    events: list[Event] = field(factory=list)

    def note(self, what: str, how: str) -> None:
        self.events.append(Event(what, how, *caller()))

    def take(self) -> list[Event]:
        """Return the events so far, and begin anew."""
        events, self.events[:] = [*self.events], []
        return events


LOG = Log()


class Pretended(torch.Tensor):
    """A tensor on the device; ``held`` is what it is."""

    held: Tensor

    def __new__(cls, held: Tensor) -> Self:
        made: Self = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CUDA,
            requires_grad=held.requires_grad,
        )
        made.held = held.detach()
        return made

    def __repr__(self) -> str:
        return f"Pretended({self.held})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return run(func, args, dict(kwargs or {}))


def tensors(given: Any) -> Iterator[Tensor]:
    """All tensors in nested arguments; torch's own walk would be most of a test's time."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, list | tuple):
        for one in given:
            yield from tensors(one)


def mapped(kind: type[Tensor], change: Callable[[Any], Any], given: Any) -> Any:
    """Change every tensor of a kind in nested arguments or results."""
    if isinstance(given, kind):
        return change(given)
    if type(given) in {list, tuple}:
        return type(given)(mapped(kind, change, one) for one in given)
    return given


def held(given: Any) -> Any:
    return mapped(Pretended, lambda x: x.held, given)


@cache
def shares(func: Any) -> bool:
    """Whether an operation writes to its arguments or returns views of them."""
    schema = func._schema
    return any(one.alias_info is not None for one in (*schema.arguments, *schema.returns))


def run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operation where its arguments are, or where it says."""
    given = [*tensors(args), *tensors([*kwargs.values()])]
    here = any(isinstance(x, Pretended) for x in given)
    named = kwargs.get("device")
    target = torch.device(named) if named is not None else (CUDA if here else CPU)
    if not here and target.type == "cpu":
        return func(*args, **kwargs)
    strangers = [x for x in given if not isinstance(x, Pretended)]
    if here and any(x.dim() for x in strangers) and func not in ANYWHERE:
        raise RuntimeError(f"{func}: expected all tensors on cuda:0, but found one on the cpu")
    if func is aten.copy_.default and not isinstance(args[0], Pretended):
        target = CPU
    note(func, args, target, strangers)
    local = {name: held(value) for name, value in kwargs.items()}
    if named is not None:
        local["device"] = CPU
    result = func(*held(tuple(args)), **local)
    if target.type == "cpu":
        return result
    result = mapped(Tensor, Pretended, result)
    if here and shares(func):
        return return_and_correct_aliasing(func, args, kwargs, result)
    return result


def note(func: Any, args: Sequence[Any], target: torch.device, strangers: Sequence[Tensor]) -> None:
    """Write down what an operation that the device has a part in asks of it."""
    if func in WAITS:
        LOG.note("wait", WAITS[func])
    elif func in INDEXED:
        if any(x is not None and x.dtype in {torch.bool, torch.uint8} for x in args[1]):
            LOG.note("wait", "masked indexing")
        if any(x.dim() for x in strangers):
            LOG.note("to device", "index")
    elif func in COPIES:
        if target.type == "cpu":
            LOG.note("to host", "copy")
        elif strangers:
            LOG.note("to device", "copy")


class Operations(TorchDispatchMode):
    """Sees the operations that make tensors on the device out of nothing, or of host tensors."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return run(func, args, dict(kwargs or {}))


class Functions(TorchFunctionMode):
    """Sees the functions that ask the driver before they run operations."""

    MADE_OF_NUMBERS: ClassVar = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.pin_memory:
            return args[0]
        if func is Tensor.tolist:  # not for wrappers, says torch
            return args[0].cpu().tolist()
        if func is torch.nn.functional.scaled_dot_product_attention:
            return self._attention(func, args, kwargs)
        if func not in self.MADE_OF_NUMBERS:
            return func(*args, **kwargs)
        source, device = args[0], kwargs.get("device")
        if func is Tensor.new_tensor:
            func, source, device = torch.tensor, args[1], device or args[0].device
            kwargs.setdefault("dtype", args[0].dtype)
            args = args[1:]
        if isinstance(source, Tensor):
            return source.to(**kwargs)
        kwargs["device"] = CPU
        made = func(*args, **kwargs)
        return made if device is None else made.to(device)

    @staticmethod
    def _attention(func: Any, args: Any, kwargs: Any) -> Any:
        """The library would ask the driver which kernel is the best."""
        kinds = {
            isinstance(x, Pretended) for x in (*args, *kwargs.values()) if isinstance(x, Tensor)
        }
        if len(kinds) > 1:
            raise RuntimeError(
                "attention: expected all tensors on cuda:0, but found one on the cpu"
            )
        result = func(*held(args), **{name: held(value) for name, value in kwargs.items()})
        return Pretended(result) if kinds == {True} else result


class Mark:
    """Stands in for ``torch.cuda.Event``: a millisecond lies between any two."""

    def __init__(self, **_: Any) -> None:
        self.recorded = False

    def record(self, stream: Any = None) -> None:
        self.recorded = True

    def elapsed_time(self, other: Mark) -> float:
        assert self.recorded
        assert other.recorded
        return 1.0

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        LOG.note("wait", "Event.synchronize")


class Generator(torch.Generator):
    """A generator that says it is of the device; its numbers come from the host's."""

    def __new__(cls, device: Any = "cpu") -> Self:
        made = super().__new__(cls, "cpu")
        made.claimed = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.claimed


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """The device, for as long as a test lasts, and what is asked of it."""
    if torch.cuda.is_available():
        torch.cuda.init()  # what is stubbed below would be taken for it
    else:
        torch._C._ensureCUDADeviceGuardSet()
    LOG.take()

    def synchronize(device: Any = None) -> None:
        LOG.note("wait", "synchronize")

    stubs: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "_lazy_init": lambda: None,
        "synchronize": synchronize,
        "current_stream": lambda device=None: None,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "empty_cache": lambda: None,
        "Event": Mark,
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(torch, "Generator", Generator)
    # Modules then take wrappers for their weights, as they take those of other devices.
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    with Functions(), Operations():
        yield LOG
