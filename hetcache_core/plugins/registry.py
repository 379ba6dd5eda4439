"""What the installed plugins provide, by name; made by ``hetcache_core.plugins.discovery.discover``."""

from __future__ import annotations

import importlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
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

if TYPE_CHECKING:
    from hetcache_core.backbone.adapter import Backbone
    from hetcache_core.plugins.clips import ClipSet
    from hetcache_core.policy.recipe import PolicyRecipe
    from hetcache_core.records.trace import Trace

__all__ = ["Kind", "Observer", "PluginRecord", "Provided", "Registry", "Status", "find_conflicts"]

DISABLE_VARIABLE: Final = "HETCACHE_DISABLE_PLUGINS"
"""Environment variable with the names of blocked plugins or distributions, separated by commas."""

_log = logging.getLogger(__name__)

Kind = Literal["policy", "backbone", "clip set"]
Status = Literal["ok", "blocked", "failed", "conflict"]


@frozen(kw_only=True)
class PluginRecord:
    """What is known of one plugin.

    Attributes:
        name: Name of its entry point.
        distribution: Name of the distribution that installed it, "" if there is none.
        version: Version of that distribution.
        hooks: Names of the hooks that it implements.
        policies: Names of the policies that it provides, conflicting ones included.
        backbones: Names of the backbones that it provides, conflicting ones included.
        clip_sets: Names of the clip sets that it provides, conflicting ones included.
        status: ``"blocked"`` and ``"failed"`` plugins provide nothing; of one in ``"conflict"``,
            only the names that nobody else provides can be used.
        error: What is wrong with it.
    """

    name: str
    distribution: str = ""
    version: str = ""
    hooks: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    clip_sets: tuple[str, ...] = ()
    status: Status = "ok"
    error: PluginError | None = None

    def names(self, kind: Kind) -> tuple[str, ...]:
        """Names of one kind that it provides, conflicting ones included."""
        return {
            "policy": self.policies,
            "backbone": self.backbones,
            "clip set": self.clip_sets,
        }[kind]

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

    kind: Kind
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

    def notify(self, arguments: Mapping[str, object]) -> None:
        """Call the implementation; what it raises is logged.

        Args:
            arguments: All arguments of the hook; those that the implementation takes are passed.
        """
        try:
            self.call(*(arguments[name] for name in self.argnames))
        except (Exception, SystemExit):  # noqa: BLE001 - the run is over, and right all the same
            _log.exception(
                "Plugin %r (distribution %s) failed to observe a run; the run is not affected.",
                self.plugin.name,
                self.plugin.origin,
            )


