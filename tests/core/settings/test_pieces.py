"""Settings that take a piece of some kind: by name with settings of its own, or as an object."""

from __future__ import annotations

import json
from abc import ABC
from typing import Any, ClassVar, final

import pytest
from attrs import frozen

from hetcache_core.errors import ConfigError
from hetcache_core.plugins.hookspecs import Registration
from hetcache_core.plugins.registry import Registry
from hetcache_core.policy.recipe import CachePolicy, PolicyRecipe
from hetcache_core.session import resolve_policy
from hetcache_core.settings.declare import build, describe, piece, plain_values, setting
from hetcache_core.steps import ModelInfo
from hetcache_core.tokens import ContextSelector, Selection, SelectionRequest

WHERE = "policy sample"


class _Selects(ContextSelector, ABC):
    def select(self, request: SelectionRequest) -> Selection:
        raise NotImplementedError


@final
@frozen
class First(_Selects):
    name: ClassVar[str] = "first"
    summary: ClassVar[str] = "the first ones"


@final
@frozen(kw_only=True)
class Near(_Selects):
    name: ClassVar[str] = "near"
    summary: ClassVar[str] = "those near the mask"

    radius: int = setting(2, ge=0, doc="how near, in tokens")
    metric: str = setting("square", choices=("square", "circle"), doc="how it is measured")


@final
@frozen
class Unregistered(_Selects):
    """A program's own, which has no name."""


@final
@frozen(kw_only=True)
class Sample(PolicyRecipe):
    name: ClassVar[str] = "sample"
    summary: ClassVar[str] = "takes selectors"
    source: ClassVar[str] = "tests"

    selector: ContextSelector = piece("selector", Near(), doc="how context is chosen")
    other: ContextSelector | None = piece("selector", None, doc="another one, or null")
    steps: int = setting(3, doc="a number")

    def compose(self, model: ModelInfo) -> CachePolicy:
        return CachePolicy(name=self.name, selector=self.selector)


REGISTRY = (
    Registry()
    .with_registrations(
        "selector",
        *(Registration(name=cls.name, target=cls, summary=cls.summary) for cls in (First, Near)),
    )
    .with_registrations("policy", Registration(name="sample", target=Sample, summary="sample"))
)


def made(values: dict[str, Any], pieces: Registry | None = REGISTRY) -> Sample:
    return build(Sample, values, where=WHERE, pieces=pieces)


def refused(values: dict[str, Any], pieces: Registry | None = REGISTRY) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        made(values, pieces)
    assert str(caught.value).startswith(WHERE)
    return caught.value


@pytest.mark.parametrize(
    ("values", "selector"),
    [
        ({}, Near()),
        ({"selector": "first"}, First()),
        ({"selector": "near"}, Near()),
        ({"selector": "near", "selector.radius": 3}, Near(radius=3)),
        ({"selector.radius": 3}, Near(radius=3)),
        ({"selector": {"name": "near", "radius": 3}}, Near(radius=3)),
        ({"selector": {"radius": 3}}, Near(radius=3)),
        ({"selector": {"name": "near", "radius": 3}, "selector.radius": 4}, Near(radius=4)),
        ({"selector": Near(radius=3)}, Near(radius=3)),
        (
            {"selector": Near(radius=3), "selector.metric": "circle"},
            Near(radius=3, metric="circle"),
        ),
        ({"selector": Unregistered()}, Unregistered()),
    ],
    ids=str,
)
def test_a_piece_is_given_by_name_in_a_mapping_or_as_it_is(
    values: dict[str, Any], selector: ContextSelector
) -> None:
    assert made(values).selector == selector


def test_null_is_taken_where_the_type_has_it() -> None:
    assert made({"other": None}).other is None
    assert made({"other": "first"}).other == First()
    assert "selector must be the name of a selector, got None" in str(refused({"selector": None}))


