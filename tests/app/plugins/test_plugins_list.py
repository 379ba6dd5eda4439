"""What ``hetcache plugins list`` shows."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

pytest.importorskip("rich")

from rich.console import Console

from hetcache.plugins.listing import (
    plugins_as_json,
    plugins_table,
    provided_as_json,
    provided_table,
)
from hetcache_core.errors import ConfigError, PluginConflictError, PluginError
from hetcache_core.plugins.discovery import PluginRecord, Registry
from hetcache_core.plugins.hookspecs import Registration
from hetcache_core.plugins.kinds import KINDS

GOOD = PluginRecord(
    name="nth",
    distribution="hetcache-nth",
    version="2.5",
    hooks=("hetcache_observe_run", "hetcache_register_backbones", "hetcache_register_policies"),
    provides={"policy": ("nth", "nth-twice"), "backbone": ("tiny",)},
)
BLOCKED = PluginRecord(name="shy", distribution="hetcache-shy", version="1.0", status="blocked")
FAILED = PluginRecord(
    name="bad",
    distribution="hetcache-bad",
    version="0.1",
    status="failed",
    error=PluginError(
        "cannot import 'bad'", plugin="bad", remedy="Run: pip install hetcache[diffsynth]"
    ),
)
CLASHING = PluginRecord(
    name="clash",
    distribution="hetcache-clash",
    version="0.2",
    hooks=("hetcache_register_policies",),
    provides={"policy": ("nth",)},
    status="conflict",
    error=PluginConflictError(
        "provided twice", kind="policy", name="nth", distributions=["a", "b"]
    ),
)
REGISTRY = Registry(plugins=(BLOCKED, CLASHING, FAILED, GOOD))


def shown(registry: Registry, hook: str | None = None, *, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(plugins_table(registry, hook))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_json_has_the_documented_keys_for_every_plugin() -> None:
    rows = plugins_as_json(REGISTRY)
    assert [row["name"] for row in rows] == ["shy", "clash", "bad", "nth"]
    assert rows[3] == {
        "name": "nth",
        "distribution": "hetcache-nth",
        "version": "2.5",
        "status": "ok",
        "hooks": [
            "hetcache_observe_run",
            "hetcache_register_backbones",
            "hetcache_register_policies",
        ],
        **{kind.key: [] for kind in KINDS.values()},
        "policies": ["nth", "nth-twice"],
        "backbones": ["tiny"],
        "error": None,
    }
    assert {row["status"] for row in rows} == {"ok", "blocked", "conflict", "failed"}
    assert rows[2]["error"] == str(FAILED.error)
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.parametrize(
    ("hook", "names"),
    [
        ("hetcache_register_policies", ["clash", "nth"]),
        ("hetcache_register_backbones", ["nth"]),
        ("hetcache_observe_run", ["nth"]),
    ],
)
def test_a_hook_leaves_the_plugins_that_implement_it(hook: str, names: list[str]) -> None:
    assert [row["name"] for row in plugins_as_json(REGISTRY, hook)] == names
    table = shown(REGISTRY, hook)
    assert ("hetcache-clash" in table) == ("clash" in names)
    assert "hetcache-bad" not in table


@pytest.mark.parametrize("show", [plugins_as_json, plugins_table])
def test_an_unknown_hook_names_the_nearest_and_all_known_ones(show: object) -> None:
    assert callable(show)
    with pytest.raises(ConfigError) as caught:
        show(REGISTRY, "hetcache_register_policy")
    assert caught.value.nearest == "hetcache_register_policies"
    for fact in ("--hook", "'hetcache_register_policy'", "Known: hetcache_observe_run"):
        assert fact in str(caught.value)
    with pytest.raises(ConfigError, match=r"no hook 'zzz'\. Known"):
        show(REGISTRY, "zzz")


def test_the_table_shows_name_distribution_version_what_it_provides_status_and_error() -> None:
    table = shown(REGISTRY)
    for fact in (
        *("plugin", "distribution", "version", "provides", "status", "error"),
        *("nth", "hetcache-nth", "2.5", "policies: nth, nth-twice", "backbones: tiny"),
        *("observes runs", "blocked", "conflict", "failed", "provided twice"),
    ):
        assert fact in table


def test_brackets_in_a_message_are_shown_and_not_taken_for_a_style() -> None:
    assert "pip install hetcache[diffsynth]" in shown(REGISTRY)


def test_a_narrow_terminal_loses_nothing() -> None:
    letters = "".join(
        character
        for line in shown(Registry(plugins=(FAILED,)), width=60).splitlines()
        for character in line.split("│")[-2:-1]
    )
    assert str(FAILED.error).replace(" ", "") in letters.replace(" ", "")


def test_without_errors_there_is_no_column_for_them() -> None:
    assert "error" not in shown(Registry(plugins=(GOOD, BLOCKED)))


def test_without_plugins_the_table_says_so() -> None:
    assert "There are no plugins to show." in shown(Registry())
    assert plugins_as_json(Registry()) == []


def test_showing_the_installed_plugins_does_not_import_torch() -> None:
    script = """
import sys
from hetcache.plugins.listing import (
    plugins_as_json,
    plugins_table,
    provided_as_json,
    provided_table,
)
from hetcache_core.plugins.discovery import discover
registry = discover()
plugins_as_json(registry)
plugins_table(registry)
print(sorted({"torch", "numpy", "diffsynth", "diffusers", "sklearn"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_what_there_is_of_a_kind_is_listed_with_who_provides_it() -> None:
    near = Registration(name="near", target="nowhere:Near", summary="the nearest [context]")
    registry = Registry().with_registrations("selector", near)
    (row,) = provided_as_json(registry, KINDS["selector"])
    assert (row["name"], row["summary"]) == ("near", "the nearest [context]")
    assert "program" in row["distribution"]
    console = Console(file=io.StringIO(), width=200)
    console.print(provided_table(registry, KINDS["selector"]))
    console.print(provided_table(registry, KINDS["report section"]))
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "the nearest [context]" in printed
    assert "There are no report sections to show." in printed
