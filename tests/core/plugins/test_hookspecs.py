"""The specification of the hooks, and what a plugin registers."""

from __future__ import annotations

import inspect
from typing import Any

import pluggy
import pytest

from hetcache_core.errors import ConfigError, ContractError
from hetcache_core.plugins import hookspecs
from hetcache_core.plugins.hookspecs import Registration
from hetcache_core.plugins.kinds import KINDS, Kind, kind_of


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"name": "Nth"}, ("'Nth'", "lower-case")),
        ({"name": "a+b"}, ("'a+b'", "lower-case")),
        ({"name": "a.b"}, ("'a.b'", "lower-case")),
        ({"name": ""}, ("''", "lower-case")),
        ({"name": 3}, ("3", "lower-case")),
        (
            {"target": "nowhere.Nth"},
            ("'nowhere.Nth'", "Registration 'nth'", "package.module:Class"),
        ),
        ({"target": "no where:Nth"}, ("'no where:Nth'",)),
        ({"target": 3}, ("3", "neither a class nor")),
        ({"summary": ""}, ("''", "Registration 'nth'", "one line")),
        ({"summary": "two\nlines"}, ("'two\\nlines'", "one line")),
    ],
)
def test_a_malformed_registration_is_refused(
    changes: dict[str, Any], facts: tuple[str, ...]
) -> None:
    values = {"name": "nth", "target": "nowhere.policy:Nth", "summary": "nth"} | changes
    with pytest.raises(ContractError) as caught:
        Registration(**values)
    for fact in facts:
        assert fact in str(caught.value)


def test_every_hook_is_in_the_specification_and_documented() -> None:
    manager = pluggy.PluginManager("hetcache")
    manager.add_hookspecs(hookspecs)
    names = sorted(name for name in vars(manager.hook) if not name.startswith("_"))
    assert names == sorted(["hetcache_observe_run", *(kind.hook for kind in KINDS.values())])
    for name in names:
        document = getattr(hookspecs, name).__doc__
        for section in ("Called once", "Raises:", ".. versionadded:: 0.1"):
            assert section in document
        assert ("Returns:" in document) or ("Args:" in document)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((kind.hook, ()) for kind in KINDS.values()),
        ("hetcache_observe_run", (None,)),
    ],
)
def test_a_specification_is_never_called_itself(name: str, arguments: tuple[object, ...]) -> None:
    with pytest.raises(NotImplementedError):
        getattr(hookspecs, name)(*arguments)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.key)
def test_every_kind_has_an_abstract_base_class_and_a_hook_that_names_it(kind: Kind) -> None:
    package = kind.base.partition(".")[0]
    if package != "hetcache_core":
        pytest.importorskip(package)
    base = kind.base_class()
    assert inspect.isabstract(base)
    assert f"{base.__module__}.{base.__name__}" in getattr(hookspecs, kind.hook).__doc__


@pytest.mark.parametrize(
    "text", ["report section", "report-section", "report_section", " Report Section"]
)
def test_a_kind_is_found_however_its_words_are_joined(text: str) -> None:
    assert kind_of(text) is KINDS["report section"]


def test_an_unknown_kind_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="no kind 'selectors', did you mean 'selector'") as caught:
        kind_of("selectors")
    assert caught.value.nearest == "selector"
    assert set(caught.value.allowed) == set(KINDS)
