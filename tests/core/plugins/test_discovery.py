"""Discovery on real distributions, written to a folder and found by importlib.metadata."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from hetcache_core.backbone.adapter import Backbone
from hetcache_core.errors import (
    ConfigError,
    ContractError,
    HetCacheError,
    PluginConflictError,
    PluginError,
    PluginLoadError,
    PluginWarning,
    UnsupportedBackboneError,
)
from hetcache_core.plugins.discovery import DISABLE_VARIABLE, PluginRecord, Registry, discover
from hetcache_core.plugins.hookspecs import Registration
from hetcache_core.plugins.registry import Status
from hetcache_core.policy.recipe import PolicyRecipe
from hetcache_core.records.trace import Trace

NTH = Registration(name="nth", target="nowhere.policy:Nth", summary="every n-th step")


@define
class Shelf:
    """Where a test installs distributions; each goes into a folder of its own."""

    root: Path
    prepend: Callable[[Path], None]
    folders: list[Path] = field(factory=list)

    def install(
        self,
        distribution: str,
        modules: dict[str, str],
        *,
        version: str = "1.0",
        points: dict[str, str] | None = None,
        group: str = "hetcache",
    ) -> None:
        """Write a distribution; by default, each module is a plugin of the same name."""
        folder = self.root / f"site-{len(self.folders)}"
        info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        head = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (info / "METADATA").write_text(head, encoding="utf-8")
        points = {name: name for name in modules} if points is None else points
        lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
        for name, source in modules.items():
            (folder / f"{name}.py").write_text(source, encoding="utf-8")
        self.prepend(folder)
        self.folders.append(folder)

    def points(self) -> list[metadata.EntryPoint]:
        """Read the entry points of everything that was installed here."""
        found = metadata.distributions(path=[str(folder) for folder in self.folders])
        return [point for distribution in found for point in distribution.entry_points]

    def discover(self, **options: Any) -> Registry:
        """Discover what was installed here; the test expects no warning."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return discover(entry_points=self.points(), **options)

    def discover_broken(self, **options: Any) -> Registry:
        """Discover what was installed here; the test expects a warning for each error."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            registry = discover(entry_points=self.points(), **options)
        errors = {str(record.error) for record in registry.plugins if record.error}
        assert errors
        assert sorted(str(warning.message) for warning in caught) == sorted(errors)
        assert {warning.category for warning in caught} == {PluginWarning}
        return registry


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.delenv(DISABLE_VARIABLE, raising=False)
    before = set(sys.modules)
    yield Shelf(tmp_path, monkeypatch.syspath_prepend)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def plugin(*policies: str, backbones: tuple[str, ...] = (), home: str = "nowhere") -> str:
    """Write the source of a plugin that registers these names."""

    def registrations(names: tuple[str, ...]) -> str:
        classes = ((name, name.title().replace("-", "")) for name in names)
        return ", ".join(
            f"Registration(name={name!r}, target='{home}:{cls}', summary='about {name}')"
            for name, cls in classes
        )

    return textwrap.dedent(f"""
        from hetcache_core import Registration, hookimpl

        @hookimpl
        def hetcache_register_policies():
            return [{registrations(policies)}]

        @hookimpl
        def hetcache_register_backbones():
            return [{registrations(backbones)}]
    """)


def hooks(body: str) -> str:
    """Write the source of a plugin with these functions."""
    head = "from hetcache_core.plugins.hookspecs import Registration, hookimpl\n"
    return head + textwrap.dedent(body)


POLICY_HOME = """
from hetcache_core import PolicyRecipe

class Nth(PolicyRecipe):
    name = "nth"
    summary = "every n-th step"
    source = "this test"

    def compose(self, model):
        raise NotImplementedError
"""

BACKBONE_HOME = """
from hetcache_core.backbone.adapter import Backbone

class Tiny(Backbone):
    name = "tiny"