def test_an_unknown_name_comes_with_the_nearest_and_all_known_ones() -> None:
    error = refused({"selector": "naer"})
    assert "there is no selector 'naer', did you mean 'near'?" in str(error)
    assert "Known: first, near." in str(error)
    assert (error.setting, error.nearest) == ("selector", "near")


def test_settings_of_a_piece_are_checked_and_its_name_opens_the_message() -> None:
    error = refused({"selector": "near", "selector.radus": 3})
    assert str(error).startswith("policy sample, selector near: unknown setting 'radus'")
    assert error.nearest == "radius"
    assert "radius must be >= 0, got -1" in str(refused({"selector.radius": -1}))
    assert "unknown setting 'radius'" in str(refused({"selector": "first", "selector.radius": 3}))


def test_something_else_than_a_piece_is_refused_with_what_there_is() -> None:
    error = refused({"selector": 3})
    assert "selector must be the name of a selector, got 3" in str(error)
    assert error.allowed == ("first", "near")


def test_settings_after_a_setting_that_takes_no_piece_are_unknown() -> None:
    assert "unknown setting 'steps.radius'" in str(refused({"steps.radius": 3}))


def test_without_a_registry_only_the_default_has_a_name() -> None:
    assert made({"selector": "near", "selector.radius": 3}, None).selector == Near(radius=3)
    assert "Give the selector itself." in str(refused({"selector": "first"}, None))


def test_a_name_in_a_call_is_refused_with_what_to_give() -> None:
    name: Any = "near"
    with pytest.raises(ConfigError, match="Give the selector itself"):
        Sample(selector=name)


@pytest.mark.parametrize(
    "sample", [Sample(), Sample(selector=First(), other=Near(radius=5))], ids=str
)
def test_settings_of_a_trace_are_plain_and_make_the_same_policy_again(sample: Sample) -> None:
    _, used = resolve_policy(sample, {}, None, MODEL, REGISTRY)
    assert used.items() <= plain_values(sample).items()
    assert made(json.loads(json.dumps(used))) == sample


MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)


def test_in_a_composition_the_policy_is_named_before_the_setting() -> None:
    settings = {"sample.selector": "near", "sample.selector.radius": 7}
    uncached = Registration(name="empty", target=Empty, summary="empty")
    registry = REGISTRY.with_registrations("policy", uncached)
    composed, used = resolve_policy("sample+empty", settings, None, MODEL, registry)
    assert composed.selector == Near(radius=7)
    assert used["sample.selector.radius"] == 7


@final
@frozen(kw_only=True)
class Empty(PolicyRecipe):
    name: ClassVar[str] = "empty"
    summary: ClassVar[str] = "nothing"
    source: ClassVar[str] = "tests"

    def compose(self, model: ModelInfo) -> CachePolicy:
        return CachePolicy(name=self.name)


def test_pieces_and_their_settings_are_described() -> None:
    *_, selector, other, steps = describe(Sample, REGISTRY)
    assert (selector.type, selector.default, selector.allowed) == (
        "selector", "near", ("first", "near"),
    )  # fmt: skip
    assert [info.name for info in selector.pieces["near"]] == ["radius", "metric"]
    assert selector.pieces["first"] == ()
    assert other.default is None
    assert steps.pieces == {}
    assert describe(Sample)[-3].allowed == ()


def test_a_piece_that_cannot_be_loaded_is_listed_without_settings() -> None:
    broken = Registration(name="broken", target="nowhere:Broken", summary="broken")
    *_, selector, _, _ = describe(Sample, REGISTRY.with_registrations("selector", broken))
    assert selector.allowed == ("broken", "first", "near")
    assert selector.pieces["broken"] == ()


def test_a_default_that_is_not_the_pieces_own_shows_what_differs() -> None:
    @frozen
    class Far:
        selector: ContextSelector = piece("selector", Near(radius=9), doc="far")

    assert describe(Far)[0].default == {"name": "near", "radius": 9}
