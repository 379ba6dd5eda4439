"""What the pieces of any model cost: torch counts them on tensors without data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, final

import torch
from attrs import define, field, frozen
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import flop_registry

from hetcache_core import FlopModel, SubLayer, matrix_macs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hetcache_core import Stack


@final
@define(eq=False)
class BlockCosts:
    """Costs of blocks, counted once for each kind and size; one object serves one session."""

    _counted: dict[Any, tuple[int, int]] = field(factory=dict, init=False)
    _kinds: dict[int, Any] = field(factory=dict, init=False)

    def count(
        self, block: torch.nn.Module, run: Callable[[], Any], sizes: Any, tokens: int
    ) -> tuple[int, int]:
        """Count the FLOPs of one block.

        Args:
            block: the block.
            run: calls it with its arguments.
            sizes: what its cost depends on beside its weights: the shapes of its arguments.
            tokens: rows times batch, for an estimate where torch cannot count.

        Returns:
            FLOPs of attention products, and of everything else.
        """
        kind = self._kinds.get(id(block))
        if kind is None:
            kind = self._kinds[id(block)] = (type(block), matrix_macs(block))
        key = (kind, sizes)
        if key not in self._counted:
            self._counted[key] = _count(run) or (0, 2 * tokens * kind[1])
        return self._counted[key]


def _count(run: Callable[[], Any]) -> tuple[int, int] | None:
    """Count without data; where what is done depends on them, by running for good, once."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for without_data in (FakeTensorMode(allow_non_fake_inputs=True), nullcontext()):
        try:
            # Whoever counts a run must not count this.
            with (
                _disable_current_modes(),
                sdpa_kernel(SDPBackend.MATH),
                without_data,
                _Attended() as attended,
                _Counter() as counter,
            ):
                run()
        except Exception:  # noqa: BLE001, S112 - what a block may do with data that is not there has no end
            continue
        return attended.flops, counter.flops - attended.flops
    return None


class _Counter(TorchDispatchMode):
    """Adds up FLOPs by torch's own formulas.

    ``FlopCounterMode`` also follows modules, which fails where parameters are inputs of one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)  # noqa: SLF001 - as torch's own counter does
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=made)
        return made


class _Attended(torch.overrides.TorchFunctionMode):
    """Adds up the FLOPs of calls of ``scaled_dot_product_attention``."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            (*batch, queries, width), keys = given["query"].shape, given["key"].shape[-2]
            rows = torch.Size(batch).numel() * queries * keys
            self.flops += 2 * rows * (width + given["value"].shape[-1])
        return func(*args, **(kwargs or {}))


@final
@define(eq=False)
class CountedFlops(FlopModel):
    """Costs of one call.

    Attributes:
        around: FLOPs of embeddings and head.
        tokens: tokens ``N`` of the call.
        counts: counts a block on some of its rows: FLOPs of attention products and of the rest.
    """

    around: int
    tokens: int
    counts: Callable[[int, int], tuple[int, int]]

    def outside(self) -> int:
        """Everything around the trunk."""
        return self.around

    def block(self, stack: Stack, index: int, *, rows: int, keys: int) -> int:
        """One block on some rows."""
        attended, rest = self.counts(index, rows)
        if keys != rows:
            # Attention costs a * rows * keys + b * rows, where b is to other keys than the tokens'.
            every = self.counts(index, self.tokens)[0]
            a = (every / self.tokens - attended / rows) / max(1, self.tokens - rows)
            attended += round(a * rows * (keys - rows))
        return attended + rest

    def sub_layer(self, stack: Stack, part: SubLayer, *, rows: int, keys: int) -> int:
        """Nothing: blocks run whole, and are counted whole."""
        return 0

    def control_extra(self, index: int, *, rows: int) -> int:
        """There is no control branch."""
        return 0


@final
@frozen
class SharedFlops(FlopModel):
    """Costs of one call whose tokens several processes share, those of all of them together.

    Attributes:
        around: FLOPs of embeddings and head.
        tokens: tokens ``N`` of the call.
        blocks: of each block on all tokens: FLOPs of attention products, and of the rest.
    """

    around: int
    tokens: int
    blocks: tuple[tuple[int, int], ...]

    def outside(self) -> int:
        """Everything around the trunk."""
        return self.around

    def block(self, stack: Stack, index: int, *, rows: int, keys: int) -> int:
        """One block, by the share of its rows."""
        attended, rest = self.blocks[index]
        return (attended * keys // self.tokens + rest) * rows // self.tokens

    def sub_layer(self, stack: Stack, part: SubLayer, *, rows: int, keys: int) -> int:
        """Nothing: blocks run whole, and are counted whole."""
        return 0

    def control_extra(self, index: int, *, rows: int) -> int:
        """There is no control branch."""
        return 0


def count_around(run: Callable[[], Any]) -> tuple[Any, int]:
    """Run something for good; its result and its FLOPs."""
    with _Counter() as counter:
        result = run()
    return result, counter.flops


def shapes_of(values: Sequence[Any]) -> tuple[Any, ...]:
    """Shapes of all tensors among some values, also within lists, as something that can be a key."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(tuple(value.shape))
        elif isinstance(value, list | tuple):
            found.append(shapes_of(value))
    return tuple(found)
