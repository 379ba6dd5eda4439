"""Settings of policies and backbones: declared once, as fields of an attrs class.

A setting is declared in one line, with its type as the annotation::

    @final
    @frozen(kw_only=True)
    class NthStep(PolicyRecipe):
        every: int = setting(2, ge=1, doc="run every n-th step")
        keep: Literal["last", "mean"] = setting("last", doc="what is reused")

``build`` makes the object from what a person wrote (``--set``, YAML, keyword arguments), and
``describe`` lists the settings for help and documentation. The same checks hold for a setting
declared by ``setting`` when the class is called directly. Every mistake is a ``ConfigError`` on one
line: where, which setting, what is allowed, what was given.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, Protocol, TypeVar, get_type_hints, overload

import attrs
from attrs import Attribute, frozen

from hetcache_core.errors import (
    NOT_GIVEN,
    ConfigError,
    ContractError,
    HetCacheError,
    nearest_name,
)
from hetcache_core.settings.fitting import (
    NUMBER,
    SHARE,
    Limits,
    UnfitError,
    allowed_texts,
    fit,
    type_text,
)

__all__ = [
    "Declared",
    "Pieces",
    "SettingInfo",
    "build",
    "declared",
    "describe",
    "group",
    "parse_assignments",
    "piece",
    "plain_values",
    "setting",
    "values_of",
]

T = TypeVar("T")

_METADATA: Final = "hetcache"
_GROUP: Final = "hetcache group"
_KIND: Final = "hetcache kind"


class Pieces(Protocol):
    """Where pieces are found by kind and name; a ``Registry`` is one."""

    def names(self, kind: str, /) -> tuple[str, ...]:
        """Names of one kind."""

    def load(self, kind: str, name: str, /) -> type[Any]:
        """Load the class of a name; a ``HetCacheError`` says why that cannot be."""


@frozen(kw_only=True)
class SettingInfo:
    """One setting, as help and documentation show it.

    Attributes:
        name: Name of the setting.
        type: Its type, in words.
        default: Its default, or ``NOT_GIVEN`` if it must be given.
        doc: What it does.
        allowed: The values that it may take, or the bounds, such as ``(">= 0", "<= 1")``; empty if
            the type says all.
        pieces: The settings of each piece that it may be, by the piece's name.
    """

    name: str
    type: str
    default: object
    doc: str
    allowed: tuple[str, ...]
    pieces: Mapping[str, tuple[SettingInfo, ...]] = {}


@frozen(kw_only=True)
class Declared:
    """One setting as its class declares it.

    Attributes:
        name: Name of the setting.
        hint: Its type.
        default: Its default, or ``NOT_GIVEN`` if it must be given.
        limits: What it allows beyond its type.
        metadata: What else was said of it where it was declared.
        kind: The kind of pieces that it takes, "" for other values.
    """

    name: str
    hint: Any
    default: object
    limits: Limits
    metadata: Mapping[Any, Any]
    kind: str = ""

    @property
    def info(self) -> SettingInfo:
        """What help and documentation show of it."""
        return SettingInfo(
            name=self.name,
            type=self.kind or type_text(self.hint),
            default=_brief(self.default) if self.kind else self.default,
            doc=str(self.metadata.get("doc", "")),
            allowed=allowed_texts(self.hint, self.limits),
        )


@overload
def setting(
    default: T,
    *,
    doc: str,
    ge: float | None = ...,
    gt: float | None = ...,
    le: float | None = ...,
    lt: float | None = ...,
    choices: Collection[object] = ...,
    share: bool = ...,
    allow_non_finite: bool = ...,
    metadata: Mapping[str, object] | None = ...,
) -> T: ...


@overload
def setting(
    *,
    doc: str,
    ge: float | None = ...,
    gt: float | None = ...,
    le: float | None = ...,
    lt: float | None = ...,
    choices: Collection[object] = ...,
    share: bool = ...,
    allow_non_finite: bool = ...,
    metadata: Mapping[str, object] | None = ...,
) -> Any: ...


def setting(
    default: object = attrs.NOTHING,
    *,
    doc: str,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Collection[object] = (),
    share: bool = False,
    allow_non_finite: bool = False,
    metadata: Mapping[str, object] | None = None,
) -> Any:
    """Declare a setting as a field of an attrs class.

    The annotation says its type: ``bool``, ``int``, ``float``, ``str``, ``Literal``, an enum,
    ``tuple``, or one of these or ``None``. Bounds and choices hold for the value,
    or for each element of a tuple; ``None`` always passes them.

    Args:
        default: The default, which cannot be changed in place; without one it must be given.
        doc: What it does, with its unit, on one line.
        ge: It is greater than or equal to this.
        gt: It is greater than this.
        le: It is less than or equal to this.
        lt: It is less than this.
        choices: It is one of these. ``Literal`` and enums say so themselves.
        share: A number with a point is a share, at most 1.0; a whole number is a count.
        allow_non_finite: It may be infinite or not a number.
        metadata: What else is to be known of the field, such as how a command line writes it.
    """
    given = ((">=", ge), (">", gt), ("<=", le), ("<", lt), (SHARE, 1.0 if share else None))
    limits = Limits(
        bounds=tuple((sign, bound) for sign, bound in given if bound is not None),
        choices=tuple(choices),
        allow_non_finite=allow_non_finite,
    )
    return attrs.field(
        default=default,
        validator=_validate,
        metadata={**(metadata or {}), "doc": doc, _METADATA: limits},
    )


def group(default: T) -> T:
    """Declare a field of an attrs class whose own settings stand beside those of the class.

    To whoever writes settings, a group is not there: ``build``, ``describe`` and ``values_of`` know its
    settings by their own names.

    Args:
        default: The group with its defaults, which are those of the settings.
    """
    made: T = attrs.field(
        default=default,
        validator=attrs.validators.instance_of(type(default)),
        metadata={_GROUP: True},
    )
    return made


def piece(kind: str, default: T, *, doc: str) -> T:
    """Declare a field of an attrs class that takes a piece of some kind, such as a selector.

    In Python the value is the piece itself. Whoever writes settings names it, and gives its own settings
    beside it, as in ``--set selector=kmeans --set selector.clusters=8``, or in a mapping, as in
    ``{"name": "kmeans", "clusters": 8}``. Without a name these are settings of the default.

    Args:
        kind: The kind, as the table of kinds has it.
        default: The piece that is used if none is given.
        doc: What it does, on one line.
    """
    made: T = attrs.field(
        default=default,
        validator=_validate,
        metadata={"doc": doc, _METADATA: Limits(), _KIND: kind},
    )
    return made


def build(
    cls: type[T], values: Mapping[str, object], *, where: str, pieces: Pieces | None = None
) -> T:
    """Make an attrs object from settings that a person wrote.

    Whole numbers are taken for ``float``, lists for tuples and values for members of an enum.
    Nothing else is converted: text is no number.

    Args:
        cls: An attrs class.
        values: Settings by name.
        where: What the settings are for and where they come from, such as
            ``"policy 'hetcache' (--set)"``; it opens every message.
        pieces: Where pieces are found by name; without it only the defaults are.

    Raises:
        ConfigError: A setting is unknown, missing, of the wrong type or out of range, or the class
            refuses the combination.
        ContractError: The annotations of the class cannot be resolved.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"settings must be given by name, got {_shown(values)}", where=where, given=values
        )
    settings = declared(cls)
    values, inner_values = _taken_apart(values, settings)
    _refuse_unknown(values, settings, where)
    missing = [name for name, info in settings.items() if info.default is NOT_GIVEN]
    missing = [name for name in missing if name not in values]
    if missing:
        raise ConfigError(
            f"missing setting {', '.join(missing)}",
            where=where,
            setting=missing[0],
            remedy=_known(settings),
        )
    arguments: dict[str, Any] = {}
    for name, attribute in _fields_of(cls).items():
        if _GROUP in attribute.metadata:
            own = values_of(attribute.default)
            own |= {inner: values[inner] for inner in own if inner in values}
            arguments[name] = build(type(attribute.default), own, where=where, pieces=pieces)
        elif settings[name].kind and (name in values or name in inner_values):
            value, own = values.get(name, settings[name].default), inner_values.get(name, {})
            arguments[name] = _make_piece(settings[name], value, own, where, pieces)
        elif name in values:
            try:
                arguments[name] = fit(values[name], settings[name].hint, settings[name].limits)
            except UnfitError as unfit:
                raise _config_error(name, values[name], unfit, where) from None
    try:
        return cls(**arguments)
    except ConfigError as error:
        # Keeps the facts of the class's own check, and says where the settings come from.
        error.where = where
        raise
    except (ValueError, TypeError) as error:
        # A TypeError is the class's own bug, unless a validator of attrs raised it: then its
        # arguments are the message, the attribute and more.
        facts = error.args
        if isinstance(error, TypeError) and not any(isinstance(f, Attribute) for f in facts):
            raise
        reason = " ".join(str(facts[0] if facts else "").split())
        raise ConfigError(reason or type(error).__name__, where=where) from error