@frozen(eq=False, kw_only=True)
class Registry:
    """The plugins that were found, and the policies, backbones and clip sets that they provide.

    Attributes:
        plugins: One record for every plugin, usable or not.
    """

    plugins: tuple[PluginRecord, ...] = ()
    _provided: tuple[Provided, ...] = field(default=(), alias="provided", repr=False)
    _observers: tuple[Observer, ...] = field(default=(), alias="observers", repr=False)

    @property
    def policy_names(self) -> tuple[str, ...]:
        """Names of the policies that can be used, sorted."""
        return tuple(self._usable("policy"))

    @property
    def backbone_names(self) -> tuple[str, ...]:
        """Names of the backbones that can be used, sorted."""
        return tuple(self._usable("backbone"))

    @property
    def clip_set_names(self) -> tuple[str, ...]:
        """Names of the clip sets that can be used, sorted."""
        return tuple(self._usable("clip set"))

    @property
    def policy_summaries(self) -> dict[str, str]:
        """One line on each policy, by name; loads none of them."""
        return {name: p.registration.summary for name, p in self._usable("policy").items()}

    @property
    def backbone_summaries(self) -> dict[str, str]:
        """One line on each backbone, by name; loads none of them."""
        return {name: p.registration.summary for name, p in self._usable("backbone").items()}

    def policy(self, name: str) -> type[PolicyRecipe]:
        """Load the policy of a name.

        Args:
            name: Name of one policy, not of a composition.

        Returns:
            The class, whose fields are the policy's settings.

        Raises:
            ConfigError: No plugin provides the name; the message says which are known.
            PluginConflictError: Several plugins provide it.
            PluginLoadError: Its class cannot be loaded, or no plugin that works provides the name
                while others failed; the plugin's own error is the cause.
            ContractError: What was registered is no policy, or has another name.
            UnsupportedBackboneError: A library that it needs is not installed.
        """
        from hetcache_core.policy.recipe import PolicyRecipe

        return self._load("policy", name, PolicyRecipe)

    def backbone(self, name: str) -> type[Backbone]:
        """Load the backbone of a name.

        Args:
            name: Name of the backbone.

        Returns:
            The class, which is made without arguments.

        Raises:
            ConfigError: No plugin provides the name; the message says which are known.
            PluginConflictError: Several plugins provide it.
            PluginLoadError: Its class cannot be loaded, or no plugin that works provides the name
                while others failed; the plugin's own error is the cause.
            ContractError: What was registered is no backbone, or has another name.
            UnsupportedBackboneError: A library that it needs is not installed.
        """
        from hetcache_core.backbone.adapter import Backbone  # listing does not need it

        return self._load("backbone", name, Backbone)

    def clip_set(self, name: str) -> type[ClipSet]:
        """Load the clip set of a name.

        Args:
            name: Name of the clip set.

        Returns:
            The class, which is made without arguments.

        Raises:
            ConfigError: No plugin provides the name; the message says which are known.
            PluginConflictError: Several plugins provide it.
            PluginLoadError: Its class cannot be loaded, or no plugin that works provides the name
                while others failed; the plugin's own error is the cause.
            ContractError: What was registered is no clip set, or has another name.
            UnsupportedBackboneError: A library that it needs is not installed.
        """
        from hetcache_core.plugins.clips import ClipSet  # listing does not need it

        return self._load("clip set", name, ClipSet)

    def observe_run(self, trace: Trace) -> None:
        """Hand a finished run to every observer; one that raises is logged, and the others go on.

        Args:
            trace: What was decided and computed.
        """
        for observer in self._observers:
            observer.notify({"trace": trace})

    def with_policies(self, *registrations: Registration) -> Registry:
        """Return a registry that knows further policies, for tests and for embedding.

        Args:
            *registrations: The policies to add.

        Raises:
            PluginConflictError: A name is taken.
        """
        return self._with("policy", registrations)

    def with_backbones(self, *registrations: Registration) -> Registry:
        """Return a registry that knows further backbones, for tests and for embedding.

        Args:
            *registrations: The backbones to add.

        Raises:
            PluginConflictError: A name is taken.
        """
        return self._with("backbone", registrations)

    def with_clip_sets(self, *registrations: Registration) -> Registry:
        """Return a registry that knows further clip sets, for tests and for embedding.

        Args:
            *registrations: The clip sets to add.

        Raises:
            PluginConflictError: A name is taken.
        """
        return self._with("clip set", registrations)

    def _with(self, kind: Kind, registrations: Iterable[Registration]) -> Registry:
        caller = {
            "policy": "with_policies()",
            "backbone": "with_backbones()",
            "clip set": "with_clip_sets()",
        }[kind]
        program = PluginRecord(name=caller, distribution="none, added by the program")
        added = tuple(Provided(kind, registration, program) for registration in registrations)
        provided = (*self._provided, *added)
        new = {(kind, entry.registration.name) for entry in added}
        for key, conflict in find_conflicts(provided).items():
            if key in new:
                raise conflict
        return evolve(self, provided=provided)

    def _usable(self, kind: Kind) -> dict[str, Provided]:
        entries = [entry for entry in self._provided if entry.kind == kind]
        count = Counter(entry.registration.name for entry in entries)
        usable = {e.registration.name: e for e in entries if count[e.registration.name] == 1}
        return dict(sorted(usable.items()))

    def _load(self, kind: Kind, name: str, base: type[Any]) -> type[Any]:
        conflict = find_conflicts(self._provided).get((kind, name))
        if conflict is not None:
            raise conflict
        provider = self._usable(kind).get(name)
        if provider is None:
            raise self._unknown(kind, name)
        return _verified(provider, _load_target(provider), base)

    def _unknown(self, kind: Kind, name: str) -> HetCacheError:
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
            if record.error is not None and not (record.policies or record.backbones)
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


def find_conflicts(provided: Iterable[Provided]) -> dict[tuple[Kind, str], PluginConflictError]:
    """Find the names that several plugins provide.

    Args:
        provided: Everything that is provided.

    Returns:
        By kind and name, the error for whoever asks for it.
    """
    by_name: dict[tuple[Kind, str], list[PluginRecord]] = {}
    for entry in provided:
        by_name.setdefault((entry.kind, entry.registration.name), []).append(entry.plugin)
    return {
        (kind, name): _conflict(kind, name, plugins)
        for (kind, name), plugins in sorted(by_name.items())
        if len(plugins) > 1
    }


def _conflict(kind: Kind, name: str, plugins: list[PluginRecord]) -> PluginConflictError:
    origins = [f"{plugin.name!r} (distribution {plugin.origin})" for plugin in plugins]
    return PluginConflictError(
        f"{kind} {name!r} is provided by plugin {' and by plugin '.join(origins)}",
        kind=kind,
        name=name,
        distributions=[plugin.origin for plugin in plugins],
        remedy=f"Block one of them by {DISABLE_VARIABLE}, or uninstall it.",
    )


def _load_target(provider: Provided) -> object:
    target, plugin = provider.registration.target, provider.plugin
    if isinstance(target, type):
        return target
    module_name, _, path = target.partition(":")
    try:
        loaded: object = importlib.import_module(module_name)
        for attribute in path.split("."):
            loaded = getattr(loaded, attribute)
    except HetCacheError:
        raise  # says by itself which library is missing, and how to get it
    except (Exception, SystemExit) as error:  # importing may raise anything
        what = f"cannot load the {provider.kind} {provider.registration.name!r} from {target!r}"
        raise PluginLoadError(
            f"{what}: {' '.join(f'{type(error).__name__}: {error}'.split())}",
            plugin=plugin.name,
            distribution=plugin.origin,
            remedy="Install what it needs, or repair its distribution.",
            target=target,
        ) from error
    return loaded


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
