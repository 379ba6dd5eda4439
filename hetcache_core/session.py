"""One policy bound to one pipeline for as long as a ``with`` block lasts."""

from __future__ import annotations

import html
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import reduce
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from attrs import define, evolve, field

from hetcache_core.backbone.compiling import BlockCompiler, many_graphs, uncompiled
from hetcache_core.engine.loop import Engine
from hetcache_core.errors import (
    CacheStateError,
    ConfigError,
    PipelineBusyError,
    PluginError,
    RunCancelledError,
    UnsupportedBackboneError,
)
from hetcache_core.plugins.discovery import Registry, discover
from hetcache_core.policy.guards import GUARDS, Guards
from hetcache_core.policy.recipe import CachePolicy, PolicyRecipe, combine
from hetcache_core.records.trace import CallRecord, Trace
from hetcache_core.settings.declare import build, declared, plain_values
from hetcache_core.steps import ModelInfo, StepInfo
from hetcache_core.store import StoreSettings

if TYPE_CHECKING:
    from typing_extensions import Self

    from hetcache_core.backbone.adapter import Backbone

_LEFT: Final = threading.Condition()
"""Tells sessions that wait for their pipeline that one was left."""

_HOLDERS: Final[dict[int, int]] = {}
"""Threads by the identity of the pipeline that a session of theirs has."""

StepCallback = Callable[[StepInfo, Sequence[CallRecord]], None]


