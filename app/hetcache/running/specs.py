"""Policies, backbones and numbers, as short texts on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from attrs import evolve, field, frozen

from hetcache_core import ConfigError, Registry
from hetcache_core.errors import nearest_name
from hetcache_core.settings.declare import build, describe, parse_assignments

if TYPE_CHECKING:
    from hetcache_core import LoadRequest

__all__ = [
    "ALL",
    "RANDOM",
    "REFERENCE",
    "BackboneSpec",
    "PolicySpec",
    "check_policy_spec",
    "parse_backbones",
    "parse_numbers",
    "parse_policies",
    "random_name",
    "split_list",
]

T = TypeVar("T")
Number = TypeVar("Number", int, float)

ALL: Final = "all"
"""Stands for every policy that runs on the backbones without a calibration, ``all=random`` for every
random model."""

REFERENCE: Final = "none"
"""The policy that runs everything in full: what others are held against."""

RANDOM: Final = "random"
"""Stands for a backbone's small random model, in place of a checkpoint."""

LOADED: Final = frozenset({"variant", "around"})
"""What may be said of how a checkpoint is loaded."""

LOADING: Final = re.compile(r":(?=\s*(?:variant|around)\s*=)")
"""Where a checkpoint ends, whose path may have a colon of its own."""

PRESETS: Final = ("quality", "balanced", "fast")
VARIANTS: Final = ("paper", "code")
"""Presets that stand for no share of FLOPs: what was published of a method, exactly."""
TARGET: Final = re.compile(r"(?P<number>\d+(\.\d+)?)x")
OPENING, CLOSING = "[{(", "]})"


@frozen(kw_only=True)
class BackboneSpec:
    """A backbone and its model.

    Attributes:
        name: Name of the backbone.
        model: Checkpoint, ``RANDOM``, or "" for the backbone's own.
        variant: Which weights of the checkpoint, or None.
        around: What the rest of a single file is loaded from, or None.
    """

    name: str
    model: str = ""
    variant: str | None = None
    around: str | None = None

    @property
    def weights(self) -> str:
        """Write which weights run: the checkpoint, with what goes with it."""
        given = {"variant": self.variant, "around": self.around}
        words = ";".join(f"{name}={value}" for name, value in given.items() if value is not None)
        return f"{self.model}:{words}" if words else self.model

    def __str__(self) -> str:
        """Write it as it is given."""
        return f"{self.name}={self.weights}" if self.weights else self.name

    def request(self, device: str, dtype: str) -> LoadRequest:
        """Say how the model is loaded."""
        from hetcache_core import LoadRequest

        return LoadRequest(
            model=self.model or None,
            around=self.around,
            variant=self.variant,
            device=device,
            dtype=dtype,
        )


@frozen(kw_only=True)
class PolicySpec:
    """A policy with its settings in one text.

    Attributes:
        name: Its name, or several joined by "+".
        preset: Settings that its own go on top of, or None.
        target_speedup: How many times fewer FLOPs are asked for, or None.
        settings: Its settings by name.
    """

    name: str
    preset: str | None = None
    target_speedup: float | None = None
    settings: Mapping[str, object] = field(factory=dict)

    @property
    def variant(self) -> str:
        """What sets it apart from the same policy as it comes: "fast", "3x", "threshold=0.1"."""
        words = [self.preset] if self.preset else []
        words += [f"{self.target_speedup:g}x"] if self.target_speedup is not None else []
        words += [f"{name}={_shown(value)}" for name, value in self.settings.items()]
        return " ".join(words)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the single policies."""
        return tuple(self.name.split("+"))

    def __str__(self) -> str:
        """Write it as tables do."""
        return f"{self.name} {self.variant}".strip()

    def at(self, speedup: float) -> PolicySpec:
        """Return the same policy, asked for a speed-up."""
        from hetcache_core.session import check_target

        return evolve(self, target_speedup=check_target(speedup))


def random_name(model: str | None) -> str | None:
    """Read ``random`` or ``random:MODEL``: the model's short name, "" for the usual one; None of others."""
    head, _, name = (model or "").partition(":")
    return name if head == RANDOM else None


def split_list(text: str, *, at: str = ",") -> list[str]:
    """Split a text at commas that are outside of brackets and quotes; empty parts are left out.

    Args:
        text: Such as ``pab,fastcache:blocks=[0.1,0.9]``.
        at: What separates the parts.
    """
    parts, depth, quoted = [""], 0, False
    for letter in text:
        quoted ^= letter == '"'
        depth += 0 if quoted else (letter in OPENING) - (letter in CLOSING)
        if letter == at and depth <= 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def parse_policies(text: str, *, option: str = "--policies") -> tuple[PolicySpec, ...]:
    """Read ``NAME[+NAME…][@PRESET|@3x][:setting=value[;setting=value…]]``, separated by commas.

    Args:
        text: The texts; the word "all" is left as a policy of that name.
        option: The option, for messages.

    Raises:
        ConfigError: A text cannot be read, or two mean the same.
    """
    specs = tuple(_policy(part, option) for part in split_list(text))
    if not specs:
        raise ConfigError("no policy is named", where=option, given=text)
    return _each_once(specs, option)


