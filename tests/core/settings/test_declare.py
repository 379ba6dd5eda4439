"""Settings are declared once and checked the same way whoever gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import Enum
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Optional, Union

import attrs
import pytest
from attrs import field, frozen
from hypothesis import given
from hypothesis import strategies as st

from hetcache_core.errors import NOT_GIVEN, ConfigError, ContractError
from hetcache_core.settings.declare import (
    SettingInfo,
    build,
    declared,
    describe,
    group,
    parse_assignments,
    setting,
    values_of,
)

if TYPE_CHECKING:
    from decimal import Decimal

WHERE = "policy 'sample' (--set)"


class Mode(str, Enum):
    """An enum of texts, whose members equal their texts."""

    CACHED = "cached"
    PRUNED = "pruned"


@frozen(kw_only=True)
class Sample:
    """One setting of every type."""

    name: ClassVar[str] = "sample"
    ratio: float = setting(0.5, ge=0, le=1, doc="share of the context")
    steps: int = setting(4, gt=0, lt=100, doc="steps")
    merge: bool = setting(False, doc="merge branches")
    label: str = setting("x", doc="a label")
    kind: Literal["uniform", "random", 3] = setting("uniform", doc="the selector")
    mode: Mode = setting(Mode.CACHED, doc="the keys")
    limit: float | None = setting(None, gt=0, doc="a limit")
    layers: tuple[int, ...] = setting((-1,), doc="layers")
    size: tuple[int, float] = setting((1, 2.0), doc="a size")
    kinds: tuple[Literal["a", "b"], ...] = setting(("a",), doc="several of these")
    shares: tuple[float, ...] = setting((), ge=0, doc="several shares")
    either: int | str = setting(0, doc="one or the other")
    chosen: str = setting("p", choices=["p", "q"], doc="one of these")
    many: tuple[str, ...] = setting((), choices=["p", "q"], doc="some of these")
    loose: float = setting(math.inf, allow_non_finite=True, doc="may be infinite")
    maybe: Mode | None = setting(None, doc="a mode or none")
    anything: Any = setting(None, doc="whatever")


@frozen(kw_only=True)
class Needy:
    """Two settings without a default."""

    first: int = setting(doc="the first")
    second: int = setting(doc="the second")
    third: int = setting(3, doc="the third")


def refused(values: dict[str, object], cls: type[Any] = Sample) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        build(cls, values, where=WHERE)
    assert str(caught.value).startswith(f"{WHERE}: ")
    assert "\n" not in str(caught.value)
    return caught.value


# Values that fit.


@pytest.mark.parametrize(
    ("name", "given_value", "expected"),
    [
        ("ratio", 0.25, 0.25),
        ("ratio", 1, 1.0),
        ("ratio", Fraction(1, 4), 0.25),
        ("steps", 99, 99),
        ("merge", True, True),
        ("label", "", ""),
        ("kind", "random", "random"),
        ("kind", 3, 3),
        ("mode", "pruned", Mode.PRUNED),
        ("mode", Mode.PRUNED, Mode.PRUNED),
        ("limit", None, None),
        ("limit", 2, 2.0),
        ("layers", [0, 1], (0, 1)),
        ("layers", (), ()),
        ("size", [3, 4], (3, 4.0)),
        ("kinds", ["b", "a"], ("b", "a")),
        ("either", 7, 7),
        ("either", "seven", "seven"),
        ("chosen", "q", "q"),
        ("many", ["q", "q"], ("q", "q")),
        ("loose", math.inf, math.inf),
        ("maybe", None, None),
        ("maybe", "cached", Mode.CACHED),
        ("anything", {"a": 1}, {"a": 1}),
    ],
)
def test_a_value_that_fits_is_taken_and_converted_alike_by_build_and_by_the_class(
    name: str, given_value: Any, expected: object
) -> None:
    for made in (build(Sample, {name: given_value}, where=WHERE), Sample(**{name: given_value})):
        value = getattr(made, name)
        assert value == expected
        assert type(value) is type(expected)


def test_without_values_the_defaults_are_taken() -> None:
    assert build(Sample, {}, where=WHERE) == Sample()


def test_a_numpy_number_is_a_number() -> None:
    numpy = pytest.importorskip("numpy")
    made = build(Sample, {"ratio": numpy.float32(0.5), "steps": numpy.int64(7)}, where=WHERE)
    assert (made.ratio, made.steps) == (0.5, 7)
    assert (type(made.ratio), type(made.steps)) == (float, int)


# Values that don't fit.


@pytest.mark.parametrize(
    ("name", "given_value", "must"),
    [
        ("ratio", 1.5, "ratio must be >= 0 and <= 1, got 1.5"),
        ("ratio", "0.3", "ratio must be a finite number, got '0.3'. Write it without quotes"),
        ("ratio", math.nan, "ratio must be a finite number, got nan"),
        ("ratio", math.inf, "ratio must be a finite number, got inf"),
        ("ratio", 10**400, "ratio must be a finite number, got 1000"),
        ("ratio", True, "ratio must be a finite number, got True"),
        ("ratio", None, "ratio must be a finite number, got None"),
        ("ratio", 1j, "ratio must be a finite number"),
        ("steps", 0, "steps must be > 0 and < 100, got 0"),
        ("steps", 100, "steps must be > 0 and < 100, got 100"),
        ("steps", 3.0, "steps must be a whole number, got 3.0"),
        ("steps", True, "steps must be a whole number, got True"),
        ("steps", "1e3", "steps must be a whole number, got '1e3'. Write it without quotes"),
        ("merge", 1, "merge must be true or false, got 1"),
        ("merge", "yes", "merge must be true or false, got 'yes'"),
        ("label", 3, "label must be text, got 3. Put double quotes around it."),
        ("kind", "unifrom", "kind must be one of uniform, random, 3, got 'unifrom'. Did you mean"),
        ("kind", True, "kind must be one of uniform, random, 3, got True"),
        ("mode", "cache", "mode must be one of cached, pruned, got 'cache'. Did you mean cached?"),
        ("limit", 0, "limit must be > 0, got 0"),
        ("limit", "none", "limit must be a finite number or null, got 'none'"),
        ("layers", 1, "layers must be a list, got 1. Write [a, b]."),
        ("layers", "12", "layers must be a list, got '12'"),
        ("layers", {1, 2}, "layers must be a list"),
        ("layers", [1, "b"], "layers must be a list in which each element is a whole number"),
        ("size", [1], "size must be a list of 2 elements, got [1]"),
        ("kinds", ["c"], "kinds must be a list in which each element is one of a, b, got ['c']"),
        ("shares", [0.5, -1], "shares must be >= 0, got [0.5, -1]"),
        ("either", 1.5, "either must be a whole number or text, got 1.5"),
        ("chosen", "r", "chosen must be one of p, q, got 'r'"),
        ("many", ["p", "r"], "many must be one of p, q, got ['p', 'r']"),
        ("loose", "x", "loose must be a number, got 'x'"),
        ("maybe", "no", "maybe must be one of cached, pruned or null, got 'no'"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_alike_by_build_and_by_the_class(
    name: str, given_value: Any, must: str
) -> None:
    error = refused({name: given_value})
    assert must in str(error)
    assert error.setting == name
    assert error.given is given_value
    with pytest.raises(ConfigError) as caught:
        Sample(**{name: given_value})  # type: ignore[arg-type]  # the mistake
    assert str(caught.value) == str(error).replace(WHERE, "Sample")


def test_what_is_allowed_is_a_fact_of_the_error() -> None:
    assert refused({"kind": "x"}).allowed == ("uniform", "random", "3")
    assert refused({"mode": "x"}).allowed == ("cached", "pruned")
    assert refused({"ratio": 7}).allowed == (">= 0", "<= 1")
    assert refused({"merge": 7}).allowed == ("true", "false")
    assert refused({"mode": "prunde"}).nearest == "pruned"


def test_a_very_long_value_is_shortened_in_the_message() -> None:
    assert len(str(refused({"kind": "long " * 10_000}))) < 300
    assert "\n" not in str(refused({"kind": "two\nlines"}))


def test_a_setting_that_was_changed_by_evolve_is_checked_too() -> None:
    with pytest.raises(ConfigError, match="ratio must be >= 0 and <= 1, got 2"):
        attrs.evolve(Sample(), ratio=2)
    loose: Any = "pruned"
    assert attrs.evolve(Sample(), mode=loose).mode is Mode.PRUNED


# Names.


def test_an_unknown_setting_names_the_nearest_and_all_known_ones() -> None:
    error = refused({"ratoi": 0.3})
    assert "unknown setting 'ratoi' (did you mean 'ratio'?)" in str(error)
    assert "Known: ratio, steps, merge" in str(error)
    assert error.setting == "ratoi"
    assert error.nearest == "ratio"
    assert "ratio" in error.allowed


def test_all_unknown_settings_are_named_at_once() -> None:
    error = refused({"zzzz": 1, "stepz": 2})
    assert "'zzzz', 'stepz' (did you mean 'steps'?)" in str(error)


def test_an_unknown_name_that_is_no_text_is_refused_too() -> None:
    """YAML reads ``on: 1`` as ``{True: 1}``."""
    values: Any = {True: 1}
    assert "unknown setting 'True'" in str(refused(values))


def test_a_class_variable_is_no_setting() -> None:
    assert "unknown setting 'name'" in str(refused({"name": "other"}))


def test_a_class_without_settings_knows_none() -> None:
    @frozen
    class Empty:
        pass

    assert "Known: none." in str(refused({"ratio": 1}, Empty))
    assert describe(Empty) == ()


def test_all_missing_settings_are_named() -> None:
    error = refused({"third": 1}, Needy)
    assert "missing setting first, second" in str(error)
    assert error.setting == "first"
    assert error.given is NOT_GIVEN
    assert build(Needy, {"first": 1, "second": 2}, where=WHERE) == Needy(first=1, second=2)


@pytest.mark.parametrize("values", [None, [1], "ratio=1", 3])
def test_settings_that_are_not_given_by_name_are_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match="settings must be given by name"):
        build(Sample, values, where=WHERE)


def test_a_private_field_is_set_by_its_public_name() -> None:
    @frozen
    class Private:
        _depth: int = setting(1, ge=1, doc="depth")

    assert build(Private, {"depth": 2}, where=WHERE) == Private(depth=2)
    assert [info.name for info in describe(Private)] == ["depth"]
    assert "depth must be >= 1" in str(refused({"depth": 0}, Private))


# The class's own checks.


def test_a_refused_combination_becomes_a_config_error_on_one_line() -> None:
    @frozen
    class Pair:
        low: int = setting(0, doc="low")
        high: int = setting(1, doc="high")

        def __attrs_post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError(f"low {self.low}\nis above high {self.high}")

    error = refused({"low": 5}, Pair)
    assert str(error) == f"{WHERE}: low 5 is above high 1"
    assert isinstance(error.__cause__, ValueError)


@pytest.mark.parametrize("value", [3, 12])
def test_the_validators_of_attrs_become_config_errors_on_one_line(value: int) -> None:
    @frozen
    class Plain:
        odd: int = field(
            default=5, validator=[attrs.validators.in_((5, 12)), attrs.validators.lt(9)]
        )

    error = refused({"odd": value}, Plain)
    assert "'odd' must be" in str(error)
    assert str(value) in str(error)


def test_the_type_validator_of_attrs_becomes_a_config_error() -> None:
    @frozen
    class Plain:
        odd: Any = field(default=5, validator=attrs.validators.instance_of(int))

    assert "'odd' must be <class 'int'>" in str(refused({"odd": "x"}, Plain))


def test_a_config_error_of_the_class_keeps_its_facts_and_learns_where() -> None:
    @frozen
    class Strict:
        odd: int = 1

        def __attrs_post_init__(self) -> None:
            if self.odd % 2 == 0:
                raise ConfigError("odd must be odd", setting="odd", given=self.odd, remedy="Add 1.")

    error = refused({"odd": 2}, Strict)
    assert (error.setting, error.given) == ("odd", 2)
    assert str(error) == f"{WHERE}: odd must be odd. Add 1."


def test_an_error_without_a_message_still_says_what_it_was() -> None:
    @frozen
    class Silent:
        odd: int = 1

        def __attrs_post_init__(self) -> None:
            raise ValueError

    assert str(refused({}, Silent)) == f"{WHERE}: ValueError"


def test_a_bug_in_the_class_is_not_hidden() -> None:
    @frozen
    class Buggy:
        odd: int = 1

        def __attrs_post_init__(self) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build(Buggy, {}, where=WHERE)


def test_a_type_error_of_the_class_is_a_bug_too() -> None:
    @frozen
    class Buggy:
        odd: int = 1

        def __attrs_post_init__(self) -> None:
            len(self.odd)  # type: ignore[arg-type]  # the bug

    with pytest.raises(TypeError, match="has no len"):
        build(Buggy, {}, where=WHERE)


@frozen
class Unresolved:
    """Its annotation exists for type checkers only."""

    price: Decimal = setting(doc="a price")


def test_an_annotation_that_cannot_be_resolved_is_the_authors_mistake() -> None:
    price: Any = 1
    for use in (
        lambda: describe(Unresolved),
        lambda: build(Unresolved, {"price": price}, where=WHERE),
        lambda: Unresolved(price=price),
    ):
        with pytest.raises(ContractError) as caught:
            use()
        for fact in ("Unresolved", "Decimal", "TYPE_CHECKING"):
            assert fact in str(caught.value)


def test_a_class_that_is_not_of_attrs_is_the_authors_mistake() -> None:
    with pytest.raises(ContractError, match="int: is no attrs class"):
        describe(int)


# Other ways to write a type.


@frozen
class Classic:
    """Types in the spellings of older Python, and some that are only looked at."""

    maybe: Optional[int] = None  # noqa: UP045 - the spelling is what is tested
    either: Union[int, str] = 0  # noqa: UP007 - likewise
    words: Sequence[str] = ()
    table: dict[str, int] = field(factory=dict)
    thing: Fraction = Fraction(1, 2)


def test_plain_attrs_fields_are_checked_by_their_types() -> None:
    made = build(
        Classic, {"maybe": None, "either": "x", "table": {"a": 1}, "words": ["a"]}, where=WHERE
    )
    assert (made.maybe, made.either, made.table, made.words) == (None, "x", {"a": 1}, ["a"])
    assert "maybe must be a whole number or null" in str(refused({"maybe": "x"}, Classic))
    assert "table must be of type dict[str, int]" in str(refused({"table": 3}, Classic))
    assert "thing must be of type Fraction, got 0.5" in str(refused({"thing": 0.5}, Classic))


# Describing.


def test_describing_lists_every_setting_in_order_for_help() -> None:
    infos = {info.name: info for info in describe(Sample)}
    assert list(infos)[:4] == ["ratio", "steps", "merge", "label"]
    assert infos["ratio"] == SettingInfo(
        name="ratio",
        type="float",
        default=0.5,
        doc="share of the context",
        allowed=(">= 0", "<= 1"),
    )
    types = {name: info.type for name, info in infos.items()}
    assert types == {
        "ratio": "float",
        "steps": "int",
        "merge": "bool",
        "label": "str",
        "kind": "uniform | random | 3",
        "mode": "cached | pruned",
        "limit": "float or null",
        "layers": "list of int",
        "size": "list (int, float)",
        "kinds": "list of a | b",
        "shares": "list of float",
        "either": "int or str",
        "chosen": "str",
        "many": "list of str",
        "loose": "float",
        "maybe": "cached | pruned or null",
        "anything": "Any",
    }
    allowed = {name: info.allowed for name, info in infos.items() if info.allowed}
    assert allowed == {
        "ratio": (">= 0", "<= 1"),
        "steps": ("> 0", "< 100"),
        "kind": ("uniform", "random", "3"),
        "mode": ("cached", "pruned"),
        "limit": ("> 0",),
        "kinds": ("a", "b"),
        "shares": (">= 0",),
        "chosen": ("p", "q"),
        "many": ("p", "q"),
        "maybe": ("cached", "pruned", "null"),
    }


def test_describing_tells_a_missing_default_from_none_and_makes_those_of_factories() -> None:
    assert [info.default for info in describe(Needy)] == [NOT_GIVEN, NOT_GIVEN, 3]
    defaults = {info.name: info.default for info in describe(Classic)}
    assert defaults["table"] == {}
    assert defaults["maybe"] is None

    @frozen
    class Derived:
        low: int = 1
        high: int = field()

        @high.default
        def _twice(self) -> int:
            return 2 * self.low

    assert [info.default for info in describe(Derived)] == [1, "computed"]


def test_fields_that_are_not_arguments_are_not_settings() -> None:
    @frozen
    class Derived:
        low: int = 1
        high: int = field(init=False, default=2)

    assert [info.name for info in describe(Derived)] == ["low"]
    assert "unknown setting 'high'" in str(refused({"high": 3}, Derived))


# Reading name=value.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.3", 0.3),
        ("3", 3),
        ("-1e-3", -0.001),
        ("true", True),
        ("True", True),
        ("False", False),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ('["a", {"b": null}]', ["a", {"b": None}]),
        ('"3"', "3"),
        (".5", 0.5),
        ("1.", 1.0),
        ("+1", 1.0),
        ("", ""),
        ("none", "none"),
        ("None", "None"),
        ("uniform", "uniform"),
        ("a=b=c", "a=b=c"),
        ("[1, 2", "[1, 2"),
        ("1_000", "1_000"),
        ("C:\\videos\\a.mp4", "C:\\videos\\a.mp4"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_value_is_read_as_json_or_else_taken_as_text(text: str, expected: object) -> None:
    (value,) = parse_assignments([f"name={text}"]).values()
    assert value == expected
    assert type(value) is type(expected)


def test_assignments_keep_their_order_and_lose_their_spaces() -> None:
    assert parse_assignments([" b = 1 ", "a=x y"]) == {"b": 1, "a": "x y"}
    assert list(parse_assignments(["b=1", "a=2"])) == ["b", "a"]
    assert parse_assignments([]) == {}


@pytest.mark.parametrize("text", ["ratio", "=3", "", " = 3"])
def test_an_assignment_without_a_name_or_an_equals_sign_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_assignments([text])
    for fact in ("--set", repr(text), "name=value"):
        assert fact in str(caught.value)


def test_a_name_given_twice_is_refused_with_both_values() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_assignments(["ratio=0.1", "ratio=0.2"])
    assert str(caught.value) == "--set: ratio is given twice, as 0.1 and 0.2. Give it once."
    assert caught.value.setting == "ratio"


# For all values.

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def attempt(call: Callable[[], object]) -> tuple[object, ConfigError | None]:
    try:
        return call(), None
    except ConfigError as error:
        return None, error


@given(st.sampled_from([info.name for info in describe(Sample)]), json_values)
def test_whatever_is_given_is_either_built_or_refused_on_one_line(name: str, value: object) -> None:
    made, error = attempt(lambda: build(Sample, {name: value}, where=WHERE))
    if error is None:
        assert build(Sample, {name: getattr(made, name)}, where=WHERE) is not None
    else:
        assert len(str(error).splitlines()) == 1
        assert name in str(error)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    _, error = attempt(lambda: parse_assignments([text]))
    assert error is None or len(str(error).splitlines()) == 1


@given(st.floats(0, 1))
def test_a_share_survives_being_written_and_read(ratio: float) -> None:
    made = build(Sample, parse_assignments([f"ratio={ratio!r}"]), where=WHERE)
    assert made.ratio == ratio


@frozen(kw_only=True)
class Limits:
    most: int = setting(3, ge=1, doc="most of it")
    kept: str = setting("host", doc="where it is kept")


@frozen(kw_only=True)
class Job:
    name: str = setting(doc="what it is called", metadata={"short": "-n"})
    limits: Limits = group(Limits(most=5))


def test_settings_of_a_group_stand_beside_those_of_the_class() -> None:
    assert [(info.name, info.default) for info in describe(Job)] == [
        ("name", NOT_GIVEN),
        ("most", 5),
        ("kept", "host"),
    ]
    assert declared(Job)["name"].metadata["short"] == "-n"
    job = build(Job, {"name": "a", "kept": "cpu"}, where="here")
    assert job == Job(name="a", limits=Limits(most=5, kept="cpu"))
    assert values_of(job) == {"name": "a", "most": 5, "kept": "cpu"}


def test_a_mistake_in_a_group_names_the_setting_and_a_typo_the_nearest_of_all() -> None:
    with pytest.raises(ConfigError, match="most must be >= 1") as raised:
        build(Job, {"name": "a", "most": 0}, where="here")
    assert raised.value.where == "here"
    with pytest.raises(ConfigError, match="mean 'kept'"):
        build(Job, {"name": "a", "kep": "cpu"}, where="here")
    with pytest.raises(TypeError, match="Limits"):
        Job(name="a", limits=3)  # type: ignore[arg-type]


def test_a_name_that_is_declared_twice_is_refused() -> None:
    @frozen(kw_only=True)
    class Twice:
        most: int = setting(1, doc="once")
        limits: Limits = group(Limits())

    with pytest.raises(ContractError, match="declares most twice"):
        describe(Twice)
