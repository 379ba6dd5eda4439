"""The errors of hetcache, each holding its facts as attributes.

::

    HetCacheError                     the command line prints it as one line and exits with 2
    ├── ConfigError                   a setting or an argument is unknown, missing or out of range
    ├── PluginError                   something is wrong with an installed plugin
    │   ├── PluginConflictError       two distributions provide the same name
    │   └── PluginLoadError           a plugin, or what it registered, cannot be loaded
    ├── UnsupportedBackboneError      this pipeline, or an option of it, is not supported;
    │                                 or the library a backbone needs is not installed
    ├── ContractError                 a policy, a backbone or a registration breaks its contract
    ├── CacheStateError               a value was asked for that the cache does not hold,
    │                                 or the step index does not follow on
    └── CacheBudgetError              storing a value would pass the hard byte limit

Every error is constructed as ``Error(what, where=…, remedy=…, **facts)``: ``what`` went wrong,
``where`` (a plugin, a policy, a command-line option), and what the reader can do about it. The
message is put together from these three, on one line. Errors can be pickled and copied with their
facts, so that they survive a process pool; as with any exception, the cause is not pickled.

``PluginWarning`` is the one warning category: discovery warns with it of plugins that it cannot use.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Final, final

__all__ = [
    "NOT_GIVEN",
    "CacheBudgetError",
    "CacheStateError",
    "ConfigError",
    "ContractError",
    "HetCacheError",
    "PluginConflictError",
    "PluginError",
    "PluginLoadError",
    "PluginWarning",
    "UnsupportedBackboneError",
    "nearest_name",
]


@final
class _NotGiven:
    """The type of ``NOT_GIVEN``, which tells "no value" apart from the value ``None``."""

    def __repr__(self) -> str:
        return "NOT_GIVEN"

    def __reduce__(self) -> str:
        # A string makes pickle and copy look the singleton up, so that ``is NOT_GIVEN`` holds.
        return "NOT_GIVEN"


NOT_GIVEN: Final = _NotGiven()
"""Stands for "no value was given", where ``None`` would be a value."""


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Find the known name that an unknown one was probably meant to be.

    Args:
        name: The unknown name.
        known: The names that exist.

    Returns:
        The closest known name, whatever its case, or None if none is close.
    """
    by_folded = {candidate.casefold(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return by_folded[matches[0]] if matches else None


def _rebuild(cls: type[HetCacheError], args: tuple[object, ...]) -> HetCacheError:
    """Make an error without calling its ``__init__``, whose facts are keyword-only."""
    error = cls.__new__(cls, *args)
    error.args = args
    return error


class HetCacheError(Exception):
    """The base of every error that hetcache raises on purpose.

    Args:
        what: What went wrong, without a closing full stop.
        where: Where it went wrong; put before ``what``, followed by a colon.
        remedy: What the reader can do, as a sentence; put after ``what``.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        """Put the message together: where, what, remedy."""
        message = f"{self.where}: {self.what}" if self.where else self.what
        if not self.remedy:
            return message
        stop = "" if message.endswith((".", "?", "!")) else "."
        return f"{message}{stop} {self.remedy}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the facts instead of calling ``__init__`` with positional arguments."""
        return _rebuild, (type(self), self.args), self.__dict__


class ConfigError(HetCacheError):
    """A setting or an argument is unknown, missing, malformed or out of range.

    Args:
        what: What went wrong.
        where: The policy, file or option that was being read.
        remedy: What to do about it.
        setting: Name of the setting.
        given: The value found, or ``NOT_GIVEN``.
        allowed: What would have been accepted.
        nearest: The known name closest to an unknown one.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        remedy: str = "",
        setting: str = "",
        given: object = NOT_GIVEN,
        allowed: Iterable[str] = (),
        nearest: str | None = None,
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.setting = setting
        self.given = given
        self.allowed = tuple(allowed)
        self.nearest = nearest


class PluginError(HetCacheError):
    """Something is wrong with an installed plugin.

    Args:
        what: What went wrong.
        where: Where; by default the plugin and its distribution.
        remedy: What to do about it.
        plugin: Name of the plugin, which is its entry point's name.
        distribution: Distribution that installed it, with its version.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        remedy: str = "",
        plugin: str = "",
        distribution: str = "",
    ) -> None:
        if not where and plugin:
            origin = f" (distribution {distribution})" if distribution else ""
            where = f"plugin {plugin!r}{origin}"
        super().__init__(what, where=where, remedy=remedy)
        self.plugin = plugin
        self.distribution = distribution


class PluginConflictError(PluginError):
    """Two distributions provide the same name, and none of them is chosen silently.

    Args:
        what: What went wrong.
        kind: What the name names: ``"plugin"``, ``"policy"``, ``"backbone"`` or ``"clip set"``.
        name: The name provided twice.
        distributions: All distributions that provide it, each with its version.
        where: Where it was found.
        remedy: What to do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        kind: str,
        name: str,
        distributions: Iterable[str],
        where: str = "",
        remedy: str = "",
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.kind = kind
        self.name = name
        self.distributions = tuple(distributions)


class PluginLoadError(PluginError):
    """A plugin, or the class that it registered, cannot be loaded.

    Args:
        what: What went wrong.
        where: Where; by default the plugin and its distribution.
        remedy: What to do about it.
        plugin: Name of the plugin, or "" when several may be at fault.
        distribution: Distribution that installed it, with its version.
        target: The ``"package.module:Class"`` that was being loaded.
        failed: Names of all plugins that failed, when any may be the one missing.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        remedy: str = "",
        plugin: str = "",
        distribution: str = "",
        target: str = "",
        failed: Iterable[str] = (),
    ) -> None:
        super().__init__(what, where=where, remedy=remedy, plugin=plugin, distribution=distribution)
        self.target = target
        self.failed = tuple(failed)


