"""Comparisons that raise ``ContractError`` with what was found, and where tolerances come from."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from attrs import frozen
from torch import Tensor, nn

from hetcache_core.errors import ContractError

SUMS_PER_BLOCK: Final = 16
"""Sums over about D terms that follow one another in a block: norms, projections, attention and
feed-forward, forwards and once more for the control branch."""


class NotApplicableError(Exception):
    """A check has nothing to look at in this subject, for the reason given."""


def require(holds: bool, what: str, remedy: str = "") -> None:  # noqa: FBT001 - reads as a sentence
    """Raise unless something holds.

    Args:
        holds: whether it does.
        what: what is wrong otherwise.
        remedy: where to look.

    Raises:
        ContractError: it does not hold.
    """
    if not holds:
        raise ContractError(what, remedy=remedy)


def need(holds: bool, reason: str) -> None:  # noqa: FBT001 - reads as a sentence
    """Raise ``NotApplicableError`` unless something holds."""
    if not holds:
        raise NotApplicableError(reason)


def require_same(actual: Tensor, expected: Tensor, what: str, remedy: str = "") -> None:
    """Raise unless two tensors are equal bit for bit."""
    require(
        actual.shape == expected.shape and actual.dtype == expected.dtype,
        f"{what}: {actual.dtype} {tuple(actual.shape)} instead of {expected.dtype} "
        f"{tuple(expected.shape)}",
        remedy,
    )
    if not torch.equal(actual, expected):
        raise ContractError(
            f"{what}: {_difference(actual, expected)}, where every bit must be equal", remedy=remedy
        )


def require_close(
    actual: Tensor, expected: Tensor, bound: Tensor | float, what: str, remedy: str = ""
) -> None:
    """Raise unless two tensors differ by no more than a bound, element by element."""
    require(
        actual.shape == expected.shape,
        f"{what}: {tuple(actual.shape)} instead of {tuple(expected.shape)}",
        remedy,
    )
    error = (actual.double() - expected.double()).abs()
    if not bool((error <= bound).all()):  # not "any beyond it": nothing is beyond it if it is NaN
        limit = float(bound.max()) if isinstance(bound, Tensor) else bound
        raise ContractError(
            f"{what}: {_difference(actual, expected)}; at most {limit:.1e} is rounding",
            remedy=remedy,
        )


def _difference(actual: Tensor, expected: Tensor) -> str:
    error = (actual.double() - expected.double()).abs()
    wrong = int((error != 0).sum())
    return (
        f"{wrong} of {error.numel()} values differ, by up to {float(error.max()):.1e} "
        f"where values reach {float(expected.abs().max()):.1e}"
    )


def subtraction_bound(before: Tensor, after: Tensor) -> Tensor:
    """Bound the error of ``before + (after - before)``, element by element.

    The difference and the sum are each rounded once, by half an epsilon of themselves; that is less
    than an epsilon of ``|before| + |after|``.
    """
    epsilon = torch.finfo(before.dtype).eps
    return epsilon * (before.double().abs() + after.double().abs())


def rounding_bound(reference: Tensor, layers: int, width: int) -> float:
    """Bound what another order of summation changes in what a trunk computes.

    Rounding errors of a sum over D terms grow as the square root of D, and the sums of all layers
    follow one another.

    Args:
        reference: what was computed, of any shape.
        layers: layers that it went through.
        width: width ``D`` of the trunk.
    """
    epsilon = torch.finfo(reference.dtype).eps
    return float(epsilon * layers * SUMS_PER_BLOCK * width**0.5 * float(reference.abs().max()))


@frozen(eq=False)
class Snapshot:
    """What a session may not change: a pipeline's attributes, modules, weights and classes.

    Attributes:
        values: what was found, by a path that says where.
    """

    values: dict[str, Any]

    @classmethod
    def of(cls, pipeline: Any) -> Snapshot:
        """Look at a pipeline."""
        values: dict[str, Any] = {}
        if isinstance(pipeline, nn.Module):
            roots: dict[str, nn.Module] = {"pipeline": pipeline}
        else:
            roots = {}
            for name, value in vars(pipeline).items():
                values[f"pipeline.{name}"] = _unless_plain(value)
                if isinstance(value, nn.Module):
                    roots[f"pipeline.{name}"] = value
                elif hasattr(value, "__dict__"):
                    values[f"attributes of pipeline.{name}"] = tuple(vars(value))
        for path, root in roots.items():
            for name, module in root.named_modules():
                where = f"{path}.{name}" if name else path
                values[f"class of {where}"] = type(module)
                values[f"forward of {where}"] = type(module).forward
                found = vars(module)
                if module is pipeline:
                    found = {k: _unless_plain(v) for k, v in found.items()}
                values |= {f"{where}.{k}": _copied(v) for k, v in found.items()}
        return cls(values)

    def changes(self, pipeline: Any) -> dict[str, str]:
        """Say what of a pipeline is no longer what it was: "gone", "left behind" or "changed", by place."""
        now = Snapshot.of(pipeline).values
        found = dict.fromkeys(sorted(self.values.keys() - now.keys()), "gone")
        found |= dict.fromkeys(sorted(now.keys() - self.values.keys()), "left behind")
        changed = [k for k, v in self.values.items() if k in now and not _same(v, now[k])]
        return found | dict.fromkeys(changed, "changed")

    def require_unchanged(self, pipeline: Any, when: str, but: Collection[str] = ()) -> None:
        """Raise if a pipeline no longer is what it was.

        Args:
            pipeline: the pipeline.
            when: after what, for the message.
            but: places that the library itself leaves otherwise.

        Raises:
            ContractError: says what changed.
        """
        found = {place: verb for place, verb in self.changes(pipeline).items() if place not in but}
        what = [
            f"{verb}: {', '.join(list(places)[:3])}"
            for verb in dict.fromkeys(found.values())
            if (places := [place for place, of in found.items() if of == verb])
        ]
        require(
            not what,
            f"the pipeline is not what it was {when}; {'; '.join(what)}",
            "Restore in a finally block what attach replaces.",
        )


def _unless_plain(value: Any) -> Any:
    """Hide numbers and texts: with them a pipeline notes what its last call was like."""
    return None if isinstance(value, bool | int | float | str) else value


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return value.detach().clone() if isinstance(value, Tensor) else value


def _same(was: Any, now: Any) -> bool:
    if was is now:
        return True
    if type(was) is not type(now) and not isinstance(was, Tensor):
        return False
    if isinstance(was, Tensor):
        return isinstance(now, Tensor) and was.dtype == now.dtype and torch.equal(was, now)
    if isinstance(was, dict):
        return list(was) == list(now) and all(_same(was[k], now[k]) for k in was)
    return bool(was == now)


@contextmanager
def raising(kind: type[BaseException], what: str) -> Iterator[None]:
    """Raise ``ContractError`` unless the body raises this kind of exception."""
    try:
        yield
    except kind:
        return
    except Exception as error:
        raise ContractError(f"{what}: {type(error).__name__} instead of {kind.__name__}") from error
    raise ContractError(f"{what}: nothing was raised, {kind.__name__} was expected")


@contextmanager
def failing_block(block: nn.Module, call: int, error: Exception) -> Iterator[None]:
    """Let a module raise an error in one of its calls, counted from 0."""
    calls = iter(range(call + 1))

    def fail(*_arguments: object) -> None:
        if next(calls, None) == call:
            raise error

    handle = block.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()
