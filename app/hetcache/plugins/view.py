"""The installed plugins, as ``hetcache plugins list`` shows them."""

from __future__ import annotations

from typing import Any, Final

from rich.table import Table
from rich.text import Text

from hetcache_core import ConfigError, Registry
from hetcache_core.errors import nearest_name
from hetcache_core.plugins import hookspecs
from hetcache_core.plugins.kinds import KINDS, Kind
from hetcache_core.plugins.registry import PluginRecord

__all__ = ["plugins_as_json", "plugins_table", "provided_as_json", "provided_table"]

_STYLES: Final = {"ok": "green", "blocked": "dim", "failed": "red", "conflict": "yellow"}


def plugins_as_json(registry: Registry, hook: str | None = None) -> list[dict[str, Any]]:
    """List the plugins as plain values, in the order of distribution and name; ``docs/cli.md``.

    Args:
        registry: What was discovered.
        hook: List only the plugins that are known to implement this hook. A plugin that is blocked
            or cannot be imported is not.

    Raises:
        ConfigError: There is no such hook.
    """
    return [
        {
            "name": record.name,
            "distribution": record.distribution,
            "version": record.version,
            "status": record.status,
            "hooks": list(record.hooks),
            **{kind.key: list(record.names(kind.name)) for kind in KINDS.values()},
            "error": None if record.error is None else str(record.error),
        }
        for record in _listed(registry, hook)
    ]


def plugins_table(registry: Registry, hook: str | None = None) -> Table:
    """Show the plugins as a table, with a column of errors if there are any.

    Args:
        registry: What was discovered.
        hook: Show only the plugins that are known to implement this hook.

    Raises:
        ConfigError: There is no such hook.
    """
    records = _listed(registry, hook)
    table = Table(caption=None if records else "There are no plugins to show.")
    for heading in ("plugin", "distribution", "version", "provides", "status"):
        table.add_column(heading, overflow="fold")
    failed = any(record.error is not None for record in records)
    if failed:
        table.add_column("error", overflow="fold", ratio=1)
    for record in records:
        # Text, not str: rich would take "[diffsynth]" in a message for a style.
        cells = [
            Text(record.name),
            Text(record.distribution),
            Text(record.version),
            Text(_provides(record)),
            Text(record.status, style=_STYLES[record.status]),
        ]
        if failed:
            cells.append(Text(str(record.error or "")))
        table.add_row(*cells)
    return table


def provided_as_json(registry: Registry, kind: Kind) -> list[dict[str, str]]:
    """List what can be used of one kind as plain values, sorted by name; loads none of it."""
    listed = []
    for name, summary in registry.summaries(kind.name).items():
        plugin = registry.provider(kind.name, name)
        listed.append(
            {
                "name": name,
                "summary": summary,
                "plugin": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
            }
        )
    return listed


def provided_table(registry: Registry, kind: Kind) -> Table:
    """Show what can be used of one kind as a table; loads none of it."""
    listed = provided_as_json(registry, kind)
    table = Table(caption=None if listed else f"There are no {kind.plural} to show.")
    for heading in (kind.name, "summary", "distribution"):
        table.add_column(heading, overflow="fold")
    for each in listed:
        origin = f"{each['distribution']} {each['version']}".strip()
        table.add_row(Text(each["name"]), Text(each["summary"]), Text(origin))
    return table


def _listed(registry: Registry, hook: str | None) -> list[PluginRecord]:
    known = [n for n in hookspecs.__all__ if n.startswith(f"{hookspecs.PROJECT_NAME}_")]
    if hook is not None and hook not in known:
        nearest = nearest_name(hook, known)
        raise ConfigError(
            f"there is no hook {hook!r}" + (f", did you mean {nearest!r}?" if nearest else ""),
            where="--hook",
            setting="hook",
            given=hook,
            allowed=known,
            nearest=nearest,
            remedy=f"Known: {', '.join(known)}.",
        )
    return [record for record in registry.plugins if hook is None or hook in record.hooks]


def _provides(record: PluginRecord) -> str:
    lines = [
        f"{kind.plural}: {', '.join(record.names(kind.name))}"
        for kind in KINDS.values()
        if record.names(kind.name)
    ]
    if "hetcache_observe_run" in record.hooks:
        lines.append("observes runs")
    return "\n".join(lines)