"""


def only(registry: Registry) -> PluginRecord:
    (record,) = registry.plugins
    return record


def status_of(registry: Registry) -> dict[str, Status]:
    return {record.name: record.status for record in registry.plugins}


# What works.


def test_without_plugins_the_registry_is_empty() -> None:
    registry = discover(entry_points=[])
    assert registry.plugins == ()
    assert registry.names("policy") == registry.names("backbone") == ()


def test_a_plugin_is_recorded_with_its_distribution_its_version_and_what_it_provides(
    shelf: Shelf,
) -> None:
    shelf.install("hetcache-nth", {"nth_plugin": plugin("nth", backbones=("tiny",))}, version="2.5")
    registry = shelf.discover()
    assert only(registry) == PluginRecord(
        name="nth_plugin",
        distribution="hetcache-nth",
        version="2.5",
        hooks=("hetcache_register_backbones", "hetcache_register_policies"),
        provides={"policy": ("nth",), "backbone": ("tiny",)},
        status="ok",
        error=None,
    )
    assert only(registry).origin == "hetcache-nth 2.5"
    assert registry.names("policy") == ("nth",)
    assert registry.names("backbone") == ("tiny",)
    assert registry.summaries("policy") == {"nth": "about nth"}
    assert registry.summaries("backbone") == {"tiny": "about tiny"}


def test_a_name_is_loaded_when_it_is_asked_for(shelf: Shelf) -> None:
    shelf.install(
        "hetcache-nth",
        {"nth_plugin": plugin("nth", home="nth_home"), "nth_home": POLICY_HOME},
        points={"nth": "nth_plugin"},
    )
    shelf.install(
        "hetcache-tiny",
        {"tiny_plugin": plugin(backbones=("tiny",), home="tiny_home"), "tiny_home": BACKBONE_HOME},
        points={"tiny": "tiny_plugin"},
    )
    registry = shelf.discover()
    assert not {"nth_home", "tiny_home"} & set(sys.modules)
    assert issubclass(registry.policy("nth"), PolicyRecipe)
    assert issubclass(registry.backbone("tiny"), Backbone)
    assert registry.policy("nth") is registry.policy("nth")


def test_a_class_can_be_registered_instead_of_its_name(shelf: Shelf) -> None:
    source = POLICY_HOME + hooks("""
        @hookimpl
        def hetcache_register_policies():
            yield Registration(name="nth", target=Nth, summary="every n-th step")
    """)
    shelf.install("hetcache-nth", {"nth_plugin": source})
    assert shelf.discover().policy("nth").name == "nth"


def test_one_name_may_be_a_policy_and_a_backbone(shelf: Shelf) -> None:
    shelf.install("one", {"one_plugin": plugin("same")})
    shelf.install("two", {"two_plugin": plugin(backbones=("same",))})
    registry = shelf.discover(strict=True)
    assert registry.names("policy") == registry.names("backbone") == ("same",)


def test_plugins_are_sorted_by_distribution_and_name_whatever_order_they_are_found_in(
    shelf: Shelf,
) -> None:
    shelf.install("zeta", {"a_plugin": plugin("p3")})
    shelf.install("alpha", {"z_plugin": plugin("p2"), "b_plugin": plugin("p1")})
    for points in itertools.permutations(shelf.points()):
        registry = discover(entry_points=points)
        names = [(record.distribution, record.name) for record in registry.plugins]
        assert names == [("alpha", "b_plugin"), ("alpha", "z_plugin"), ("zeta", "a_plugin")]
        assert registry.names("policy") == ("p1", "p2", "p3")


def test_installed_distributions_are_found_without_being_named(shelf: Shelf) -> None:
    shelf.install("hetcache-nth", {"nth_plugin": plugin("nth-of-this-test")})
    with warnings.catch_warnings():
        # The built-in plugins are no business of this test, and need not be installed for it.
        warnings.simplefilter("ignore", PluginWarning)
        registry = discover(blocked=["hetcache"])
    assert "nth-of-this-test" in registry.names("policy")


def test_entry_points_of_other_groups_are_left_alone(shelf: Shelf) -> None:
    shelf.install("other", {"other_plugin": "raise RuntimeError"}, group="pytest11")
    assert shelf.discover().plugins == ()


def test_an_entry_point_found_twice_on_the_path_is_one_plugin(shelf: Shelf) -> None:
    shelf.install("hetcache-nth", {"nth_plugin": plugin("nth")})
    registry = discover(entry_points=[*shelf.points(), *shelf.points()], strict=True)
    assert registry.names("policy") == ("nth",)


def test_an_entry_point_without_a_distribution_is_used_and_said_to_have_none(shelf: Shelf) -> None:
    shelf.install("hetcache-nth", {"nth_plugin": plugin("nth")})
    point = metadata.EntryPoint(name="nth", value="nth_plugin", group="hetcache")
    record = only(discover(entry_points=[point]))
    assert (record.distribution, record.version, record.status) == ("", "", "ok")
    assert record.origin == "unknown"


def test_a_distribution_whose_metadata_is_gone_still_has_its_plugins_listed(shelf: Shelf) -> None:
    shelf.install("hetcache-nth", {"nth_plugin": plugin("nth")})
    (metadata_file,) = shelf.folders[0].glob("*.dist-info/METADATA")
    metadata_file.unlink()
    with warnings.catch_warnings():
        # Python 3.12 warns of the missing name.
        warnings.simplefilter("ignore", DeprecationWarning)
        record = only(discover(entry_points=shelf.points()))
    assert (record.name, record.status) == ("nth_plugin", "ok")


def test_a_plugin_may_be_an_object_of_a_class_that_cannot_be_hashed(shelf: Shelf) -> None:
    """Instances of attrs classes with ``==`` are such; pluggy itself stumbles over them."""
    source = hooks("""
        from attrs import define

        @define
        class Plugin:
            @hookimpl
            def hetcache_register_policies(self):
                return [Registration(name="nth", target="nowhere:Nth", summary="nth")]

        plugin = Plugin()
    """)
    shelf.install("hetcache-nth", {"nth_plugin": source}, points={"nth": "nth_plugin:plugin"})
    assert shelf.discover(strict=True).names("policy") == ("nth",)


def test_an_optional_hook_of_another_version_is_no_mistake(shelf: Shelf) -> None:
    source = plugin("nth") + hooks("""
        @hookimpl(optionalhook=True)
        def hetcache_register_spaceships():
            return []
    """)
    shelf.install("hetcache-nth", {"nth_plugin": source})
    assert shelf.discover(strict=True).names("policy") == ("nth",)


def test_a_hook_may_be_implemented_under_another_function_name(shelf: Shelf) -> None:
    source = hooks("""
        @hookimpl(specname="hetcache_register_policies")
        def policies():
            return [Registration(name="nth", target="nowhere:Nth", summary="nth")]
    """)
    shelf.install("hetcache-nth", {"nth_plugin": source})
    registry = shelf.discover(strict=True)
    assert only(registry).hooks == ("hetcache_register_policies",)
    assert registry.names("policy") == ("nth",)


def test_nothing_is_kept_between_two_discoveries(shelf: Shelf) -> None:
    shelf.install("hetcache-nth", {"nth_plugin": plugin("nth")})
    assert shelf.discover().names("policy") == ("nth",)
    assert discover(entry_points=[]).names("policy") == ()
    assert shelf.discover().names("policy") == ("nth",)


# What fails, and does not take the others with it.

BROKEN = {
    "raises ImportError when imported": (
        "import no_such_library",
        ("no_such_library", "ModuleNotFoundError", "cannot import"),
    ),
    "raises anything when imported": (
        "raise ZeroDivisionError('boom\\nbang')",
        ("ZeroDivisionError: boom bang",),
    ),
    "exits when imported": ("raise SystemExit(3)", ("SystemExit: 3",)),
    "misspells a hook": (
        hooks("""
            @hookimpl
            def hetcache_register_policys():
                return []
        """),
        ("hetcache_register_policys", "did you mean hetcache_register_policies?"),
    ),
    "implements an unknown hook": (
        hooks("""
            @hookimpl
            def zzz():
                return []
        """),
        ("implements zzz", "known: hetcache_observe_run, hetcache_register_backbones"),
    ),
    "forgets the mark": (
        hooks("""
            def hetcache_register_policies():
                return []
        """),
        ("defines hetcache_register_policies without @hookimpl",),
    ),
    "implements nothing": ("answer = 42", ("implements no hook", "@hookimpl")),
    "only imports the specification": (
        "from hetcache_core.plugins.hookspecs import *",
        ("implements no hook",),
    ),
    "takes an argument that the hook does not have": (
        hooks("""
            @hookimpl
            def hetcache_register_policies(colour):
                return []
        """),
        ("hetcache_register_policies", "colour", "PluginValidationError"),
    ),
    "wraps a hook": (
        hooks("""
            @hookimpl(wrapper=True)
            def hetcache_register_policies():
                return (yield)
        """),
        ("wraps hetcache_register_policies", "not supported"),
    ),
    "wraps a hook in the old way": (
        hooks("""
            @hookimpl(hookwrapper=True)
            def hetcache_observe_run(trace):
                yield
        """),
        ("wraps hetcache_observe_run", "not supported"),
    ),
    "raises in a hook": (
        hooks("""
            @hookimpl
            def hetcache_register_policies():
                raise KeyError("boom")
        """),
        ("hetcache_register_policies raised KeyError: 'boom'",),
    ),
    "raises half-way through a generator": (
        hooks("""
            @hookimpl
            def hetcache_register_policies():
                yield Registration(name="half", target="nowhere:Half", summary="half")
                raise KeyError("boom")
        """),
        ("hetcache_register_policies raised KeyError: 'boom'",),
    ),
    "raises in the second hook": (
        hooks("""
            @hookimpl
            def hetcache_register_policies():
                return [Registration(name="half", target="nowhere:Half", summary="half")]

            @hookimpl
            def hetcache_register_backbones():
                raise KeyError("boom")
        """),
        ("hetcache_register_backbones raised KeyError: 'boom'",),
    ),
    "forgets the return": (
        hooks("""
            @hookimpl
            def hetcache_register_policies():
                pass
        """),
        ("returns None from hetcache_register_policies", "list of Registrations"),
    ),
    "returns one registration instead of a list": (
        hooks("""
            @hookimpl
            def hetcache_register_policies():
                return Registration(name="half", target="nowhere:Half", summary="half")
        """),
        ("returns Registration(name='half'", "list of Registrations"),
    ),
    "returns classes": (
        hooks("""
            @hookimpl
            def hetcache_register_backbones():
                return [int]
        """),
        ("<class 'int'> from hetcache_register_backbones", "no Registration"),
    ),
    "returns text": (
        hooks("""
            @hookimpl
            def hetcache_register_policies():
                return "nowhere:Half"
        """),
        ("'n' from hetcache_register_policies", "no Registration"),
    ),
    "registers one name twice": (
        plugin("twin", "twin"),
        ("registers the policy 'twin' 2 times",),
    ),
    "registers a malformed name": (
        plugin("Two Words"),
        ("hetcache_register_policies raised ContractError", "'Two Words'", "lower-case"),
    ),
}


@pytest.fixture(params=list(BROKEN.values()), ids=list(BROKEN))
def broken(request: pytest.FixtureRequest, shelf: Shelf) -> tuple[Shelf, tuple[str, ...]]:
    """A broken plugin between two that work, and what its message must say."""
    source, facts = request.param
    shelf.install("a-first", {"first_plugin": plugin("first")})
    shelf.install("b-broken", {"broken_plugin": source}, version="0.7")
    shelf.install("c-last", {"last_plugin": plugin("last", backbones=("tiny",))})
    return shelf, facts


def test_a_broken_plugin_is_recorded_with_its_error_and_provides_nothing(
    broken: tuple[Shelf, tuple[str, ...]],
) -> None:
    shelf, facts = broken
    record = shelf.discover_broken().plugins[1]
    assert record.name == "broken_plugin"
    assert record.origin == "b-broken 0.7"
    assert record.status == "failed"
    assert record.provides == {}
    assert isinstance(record.error, PluginError)
    assert record.error.plugin == "broken_plugin"
    assert record.error.distribution == "b-broken 0.7"
    message = str(record.error)
    for fact in (*facts, "plugin 'broken_plugin' (distribution b-broken 0.7)"):
        assert fact in message
    assert "\n" not in message


def test_a_broken_plugin_does_not_affect_the_others(
    broken: tuple[Shelf, tuple[str, ...]],
) -> None:
    registry = broken[0].discover_broken()
    assert [record.status for record in registry.plugins] == ["ok", "failed", "ok"]
    assert registry.names("policy") == ("first", "last")
    assert registry.names("backbone") == ("tiny",)


def test_a_broken_plugin_is_raised_at_once_when_strict(
    broken: tuple[Shelf, tuple[str, ...]],
) -> None:
    shelf, facts = broken
    with pytest.raises(PluginError) as caught:
        shelf.discover(strict=True)
    for fact in facts:
        assert fact in str(caught.value)


def test_asking_for_what_a_failed_plugin_may_have_provided_says_so_with_its_error_as_cause(
    broken: tuple[Shelf, tuple[str, ...]],
) -> None:
    registry = broken[0].discover_broken()
    with pytest.raises(PluginLoadError) as caught:
        registry.policy("half")
    assert caught.value.__cause__ is registry.plugins[1].error
    assert caught.value.failed == ("broken_plugin",)
    for fact in ("'half'", "Known: first, last", "broken_plugin (distribution b-broken 0.7)"):
        assert fact in str(caught.value)
    assert "hetcache plugins list" in str(caught.value)


def test_an_import_error_keeps_the_original_exception_as_its_cause(shelf: Shelf) -> None:
    shelf.install("broken", {"broken_plugin": "import no_such_library"})
    error = only(shelf.discover_broken()).error
    assert isinstance(error, PluginLoadError)
    assert isinstance(error.__cause__, ModuleNotFoundError)
    assert error.target == "broken_plugin"
    assert f"{DISABLE_VARIABLE}=broken_plugin" in str(error)


def test_a_plugin_that_fails_validation_leaves_none_of_its_hooks_behind(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    """Until pluggy 1.6 such a plugin stays half registered."""
    source = hooks("""
        @hookimpl
        def hetcache_observe_run(trace):
            raise RuntimeError("I am still here")

        @hookimpl
        def hetcache_register_policies(colour):
            return []
    """)
    shelf.install("broken", {"broken_plugin": source})
    shelf.discover_broken().observe_run(None)  # type: ignore[arg-type]
    assert not caplog.records


def test_a_plugin_with_an_attribute_that_raises_is_recorded(shelf: Shelf) -> None:
    source = hooks("""
        class Plugin:
            @property
            def colour(self):
                raise RuntimeError("no colour")

            @hookimpl
            def hetcache_register_policies(self):
                return [Registration(name="nth", target="nowhere:Nth", summary="nth")]

        plugin = Plugin()
    """)
    shelf.install("hetcache-nth", {"nth_plugin": source}, points={"nth": "nth_plugin:plugin"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        record = only(discover(entry_points=shelf.points()))
    # pluggy reads properties until 1.6, and leaves them alone from 1.7 on.
    assert record.status in {"ok", "failed"}
    assert (record.error is None) == (record.status == "ok")


def test_a_failed_plugin_is_warned_of_once_by_the_default_filter(shelf: Shelf) -> None:
    shelf.install("broken", {"broken_plugin": "import no_such_library"})
    points = shelf.points()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            discover(entry_points=points)
    assert [warning.category for warning in caught] == [PluginWarning]
    assert caught[0].filename == __file__


# Two providers of one name.


def test_two_providers_of_a_policy_conflict_and_neither_is_used(shelf: Shelf) -> None:
    shelf.install("alpha", {"a_plugin": plugin("nth", "own-a", home="h")}, version="1.1")
    shelf.install("beta", {"b_plugin": plugin("nth", "own-b", home="h")}, version="2.2")
    registry = shelf.discover_broken()
    assert status_of(registry) == {"a_plugin": "conflict", "b_plugin": "conflict"}
    assert registry.names("policy") == ("own-a", "own-b")
    with pytest.raises(PluginConflictError) as caught:
        registry.policy("nth")
    assert caught.value.kind == "policy"
    assert caught.value.name == "nth"
    assert caught.value.distributions == ("alpha 1.1", "beta 2.2")
    facts = ("'nth'", "'a_plugin'", "alpha 1.1", "'b_plugin'", "beta 2.2", DISABLE_VARIABLE)
    for record in registry.plugins:
        assert record.names("policy")[0] == "nth"
        for fact in facts:
            assert fact in str(record.error)
            assert fact in str(caught.value)


def test_two_providers_of_a_backbone_conflict_too(shelf: Shelf) -> None:
    shelf.install("alpha", {"a_plugin": plugin(backbones=("tiny",))})
    shelf.install("beta", {"b_plugin": plugin(backbones=("tiny",))})
    registry = shelf.discover_broken()
    assert registry.names("backbone") == ()
    with pytest.raises(PluginConflictError, match=r"backbone 'tiny'.*alpha 1.0.*beta 1.0"):
        registry.backbone("tiny")


def test_a_conflict_is_raised_at_once_when_strict(shelf: Shelf) -> None:
    shelf.install("alpha", {"a_plugin": plugin("nth")})
    shelf.install("beta", {"b_plugin": plugin("nth")})
    with pytest.raises(PluginConflictError, match=r"alpha 1.0.*beta 1.0"):
        shelf.discover(strict=True)


def test_three_providers_are_all_named(shelf: Shelf) -> None:
    for name in ("a", "b", "c"):
        shelf.install(f"dist-{name}", {f"{name}_plugin": plugin("nth")})
    registry = shelf.discover_broken()
    with pytest.raises(PluginConflictError) as caught:
        registry.policy("nth")
    assert caught.value.distributions == ("dist-a 1.0", "dist-b 1.0", "dist-c 1.0")


def test_a_plugin_beside_a_conflict_is_not_in_it(shelf: Shelf) -> None:
    shelf.install("alpha", {"a_plugin": plugin("nth")})
    shelf.install("beta", {"b_plugin": plugin("nth")})
    shelf.install("gamma", {"c_plugin": plugin("pab", backbones=("nth",))})
    registry = shelf.discover_broken()
    assert registry.plugins[2].status == "ok"
    assert (registry.names("policy"), registry.names("backbone")) == (("pab",), ("nth",))


def test_a_plugin_that_answers_wrongly_still_has_its_hooks_listed(shelf: Shelf) -> None:
    shelf.install("alpha", {"a_plugin": plugin("twin", "twin")})
    record = only(shelf.discover_broken())
    assert record.hooks == ("hetcache_register_backbones", "hetcache_register_policies")
    assert record.names("policy") == ()


def test_blocking_one_provider_ends_the_conflict(shelf: Shelf) -> None:
    shelf.install("alpha", {"a_plugin": plugin("nth")})
    shelf.install("beta", {"b_plugin": plugin("nth")})
    registry = shelf.discover(blocked=["b_plugin"], strict=True)
    assert registry.names("policy") == ("nth",)
    assert status_of(registry) == {"a_plugin": "ok", "b_plugin": "blocked"}


def test_a_plugin_that_fails_conflicts_with_nobody(shelf: Shelf) -> None:
    shelf.install("alpha", {"a_plugin": plugin("nth")})
    shelf.install("beta", {"b_plugin": plugin("nth", "nth")})
    registry = shelf.discover_broken()
    assert status_of(registry) == {"a_plugin": "ok", "b_plugin": "failed"}
    assert registry.names("policy") == ("nth",)


def test_two_distributions_with_one_plugin_name_conflict_and_neither_is_imported(
    shelf: Shelf,
) -> None:
    shelf.install("alpha", {"a_plugin": plugin("nth")}, points={"same": "a_plugin"})
    shelf.install("beta", {"b_plugin": plugin("other")}, points={"same": "b_plugin"})
    registry = shelf.discover_broken()
    assert [record.status for record in registry.plugins] == ["conflict", "conflict"]
    assert not {"a_plugin", "b_plugin"} & set(sys.modules)
    error = registry.plugins[0].error
    assert isinstance(error, PluginConflictError)
    assert (error.kind, error.name) == ("plugin", "same")
    assert error.distributions == ("alpha 1.0", "beta 1.0")
    for fact in ("'same'", "alpha 1.0", "beta 1.0", DISABLE_VARIABLE):
        assert fact in str(error)
    with pytest.raises(PluginLoadError) as caught:
        registry.policy("nth")
    assert caught.value.__cause__ is error
    with pytest.raises(PluginConflictError):
        shelf.discover(strict=True)


def test_blocking_one_distribution_ends_a_conflict_of_plugin_names(shelf: Shelf) -> None:
    shelf.install("alpha", {"a_plugin": plugin("nth")}, points={"same": "a_plugin"})
    shelf.install("beta-dist", {"b_plugin": plugin("other")}, points={"same": "b_plugin"})
    registry = shelf.discover(blocked=["Beta_Dist"], strict=True)
    assert [record.status for record in registry.plugins] == ["ok", "blocked"]
    assert registry.names("policy") == ("nth",)


# Blocking.


def test_plugins_named_in_the_environment_are_blocked_before_they_are_imported(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.install("alpha", {"a_plugin": "raise RuntimeError('imported')"})
    shelf.install("beta", {"b_plugin": "raise RuntimeError('imported')"})
    shelf.install("gamma", {"c_plugin": plugin("nth")})
    monkeypatch.setenv(DISABLE_VARIABLE, " a_plugin, b_plugin,")
    registry = shelf.discover(strict=True)
    assert status_of(registry) == {"a_plugin": "blocked", "b_plugin": "blocked", "c_plugin": "ok"}
    assert registry.plugins[0].error is None
    assert registry.plugins[0].origin == "alpha 1.0"
    assert not {"a_plugin", "b_plugin"} & set(sys.modules)


def test_the_argument_and_the_environment_add_up(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.install("alpha", {"a_plugin": plugin("p1")})
    shelf.install("beta", {"b_plugin": plugin("p2")})
    monkeypatch.setenv(DISABLE_VARIABLE, "a_plugin")
    assert shelf.discover(blocked=iter(["b_plugin"])).names("policy") == ()


def test_a_name_that_blocks_nothing_is_warned_of_because_it_may_be_misspelt(shelf: Shelf) -> None:
    shelf.install("alpha", {"a_plugin": plugin("p1")})
    with pytest.warns(PluginWarning) as caught:
        registry = discover(entry_points=shelf.points(), blocked=["a_plugim"])
    assert registry.names("policy") == ("p1",)
    (message,) = (str(warning.message) for warning in caught)
    for fact in ("'a_plugim'", "a_plugin", "alpha"):
        assert fact in message


def test_asking_for_a_name_mentions_the_blocked_plugins(shelf: Shelf) -> None:
    shelf.install("alpha", {"a_plugin": plugin("p1")})
    with pytest.raises(ConfigError, match=r"not asked: a_plugin\."):
        shelf.discover(blocked=["a_plugin"]).policy("p1")


# Asking the registry.


def test_an_unknown_name_comes_with_the_nearest_and_all_known_ones() -> None:
    registry = Registry().with_registrations(
        "policy", NTH, Registration(name="pab", target=int, summary="pab")
    )
    with pytest.raises(ConfigError) as caught:
        registry.policy("mth")
    assert caught.value.nearest == "nth"
    assert caught.value.allowed == ("nth", "pab")
    assert caught.value.given == "mth"
    assert str(caught.value) == "there is no policy 'mth', did you mean 'nth'? Known: nth, pab."


def test_an_unknown_name_in_an_empty_registry_says_that_none_is_known() -> None:
    with pytest.raises(ConfigError, match=r"no backbone 'tiny'\. Known: none\."):
        Registry().backbone("tiny")


def register(target: str | type, shelf: Shelf, home: str = "") -> Registry:
    name = "nth"
    source = hooks(f"""
        @hookimpl
        def hetcache_register_policies():
            return [Registration(name={name!r}, target={target!r}, summary="nth")]
    """)
    modules = {"nth_plugin": source} | ({"nth_home": home} if home else {})
    shelf.install("hetcache-nth", modules, points={"nth": "nth_plugin"}, version="3.1")
    return shelf.discover(strict=True)


@pytest.mark.parametrize(
    ("target", "home", "cause", "facts"),
    [
        ("no_such_module:Nth", "", ModuleNotFoundError, ("no_such_module",)),
        ("nth_home:Missing", POLICY_HOME, AttributeError, ("Missing",)),
        ("nth_home:Nth", "raise RuntimeError('boom')", RuntimeError, ("boom",)),
        ("nth_home:Nth", "raise SystemExit", SystemExit, ("SystemExit",)),
    ],
)
def test_a_target_that_cannot_be_loaded_is_attributed_with_its_cause(
    shelf: Shelf, target: str, home: str, cause: type[BaseException], facts: tuple[str, ...]
) -> None:
    registry = register(target, shelf, home)
    with pytest.raises(PluginLoadError) as caught:
        registry.policy("nth")
    assert isinstance(caught.value.__cause__, cause)
    assert caught.value.target == target
    assert caught.value.plugin == "nth"
    assert caught.value.distribution == "hetcache-nth 3.1"
    for fact in (*facts, "policy 'nth'", target, "plugin 'nth' (distribution hetcache-nth 3.1)"):
        assert fact in str(caught.value)


def test_a_missing_optional_library_keeps_its_own_error_with_the_pip_command(
    shelf: Shelf,
) -> None:
    home = """
