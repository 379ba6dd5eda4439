"""``hetcache compile-schedule``: what a recorded run did becomes a schedule for ``--policy replay``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, frozen
from rich.console import Console
from rich.text import Text

from hetcache_core import CachePolicy, ConfigError, HetCacheError, Mode, Registry, Trace
from hetcache_core.records.schedule import Schedule
from hetcache_core.session import resolve_policy

__all__ = ["Compiled", "compile_schedule", "print_compiled"]


@frozen(kw_only=True)
class Compiled:
    """A finished schedule.

    Attributes:
        output: The file.
        bytes: Its size.
        policy: The policy whose run was recorded.
        backbone: The backbone that it was recorded on.
        steps: How many steps there are.
        steps_full: Steps that run in full, or whose blocks are reused one by one.
        steps_partial: Steps that run some of the tokens.
        steps_reused: Steps that are reused.
        predicted: How often a branch is predicted.
        blocks: Whether single blocks or sub-layers are reused.
        tokens: Tokens of the runs that it is for.
    """

    output: str
    bytes: int
    policy: str
    backbone: str
    steps: int
    steps_full: int
    steps_partial: int
    steps_reused: int
    predicted: int
    blocks: bool
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return asdict(self)


def compile_schedule(trace_file: Path, output: Path, registry: Registry) -> Compiled:
    """Read a trace and write its schedule.

    Args:
        trace_file: A trace of ``--trace`` or ``Trace.save``.
        output: The schedule.
        registry: Where the recorded policy is looked up.

    Raises:
        ConfigError: The trace cannot be replayed, or the schedule cannot be written; nothing is.
    """
    trace = Trace.load(trace_file)
    schedule = Schedule.of(trace, where=f"trace {trace_file}")
    schedule = _freed(schedule, _composed(schedule, trace_file, registry), registry)
    schedule.save(output)
    plan = schedule.plan
    # What was done: a step that had nothing to reuse was planned as another.
    modes = Counter(trace.modes())
    return Compiled(
        output=str(output),
        bytes=output.stat().st_size,
        policy=schedule.policy,
        backbone=schedule.backbone,
        steps=len(plan.steps),
        steps_full=modes[Mode.FULL],
        steps_partial=modes[Mode.PARTIAL],
        steps_reused=modes[Mode.REUSE],
        predicted=sum(len(step.predicted) for step in plan.steps),
        blocks=bool(plan.actions),
        tokens=plan.grid.tokens,
    )


def print_compiled(made: Compiled) -> None:
    """Print what was written, for people."""
    kinds = [
        f"{count} {kind}"
        for count, kind in (
            (made.steps_full, "full"),
            (made.steps_partial, "partial"),
            (made.steps_reused, "reused"),
        )
        if count
    ]
    lines = [f"{made.steps} steps of {made.policy} on {made.backbone}: {', '.join(kinds)}"]
    if made.blocks:
        lines.append("with what single blocks and sub-layers did")
    if made.predicted:
        lines.append(f"with {made.predicted} predicted calls")
    lines.append(f"written  {made.output} ({made.bytes / 1000:.1f} kB)")
    lines.append(f"run with --policy replay:schedule={made.output}")
    Console().print(Text("\n".join(lines)), soft_wrap=True)


def _composed(schedule: Schedule, trace_file: Path, registry: Registry) -> CachePolicy:
    """Compose the recorded policy again.

    Raises:
        ConfigError: It is not installed, was composed by hand, or is a replay itself.
    """
    where = f"trace {trace_file}"
    try:
        composed, _ = resolve_policy(
            schedule.policy, schedule.settings, None, schedule.plan.model, registry
        )
    except HetCacheError as error:
        raise ConfigError(
            f"its policy {schedule.policy} cannot be composed again: {error}",
            where=where,
            remedy="Only a policy that is chosen by its name can be replayed; install what provides it",
        ) from error
    if composed.step is not None and composed.step.fixed:
        raise ConfigError(
            f"the run was a replay of {schedule.settings.get('schedule', 'a schedule')} itself",
            where=where,
            remedy="Use that schedule",
        )
    return composed


def _freed(schedule: Schedule, composed: CachePolicy, registry: Registry) -> Schedule:
    """Leave out calibration files where all that came of them are decisions, which are recorded."""
    names = schedule.policy.split("+")
    settings = dict(schedule.settings)
    for name in names:
        prefix = f"{name}." if len(names) > 1 else ""
        if settings.get(f"{prefix}calibration") is not None:
            settings[f"{prefix}calibration"] = None
            settings |= {f"{prefix}{k}": v for k, v in registry.policy(name).anywhere.items()}
    model = schedule.plan.model
    try:
        free, _ = resolve_policy(schedule.policy, settings, None, model, registry)
    except ConfigError:
        return schedule
    return evolve(schedule, settings=settings) if _lasting(free) == _lasting(composed) else schedule


def _lasting(policy: CachePolicy) -> tuple[object, ...]:
    """Return what of a policy is composed once more for a replay."""
    blocks = None if policy.blocks is None else policy.blocks.needs_sub_layers
    deciding = (policy.step is None, blocks, policy.selector is None)
    named = (
        policy.guidance,
        policy.predictor,
        policy.corrector,
        policy.partitioner,
        policy.partial,
    )
    return (
        *deciding, *named, policy.reuse_point, policy.spans, policy.sampler_share, policy.features,
    )  # fmt: skip