@define(eq=False, repr=False)
class Session:
    """A policy on a pipeline; enter it, call the pipeline as usual, leave it.

    Leaving restores the pipeline exactly, also after an exception.

    Attributes:
        pipeline: the user's pipeline.
        backbone: the adapter that carries it.
        policy: what is done.
        traces: those of the last runs that ended, oldest first, as many as ``keep_traces`` says; one that
            was interrupted or cancelled is not complete.
    """

    pipeline: Any
    backbone: Backbone
    policy: CachePolicy
    _engine: Engine
    _wait: bool | float = False
    traces: list[Trace] = field(factory=list, init=False)
    _stack: ExitStack | None = field(default=None, init=False)

    @property
    def id(self) -> str:
        """What identifies the session in traces and log records."""
        return self._engine.session_id

    def _head(self) -> str:
        state = "active" if self._stack is not None else "not active"
        kind = type(self.pipeline).__name__
        return f"Session {self.id}: {self.policy.name} on {self.backbone.name} ({kind}), {state}"

    def __repr__(self) -> str:
        last = f"; last run {self.trace!r}" if self.traces else ""
        return f"<{self._head()}{last}>"

    def _repr_html_(self) -> str:
        """Draw the last run, for notebooks."""
        last = self.trace._repr_html_() if self.traces else ""  # IPython's name
        return f"<p>{html.escape(self._head())}</p>{last}"

    def cancel(self) -> None:
        """End what the session does, from any thread, with ``RunCancelledError`` in its own.

        A run under way ends before its next step: its cache is freed, and its trace is kept with
        ``complete`` False. A session that waits for its pipeline stops waiting. Where neither is so,
        the next run, or entering, ends at once; leaving the session forgets a cancellation.
        """
        with _LEFT:
            self._engine.cancelled.set()
            _LEFT.notify_all()

    @property
    def trace(self) -> Trace:
        """The trace of the last finished run.

        Raises:
            CacheStateError: no run has finished yet.
        """
        if not self.traces:
            raise CacheStateError("No run has finished in this session; call the pipeline first.")
        return self.traces[-1]

    def __enter__(self) -> Self:
        """Route the pipeline through the engine.

        Raises:
            PipelineBusyError: another session has the pipeline, and was not left in the time that
                this one waits; one of the same thread never would be.
            RunCancelledError: it was cancelled.
        """
        if self._stack is not None:
            raise CacheStateError("This session is already active; make another with accelerate().")
        latest = time.monotonic() + (math.inf if self._wait is True else self._wait)
        with _LEFT:
            while True:
                if self._engine.cancelled.is_set():
                    self._engine.cancelled.clear()
                    raise RunCancelledError("The session was cancelled before it had its pipeline")
                try:
                    self._attach()
                except PipelineBusyError:
                    left = latest - time.monotonic()
                    if left <= 0 or _HOLDERS.get(id(self.pipeline)) == threading.get_ident():
                        raise
                    _LEFT.wait(None if math.isinf(left) else left)
                else:
                    _HOLDERS[id(self.pipeline)] = threading.get_ident()
                    return self

    def _attach(self) -> None:
        with ExitStack() as stack:
            # A model that is compiled as a whole is run in parts: its blocks are compiled instead.
            backend = stack.enter_context(uncompiled(self.pipeline))
            if backend and self._engine.compiler is None and self.backbone.features.compiled:
                self._engine.compiler = BlockCompiler(backend)
                stack.callback(setattr, self._engine, "compiler", None)
            if self._engine.compiler is not None:
                stack.enter_context(many_graphs())
            stack.enter_context(self.backbone.attach(self.pipeline, self._engine))
            self._stack = stack.pop_all()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Restore the pipeline and free everything kept."""
        stack, self._stack = self._stack, None
        try:
            self._engine.abort_run()
            self._engine.cancelled.clear()
        finally:
            if stack is not None:
                with _LEFT:
                    _HOLDERS.pop(id(self.pipeline), None)
                    _LEFT.notify_all()
                    stack.__exit__(kind, error, traceback)


def accelerate(
    pipeline: Any,
    policy: str | PolicyRecipe | CachePolicy = "auto",
    *,
    settings: Mapping[str, object] | None = None,
    preset: str | None = None,
    backbone: str | Backbone | None = None,
    store: StoreSettings | None = None,
    guards: Guards | None = None,
    target_speedup: float | None = None,
    target_quality: float | None = None,
    compile: bool | str = False,  # noqa: A002  # as torch calls it
    wait: bool | float = False,
    keep_traces: int | None = 1,
    registry: Registry | None = None,
    on_step: StepCallback | None = None,
    on_run: Callable[[Trace], None] | None = None,
) -> Session:
    """Make a session that runs a pipeline with a caching policy.

    Args:
        pipeline: a pipeline of a known backbone.
        policy: registered name, names joined by "+", a recipe, or a ready composition.
        settings: the policy's settings by name; with "+" prefixed ("teacache.threshold").
        preset: "quality", "balanced" or "fast"; ``settings`` go on top of it. A policy that decides
            steps is also asked for the preset's share of FLOPs, unless ``settings`` replace any of
            the preset's own.
        backbone: registered name or adapter; None finds the one that accepts the pipeline.
        store: dtype, device and byte limit of what is kept.
        guards: steps that are computed whatever the policy says, on top of those that ``settings`` set.
        target_speedup: how many times fewer FLOPs to compute; the policy's thresholds follow, and so do
            its guards where nobody set them.
        target_quality: decibels inside the mask to the reference, where the policy (``auto``) can compute
            steps until it is met; stands in for ``target_speedup``.
        compile: run the model's blocks with ``torch.compile``, True or the name of one of its
            backends; the model stays as it is. The first steps of each number of tokens compile, for
            seconds to minutes.
        wait: where another session has the pipeline, wait until it is left, at most so many seconds;
            True waits as long as it takes.
        keep_traces: how many runs' traces the session keeps, at least the last one's; None keeps all.
        registry: plugins to use; None discovers the installed ones.
        on_step: called after every step with its records.
        on_run: called with the trace of every run that ended, a cancelled one too.

    Returns:
        A context manager; nothing is changed before it is entered.

    Raises:
        ConfigError: unknown names, bad settings, or pieces in each other's way.
        UnsupportedBackboneError: no adapter takes the pipeline, or the adapter lacks a feature
            that the policy needs.

    Example:
        ``with accelerate(pipe, "hetcache") as run: video = pipe(...)``, then ``run.trace``.
    """
    if keep_traces is not None and keep_traces < 1:
        raise ConfigError(
            f"keep_traces is {keep_traces}",
            where="accelerate",
            remedy="Give how many traces to keep, at least 1, or None to keep all",
        )
    registry = discover() if registry is None else registry
    adapter = _find_backbone(pipeline, backbone, registry)
    model = adapter.describe(pipeline)
    if target_quality is not None:
        settings = with_quality(policy, settings or {}, target_quality, registry, target_speedup)
    composed, used = resolve_policy(policy, settings or {}, preset, model, registry)
    features = adapter.features_of(pipeline)
    missing = features.missing(composed.needs())
    if missing:
        raise UnsupportedBackboneError(
            f"Policy {composed.name!r} cannot run on backbone {adapter.name!r}, which lacks: "
            f"{', '.join(missing)}. `hetcache backbones` shows what each can carry."
        )
    if composed.guidance is not None and "separate" not in features.guidance:
        raise UnsupportedBackboneError(
            f"policy {composed.name!r} predicts one guidance branch from the other",
            where=f"backbone {adapter.name}",
            remedy="This backbone runs both in one call, where nothing can be left out; use another "
            "policy",
        )
    if target_speedup is not None and composed.step is not None and composed.step.fixed:
        raise ConfigError(
            f"policy {composed.name!r} does what was recorded, and can compute neither more nor less",
            where="target_speedup",
            remedy="Ask the run for it whose schedule is replayed",
        )
    if compile and not features.compiled:
        raise UnsupportedBackboneError(
            "its blocks cannot be run with torch.compile",
            where=f"backbone {adapter.name}",
            remedy="Leave compile (--compile) out",
        )
    traces: list[Trace] = []

    def finished(trace: Trace) -> None:
        notice = adapter.notice(pipeline)
        if notice:
            trace.notes.append(notice)
        traces.append(trace)
        if keep_traces is not None:
            del traces[:-keep_traces]
        if on_run is not None:
            on_run(trace)
        registry.observe_run(trace)

    asked = target_speedup is not None or target_quality is not None
    if not asked and composed.step is not None and isinstance(policy, str):
        target_speedup = _preset_speedup(policy, settings or {}, preset, model, registry)
    engine = Engine(
        policy=composed,
        settings=used,
        store_settings=store or StoreSettings(),
        guards=guards or Guards(),
        target_speedup=None if target_speedup is None else check_target(target_speedup),
        compiler=_compiler(compile),
        on_step=on_step,
        on_run=finished,
    )
    session = Session(pipeline, adapter, composed, engine, wait)
    session.traces = traces
    return session


def _compiler(wanted: bool | str) -> BlockCompiler | None:  # noqa: FBT001  # as accelerate has it
    if isinstance(wanted, str):
        return BlockCompiler(wanted)
    return BlockCompiler() if wanted else None


def resolve_policy(
    policy: str | PolicyRecipe | CachePolicy,
    settings: Mapping[str, object],
    preset: str | None,
    model: ModelInfo,
    registry: Registry,
) -> tuple[CachePolicy, dict[str, Any]]:
    """Turn a policy's name and settings into a composition for a model.

    Returns:
        The composition and the settings that it was made with, for the trace.

    Raises:
        ConfigError: as in ``accelerate``.
    """
    if isinstance(policy, CachePolicy | PolicyRecipe):
        if settings or preset:
            raise ConfigError(
                "settings and preset go with a policy's name; give them to the policy object itself."
            )
        if isinstance(policy, CachePolicy):
            return policy, {}
        return policy.composed(model), _plain_settings(policy)
    names = [name.strip() for name in policy.split("+")]
    used: dict[str, Any] = {}
    recipes = [_recipe(name, names, settings, preset, model, registry) for name in names]
    if len(recipes) > 1:
        alone = [recipe.composed(model) for recipe in recipes]
        recipes = [recipe.beside(alone[:i] + alone[i + 1 :]) for i, recipe in enumerate(recipes)]
    pieces = [
        _with_preset(recipe.composed(model), preset, registry.policy(name), model)
        for name, recipe in zip(names, recipes, strict=True)
    ]
    composed = reduce(combine, pieces)
    for name, recipe in zip(names, recipes, strict=True):
        prefix = f"{name}." if len(names) > 1 else ""
        used |= {f"{prefix}{k}": v for k, v in _plain_settings(recipe).items()}
    stray = [k for k in settings if len(names) > 1 and k.partition(".")[0] not in names]
    if stray:
        raise ConfigError(
            f"Setting {stray[0]!r} does not say which of {', '.join(names)} it is for; write "
            f"{names[0]}.{stray[0]}."
        )
    return composed, used


def _recipe(
    name: str,
    names: Sequence[str],
    settings: Mapping[str, object],
    preset: str | None,
    model: ModelInfo,
    registry: Registry,
) -> PolicyRecipe:
    kind = registry.policy(name)
    own = dict(settings)
    if len(names) > 1:
        own = {k[len(name) + 1 :]: v for k, v in settings.items() if k.startswith(f"{name}.")}
    base = {} if preset is None else kind.preset(preset, model)
    # A preset's guards are defaults: what was set is what a user has set.
    base = {key: value for key, value in base.items() if key not in GUARDS}
    recipe = build(kind, {**base, **own}, where=f"policy {name}", pieces=registry)
    return recipe


def _with_preset(
    composed: CachePolicy, preset: str | None, kind: type[PolicyRecipe], model: ModelInfo
) -> CachePolicy:
    """Put the guards of a preset on top of the policy's own."""
    values = {} if preset is None else kind.preset(preset, model)
    guards = build(Guards, {k: v for k, v in values.items() if k in GUARDS}, where="preset")
    return evolve(composed, guards=guards.over(composed.guards))