def describe(cls: type[Any], pieces: Pieces | None = None) -> tuple[SettingInfo, ...]:
    """List the settings of an attrs class, in the order of their declaration.

    Args:
        cls: An attrs class.
        pieces: Where pieces are found; with it, settings that take a piece list what there is, and the
            settings of each that can be loaded.

    Raises:
        ContractError: It is no attrs class, or its annotations cannot be resolved.
    """
    return tuple(_with_pieces(setting, pieces) for setting in declared(cls).values())


def declared(cls: type[Any]) -> dict[str, Declared]:
    """Look up the settings of an attrs class by name, those of its groups where the groups stand.

    Args:
        cls: An attrs class.

    Raises:
        ContractError: It is no attrs class, its annotations cannot be resolved, or a setting and one of
            a group have the same name.
    """
    hints, found = _hints(cls), dict[str, Declared]()
    for name, attribute in _fields_of(cls).items():
        if _GROUP in attribute.metadata:
            defaults = values_of(attribute.default)
            inner = declared(type(attribute.default))
            more = {n: attrs.evolve(s, default=defaults[n]) for n, s in inner.items()}
        else:
            more = {
                name: Declared(
                    name=name,
                    hint=hints[attribute.name],
                    default=_default(attribute),
                    limits=_limits(attribute),
                    metadata=attribute.metadata,
                    kind=attribute.metadata.get(_KIND, ""),
                )
            }
        twice = found.keys() & more
        if twice:
            raise ContractError(f"declares {min(twice)} twice", subject=cls.__name__)
        found |= more
    return found