class PluginWarning(UserWarning):
    """A plugin is installed but cannot be used, or a name to be blocked matches no plugin."""


class UnsupportedBackboneError(HetCacheError):
    """A pipeline or an option of it is not supported, or its library is not installed.

    Args:
        what: What went wrong.
        where: Where; by default the backbone.
        remedy: What to do; by default to run ``pip``.
        backbone: Name of the backbone.
        option: The pipeline option that cannot be carried.
        pip: The command that installs the missing library, such as
            ``"pip install hetcache[diffsynth]"``.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        remedy: str = "",
        backbone: str = "",
        option: str = "",
        pip: str = "",
    ) -> None:
        if not where and backbone:
            where = f"backbone {backbone!r}"
        if not remedy and pip:
            remedy = f"Run: {pip}"
        super().__init__(what, where=where, remedy=remedy)
        self.backbone = backbone
        self.option = option
        self.pip = pip


class ContractError(HetCacheError):
    """A policy, a backbone or a registration breaks its contract.

    Args:
        what: What went wrong.
        where: Where; by default the subject, and the check that found it.
        remedy: What to do about it.
        subject: The class or registration that breaks the contract.
        check: Name of the check that found it.
    """

    def __init__(
        self, what: str, *, where: str = "", remedy: str = "", subject: str = "", check: str = ""
    ) -> None:
        if not where:
            where = ", ".join(part for part in (subject, check) if part)
        super().__init__(what, where=where, remedy=remedy)
        self.subject = subject
        self.check = check


class CacheStateError(HetCacheError):
    """A value was asked for that the cache does not hold, or a step index does not follow on.

    Args:
        what: What went wrong.
        where: Where it went wrong.
        remedy: What to do about it.
        key: The cache entry asked for.
        branch: The guidance branch.
        step: The step index found.
        expected_step: The step index that should have come.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        remedy: str = "",
        key: str = "",
        branch: str = "",
        step: int | None = None,
        expected_step: int | None = None,
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.key = key
        self.branch = branch
        self.step = step
        self.expected_step = expected_step


class CacheBudgetError(HetCacheError):
    """Storing a value would pass the hard byte limit of the cache.

    Args:
        what: What went wrong.
        needed_bytes: Bytes of the value to be stored.
        held_bytes: Bytes already held.
        budget_bytes: The limit.
        where: Where it went wrong.
        remedy: What to do about it.
        key: The cache entry to be stored.
    """

    def __init__(
        self,
        what: str,
        *,
        needed_bytes: int | None = None,
        held_bytes: int | None = None,
        budget_bytes: int | None = None,
        where: str = "",
        remedy: str = "",
        key: str = "",
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.needed_bytes = needed_bytes
        self.held_bytes = held_bytes
        self.budget_bytes = budget_bytes
        self.key = key
