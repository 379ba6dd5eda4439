"""Fitting a value that a person wrote to the type of a setting."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import cache
from numbers import Integral, Real
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import attrs
from attrs import frozen

__all__ = [
    "NUMBER",
    "SHARE",
    "Limits",
    "UnfitError",
    "allowed_texts",
    "fit",
    "structure",
    "type_text",
]

NUMBER: Final = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
"""A number as people write it; JSON and YAML each leave some of these out."""

SHARE: Final = "as a share <="
"""Sign of a bound that holds for numbers with a point alone."""

_BOUNDS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    ">=": lambda value, bound: value >= bound,
    ">": lambda value, bound: value > bound,
    "<=": lambda value, bound: value <= bound,
    "<": lambda value, bound: value < bound,
    SHARE: lambda value, bound: isinstance(value, int) or value <= bound,
}


@frozen(kw_only=True)
class Limits:
    """What a setting allows beyond its type.

    Attributes:
        bounds: Pairs of a sign, such as ``">="``, and a number.
        choices: What the value must be one of; empty for no such limit.
        allow_non_finite: The value may be infinite or not a number.
    """

    bounds: tuple[tuple[str, float], ...] = ()
    choices: tuple[object, ...] = ()
    allow_non_finite: bool = False


_ANY: Final = Limits(allow_non_finite=True)


class UnfitError(ValueError):
    """A value does not fit. Its users turn it into a ``ConfigError``, which says where.

    Its ``place`` is where in the value, such as ``.records[3].step``.

    Args:
        must: What it must be, after "must be".
        allowed: The values or bounds that are allowed.
        remedy: What to do about it.
    """

    def __init__(self, must: str, *, allowed: Iterable[str] = (), remedy: str = "") -> None:
        super().__init__(must)
        self.must = must
        self.place = ""
        self.allowed = tuple(allowed)
        self.remedy = remedy

    def __str__(self) -> str:
        """Say what must be, and where."""
        return f"{self.place.lstrip('.') or 'it'} must be {self.must}"


def fit(value: object, hint: Any, limits: Limits) -> object:
    """Convert a value to a type, and check its limits.

    Args:
        value: The value.
        hint: The type, as ``typing.get_type_hints`` returns it.
        limits: Bounds and choices, which hold for the value or for each element of a tuple.

    Returns:
        The value, with whole numbers made ``float``, lists made tuples and values made members of
        an enum where the type asks for it.

    Raises:
        UnfitError: It does not fit.
    """
    fitted = _convert(value, hint, finite=not limits.allow_non_finite)
    for element in fitted if isinstance(fitted, tuple) else (fitted,):
        if element is None:
            continue
        if limits.choices:
            _choose(element, limits.choices)
        if not all(_BOUNDS[sign](element, bound) for sign, bound in limits.bounds):
            allowed = allowed_texts(hint, limits)
            raise UnfitError(" and ".join(allowed), allowed=allowed)
    return fitted


def structure(plain: object, hint: Any) -> Any:
    """Make a value of a type out of plain JSON values, as ``asdict`` or ``astuple`` has written them.

    Args:
        plain: The values. What a class has no field for is left out: a newer release may have written it.
        hint: The type: an attrs class, a list, tuple or mapping of such, or what ``fit`` takes.

    Raises:
        UnfitError: Something is missing or of another type; says where.
    """
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if _is_union(hint):
        if plain is None and types.NoneType in arguments:
            return None
        classes = [arm for arm in arguments if attrs.has(get_origin(arm) or arm)]
        return structure(plain, classes[0]) if classes else fit(plain, hint, _ANY)
    if attrs.has(kind):
        return _structure_class(plain, kind)
    if kind in {list, tuple} and arguments and isinstance(plain, list):
        if kind is tuple and arguments[-1] is not Ellipsis:
            if len(plain) != len(arguments):
                raise UnfitError(f"a list of {len(arguments)} elements")
            return tuple(map(structure, plain, arguments))
        return kind(_inside(f"[{i}]", each, arguments[0]) for i, each in enumerate(plain))
    if kind in {dict, Mapping} and isinstance(plain, Mapping):
        inner = arguments[1] if arguments else Any
        return {str(name): _inside(f".{name}", each, inner) for name, each in plain.items()}
    return fit(plain, hint, _ANY)


def _structure_class(plain: object, cls: type[Any]) -> Any:
    values, hints = {}, _hints_of(cls)  # type: ignore[arg-type]  # attrs.has made it one of its own types
    if isinstance(plain, list) and len(plain) <= len(hints):
        plain = dict(zip(hints, plain, strict=False))
    if not isinstance(plain, Mapping):
        raise UnfitError("a mapping")
    for field in attrs.fields(cls):
        name = field.alias or field.name
        if name in plain:
            values[name] = _inside(f".{name}", plain[name], hints[field.name])
        elif field.default is attrs.NOTHING:
            missing = UnfitError("given")
            missing.place = f".{name}"
            raise missing
    return cls(**values)


def _inside(place: str, plain: object, hint: Any) -> Any:
    try:
        return structure(plain, hint)
    except UnfitError as error:
        error.place = place + error.place
        raise


@cache
def _hints_of(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def type_text(hint: Any) -> str:
    """Write a type in words, such as ``"list of int"`` or ``"float or null"``."""
    arguments = get_args(hint)
    if _is_union(hint):
        return " or ".join(type_text(argument) for argument in arguments)
    if _choices_of(hint) and get_origin(hint) is not tuple:
        return " | ".join(_choices_of(hint))
    if get_origin(hint) is tuple and arguments:
        if arguments[-1] is Ellipsis:
            return f"list of {type_text(arguments[0])}"
        return f"list ({', '.join(type_text(argument) for argument in arguments)})"
    if hint is types.NoneType:
        return "null"
    if isinstance(hint, type) and not arguments:  # Python 3.10 takes dict[str, int] for a class
        return hint.__name__
    return str(hint).replace("typing.", "")


def allowed_texts(hint: Any, limits: Limits) -> tuple[str, ...]:
    """List the values that a setting may take, or else its bounds."""
    choices = tuple(str(choice) for choice in limits.choices) or _choices_of(hint)
    return choices or tuple(f"{sign} {bound}" for sign, bound in limits.bounds)


def _choices_of(hint: Any) -> tuple[str, ...]:
    if get_origin(hint) is Literal:
        return tuple(str(choice) for choice in get_args(hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return tuple(str(member.value) for member in hint)
    if _is_union(hint) or get_origin(hint) is tuple:
        inner = tuple(choice for argument in get_args(hint) for choice in _choices_of(argument))
        return (*inner, "null") if inner and types.NoneType in get_args(hint) else inner
    return ()


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in {Union, types.UnionType}


def _convert(value: object, hint: Any, *, finite: bool) -> object:
    arguments = get_args(hint)
    if _is_union(hint):
        return _convert_to_one_of(value, arguments, finite=finite)
    if get_origin(hint) is Literal:
        return _choose(value, arguments)
    if get_origin(hint) is tuple:
        return _convert_to_tuple(value, arguments, finite=finite)
    kind = get_origin(hint) or hint
    if kind is Any or not isinstance(kind, type):
        return value  # nothing to check, or nothing that can be checked when running
    if kind in {bool, int, float, str}:
        return _convert_scalar(value, kind, finite=finite)
    if isinstance(value, kind):
        return value
    if issubclass(kind, Enum):
        chosen = _choose(value, tuple(member.value for member in kind))
        return next(member for member in kind if member.value == chosen)
    if kind is types.NoneType:
        raise UnfitError("null")
    raise UnfitError(f"of type {type_text(hint)}")


def _convert_to_one_of(value: object, arms: tuple[Any, ...], *, finite: bool) -> object:
    if value is None and types.NoneType in arms:
        return None
    unfit = []
    for arm in arms:
        try:
            return _convert(value, arm, finite=finite)
        except UnfitError as error:
            unfit.append(error)
    raise UnfitError(
        " or ".join(error.must for error in unfit),
        allowed=[allowed for error in unfit for allowed in error.allowed],
        remedy=next((error.remedy for error in unfit if error.remedy), ""),
    )


def _convert_to_tuple(value: object, arguments: tuple[Any, ...], *, finite: bool) -> object:
    # Text is a sequence as well, and a set has no order.
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise UnfitError("a list", remedy="Write [a, b].")
    if arguments[-1:] == (Ellipsis,):
        arguments = arguments[:1] * len(value)
    if len(value) != len(arguments):
        raise UnfitError(f"a list of {len(arguments)} elements")
    try:
        return tuple(
            _convert(element, argument, finite=finite)
            for element, argument in zip(value, arguments, strict=True)
        )
    except UnfitError as error:
        message = f"a list in which each element is {error.must}"
        raise UnfitError(message, allowed=error.allowed, remedy=error.remedy) from None


def _choose(value: object, choices: tuple[object, ...]) -> object:
    for choice in choices:
        # True == 1, and a member of an enum of texts equals its text.
        if value == choice and isinstance(value, bool) == isinstance(choice, bool):
            return choice
    allowed = [str(choice) for choice in choices]
    raise UnfitError(f"one of {', '.join(allowed)}", allowed=allowed)


def _convert_scalar(value: object, kind: type, *, finite: bool) -> object:
    if kind is str:
        if isinstance(value, str):
            return value
        raise UnfitError("text", remedy="Put double quotes around it.")
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise UnfitError("true or false", allowed=("true", "false"))
    # bool is a subclass of int; the numbers of numpy are registered as Integral and Real.
    number = None if isinstance(value, bool) else value
    if kind is int and isinstance(number, Integral):
        return int(number)
    if kind is float and isinstance(number, Real):
        try:
            real = float(number)
        except OverflowError:
            real = math.inf
        if math.isfinite(real) or not finite:
            return real
    remedy = ""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        remedy = "Write it without quotes; in YAML, write 1.0e-3 for 1e-3."
    if kind is int:
        raise UnfitError("a whole number", remedy=remedy)
    raise UnfitError("a finite number" if finite else "a number", remedy=remedy)
