"""What there is: ``hetcache policies``, ``backbones`` and ``plugins list``. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import Enum
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hetcache_core import ConfigError, HetCacheError, ModelInfo
from hetcache_core.errors import NOT_GIVEN, nearest_name
from hetcache_core.plugins import hookspecs
from hetcache_core.plugins.kinds import KINDS
from hetcache_core.settings.declare import SettingInfo, build, describe

if TYPE_CHECKING:
    from hetcache_core import PolicyRecipe, Registry
    from hetcache_core.plugins.kinds import Kind
    from hetcache_core.plugins.registry import PluginRecord

__all__ = [
    "backbones_as_json",
    "installed_version",
    "plugins_as_json",
    "plugins_table",
    "policies_as_json",
    "print_backbones",
    "print_policy",
    "provided_as_json",
    "provided_table",
    "supported_versions",
]

REQUIREMENT: Final = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*\(?(?P<versions>[^;)]*)"
)
"""Start of a requirement in a distribution's metadata. Source: PEP 508."""

STYLES: Final = {"ok": "green", "blocked": "dim", "failed": "red", "conflict": "yellow"}

SHOWN_MODEL: Final = ModelInfo(
    backbone="wan-vace",
    variant="wan2.1-1.3b",
    layers=30,
    width=1536,
    heads=12,
    control_layers=tuple(range(0, 30, 2)),
)
"""The model that presets are shown for. Source: the configuration of Wan-AI/Wan2.1-VACE-1.3B."""


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def supported_versions(distribution: str, library: str) -> str | None:
    """Return the versions of a library that a distribution asks for (">=0.36"), or None.

    Args:
        distribution: The distribution that provides a backbone.
        library: The distribution of the library that the backbone runs on.
    """
    try:
        lines = metadata.requires(distribution) or ()
    except (metadata.PackageNotFoundError, ValueError):
        return None
    for line in lines:
        found = REQUIREMENT.match(line)
        if found and _normalized(found["name"]) == _normalized(library):
            return found["versions"].strip() or "any"
    return None


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# Policies and backbones


def policies_as_json(registry: Registry, only: str | None = None) -> list[dict[str, Any]]:
    """List the policies with their settings and presets, and what a backbone must have to carry them.

    Args:
        registry: What was discovered.
        only: One name, or None for all.

    Returns:
        One value for each; one that cannot be loaded has an "error" and no settings.

    Raises:
        ConfigError: There is no policy of that name.
    """
    summaries = registry.summaries("policy")
    if only is not None and only not in summaries:
        registry.policy(only)  # says which there are
    listed = []
    for name, summary in summaries.items():
        if only not in {None, name}:
            continue
        entry: dict[str, Any] = {"name": name, "summary": summary, "source": None}
        try:
            kind = registry.policy(name)
            own = kind.default_guards.named
            settings = [
                _setting(info) | {"default": own[info.name]} if info.name in own else _setting(info)
                for info in describe(kind, registry)
            ]
            entry |= {"source": kind.source, "settings": settings, "presets": _presets(kind)}
            entry |= {
                "preset_shares": dict(kind.preset_shares),
                "needs": _needs(kind),
                "error": None,
            }
        except HetCacheError as error:
            entry |= {"settings": [], "presets": {}, "preset_shares": {}, "needs": []}
            entry |= {"error": str(error)}
        listed.append(entry)
    return listed


def backbones_as_json(registry: Registry) -> list[dict[str, Any]]:
    """List the backbones with what they can carry and the sizes that they take.

    Args:
        registry: What was discovered.

    Returns:
        One value for each; one that cannot be loaded has an "error" and nothing but a name and a
        summary.
    """
    listed = []
    for name, summary in registry.summaries("backbone").items():
        entry: dict[str, Any] = {"name": name, "summary": summary}
        try:
            kind = registry.backbone(name)
            features = asdict(kind.features)
            guidance = sorted(features.pop("guidance"))
            distribution = registry.provider("backbone", name).distribution
            entry |= {
                "library": kind.library,
                "library_version": installed_version(kind.library),
                "library_supported": supported_versions(distribution, kind.library),
                "features": features,
                "guidance": guidance,
                "geometry": asdict(kind.geometry),
                "models": list(kind().models),
                "masked": list(kind().masked),
                "error": None,
            }
        except HetCacheError as error:
            unknown = ("library", "library_version", "library_supported", "features", "geometry")
            entry |= {**dict.fromkeys(unknown), "guidance": [], "models": [], "masked": []}
            entry["error"] = str(error)
        listed.append(entry)
    return listed