def _preset_speedup(
    policy: str,
    settings: Mapping[str, object],
    preset: str | None,
    model: ModelInfo,
    registry: Registry,
) -> float | None:
    """Return the speed-up that a preset stands for, or None where it stands for none."""
    if preset is None or "+" in policy:
        return None
    kind = registry.policy(policy)
    share = kind.preset_shares.get(preset)
    if share is None or (kind.preset(preset, model).keys() - set(GUARDS)) & settings.keys():
        return None
    return 1 / share


def _plain_settings(recipe: PolicyRecipe) -> dict[str, Any]:
    asked = Guards.of(recipe).named
    plain = plain_values(recipe)
    return {name: value for name, value in plain.items() if name not in GUARDS or name in asked}


def _find_backbone(pipeline: Any, wanted: str | Backbone | None, registry: Registry) -> Backbone:
    asked: Backbone | None = registry.backbone(wanted)() if isinstance(wanted, str) else wanted
    if asked is not None and asked.accepts(pipeline):
        return asked
    kind = f"{type(pipeline).__module__}.{type(pipeline).__qualname__}"
    unusable = []
    known = registry.names("backbone")
    candidates: list[Backbone] = []
    for name in known:
        try:
            candidates.append(registry.backbone(name)())
        except (PluginError, UnsupportedBackboneError) as error:
            unusable.append(f"{name} ({error})")  # one broken adapter must not hide the others
    for candidate in sorted(candidates, key=lambda adapter: adapter.general):
        if candidate.accepts(pipeline):
            if asked is None:
                return candidate
            raise UnsupportedBackboneError(
                f"it does not take a {kind}",
                backbone=asked.name,
                remedy=f"Leave backbone out, or name {candidate.name!r}.",
            )
    bases = {f"{base.__module__}.{base.__qualname__}" for base in type(pipeline).__mro__}
    if "torch.nn.modules.module.Module" in bases:
        raise UnsupportedBackboneError(
            f"a {kind} is a model, and no pipeline",
            where="accelerate",
            remedy="Pass the pipeline itself (pipe, where this is pipe.transformer): steps and masks "
            "are its own.",
        )
    if asked is not None:
        raise UnsupportedBackboneError(
            f"it does not take a {kind}, nor does any other", backbone=asked.name
        )
    if any(base.endswith(".ModularPipeline") for base in bases):
        raise UnsupportedBackboneError(
            f"a {type(pipeline).__name__} is made of modules with a guider, whose calls no backbone follows",
            where="accelerate",
            remedy="Use the library's own pipeline for the model, which is no modular one, with the same "
            "components.",
        )
    broken = f" Not usable here: {'; '.join(unusable)}." if unusable else ""
    raise UnsupportedBackboneError(
        f"No installed backbone takes a {kind}. "
        f"Known backbones: {', '.join(known) or 'none'}.{broken}"
    )