from hetcache_core.errors import UnsupportedBackboneError
raise UnsupportedBackboneError("diffsynth is missing", pip="pip install hetcache[diffsynth]")
"""
    with pytest.raises(UnsupportedBackboneError, match=r"pip install hetcache\[diffsynth\]"):
        register("nth_home:Nth", shelf, home).policy("nth")


@pytest.mark.parametrize(
    ("target", "facts"),
    [
        ("nth_home:Stranger", ("no PolicyRecipe", "hetcache_core.policy.recipe.PolicyRecipe")),
        ("nth_home:number", ("no PolicyRecipe",)),
        ("nth_home:Renamed", ("calls itself 'other'",)),
        ("nth_home:Nameless", ("calls itself None",)),
    ],
)
def test_what_is_registered_must_be_a_policy_of_that_name(
    shelf: Shelf, target: str, facts: tuple[str, ...]
) -> None:
    home = POLICY_HOME + textwrap.dedent("""
        number = 3

        class Stranger:
            name = "nth"

        class Renamed(Nth):
            name = "other"

        class Nameless(PolicyRecipe):
            pass
    """)
    with pytest.raises(ContractError) as caught:
        register(target, shelf, home).policy("nth")
    assert caught.value.subject == target
    for fact in (*facts, "policy 'nth'", target, "plugin 'nth' (distribution hetcache-nth 3.1)"):
        assert fact in str(caught.value)


def test_what_is_registered_as_a_backbone_must_be_one() -> None:
    wrong = Registration(name="tiny", target=int, summary="tiny")
    with pytest.raises(
        ContractError, match=r"no Backbone.*hetcache_core\.backbone\.adapter\.Backbone"
    ):
        Registry().with_registrations("backbone", wrong).backbone("tiny")


def test_adding_policies_makes_a_new_registry() -> None:
    empty = Registry()
    extended = empty.with_registrations("policy", NTH).with_registrations(
        "backbone", Registration(name="tiny", target=int, summary="a tiny one")
    )
    assert empty.names("policy") == empty.names("backbone") == ()
    assert extended.names("policy") == ("nth",)
    assert extended.summaries("backbone") == {"tiny": "a tiny one"}
    assert extended.plugins == ()


def test_adding_a_name_that_is_taken_is_an_error(shelf: Shelf) -> None:
    shelf.install("hetcache-nth", {"nth_plugin": plugin("nth")})
    with pytest.raises(
        PluginConflictError, match=r"hetcache-nth 1\.0.*with_registrations\(\).*program"
    ):
        shelf.discover().with_registrations("policy", NTH)
    with pytest.raises(PluginConflictError, match="policy 'nth'"):
        Registry().with_registrations("policy", NTH, NTH)


def test_policies_can_be_added_to_a_registry_with_a_conflict_elsewhere(shelf: Shelf) -> None:
    shelf.install("alpha", {"a_plugin": plugin("same")})
    shelf.install("beta", {"b_plugin": plugin("same")})
    assert shelf.discover_broken().with_registrations("policy", NTH).names("policy") == ("nth",)


# Observing runs.

OBSERVER = """
    seen = []

    @hookimpl
    def hetcache_observe_run(trace):
        seen.append(trace)
