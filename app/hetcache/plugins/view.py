"""The installed plugins, as ``hetcache plugins list`` shows them."""

from __future__ import annotations

from typing import Final, TypedDict

from rich.table import Table
from rich.text import Text

from hetcache_core import ConfigError, Registry
from hetcache_core.errors import nearest_name
from hetcache_core.plugins import hookspecs
from hetcache_core.plugins.registry import PluginRecord

__all__ = ["PluginJson", "plugins_as_json", "plugins_table"]

_STYLES: Final = {"ok": "green", "blocked": "dim", "failed": "red", "conflict": "yellow"}


class PluginJson(TypedDict):
    """One plugin in the output of ``hetcache plugins list --json``; the keys are documented."""

    name: str
    distribution: str
    version: str
    status: str
    hooks: list[str]
    policies: list[str]
    backbones: list[str]
    clip_sets: list[str]
    error: str | None


def plugins_as_json(registry: Registry, hook: str | None = None) -> list[PluginJson]:
    """List the plugins as plain values, in the order of distribution and name.

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
            "policies": list(record.policies),
            "backbones": list(record.backbones),
            "clip_sets": list(record.clip_sets),
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
    provided = {
        "policies": record.policies,
        "backbones": record.backbones,
        "clip sets": record.clip_sets,
    }
    lines = [f"{kind}: {', '.join(names)}" for kind, names in provided.items() if names]
    if "hetcache_observe_run" in record.hooks:
        lines.append("observes runs")
    return "\n".join(lines)
