"""What the installed plugins provide, by name; made by ``hetcache_core.plugins.discovery.discover``."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import evolve, field, frozen

from hetcache_core.errors import (
    ConfigError,
    ContractError,
    HetCacheError,
    PluginConflictError,
    PluginError,
    PluginLoadError,
    nearest_name,
)
from hetcache_core.plugins.hookspecs import Registration
from hetcache_core.plugins.isolation import isolated, short
from hetcache_core.plugins.kinds import KINDS, kind_of, load_object

if TYPE_CHECKING:
    from hetcache_core.backbone.adapter import Backbone
    from hetcache_core.policy.recipe import PolicyRecipe
    from hetcache_core.records.trace import Trace

__all__ = ["Observer", "PluginRecord", "Provided", "Registry", "Status", "find_conflicts"]

DISABLE_VARIABLE: Final = "HETCACHE_DISABLE_PLUGINS"
"""Environment variable with the names of blocked plugins or distributions, separated by commas."""

_log = logging.getLogger("hetcache.plugins")

Status = Literal["ok", "blocked", "failed", "conflict"]


@frozen(kw_only=True)
class PluginRecord:
    """What is known of one plugin.

    Attributes:
        name: Name of its entry point.
        distribution: Name of the distribution that installed it, "" if there is none.
        version: Version of that distribution.
        hooks: Names of the hooks that it implements.
        provides: Names of what it provides, by kind, conflicting ones included.
        status: ``"blocked"`` and ``"failed"`` plugins provide nothing; of one in ``"conflict"``,
            only the names that nobody else provides can be used.
        error: What is wrong with it.
    """

    name: str
    distribution: str = ""
    version: str = ""
    hooks: tuple[str, ...] = ()
    provides: Mapping[str, tuple[str, ...]] = field(factory=dict)
    status: Status = "ok"
    error: PluginError | None = None

    def names(self, kind: str) -> tuple[str, ...]:
        """Names of one kind that it provides, conflicting ones included."""
        return self.provides.get(kind, ())

    @property
    def origin(self) -> str:
        """The distribution with its version, for messages."""
        return f"{self.distribution} {self.version}".strip() or "unknown"


@frozen
class Provided:
    """One registration and the plugin that it comes from.

    Attributes:
        kind: What is registered.
        registration: Its name, target and summary.
        plugin: Where it comes from; its status is not looked at.
    """

    kind: str
    registration: Registration
    plugin: PluginRecord = field(eq=False)


@frozen(kw_only=True)
class Observer:
    """One implementation of ``hetcache_observe_run``.

    Attributes:
        plugin: The plugin that it comes from.
        call: The implementation.
        argnames: Names of the arguments that it takes.
    """

    plugin: PluginRecord
    call: Callable[..., object]
    argnames: tuple[str, ...]

    def notify(self, trace: Trace) -> None:
        """Call the implementation; what it raises is logged.

        Args:
            trace: What was decided and computed; a copy is passed, so that nothing of the run can be
                changed.
        """
        try:
            with isolated():
                self.call(*(deepcopy(trace) for _ in self.argnames))
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - the run is over, and right all the same
            _log.exception(
                "Plugin %r (distribution %s) failed to observe a run; the run is not affected.",
                self.plugin.name,
                self.plugin.origin,
                extra=trace.ids(),
            )


@frozen(eq=False, kw_only=True)
class Registry:
    """The plugins that were found, and what they provide: by kind (``plugins.kinds``) and name.

    Attributes:
        plugins: One record for every plugin, usable or not.
    """

    plugins: tuple[PluginRecord, ...] = ()
    _provided: tuple[Provided, ...] = field(default=(), alias="provided", repr=False)
    _observers: tuple[Observer, ...] = field(default=(), alias="observers", repr=False)

    def names(self, kind: str) -> tuple[str, ...]:
        """Names of one kind that can be used, sorted."""
        return tuple(self._usable(kind))

    def summaries(self, kind: str) -> dict[str, str]:
        """One line on each of a kind, by name; loads none of them."""
        return {name: p.registration.summary for name, p in self._usable(kind).items()}

    def provider(self, kind: str, name: str) -> PluginRecord:
        """The plugin that provides a name which can be used."""
        return self._usable(kind)[name].plugin

    def load(self, kind: str, name: str) -> type[Any]:
        """Load the class of a name.

        Args:
            kind: Name of the kind, such as "selector".
            name: Name of one of them; of one policy, not of a composition.

        Returns:
            A subclass of the kind's base class.

        Raises:
            ConfigError: No plugin provides the name; the message says which are known.
            PluginConflictError: Several plugins provide it.
            PluginLoadError: Its class cannot be loaded, or no plugin that works provides the name
                while others failed; the plugin's own error is the cause.
            ContractError: What was registered is none of the kind, or has another name.
            UnsupportedBackboneError: A library that it needs is not installed.
        """
        conflict = find_conflicts(self._provided).get((kind, name))
        if conflict is not None:
            raise conflict
        provider = self._usable(kind).get(name)
        if provider is None:
            raise self._unknown(kind, name)
        return _verified(provider, _load_target(provider), KINDS[kind].base_class())

    def policy(self, name: str) -> type[PolicyRecipe]:
        """``load`` a policy: the class whose fields are its settings."""
        return self.load("policy", name)

    def backbone(self, name: str) -> type[Backbone]:
        """``load`` a backbone: the class, which is made without arguments."""
        return self.load("backbone", name)

    def observe_run(self, trace: Trace) -> None:
        """Hand a finished run to every observer; one that raises is logged, and the others go on.

        Args:
            trace: What was decided and computed.
        """
        for observer in self._observers:
            observer.notify(trace)

    def with_registrations(self, kind: str, *registrations: Registration) -> Registry:
        """Return a registry that knows more of a kind, for tests and for embedding.

        Args:
            kind: Name of the kind, such as "policy".
            *registrations: What to add.

        Raises:
            ConfigError: There is no such kind.
            PluginConflictError: A name is taken.
        """
        kind = kind_of(kind).name
        program = PluginRecord(
            name="with_registrations()", distribution="none, added by the program"
        )
        added = tuple(Provided(kind, registration, program) for registration in registrations)
        provided = (*self._provided, *added)
        new = {(kind, entry.registration.name) for entry in added}
        for key, conflict in find_conflicts(provided).items():
            if key in new:
                raise conflict
        return evolve(self, provided=provided)

    def _usable(self, kind: str) -> dict[str, Provided]:
        entries = [entry for entry in self._provided if entry.kind == kind]
        count = Counter(entry.registration.name for entry in entries)
        usable = {e.registration.name: e for e in entries if count[e.registration.name] == 1}
        return dict(sorted(usable.items()))

    def _unknown(self, kind: str, name: str) -> HetCacheError:
        known = tuple(self._usable(kind))
        nearest = nearest_name(name, known)
        what = f"there is no {kind} {name!r}" + (f", did you mean {nearest!r}?" if nearest else "")
        remedy = f"Known: {', '.join(known) or 'none'}."
        blocked = [record.name for record in self.plugins if record.status == "blocked"]
        if blocked:
            remedy += f" Blocked plugins, which were not asked: {', '.join(blocked)}."
        # What these would have provided is not known. A plugin in conflict may have been asked.
        failed = [
            record
            for record in self.plugins
            if record.error is not None and not any(record.provides.values())
        ]
        if not failed:
            return ConfigError(
                what, remedy=remedy, setting=kind, given=name, allowed=known, nearest=nearest
            )
        listed = ", ".join(f"{record.name} (distribution {record.origin})" for record in failed)
        error = PluginLoadError(
            what,
            remedy=f"{remedy} Plugins that failed and may provide it: {listed}; "
            "see 'hetcache plugins list'.",
            failed=[record.name for record in failed],
        )
        error.__cause__ = failed[0].error
        return error


def find_conflicts(provided: Iterable[Provided]) -> dict[tuple[str, str], PluginConflictError]:
    """Find the names that several plugins provide.

    Args:
        provided: Everything that is provided.

    Returns:
        By kind and name, the error for whoever asks for it.
    """
    by_name: dict[tuple[str, str], list[PluginRecord]] = {}
    for entry in provided:
        by_name.setdefault((entry.kind, entry.registration.name), []).append(entry.plugin)
    return {
        (kind, name): _conflict(kind, name, plugins)
        for (kind, name), plugins in sorted(by_name.items())
        if len(plugins) > 1
    }


def _conflict(kind: str, name: str, plugins: list[PluginRecord]) -> PluginConflictError:
    origins = [f"{plugin.name!r} (distribution {plugin.origin})" for plugin in plugins]
    return PluginConflictError(
        f"{kind} {name!r} is provided by plugin {' and by plugin '.join(origins)}",
        kind=kind,
        name=name,
        distributions=[plugin.origin for plugin in plugins],
        remedy=f"Block one of them by {DISABLE_VARIABLE}, or uninstall it.",
    )


def _load_target(provider: Provided) -> Any:
    target, plugin = provider.registration.target, provider.plugin
    if isinstance(target, type):
        return target
    try:
        with isolated():
            return load_object(target)
    except (HetCacheError, KeyboardInterrupt):
        raise  # the former says by itself which library is missing, and how to get it
    except BaseException as error:  # importing may raise anything
        what = f"cannot load the {provider.kind} {provider.registration.name!r} from {target!r}"
        raise PluginLoadError(
            f"{what}: {short(error)}",
            plugin=plugin.name,
            distribution=plugin.origin,
            remedy="Install what it needs, or repair its distribution.",
            target=target,
        ) from error


def _verified(provider: Provided, loaded: object, base: type[Any]) -> type[Any]:
    plugin, registration = provider.plugin, provider.registration
    where = f"plugin {plugin.name!r} (distribution {plugin.origin})"
    what = f"{provider.kind} {registration.name!r} is registered as {registration.target!r}, which"
    subject = str(registration.target)
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise ContractError(
            f"{what} is no {base.__name__}",
            where=where,
            subject=subject,
            remedy=f"Register a subclass of {base.__module__}.{base.__name__}.",
        )
    own_name = getattr(loaded, "name", None)  # a subclass may have forgotten it
    if own_name != registration.name:
        raise ContractError(
            f"{what} calls itself {own_name!r}",
            where=where,
            subject=subject,
            remedy="Register it under its own name.",
        )
    return loaded