def print_policy(registry: Registry, name: str) -> None:
    """Print one policy for people: source, what it needs, settings, presets.

    Raises:
        ConfigError: There is no policy of that name.
    """
    parts: list[Text | Table] = []
    for policy in policies_as_json(registry, name):
        parts += _heading(policy)
        if policy["source"]:
            parts.append(Text(f"  source: {policy['source']}"))
        if policy["needs"]:
            parts.append(Text(f"  needs a backbone with: {', '.join(policy['needs'])}"))
        table = Table.grid(padding=(0, 2))
        for info in policy["settings"]:
            allowed = ", ".join(info["allowed"]) or info["type"]
            table.add_row(
                Padding.indent(
                    Text(f"{info['name']}={'…' if info['required'] else _shown(info['default'])}"),
                    2,
                ),
                Text.assemble(
                    info["doc"], (f" ({allowed}{', required' * info['required']})", "dim")
                ),
            )
            for text, own in _own_settings(info):
                table.add_row(Padding.indent(Text(text), 4), Text(own["doc"], style="dim"))
        parts.append(table)
        for preset, values in policy["presets"].items():
            shown = " ".join(f"{name}={_shown(value)}" for name, value in values.items())
            share = policy["preset_shares"].get(preset)
            computes = "" if share is None else f" ({share:.0%} of the FLOPs)"
            parts.append(Text(f"  --preset {preset}: {shown or 'the defaults'}{computes}"))
    Console().print(Group(*parts))


def print_backbones(registry: Registry) -> None:
    """Print the backbones for people."""
    parts: list[Text | Table] = []
    for backbone in backbones_as_json(registry):
        parts += _heading(backbone)
        if backbone["error"] is None:
            features, geometry = backbone["features"], backbone["geometry"]
            version = backbone["library_version"] or "not installed"
            height, width = geometry["default_size"]
            control = "a branch of its own" if features.pop("control") else "none"
            carried = ", ".join(name for name, has in features.items() if has)
            lacking = ", ".join(name for name, has in features.items() if not has)
            supported = backbone["library_supported"] or "not said"
            side, stride = geometry["token_size"], geometry["frame_stride"]
            parts += [
                Text(f"  library   {backbone['library']} {version} (supported: {supported})"),
                Text(f"  tokens    one for {side}x{side} pixels and {stride} frames"),
                Text(f"  guidance  {', '.join(backbone['guidance'])}"),
                Text(f"  control   {control}"),
                *(
                    [Text(f"  models    {', '.join(backbone['models'])}")]
                    * bool(backbone["models"])
                ),
                *(
                    [
                        Text(
                            f"  masked    rows, attention and mask in {'; '.join(backbone['masked'])}"
                        )
                    ]
                    * bool(backbone["masked"])
                ),
                Text(f"  carries   {carried}" + (f"; not {lacking}" if lacking else "")),
                Text(
                    f"  sizes     multiples of {geometry['size_multiple']}, up to {height}x{width} "
                    f"unless asked; {geometry['frame_stride']}k+{geometry['frame_offset']} frames, "
                    f"{geometry['default_frames']} unless asked"
                ),
            ]
        parts.append(Text())
    Console().print(Group(*parts))


def _heading(entry: dict[str, Any]) -> list[Text | Table]:
    lines: list[Text | Table] = [Text.assemble((entry["name"], "bold"), f"  {entry['summary']}")]
    if entry["error"] is not None:
        lines.append(Text(f"  cannot be used: {entry['error']}", style="red"))
    return lines


def _setting(info: SettingInfo) -> dict[str, Any]:
    required = info.default is NOT_GIVEN
    default = None if required else info.default
    return {
        "name": info.name,
        "type": info.type,
        "default": default,
        "doc": info.doc,
        "allowed": list(info.allowed),
        "required": required,
        "pieces": {name: [_setting(own) for own in each] for name, each in info.pieces.items()},
    }


def _own_settings(info: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the settings of the pieces that a setting takes, each with the pieces that have it."""
    settings: dict[str, dict[str, Any]] = {}
    owners: dict[str, list[str]] = {}
    for piece, each in info["pieces"].items():
        for own in each:
            shown = "…" if own["required"] else _shown(own["default"])
            text = f"{info['name']}.{own['name']}={shown}"
            settings[text] = own
            owners.setdefault(text, []).append(piece)
    for text, own in settings.items():
        yield f"{text} ({', '.join(owners[text])})", own


def _needs(kind: type[PolicyRecipe]) -> list[str]:
    """Name what a backbone must have, for the default settings."""
    try:
        policy = build(kind, dict(kind.anywhere), where=kind.name).compose(SHOWN_MODEL)
    except ConfigError:  # it runs on nothing without a file of yours
        return []
    return sorted(policy.needs())


def _presets(kind: type[PolicyRecipe]) -> dict[str, dict[str, Any]]:
    return {name: dict(values) for name, values in kind.presets_for(SHOWN_MODEL).items()}


def _shown(value: object) -> str:
    """Write a value as ``--set`` takes it."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


# Plugins


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
            Text(record.status, style=STYLES[record.status]),
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