"""


def test_every_observer_gets_the_trace_and_may_take_fewer_arguments(shelf: Shelf) -> None:
    nullary = OBSERVER.replace("(trace):", "():").replace("append(trace)", "append('called')")
    shelf.install("alpha", {"a_plugin": hooks(OBSERVER)})
    shelf.install("beta", {"b_plugin": hooks(nullary)})
    registry = shelf.discover(strict=True)
    trace: Any = ["decided"]
    registry.observe_run(trace)
    assert sys.modules["a_plugin"].seen == [trace]
    sys.modules["a_plugin"].seen[0].clear()
    assert trace == ["decided"]  # what an observer does to its copy changes nothing of the run
    assert sys.modules["b_plugin"].seen == ["called"]


def a_trace() -> Trace:
    return Trace(
        policy="p", settings={}, backbone="b", variant="", steps=1, requested_steps=1, tokens=1
    )


@pytest.mark.parametrize(
    "failure",
    ["RuntimeError('boom')", "SystemExit(3)", "GeneratorExit", "type('B', (BaseException,), {})"],
)
def test_an_observer_that_raises_is_logged_by_name_and_the_others_go_on(
    shelf: Shelf, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    source = hooks(f"""
        @hookimpl
        def hetcache_observe_run(trace):
            raise {failure}
    """)
    shelf.install("alpha", {"a_plugin": source}, version="4.2")
    shelf.install("beta", {"b_plugin": hooks(OBSERVER)})
    trace = a_trace()
    with caplog.at_level(logging.ERROR):
        shelf.discover(strict=True).observe_run(trace)
    assert sys.modules["b_plugin"].seen == [trace]
    (entry,) = caplog.records
    assert "'a_plugin'" in entry.getMessage()
    assert "alpha 4.2" in entry.getMessage()
    assert entry.exc_info is not None


def test_plugins_that_are_blocked_or_failed_observe_nothing(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    failing = hooks("""
        @hookimpl
        def hetcache_observe_run(trace):
            raise RuntimeError("still here")

        @hookimpl
        def hetcache_register_policies():
            return None
    """)
    shelf.install("alpha", {"a_plugin": failing})
    shelf.install("beta", {"b_plugin": failing})
    shelf.discover_broken(blocked=["b_plugin"]).observe_run(None)  # type: ignore[arg-type]
    assert not caplog.records


def test_a_blocked_plugin_does_not_lend_its_distribution_to_another_of_its_name(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    source = hooks("""
        @hookimpl
        def hetcache_observe_run(trace):
            raise RuntimeError("boom")
    """)
    shelf.install("alpha", {"a_plugin": source}, points={"same": "a_plugin"})
    shelf.install("beta", {"b_plugin": source}, points={"same": "b_plugin"})
    shelf.discover(blocked=["beta"]).observe_run(a_trace())
    assert "alpha 1.0" in caplog.records[0].getMessage()


# Isolation.

HOSTILE = """
    import sys, warnings
    print("buy me")
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "of my library")

    @hookimpl
    def hetcache_register_policies():
        print("and me")
        warnings.simplefilter("error")
        return []