def _policy(text: str, option: str) -> PolicySpec:
    head, colon, tail = text.partition(":")
    name, at, how = (part.strip() for part in head.partition("@"))
    names = [part.strip() for part in name.split("+")]
    if not all(names) or (at and not how) or (colon and not tail.strip()):
        raise ConfigError(
            f"cannot read {text!r}",
            where=option,
            given=text,
            remedy="Write NAME, NAME@fast, NAME@3x or NAME:setting=value;setting=value.",
        )
    target, preset = TARGET.fullmatch(how), how if how in (*PRESETS, *VARIANTS) else None
    if how and target is None and preset is None:
        raise ConfigError(
            f"{how!r} in {text!r} is neither a preset nor a speed-up",
            where=option,
            given=how,
            allowed=PRESETS,
            nearest=nearest_name(how, PRESETS),
            remedy=f"Take {', '.join(PRESETS)}, or a number with an x, such as 3x.",
        )
    try:
        settings = parse_assignments(split_list(tail, at=";"))
        spec = PolicySpec(name="+".join(names), preset=preset, settings=settings)
        return spec if target is None else spec.at(float(target["number"]))
    except ConfigError as error:
        error.where = option
        raise


def parse_backbones(text: str, *, option: str = "--backbones") -> tuple[BackboneSpec, ...]:
    """Read ``NAME[=MODEL[:variant=WEIGHTS][;around=REST]]``, separated by commas.

    Args:
        text: The texts.
        option: The option, for messages.

    Raises:
        ConfigError: A text cannot be read, or two mean the same.
    """
    specs = []
    for part in split_list(text):
        name, equals, model = (word.strip() for word in part.partition("="))
        model, *rest = LOADING.split(model)
        given = [word.partition("=")[::2] for word in split_list(rest[0], at=";")] if rest else []
        loading = {key.strip(): value.strip() for key, value in given}
        right = len(loading) == len(given) and loading.keys() <= LOADED and all(loading.values())
        if not name or (equals and not model) or not right:
            raise ConfigError(
                f"cannot read {part!r}",
                where=option,
                given=part,
                remedy=f"Write NAME, NAME=CHECKPOINT, NAME=CHECKPOINT:variant=fp16, "
                f"NAME=FILE:around=FOLDER, NAME={RANDOM} or NAME={RANDOM}:MODEL.",
            )
        specs.append(BackboneSpec(name=name, model=model, **loading))
    if not specs:
        raise ConfigError("no backbone is named", where=option, given=text)
    return _each_once(tuple(specs), option)


LARGEST: Final = 2**63
"""Numbers stay below, as seeds of torch do."""


def parse_numbers(
    text: str, kind: Callable[[str], Number], *, option: str, least: Number, what: str = "numbers"
) -> tuple[Number, ...]:
    """Read numbers, separated by commas.

    Args:
        text: The texts.
        kind: ``int`` or ``float``.
        option: The option, for messages.
        least: The smallest that is allowed.
        what: What they are called in messages.

    Raises:
        ConfigError: A text is no such number, is given twice, or there is none.
    """
    try:
        numbers = tuple(kind(part) for part in split_list(text))
        right = bool(numbers) and all(least <= number < LARGEST for number in numbers)
    except ValueError:
        right = False
    if not right:
        raise ConfigError(
            f"cannot read {text!r}",
            where=option,
            given=text,
            remedy=f"Write {what} from {least} on, separated by commas.",
        )
    return _each_once(numbers, option)


def check_policy_spec(spec: PolicySpec, registry: Registry, *, option: str = "--policies") -> None:
    """Find mistakes in names and settings, before any model is loaded.

    Args:
        spec: The policy.
        registry: Where it is looked up.
        option: The option, for messages.

    Raises:
        HetCacheError: There is no such policy, or it has no such setting.
    """
    kinds = {name: registry.policy(name) for name in spec.names}
    if REFERENCE in kinds and (len(kinds) > 1 or spec.variant):
        raise ConfigError(f"{spec} cannot be: {REFERENCE} caches nothing", where=option)
    if len(kinds) == 1:
        build(kinds[spec.name], spec.settings, where=f"policy {spec.name}", pieces=registry)
        return
    known = [f"{name}.{info.name}" for name, kind in kinds.items() for info in describe(kind)]
    # Settings of a piece, such as hetcache.selector.clusters, are checked with the piece.
    stray = [name for name in spec.settings if ".".join(name.split(".")[:2]) not in known]
    if stray:
        nearest = nearest_name(stray[0], known)
        raise ConfigError(
            f"unknown setting {stray[0]!r}" + (f", did you mean {nearest!r}?" if nearest else ""),
            where=f"policy {spec.name}",
            setting=stray[0],
            allowed=known,
            nearest=nearest,
            remedy=f"Write it after the policy's name, such as {known[0]}." if known else "",
        )
    for name, kind in kinds.items():
        own = {
            setting.partition(".")[2]: value
            for setting, value in spec.settings.items()
            if setting.startswith(f"{name}.")
        }
        build(kind, own, where=f"policy {name}", pieces=registry)


def _each_once(values: Sequence[T], option: str) -> tuple[T, ...]:
    twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
    if twice is not None:
        raise ConfigError(f"{twice} is given twice", where=option, given=str(twice))
    return tuple(values)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
