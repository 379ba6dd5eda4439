"""The hooks that a hetcache plugin may implement.

A plugin is a module that an installed distribution names in its entry-point group ``hetcache``::

    [project.entry-points.hetcache]
    nth-step = "hetcache_nth_step.plugin"

and that marks one or more of the hooks below with ``@hookimpl``::

    from hetcache_core.plugins.hookspecs import Registration, hookimpl

    @hookimpl
    def hetcache_register_policies():
        return [
            Registration(
                name="nth-step",
                target="hetcache_nth_step.policy:NthStep",
                summary="run every n-th step, reuse in between",
            )
        ]

A hook implementation may take fewer arguments than its specification. Wrappers are refused, and
all hooks run outside of the step loop. A plugin that raises or answers wrongly is reported with its
name and distribution and provides nothing; the others go on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import pluggy
from attrs import Attribute, field, frozen

from hetcache_core.errors import ContractError

if TYPE_CHECKING:
    from hetcache_core.records.trace import Trace

__all__ = [
    "PROJECT_NAME",
    "Registration",
    "hetcache_observe_run",
    "hetcache_register_backbones",
    "hetcache_register_clip_sets",
    "hetcache_register_commands",
    "hetcache_register_correctors",
    "hetcache_register_metrics",
    "hetcache_register_model_sets",
    "hetcache_register_partitioners",
    "hetcache_register_policies",
    "hetcache_register_predictors",
    "hetcache_register_report_sections",
    "hetcache_register_selectors",
    "hetcache_register_signals",
    "hookimpl",
    "hookspec",
]

PROJECT_NAME: Final = "hetcache"
"""Name of the pluggy project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
"""Marks the functions below as hooks."""

hookimpl = pluggy.HookimplMarker(PROJECT_NAME)
"""Marks a plugin's function as the implementation of the hook of the same name."""