"""


def test_what_a_plugin_prints_goes_to_stderr_and_its_filters_raise_nowhere_else(
    shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf.install("alpha", {"a_plugin": hooks(HOSTILE)})
    before = list(warnings.filters)
    points = shelf.points()
    with warnings.catch_warnings():
        discover(entry_points=points, strict=True)
        after = list(warnings.filters)
    out, err = capsys.readouterr()
    assert out == ""
    assert "buy me" in err
    assert "and me" in err
    (added,) = [kept for kept in after if kept not in before]
    assert added[0] == "ignore"  # a library may silence its own warnings
    assert [kept for kept in after if kept in before] == before


@pytest.mark.parametrize(
    "source",
    [
        "class Own(BaseException): pass\nraise Own('mine')",
        "raise GeneratorExit",
        "raise SystemExit(3)",
        "class Silent(Exception):\n    def __str__(self):\n        raise ValueError\nraise Silent",
    ],
)
def test_whatever_a_plugin_raises_at_import_takes_down_nothing_else(
    shelf: Shelf, source: str
) -> None:
    shelf.install("alpha", {"a_plugin": source})
    shelf.install("beta", {"b_plugin": plugin("nth")})
    registry = shelf.discover_broken()
    assert registry.names("policy") == ("nth",)
    assert [record.status for record in registry.plugins] == ["failed", "ok"]


@pytest.mark.parametrize(
    "answer",
    ["type('B', (BaseException,), {})", "[Evil()]", "Evil()"],
    ids=["raise", "list", "value"],
)
def test_whatever_a_hook_answers_takes_down_nothing_else(shelf: Shelf, answer: str) -> None:
    does = "raise" if answer.startswith("type") else "return"
    source = hooks(f"""
        class Evil:
            def __repr__(self):
                raise ValueError

        @hookimpl
        def hetcache_register_policies():
            {does} {answer}
    """)
    shelf.install("alpha", {"a_plugin": source})
    shelf.install("beta", {"b_plugin": plugin("nth")})
    assert shelf.discover_broken().names("policy") == ("nth",)


def test_ctrl_c_during_discovery_is_no_fault_of_a_plugin(shelf: Shelf) -> None:
    shelf.install("alpha", {"a_plugin": "raise KeyboardInterrupt"})
    with pytest.raises(KeyboardInterrupt):
        shelf.discover_broken()


# What listing costs.


def test_listing_plugins_imports_neither_torch_nor_the_targets(shelf: Shelf) -> None:
    source = plugin("nth", backbones=("tiny",), home="heavy_home")
    shelf.install(
        "hetcache-nth",
        {"nth_plugin": source, "heavy_home": "import torch\n" + POLICY_HOME},
        points={"nth": "nth_plugin"},
    )
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(shelf.folders[0])!r})
        from hetcache_core.plugins.discovery import discover
        from hetcache_core import hookimpl
        from hetcache_core.settings.declare import setting
        registry = discover()
        assert "nth" in registry.names("policy"), registry
        assert "tiny" in registry.names("backbone"), registry
        assert registry.summaries("policy")["nth"] == "about nth"
        try:
            registry.policy("no such name")
        except Exception as error:
            assert "nth" in str(error), error
        else:
            raise SystemExit("found what is not there")
        registry.observe_run(None)
        heavy = {{"torch", "numpy", "heavy_home", "diffsynth", "diffusers", "sklearn"}}
        print(sorted(heavy & set(sys.modules)))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    # The built-in plugins are listed with it where they are installed.
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_every_error_of_discovery_is_a_hetcache_error() -> None:
    """The command line turns these, and only these, into one line and exit code 2."""
    assert issubclass(PluginError, HetCacheError)
    assert issubclass(PluginWarning, UserWarning)


def test_a_clip_set_is_registered_as_everything_else_is() -> None:
    registry = discover(strict=True)
    clips = registry.load("clip set", "builtin")()
    first = clips.names()[0]
    clip = clips.clip(first, frames=5, height=48, width=64)
    assert clip.video.shape == (5, 48, 64, 3)
    assert clip.truth is not None
    assert (clip.truth[~clip.mask] == clip.video[~clip.mask]).all()
    with pytest.raises(ConfigError, match=first):
        clips.clip(f"{first}0", frames=5, height=48, width=64)
    with pytest.raises(ConfigError, match="4k\\+1"):
        clips.clip(first, frames=4, height=48, width=64)
