"""Finding the installed plugins, and asking them what they provide.

``discover()`` reads the entry-point group ``hetcache`` and returns a ``Registry``. Nothing is kept
between calls and nothing happens at import. Plugins come in the order of distribution and name,
each on its own: one that cannot be imported, misspells a hook, raises or answers wrongly provides
nothing, is recorded with its error, and is warned of with ``PluginWarning``, which Python's default
filter shows once; the others are not affected.

Two providers of one name are always an error that names both distributions: both records say so,
and whoever asks for that name gets the error (at once with ``strict=True``). So are two
distributions with one entry-point name; then neither plugin is imported.

Plugins are blocked before they are imported, by their own name or by that of their distribution,
through ``HETCACHE_DISABLE_PLUGINS=a,b`` or ``discover(blocked=…)``.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any

import pluggy
from attrs import evolve

from hetcache_core.errors import (
    PluginConflictError,
    PluginError,
    PluginLoadError,
    PluginWarning,
    nearest_name,
)
from hetcache_core.plugins import hookspecs
from hetcache_core.plugins.hookspecs import PROJECT_NAME, Registration
from hetcache_core.plugins.isolation import isolated, short, shown
from hetcache_core.plugins.kinds import KINDS
from hetcache_core.plugins.registry import (
    DISABLE_VARIABLE,
    Observer,
    PluginRecord,
    Provided,
    Registry,
    Status,
    find_conflicts,
)

__all__ = ["DISABLE_VARIABLE", "PluginRecord", "Registry", "discover"]

_Found = list[tuple[metadata.EntryPoint, PluginRecord]]


def discover(
    *,
    entry_points: Iterable[metadata.EntryPoint] | None = None,
    blocked: Iterable[str] = (),
    strict: bool = False,
) -> Registry:
    """Find the installed plugins and ask them what they provide.

    Args:
        entry_points: The entry points to read; those installed in the group ``hetcache`` if None.
        blocked: Names of plugins, or of distributions, that are not to be imported; those in the
            environment variable ``HETCACHE_DISABLE_PLUGINS`` are blocked as well.
        strict: Raise the first error instead of recording it, as tests want it.

    Returns:
        What was found, including the plugins that cannot be used.

    Raises:
        PluginError: With ``strict`` only: a plugin cannot be used.
    """
    if entry_points is None:
        entry_points = metadata.entry_points(group=PROJECT_NAME)
    blocked = [*blocked, *os.environ.get(DISABLE_VARIABLE, "").split(",")]
    found, complaints = _block(_attributed(entry_points), blocked)
    unblocked = [record for _, record in found if record.status != "blocked"]
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    records: list[PluginRecord] = []
    provided: list[Provided] = []
    for point, found_record in found:
        record = found_record
        if record.status != "blocked":
            try:
                _refuse_same_name(record, unblocked)
                record = _register(manager, point, record)
                record, answers = _ask(manager, record)
                provided += answers
            except PluginError as error:
                if strict:
                    raise
                status: Status = "conflict" if isinstance(error, PluginConflictError) else "failed"
                record = evolve(record, status=status, error=error)
        records.append(record)
    for (kind, name), conflict in find_conflicts(provided).items():
        if strict:
            raise conflict
        records = [_in_conflict(record, kind, name, conflict) for record in records]
    # Plugins in one conflict have the same message.
    complaints += dict.fromkeys(str(record.error) for record in records if record.error)
    for complaint in complaints:
        warnings.warn(complaint, PluginWarning, stacklevel=2)
    return Registry(
        plugins=tuple(records), provided=tuple(provided), observers=_observers(manager, records)
    )


def _attributed(entry_points: Iterable[metadata.EntryPoint]) -> _Found:
    """Sort the entry points of our group, without those found twice on ``sys.path``."""
    found = {}
    for point in entry_points:
        if point.group != PROJECT_NAME:
            continue
        record = PluginRecord(name=point.name)
        if point.dist is not None:
            # An interrupted uninstallation leaves metadata without a name: None or an error, by
            # the version of Python.
            with contextlib.suppress(KeyError, ImportError, OSError):
                record = evolve(record, distribution=point.dist.name or "")
                record = evolve(record, version=point.dist.version or "")
        found[record.distribution, point.name, point.value] = (point, record)
    return [found[key] for key in sorted(found)]


def _block(found: _Found, blocked: Iterable[str]) -> tuple[_Found, list[str]]:
    """Mark what is blocked, and complain of names that block nothing: they may be misspelt."""
    names = {_normalized(name): name.strip() for name in blocked if name.strip()}
    known = {
        _normalized(name): name
        for _, record in found
        for name in (record.distribution, record.name)
        if name
    }
    marked = [
        (point, evolve(record, status="blocked"))
        if {_normalized(record.name), _normalized(record.distribution)} & names.keys()
        else (point, record)
        for point, record in found
    ]
    complaints = [
        f"Nothing is blocked by the name {names[name]!r}, which is neither a plugin nor a "
        f"distribution with plugins. Known: {', '.join(sorted(known.values())) or 'none'}."
        for name in sorted(names.keys() - known.keys())
    ]
    return marked, complaints


def _normalized(name: str) -> str:
    # Installers normalize names of distributions, so that people know them in several spellings.
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _refuse_same_name(record: PluginRecord, others: Iterable[PluginRecord]) -> None:
    origins = [other.origin for other in others if other.name == record.name]
    if len(origins) > 1:
        raise PluginConflictError(
            f"plugin {record.name!r} is installed by {' and by '.join(origins)}; "
            "none of them is imported",
            kind="plugin",
            name=record.name,
            distributions=origins,
            remedy=f"Name one of these distributions in {DISABLE_VARIABLE}, or uninstall it.",
        )


def _register(
    manager: pluggy.PluginManager, point: metadata.EntryPoint, record: PluginRecord
) -> PluginRecord:
    """Import a plugin and register it, or leave no trace of it.

    Returns:
        The record, with the hooks that the plugin implements.

    Raises:
        PluginError: It cannot be imported or breaks the rules.
    """
    try:
        with isolated():
            plugin = point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # importing may raise anything
        raise PluginLoadError(
            f"cannot import {point.value!r}: {short(error)}",
            plugin=record.name,
            distribution=record.origin,
            remedy=f"Repair or uninstall it, or block it by {DISABLE_VARIABLE}={record.name}.",
            target=point.value,
        ) from error
    try:
        with isolated():
            hooks = _verified_hooks(manager, plugin, record)
            manager.register(plugin, name=record.name)
            manager.check_pending()
    except BaseException as error:  # reading a plugin's attributes may raise anything
        # Before pluggy 1.7, a plugin that fails its validation stays half registered.
        if manager.has_plugin(record.name):
            manager.unregister(name=record.name)
        if isinstance(error, PluginError | KeyboardInterrupt):
            raise
        raise _broken(record, f"is refused: {short(error)}") from error
    return evolve(record, hooks=hooks)


def _verified_hooks(
    manager: pluggy.PluginManager, plugin: object, record: PluginRecord
) -> tuple[str, ...]:
    """Find what pluggy would take in silence: misspelt, unmarked and wrapping hooks.

    Returns:
        The hooks that the plugin implements.

    Raises:
        PluginError: Something is wrong with one of them.
    """
    known = [name for name in hookspecs.__all__ if name.startswith(f"{PROJECT_NAME}_")]
    marked = False
    hooks = set()
    for attribute in dir(plugin):
        options: Mapping[str, Any] | None = manager.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            # An imported specification is no mistake.
            unmarked = attribute in known and getattr(plugin, attribute)
            if callable(unmarked) and unmarked is not getattr(hookspecs, attribute):
                raise _broken(record, f"defines {attribute} without @hookimpl, so it is not called")
            continue
        marked = True
        hook = options.get("specname") or attribute
        if options.get("wrapper") or options.get("hookwrapper"):
            raise _broken(record, f"wraps {hook}; wrappers are not supported")
        if hook in known:
            hooks.add(hook)
        elif not options.get("optionalhook"):
            nearest = nearest_name(hook, known)
            hint = f"did you mean {nearest}?" if nearest else f"known: {', '.join(known)}"
            raise _broken(record, f"implements {hook}, which is no hook of this version; {hint}")
    if not marked:
        raise _broken(record, "implements no hook; mark its hooks with @hookimpl")
    return tuple(sorted(hooks))


def _ask(
    manager: pluggy.PluginManager, record: PluginRecord
) -> tuple[PluginRecord, list[Provided]]:
    """Ask a plugin what it provides; if any answer is wrong, it provides nothing.

    Raises:
        PluginError: It raised, or its answer is not what the hook promises.
    """
    answers: list[Provided] = []
    try:
        for kind in KINDS.values():
            # Calling the implementations one by one keeps the plugin's name with each answer.
            for impl in getattr(manager.hook, kind.hook).get_hookimpls():
                if impl.plugin_name == record.name:
                    registrations = _answer(impl.function, kind.hook, record)
                    answers += (Provided(kind.name, given, record) for given in registrations)
        count = Counter((answer.kind, answer.registration.name) for answer in answers)
        for (what, name), times in count.items():
            if times > 1:
                raise _broken(record, f"registers the {what} {name!r} {times} times")
    except PluginError:
        manager.unregister(name=record.name)
        raise
    names: dict[str, tuple[str, ...]] = {}
    for what, name in count:
        names[what] = (*names.get(what, ()), name)
    return evolve(record, provides=names), answers


def _answer(call: Callable[[], object], hook: str, record: PluginRecord) -> list[Registration]:
    try:
        with isolated():
            answer = call()
            # A generator raises when it is read.
            given = list(answer) if isinstance(answer, Iterable) else None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything
        raise PluginLoadError(
            f"{hook} raised {short(error)}", plugin=record.name, distribution=record.origin
        ) from error
    if given is None:
        raise _broken(
            record, f"returns {shown(answer)} from {hook} instead of a list of Registrations"
        )
    for registration in given:
        if not isinstance(registration, Registration):
            what = (
                f"returns a list with {shown(registration)} from {hook}, which is no Registration"
            )
            raise _broken(record, what)
    return given


def _in_conflict(
    record: PluginRecord, kind: str, name: str, error: PluginConflictError
) -> PluginRecord:
    if name not in record.names(kind) or record.status != "ok":
        return record
    return evolve(record, status="conflict", error=error)


def _observers(
    manager: pluggy.PluginManager, records: Iterable[PluginRecord]
) -> tuple[Observer, ...]:
    registered = {record.name: record for record in records if record.hooks}
    return tuple(
        Observer(plugin=registered[impl.plugin_name], call=impl.function, argnames=impl.argnames)
        for impl in manager.hook.hetcache_observe_run.get_hookimpls()
    )


def _broken(record: PluginRecord, what: str) -> PluginError:
    return PluginError(
        what,
        plugin=record.name,
        distribution=record.origin,
        remedy=f"Tell its authors, or block it by {DISABLE_VARIABLE}={record.name}.",
    )