# No "+", which composes policies, and no ".", which sets off a composed policy's settings.
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]*")
_TARGET: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def _check_name(_registration: Registration, _: Attribute[str], name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ContractError(
            f"the name {name!r} is malformed",
            subject="Registration",
            remedy="Use lower-case letters, digits, '_' and '-', such as 'nth-step'.",
        )


def _check_target(registration: Registration, _: Attribute[str | type], target: object) -> None:
    if isinstance(target, type):
        return
    if not isinstance(target, str) or not _TARGET.fullmatch(target):
        raise ContractError(
            f"the target {target!r} is neither a class nor 'package.module:Class'",
            subject=f"Registration {registration.name!r}",
            remedy="Name the class, such as 'hetcache_nth_step.policy:NthStep'.",
        )


def _check_summary(registration: Registration, _: Attribute[str], summary: object) -> None:
    if not isinstance(summary, str) or not summary.strip() or len(summary.splitlines()) > 1:
        raise ContractError(
            f"the summary {summary!r} is not one line of text",
            subject=f"Registration {registration.name!r}",
            remedy="Say on one line what it does; listings show it.",
        )


@frozen(kw_only=True)
class Registration:
    """One thing that a plugin provides, of any kind.

    Args:
        name: The name people choose it by; equal to the class's own ``name``.
        target: ``"package.module:Class"``, loaded when it is first asked for, or the class
            itself. Prefer the text: listing plugins then imports neither the module nor torch.
        summary: What it does, on one line.

    Raises:
        ContractError: If one of the three is malformed.
    """

    name: str = field(validator=_check_name)
    target: str | type = field(validator=_check_target)
    summary: str = field(validator=_check_summary)


@hookspec
def hetcache_register_policies() -> Iterable[Registration]:
    """Provide caching policies.

    Called once by each ``discover()``, before any pipeline exists. Import nothing heavy here: name
    the classes as text.

    Returns:
        The policies, each with a name that no other plugin provides. The targets are subclasses
        of ``hetcache_core.policy.recipe.PolicyRecipe``.

    Raises:
        Exception: Whatever is raised is recorded with the plugin's name; the plugin then provides
            nothing, and the others are not affected.

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def hetcache_register_backbones() -> Iterable[Registration]:
    """Provide backbones, which map a library's diffusion transformer onto the hooks of the engine.

    Called once by each ``discover()``, before any pipeline exists. Import nothing heavy here: name
    the classes as text.

    Returns:
        The backbones, each with a name that no other plugin provides. The targets are subclasses
        of ``hetcache_core.backbone.adapter.Backbone``.

    Raises:
        Exception: Whatever is raised is recorded with the plugin's name; the plugin then provides
            nothing, and the others are not affected.

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def hetcache_register_clip_sets() -> Iterable[Registration]:
    """Provide sets of clips that policies are compared on (``hetcache compare --clips NAME``).

    Called once by each ``discover()``, before any pipeline exists. Import nothing heavy here: name
    the classes as text.

    Returns:
        The clip sets, each with a name that no other plugin provides. The targets are subclasses
        of ``hetcache_core.plugins.clips.ClipSet``.

    Raises:
        Exception: Whatever is raised is recorded with the plugin's name; the plugin then provides
            nothing, and the others are not affected.

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def hetcache_register_selectors() -> Iterable[Registration]:
    """Provide context selectors, which choose the context tokens that stay active in partial steps.

    Called once by each ``discover()``, before any pipeline exists. Import nothing heavy here: name
    the classes as text.

    Returns:
        The selectors, each with a name that no other plugin provides. The targets are subclasses
        of ``hetcache_core.tokens.ContextSelector``,
        whose fields are their settings (``--set selector.NAME=VALUE``).

    Raises:
        Exception: Whatever is raised is recorded with the plugin's name; the plugin then provides
            nothing, and the others are not affected.

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def hetcache_register_partitioners() -> Iterable[Registration]:
    """Provide token partitioners, which give every token its role.

    Called once by each ``discover()``, before any pipeline exists. Import nothing heavy here: name
    the classes as text.

    Returns:
        The partitioners, each with a name that no other plugin provides. The targets are subclasses
        of ``hetcache_core.tokens.TokenPartitioner``,
        whose fields are their settings.

    Raises:
        Exception: Whatever is raised is recorded with the plugin's name; the plugin then provides
            nothing, and the others are not affected.

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def hetcache_register_predictors() -> Iterable[Registration]:
    """Provide predictors, which stand in for what a step does not compute.

    Called once by each ``discover()``, before any pipeline exists. Import nothing heavy here: name
    the classes as text.

    Returns:
        The predictors, each with a name that no other plugin provides. The targets are subclasses
        of ``hetcache_core.policy.pieces.Predictor``,
        whose fields are their settings (``--set predictor.NAME=VALUE``).

    Raises:
        Exception: Whatever is raised is recorded with the plugin's name; the plugin then provides
            nothing, and the others are not affected.

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def hetcache_register_correctors() -> Iterable[Registration]:
    """Provide correctors, which say what a computed step pays back for those before it that were not.

    Called once by each ``discover()``, before any pipeline exists. Import nothing heavy here: name
    the classes as text.

    Returns:
        The correctors, each with a name that no other plugin provides. The targets are subclasses
        of ``hetcache_core.policy.pieces.Corrector``,
        whose fields are their settings (``--set corrector.NAME=VALUE``).

    Raises:
        Exception: Whatever is raised is recorded with the plugin's name; the plugin then provides
            nothing, and the others are not affected.

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def hetcache_register_signals() -> Iterable[Registration]:
    """Provide signals, whose change from step to step policies look at.

    Called once by each ``discover()``, before any pipeline exists. Import nothing heavy here: name
    the classes as text.

    Returns:
        The signals, each with a name that no other plugin provides. The targets are subclasses
        of ``hetcache_core.policy.signals.Signal``,
        whose fields are their settings.

    Raises:
        Exception: Whatever is raised is recorded with the plugin's name; the plugin then provides
            nothing, and the others are not affected.

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def hetcache_register_model_sets() -> Iterable[Registration]:
    """Provide descriptions of diffusers' transformers, which the backbone ``diffusers`` goes by.

    Called once by each ``discover()``, before any pipeline exists. Import nothing heavy here: name
    the classes as text.

    Returns:
        The model sets, each with a name that no other plugin provides. The targets are subclasses
        of ``hetcache_backends.diffusers.description.ModelSet``.

    Raises:
        Exception: Whatever is raised is recorded with the plugin's name; the plugin then provides
            nothing, and the others are not affected.

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def hetcache_register_metrics() -> Iterable[Registration]:
    """Provide metrics: columns of tables, CSV files, plots and pages.

    Called once by each ``discover()``, before any pipeline exists. Import nothing heavy here: name
    the classes as text.

    Returns:
        The metrics, each with a name that no other plugin provides. The targets are subclasses
        of ``hetcache.quality.metric.Metric``.

    Raises:
        Exception: Whatever is raised is recorded with the plugin's name; the plugin then provides
            nothing, and the others are not affected.

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def hetcache_register_commands() -> Iterable[Registration]:
    """Provide commands of the command line (``hetcache NAME``).

    Called once by each ``discover()``, before any pipeline exists. Import nothing heavy here: name
    the classes as text.

    Returns:
        The commands, each with a name that no other plugin provides. The targets are subclasses
        of ``hetcache.cli.command.Command``.

    Raises:
        Exception: Whatever is raised is recorded with the plugin's name; the plugin then provides
            nothing, and the others are not affected.

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def hetcache_register_report_sections() -> Iterable[Registration]:
    """Provide sections of the page that ``hetcache report`` writes.

    Called once by each ``discover()``, before any pipeline exists. Import nothing heavy here: name
    the classes as text.

    Returns:
        The sections, each with a name that no other plugin provides. The targets are subclasses
        of ``hetcache.comparison.page.section.ReportSection``.

    Raises:
        Exception: Whatever is raised is recorded with the plugin's name; the plugin then provides
            nothing, and the others are not affected.

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def hetcache_observe_run(trace: Trace) -> None:
    """Observe a run that ended, for instance to log it or to save its trace.

    Called once for every run, in the run's thread: when its last step has been computed, or when it
    was cancelled or interrupted, and ``trace.complete`` is False. A run that an error ends is not
    observed. Nothing that the observer does changes the run's result.

    Args:
        trace: What was decided and computed: a copy of the observer's own.

    Raises:
        Exception: Whatever is raised is logged with the plugin's name; the run and the other
            observers go on.

    .. versionadded:: 0.1
    """
    raise NotImplementedError
