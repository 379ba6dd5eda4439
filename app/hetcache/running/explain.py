"""``hetcache explain``: how the steps of a recorded run came to be what they were, in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, final

from attrs import frozen
from rich.console import Console
from rich.text import Text

from hetcache_core import ConfigError, Trace
from hetcache_core.records.trace import CallRecord, StepRecord

__all__ = ["Explained", "explain", "explain_difference", "print_explained"]

MAKERS: Final = {"budget": "the budget", "gate": "the gate", "cache": "the cache"}


@final
@frozen
class Explained:
    """What was found, as ``--json`` prints it."""

    values: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return it."""
        return self.values


def print_explained(found: Explained) -> None:
    """Print what was found, for people."""
    lines = _parting(found.values) if "runs" in found.values else _told_run(found.values)
    Console().print(Text("\n".join(lines)), soft_wrap=True)


def explain(path: Path, step: int | None = None) -> Explained:
    """Say how each step of a run came to be what it was.

    Args:
        path: A trace of ``--trace`` or ``Trace.save``.
        step: One step, or None for all.

    Raises:
        ConfigError: The file is no trace, or the run has no such step.
    """
    trace = Trace.load(path)
    done = sorted({record.step for record in trace.records})
    if step is not None and step not in done:
        raise ConfigError(
            f"there is no step {step}: the run has {len(done)}, counted from 0",
            where="--step",
            setting="step",
            given=step,
        )
    chosen = done if step is None else [step]
    return Explained(
        {
            "summary": trace.summary(),
            "guards": trace.guards,
            "target_speedup": trace.target_speedup,
            "notes": trace.notes,
            "steps": [_step(trace, index) for index in chosen],
        }
    )


def explain_difference(first: Path, second: Path) -> Explained:
    """Say where two runs part.

    Args:
        first: A trace.
        second: Another one.

    Returns:
        ``parts_at`` is the first step at which they do different things, or
        None where they do not. Two runs of different length part where the shorter one ends.

    Raises:
        ConfigError: One of the files is no trace.
    """
    paths, traces = (first, second), (Trace.load(first), Trace.load(second))
    runs = [_done(trace) for trace in traces]
    longest = max(len(run) for run in runs)
    parts_at = next(
        (step for step in range(longest) if runs[0].get(step) != runs[1].get(step)), None
    )
    found = [
        {
            "trace": str(path),
            "summary": trace.summary(),
            "step": _step(trace, parts_at) if parts_at is not None and parts_at in run else None,
        }
        for path, trace, run in zip(paths, traces, runs, strict=True)
    ]
    return Explained({"parts_at": parts_at, "differ": _differences(*traces), "runs": found})


def _told_run(explained: dict[str, Any]) -> Iterator[str]:
    yield explained["summary"]
    if explained["target_speedup"] is not None:
        yield f"asked for {explained['target_speedup']:g}x fewer FLOPs"
    yield from (_guard(name, guard) for name, guard in explained["guards"].items())
    yield from (f"note: {note}" for note in explained["notes"])
    for step in explained["steps"]:
        yield from ["", *_told(step)] if len(explained["steps"]) == 1 else [_line(step)]


def _step(trace: Trace, index: int) -> dict[str, Any]:
    calls = [record for record in trace.records if record.step == index]
    decided = next((d for d in trace.decisions if d.step == index), None)
    if decided is None:  # an older trace says what was done, and for which reason
        first = calls[0]
        decided = StepRecord(
            step=index, wanted=first.mode, reason=first.reason, signal=first.signal, done=first.mode
        )
    return {
        "step": index,
        "wanted": decided.wanted.value,
        "reason": decided.reason,
        "signal": decided.signal,
        "changes": [
            {"by": change.by, "mode": change.mode.value, "reason": change.reason}
            for change in decided.changes
        ],
        "done": decided.done.value,
        "expert": calls[0].expert,
        "calls": [_call(call) for call in calls],
    }


def _call(call: CallRecord) -> dict[str, Any]:
    return {
        "branch": call.branch,
        "mode": call.mode.value,
        "reason": call.reason,
        "blocks_run": call.blocks_run,
        "parts_reused": call.parts_reused,
        "active": call.active,
        "tokens": call.tokens,
        "flops_share": call.flops / call.flops_full if call.flops_full else None,
    }


def _done(trace: Trace) -> dict[int, list[tuple[Any, ...]]]:
    """Return what the calls of each step did."""
    done: dict[int, list[tuple[Any, ...]]] = {}
    for call in trace.records:
        work = (call.branch, call.mode, call.blocks_run, call.parts_reused, call.active)
        done.setdefault(call.step, []).append(work)
    return done


def _differences(first: Trace, second: Trace) -> dict[str, list[Any]]:
    """Return what the runs were asked for differently, by name: the first's value and the second's."""
    asked = [
        {
            "policy": trace.policy,
            "backbone": trace.backbone,
            "steps": trace.steps,
            "tokens": trace.tokens,
            "target_speedup": trace.target_speedup,
            **{f"settings.{name}": value for name, value in trace.settings.items()},
            **{f"guards.{name}": guard["steps"] for name, guard in trace.guards.items()},
        }
        for trace in (first, second)
    ]
    names = dict.fromkeys([*asked[0], *asked[1]])
    pairs = {name: [each.get(name) for each in asked] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _chain(step: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    yield "the policy", step["wanted"], step["reason"]
    for change in step["changes"]:
        yield MAKERS.get(change["by"], change["by"]), change["mode"], change["reason"]


def _line(step: dict[str, Any]) -> str:
    chain = [f"{who}: {mode} ({reason})" for who, mode, reason in _chain(step)]
    return f"{step['step']:4d}  {step['done']:<8} {'; '.join(chain)}"


def _told(step: dict[str, Any]) -> Iterator[str]:
    yield f"step {step['step']}: {step['done']}"
    for who, mode, reason in _chain(step):
        yield f"  {who:<11} {mode:<8} {reason}"
    for call in step["calls"]:
        share = "" if call["flops_share"] is None else f", {call['flops_share']:.0%} of its FLOPs"
        yield (
            f"  call {call['branch']}: {call['mode']}, {call['blocks_run']} blocks run, "
            f"{call['active']} of {call['tokens']} tokens, {call['parts_reused']} sub-layers "
            f"reused{share} ({call['reason']})"
        )


def _guard(name: str, guard: dict[str, Any]) -> str:
    whose = "set" if guard["by"] == "user" else "the policy's own"
    unit = "in a row at most" if name == "longest_reuse" else "steps"
    return f"guard {name}={guard['given']}: {guard['steps']} {unit} ({whose})"


def _parting(explained: dict[str, Any]) -> Iterator[str]:
    for run in explained["runs"]:
        yield f"{run['trace']}: {run['summary']}"
    for name, (first, second) in explained["differ"].items():
        yield f"asked differently: {name} is {first} and {second}"
    if explained["parts_at"] is None:
        yield "they do the same at every step"
        return
    yield f"they part at step {explained['parts_at']}"
    for run in explained["runs"]:
        yield ""
        yield f"{run['trace']}:"
        yield from ["  it has ended"] if run["step"] is None else _told(run["step"])
