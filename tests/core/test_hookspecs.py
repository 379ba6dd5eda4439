"""The specification of the hooks, and what a plugin registers."""

from __future__ import annotations

from typing import Any

import pluggy
import pytest

from hetcache_core.errors import ContractError
from hetcache_core.plugins import hookspecs
from hetcache_core.plugins.hookspecs import Registration


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
    assert names == [
        "hetcache_observe_run",
        "hetcache_register_backbones",
        "hetcache_register_clip_sets",
        "hetcache_register_policies",
    ]
    for name in names:
        document = getattr(hookspecs, name).__doc__
        for section in ("Called once", "Raises:", ".. versionadded:: 0.1"):
            assert section in document
        assert ("Returns:" in document) or ("Args:" in document)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("hetcache_register_policies", ()),
        ("hetcache_register_backbones", ()),
        ("hetcache_register_clip_sets", ()),
        ("hetcache_observe_run", (None,)),
    ],
)
def test_a_specification_is_never_called_itself(name: str, arguments: tuple[object, ...]) -> None:
    with pytest.raises(NotImplementedError):
        getattr(hookspecs, name)(*arguments)