QUALITY: Final = "target_quality"
"""Setting of the policies that can be asked for a quality."""


def with_quality(
    policy: str | PolicyRecipe | CachePolicy,
    settings: Mapping[str, object],
    quality: float,
    registry: Registry,
    target_speedup: float | None = None,
) -> Mapping[str, object]:
    """Put an asked quality into the settings of the policy that can meet it.

    Raises:
        ConfigError: no policy can, or how many FLOPs to compute is asked for as well.
    """
    if target_speedup is not None:
        raise ConfigError(
            "a quality and a speed-up are both asked for, and one follows from the other",
            where=QUALITY,
            remedy="Leave one of them out",
        )
    names = [name.strip() for name in policy.split("+")] if isinstance(policy, str) else []
    able = [name for name in names if QUALITY in declared(registry.policy(name))]
    if not able:
        raise ConfigError(
            f"policy {policy if names else 'given as an object'!s} takes none",
            where=QUALITY,
            setting=QUALITY,
            given=quality,
            remedy="Ask auto for it"
            if names
            else "Make it with the quality, such as Auto(target_quality=35)",
        )
    prefix = f"{able[0]}." if len(names) > 1 else ""
    return {**settings, f"{prefix}{QUALITY}": quality}


def check_target(target_speedup: float) -> float:
    """Return the target, checked.

    Raises:
        ConfigError: it is not a number of at least 1.
    """
    if not target_speedup >= 1 or math.isinf(target_speedup):
        raise ConfigError(
            f"the target speed-up is {target_speedup}",
            where="target_speedup",
            remedy="Give how many times fewer FLOPs there should be, at least 1, such as 2.5",
        )
    return target_speedup


__all__ = ["Session", "accelerate", "check_target", "resolve_policy", "with_quality"]
