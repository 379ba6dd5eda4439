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
    ├── CacheBudgetError              storing a value would pass the hard byte limit
    ├── PipelineBusyError             another session has the pipeline
    ├── RunCancelledError             Session.cancel ended the run, or the wait for the pipeline
    └── NonFiniteError                a run ended in latents that hold NaN or infinity

Every error is made as ``Error(what, where=…, remedy=…, **facts)``: ``what`` went wrong, ``where`` (a
plugin, a policy, a command-line option), and what the reader can do about it. The message is put
together from these three, on one line. Errors can be pickled and copied with their facts, so that
they survive a process pool; as with any exception, the cause is not pickled.

``PluginWarning`` is the one warning category: discovery warns with it of plugins that it cannot use.
"""

from __future__ import annotations

import copyreg
import difflib
from collections.abc import Iterable
from typing import Any, Final, final

from attrs import define, field

__all__ = [
    "NOT_GIVEN",
    "CacheBudgetError",
    "CacheStateError",
    "ConfigError",
    "ContractError",
    "HetCacheError",
    "NonFiniteError",
    "PipelineBusyError",
    "PluginConflictError",
    "PluginError",
    "PluginLoadError",
    "PluginWarning",
    "RunCancelledError",
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


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(names)


# attrs writes the constructors; __dict__ rather than slots lets copies and subclasses carry what they add.
@define(slots=False)
class HetCacheError(Exception):
    """The base of every error that hetcache raises on purpose.

    Attributes:
        what: What went wrong, without a closing full stop.
        where: Where it went wrong; put before ``what``, followed by a colon.
        remedy: What the reader can do, as a sentence; put after ``what``.
    """

    what: str
    where: str = field(default="", kw_only=True)
    remedy: str = field(default="", kw_only=True)

    def __str__(self) -> str:
        """Put the message together: where, what, remedy."""
        message = f"{self.where}: {self.what}" if self.where else self.what
        if not self.remedy:
            return message
        stop = "" if message.endswith((".", "?", "!")) else "."
        return f"{message}{stop} {self.remedy}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the facts: exceptions are rebuilt from positional arguments, facts go by name."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]  # not in the stubs


@define(slots=False)
class ConfigError(HetCacheError):
    """A setting or an argument is unknown, missing, malformed or out of range.

    Attributes:
        setting: Name of the setting.
        given: The value found, or ``NOT_GIVEN``.
        allowed: What would have been accepted.
        nearest: The known name closest to an unknown one.
    """

    setting: str = field(default="", kw_only=True)
    given: object = field(default=NOT_GIVEN, kw_only=True)
    allowed: tuple[str, ...] = field(default=(), kw_only=True, converter=_names)
    nearest: str | None = field(default=None, kw_only=True)


@define(slots=False)
class PluginError(HetCacheError):
    """Something is wrong with an installed plugin.

    Attributes:
        plugin: Name of the plugin, which is its entry point's name.
        distribution: Distribution that installed it, with its version.
        where: By default the plugin and its distribution.
    """

    plugin: str = field(default="", kw_only=True)
    distribution: str = field(default="", kw_only=True)
    where: str = field(kw_only=True)

    @where.default
    def _origin(self) -> str:
        if not self.plugin:
            return ""
        origin = f" (distribution {self.distribution})" if self.distribution else ""
        return f"plugin {self.plugin!r}{origin}"


@final
@define(slots=False)
class PluginConflictError(PluginError):
    """Two distributions provide the same name, and none of them is chosen silently.

    Attributes:
        kind: What the name names: ``"plugin"``, ``"policy"``, ``"backbone"`` or ``"clip set"``.
        name: The name provided twice.
        distributions: All distributions that provide it, each with its version.
    """

    kind: str = field(kw_only=True)
    name: str = field(kw_only=True)
    distributions: tuple[str, ...] = field(kw_only=True, converter=_names)


@final
@define(slots=False)
class PluginLoadError(PluginError):
    """A plugin, or the class that it registered, cannot be loaded.

    Attributes:
        target: The ``"package.module:Class"`` that was being loaded.
        failed: Names of all plugins that failed, when any may be the one missing; ``plugin`` is ""
            then.
    """

    target: str = field(default="", kw_only=True)
    failed: tuple[str, ...] = field(default=(), kw_only=True, converter=_names)


class PluginWarning(UserWarning):
    """A plugin is installed but cannot be used, or a name to be blocked matches no plugin."""


@final
@define(slots=False)
class UnsupportedBackboneError(HetCacheError):
    """A pipeline or an option of it is not supported, or its library is not installed.

    Attributes:
        backbone: Name of the backbone.
        option: The pipeline option that cannot be carried.
        pip: The command that installs the missing library, such as
            ``"pip install hetcache[diffsynth]"``.
        where: By default the backbone.
        remedy: By default to run ``pip``.
    """

    backbone: str = field(default="", kw_only=True)
    option: str = field(default="", kw_only=True)
    pip: str = field(default="", kw_only=True)
    where: str = field(kw_only=True)
    remedy: str = field(kw_only=True)

    @where.default
    def _place(self) -> str:
        return f"backbone {self.backbone!r}" if self.backbone else ""

    @remedy.default
    def _install(self) -> str:
        return f"Run: {self.pip}" if self.pip else ""


@final
@define(slots=False)
class ContractError(HetCacheError):
    """A policy, a backbone or a registration breaks its contract.

    Attributes:
        subject: The class or registration that breaks the contract.
        check: Name of the check that found it.
        where: By default the subject, and the check that found it.
    """

    subject: str = field(default="", kw_only=True)
    check: str = field(default="", kw_only=True)
    where: str = field(kw_only=True)

    @where.default
    def _place(self) -> str:
        return ", ".join(part for part in (self.subject, self.check) if part)


@final
@define(slots=False)
class CacheStateError(HetCacheError):
    """A value was asked for that the cache does not hold, or a step index does not follow on.

    Attributes:
        key: The cache entry asked for.
        branch: The guidance branch.
        step: The step index found.
        expected_step: The step index that should have come.
    """

    key: str = field(default="", kw_only=True)
    branch: str = field(default="", kw_only=True)
    step: int | None = field(default=None, kw_only=True)
    expected_step: int | None = field(default=None, kw_only=True)


@final
@define(slots=False)
class CacheBudgetError(HetCacheError):
    """Storing a value would pass the hard byte limit of the cache.

    Attributes:
        needed_bytes: Bytes of the value to be stored.
        held_bytes: Bytes already held.
        budget_bytes: The limit.
        key: The cache entry to be stored.
    """

    needed_bytes: int | None = field(default=None, kw_only=True)
    held_bytes: int | None = field(default=None, kw_only=True)
    budget_bytes: int | None = field(default=None, kw_only=True)
    key: str = field(default="", kw_only=True)


@final
@define(slots=False)
class NonFiniteError(HetCacheError):
    """A run ended in latents that hold NaN or infinity, which would be decoded to black frames.

    Attributes:
        first_step: The first step after which they did, counted from 0.
        steps: Steps of the run.
    """

    first_step: int = field(kw_only=True)
    steps: int = field(kw_only=True)


@final
@define(slots=False)
class RunCancelledError(HetCacheError):
    """``Session.cancel`` ended a run, or the wait for its pipeline.

    Attributes:
        steps_done: Steps that were done.
        steps: Steps of the run; 0 where it had not begun.
        run_id: The run, as in its trace and log records; "" where it had not begun.
    """

    what: str = field(default="The run was cancelled")
    steps_done: int = field(default=0, kw_only=True)
    steps: int = field(default=0, kw_only=True)
    run_id: str = field(default="", kw_only=True)


@final
@define(slots=False)
class PipelineBusyError(HetCacheError):
    """A pipeline is in another session, which has not been left.

    Attributes:
        pipeline: Name of the pipeline's class.
        remedy: By default to wait for it.
    """

    what: str = field(default="This pipeline is already in a session")
    pipeline: str = field(default="", kw_only=True)
    remedy: str = field(
        default="Leave that one first, or let accelerate(..., wait=True) wait for it.", kw_only=True
    )