def values_of(settings: object) -> dict[str, Any]:
    """Return the values of an attrs object by name, those of its groups where the groups stand.

    Args:
        settings: What ``build`` makes.
    """
    values: dict[str, Any] = {}
    for name, attribute in _fields_of(type(settings)).items():
        value = getattr(settings, attribute.name)
        values |= values_of(value) if _GROUP in attribute.metadata else {name: value}
    return values


def plain_values(settings: object) -> dict[str, Any]:
    """Return the values of an attrs object as a person would write them all.

    A piece is its name, and its own settings follow as ``selector.clusters``.

    Args:
        settings: What ``build`` makes, and makes again of the result.
    """
    plain: dict[str, Any] = {}
    kinds = {name: info.kind for name, info in declared(type(settings)).items()}
    for name, value in values_of(settings).items():
        if not kinds[name] or value is None:
            plain[name] = value
            continue
        plain[name] = _name_of(value)
        plain |= {f"{name}.{inner}": own for inner, own in _own_values(value).items()}
    return plain


def parse_assignments(assignments: Iterable[str]) -> dict[str, object]:
    """Read ``name=value`` texts, as ``--set`` takes them.

    Values are JSON (``0.3``, ``true``, ``null``, ``[1, 2]``, ``"text"``), numbers in the spellings
    ``.5``, ``1.`` and ``+1``, ``True`` and ``False``; anything else is text as it stands.

    Args:
        assignments: The texts.

    Returns:
        Values by name, in the given order.

    Raises:
        ConfigError: A text has no ``=`` or no name, or a name is given twice.
    """
    values: dict[str, object] = {}
    for assignment in assignments:
        name, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals or not name:
            raise ConfigError(
                f"cannot read {assignment!r}",
                where="--set",
                given=assignment,
                remedy="Write name=value, such as context_ratio=0.3.",
            )
        if name in values:
            raise ConfigError(
                f"{name} is given twice, as {_shown(values[name])} and {text}",
                where="--set",
                setting=name,
                given=text,
                remedy="Give it once.",
            )
        values[name] = _literal(text)
    return values


def _literal(text: str) -> object:
    if text in {"True", "False"}:
        return text == "True"
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return float(text) if NUMBER.fullmatch(text) else text


def _fields_of(cls: type[Any]) -> dict[str, Attribute[Any]]:
    if not attrs.has(cls):
        raise ContractError("is no attrs class", subject=cls.__name__)
    return {field.alias or field.name: field for field in attrs.fields(cls) if field.init}


def _hints(cls: type[Any]) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except (NameError, TypeError, AttributeError) as error:
        raise ContractError(
            f"its annotations cannot be resolved: {error}",
            subject=cls.__name__,
            remedy="Import the types of settings outside of 'if TYPE_CHECKING:'.",
        ) from error


def _limits(attribute: Attribute[Any]) -> Limits:
    limits = attribute.metadata.get(_METADATA)
    return limits if isinstance(limits, Limits) else Limits()


def _default(attribute: Attribute[Any]) -> object:
    default = attribute.default
    if default is attrs.NOTHING:
        return NOT_GIVEN
    factory = getattr(default, "factory", None)  # attrs.Factory, typed as what it makes
    if factory is not None:
        return "computed" if getattr(default, "takes_self", False) else factory()
    return default


def _name_of(piece: object) -> str:
    """Name a piece; one that only a program knows goes by its class."""
    return str(getattr(piece, "name", type(piece).__name__))


def _own_values(piece: object) -> dict[str, Any]:
    return plain_values(piece) if attrs.has(type(piece)) else {}


def _brief(piece: object) -> object:
    """Return a piece as its name, with what of its settings is no default."""
    if piece is None or piece is NOT_GIVEN:
        return piece
    own = _own_values(piece)
    given = {n: setting.info.default for n, setting in declared(type(piece)).items()} if own else {}
    changed = {n: v for n, v in own.items() if n not in given or v != given[n]}
    return {"name": _name_of(piece), **changed} if changed else _name_of(piece)


def _with_pieces(setting: Declared, pieces: Pieces | None) -> SettingInfo:
    if not setting.kind or pieces is None:
        return setting.info
    found = {}
    for name in pieces.names(setting.kind):
        try:
            found[name] = describe(pieces.load(setting.kind, name), pieces)
        except HetCacheError:
            found[name] = ()  # said to be broken where plugins are listed and where it is used
    return attrs.evolve(setting.info, allowed=tuple(found), pieces=found)


def _taken_apart(
    values: Mapping[str, object], settings: Mapping[str, Declared]
) -> tuple[dict[str, object], dict[str, dict[str, object]]]:
    """Tell settings from those of a piece that one of them takes ("selector.clusters")."""
    mine: dict[str, object] = {}
    inner: dict[str, dict[str, object]] = {}
    for name, value in values.items():
        outer, _, own = str(name).partition(".")
        if own and outer in settings and settings[outer].kind:
            inner.setdefault(outer, {})[own] = value
        else:
            mine[name] = value
    return mine, inner


def _make_piece(
    setting: Declared,
    value: object,
    own: Mapping[str, object],
    where: str,
    pieces: Pieces | None,
) -> object:
    """Make the piece that a setting is given by name, in a mapping or as an object."""
    if isinstance(value, Mapping):
        own = {**{key: inner for key, inner in value.items() if key != "name"}, **own}
        value = value.get("name", setting.default)
    if isinstance(value, str):
        cls, base = _class_of(setting, value, where, pieces), {}
    else:
        try:
            fit(value, setting.hint, setting.limits)
        except UnfitError:
            known = () if pieces is None else pieces.names(setting.kind)
            raise ConfigError(
                f"{setting.name} must be the name of a {setting.kind}, got {_shown(value)}",
                where=where,
                setting=setting.name,
                given=value,
                allowed=known,
                remedy=_known(known),
            ) from None
        if not own:
            return value
        cls, base = type(value), values_of(value) if attrs.has(type(value)) else {}
        value = _name_of(value)
    where = f"{where}, {setting.kind} {value}"
    return build(cls, {**base, **own}, where=where, pieces=pieces)


def _class_of(setting: Declared, name: str, where: str, pieces: Pieces | None) -> type[Any]:
    if pieces is not None:
        try:
            return pieces.load(setting.kind, name)
        except ConfigError as error:
            error.where, error.setting = where, setting.name
            raise
    if name != _name_of(setting.default):
        raise ConfigError(
            f"{setting.name} cannot be found by its name {name!r} here",
            where=where,
            setting=setting.name,
            given=name,
            remedy=f"Give the {setting.kind} itself.",
        )
    return type(setting.default)


def _refuse_unknown(
    values: Mapping[str, object], fields: Mapping[str, Declared], where: str
) -> None:
    unknown = [str(name) for name in values if name not in fields]
    if not unknown:
        return
    nearest = {name: nearest_name(name, fields) for name in unknown}
    listed = ", ".join(
        f"{name!r} (did you mean {nearest[name]!r}?)" if nearest[name] else repr(name)
        for name in unknown
    )
    raise ConfigError(
        f"unknown setting {listed}",
        where=where,
        setting=unknown[0],
        allowed=fields,
        nearest=nearest[unknown[0]],
        remedy=_known(fields),
    )


def _known(fields: Iterable[str]) -> str:
    return f"Known: {', '.join(fields) or 'none'}."


def _validate(instance: object, attribute: Attribute[Any], value: object) -> None:
    """Check and convert a setting when its class is called, whoever calls it."""
    cls = type(instance)
    name = attribute.alias or attribute.name
    try:
        fitted = fit(value, _hints(cls)[attribute.name], _limits(attribute))
    except UnfitError as unfit:
        if _KIND in attribute.metadata and isinstance(value, str):
            unfit.remedy = f"Give the {attribute.metadata[_KIND]} itself; names are for settings."
        raise _config_error(name, value, unfit, cls.__name__) from None
    if fitted is not value:
        # A text that equals an enum's member would pass "==" and fail "is". Converters would be
        # the place, but know their field only from attrs 24.1 on.
        object.__setattr__(instance, attribute.name, fitted)


def _config_error(name: str, value: object, unfit: UnfitError, where: str) -> ConfigError:
    nearest = nearest_name(value, unfit.allowed) if isinstance(value, str) else None
    hint = f"Did you mean {nearest}?" if nearest else unfit.remedy
    return ConfigError(
        f"{name} must be {unfit.must}, got {_shown(value)}",
        where=where,
        setting=name,
        given=value,
        allowed=unfit.allowed,
        nearest=nearest,
        remedy=hint,
    )


def _shown(value: object) -> str:
    return " ".join(reprlib.repr(value).split())
