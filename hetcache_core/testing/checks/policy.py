"""Checks of a policy: what it decides, what it keeps, and that its runs do not mix."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from attrs import evolve
from torch import Tensor

from hetcache_core.records.trace import CallRecord, Trace
from hetcache_core.steps import Mode
from hetcache_core.store import StoreSettings
from hetcache_core.testing.checks.recipe import RECIPE_CHECKS
from hetcache_core.testing.comparing import (
    NotApplicableError,
    Snapshot,
    failing_block,
    raising,
    require,
    require_same,
)
from hetcache_core.testing.scripted import ScriptedError
from hetcache_core.testing.subject import STEPS, PolicySubject
from hetcache_core.testing.watch import BlockCounter, left_by_the_library, watched_run

_LENGTHS: Final = (1, 2, 8, 20)


def check_it_runs_any_number_of_steps(subject: PolicySubject) -> None:
    """Runs of 1, 2, 8 and 20 steps end, with a finite result and a record for every call."""
    for steps in _LENGTHS:
        engine, result = subject.run(steps, layout=subject.case.layouts[0])
        trace = engine.trace
        require(trace.complete, f"the run of {steps} steps did not end")
        require(
            0 < trace.steps <= steps == trace.requested_steps,
            f"of {steps} steps, {trace.requested_steps} were asked for and {trace.steps} taken",
        )
        recorded = len(trace.modes())
        require(recorded == trace.steps, f"{recorded} of {trace.steps} steps are recorded")
        require(bool(result.isfinite().all()), f"the result of {steps} steps is not finite")
        missing = [record.step for record in trace.records if not record.reason]
        require(not missing, f"steps {missing} of {steps} have no reason")


def check_nothing_is_used_before_it_was_computed(subject: PolicySubject) -> None:
    """The first call of every branch runs in full, and so does the first one of every expert."""
    for layout in subject.case.layouts:
        engine, _ = subject.run(layout=layout)
        first: dict[tuple[str, str], CallRecord] = {}
        for record in engine.trace.records:
            first.setdefault((record.branch, record.expert), record)
        for (branch, _), record in first.items():
            require(
                record.mode is Mode.FULL and record.parts_reused == 0,
                f"guidance {layout!r}, branch {branch!r} begins with {record.mode}",
            )


def check_two_runs_decide_alike(subject: PolicySubject) -> None:
    """One composed policy decides a second run as it did the first, and so does a fresh one."""
    policy = subject.compose()
    runs = [
        watched_run(subject.case, policy, steps=STEPS, layout=subject.layout),
        watched_run(subject.case, policy, steps=STEPS, layout=subject.layout),
        subject.run(),
    ]
    (first, result), *others = runs
    for engine, other in others:
        _require_same_decisions(engine.trace, first.trace, "run again")
        require_same(other, result, "the result of the same run again")


def check_deciding_changes_nothing(subject: PolicySubject) -> None:
    """After a run the policy is what it was; what changes from step to step is in deciders."""
    policy = subject.compose()
    before = subject.compose()
    require(policy == before, "composed twice, two policies come out")
    watched_run(subject.case, policy, steps=STEPS, layout=subject.layout)
    require(
        policy == before,
        "a run has changed the policy",
        "Keep what changes in the decider that begin() makes.",
    )


def check_the_trace_is_read_back(subject: PolicySubject) -> None:
    """A trace that was written as JSON comes back with every record."""
    engine, _ = subject.run()
    text = json.dumps(engine.trace.to_dict())
    back = Trace.from_dict(json.loads(text))
    require(back.records == engine.trace.records, "records read back differ from those written")
    require(json.dumps(back.to_dict()) == text, "a trace read back is written differently")


def check_the_totals_add_up(subject: PolicySubject) -> None:
    """Totals are sums over the records, and the trace counts the blocks that really run."""
    pipeline, counter = subject.case.make_pipeline(0), BlockCounter()
    with counter.counting(subject.case, pipeline):
        engine, _ = subject.run(pipeline=pipeline)
    trace, totals = engine.trace, engine.trace.totals()
    modes = Counter(trace.modes())
    counted = (totals.steps_full, totals.steps_partial, totals.steps_reused)
    expected = (modes[Mode.FULL], modes[Mode.PARTIAL], modes[Mode.REUSE])
    require(
        counted == expected, f"totals say {counted} full, partial, reused steps, not {expected}"
    )
    require(sum(counted) == trace.steps, f"{sum(counted)} of {trace.steps} steps are counted")
    require(totals.calls == len(engine.seen), f"{totals.calls} of {len(engine.seen)} calls counted")
    require(
        totals.flops == sum(r.flops for r in trace.records) > 0,
        f"totals say {totals.flops:,} FLOPs, which is not the sum over the calls",
    )
    main = sum(r.blocks_run for r in trace.records)
    control = sum(r.control_run for r in trace.records)
    whole = not any(r.parts_reused for r in trace.records)
    # The blocks are counted by one sub-layer, which may be reused in a block that runs in part.
    fits = (
        (main, control) == (counter.main, counter.control)
        if whole
        else main >= counter.main and control >= counter.control
    )
    require(
        fits,
        f"the trace says that {main} main and {control} control blocks ran; it was {counter.main} "
        f"and {counter.control}",
    )


def check_branches_do_not_mix(subject: PolicySubject) -> None:
    """Whichever branch comes first in a step does what it does when the other never comes.

    The first branch decides for both, by what it sees, so the check is made in both orders.
    """
    if "separate" not in subject.case.features.guidance:
        raise NotApplicableError("the branches share their calls")
    # What is measured after guidance is of both branches by its nature.
    both, _ = subject.run(layout="separate", tells_guided=False)
    pinned = both.outputs
    first, second = dict.fromkeys(key for _, key in pinned)
    swapped, _ = subject.run(layout="separate", pinned=pinned, reverse=True, tells_guided=False)
    for engine, branch, order in (
        (both, first, f"{first} before {second}"),
        (swapped, second, f"{second} before {first}"),
    ):
        alone, _ = subject.run(
            layout="separate", only=frozenset({branch}), pinned=pinned, tells_guided=False
        )
        for key, output in alone.outputs.items():
            require_same(
                engine.outputs[key],
                output,
                f"step {key[0]}, branch {branch!r}, {order}, against the branch alone",
                "Key all state by the branch.",
            )


def check_guidance_layouts_decide_alike(subject: PolicySubject) -> None:
    """Steps do the same whether the branches share their calls or not."""
    if not {"merged", "separate"} <= subject.case.features.guidance:
        raise NotApplicableError("there is one layout with guidance")
    separate, _ = subject.run(layout="separate")
    merged, _ = subject.run(layout="merged")
    modes = [[str(mode) for mode in e.trace.modes()] for e in (merged, separate)]
    require(modes[0] == modes[1], f"merged: {modes[0]}; separate: {modes[1]}")


def check_the_bytes_are_those_held(subject: PolicySubject) -> None:
    """Bytes in the trace are those of the tensors held; a finished run holds nothing."""
    engine, _ = subject.run()
    for record, seen in zip(engine.trace.records, engine.seen, strict=True):
        require(
            record.cache_bytes == seen.held_bytes,
            f"step {record.step}, branch {record.branch!r}: the trace says {record.cache_bytes:,} "
            f"bytes, the tensors take {seen.held_bytes:,}",
        )
    most, peak = max(s.held_bytes for s in engine.seen), engine.trace.peak_cache_bytes
    require(peak >= most, f"the peak is {peak:,} bytes, {most:,} were held")
    require(not engine.running, "the run is still going on after its last step")


def check_it_runs_with_a_smaller_cache(subject: PolicySubject) -> None:
    """With a bfloat16 cache it runs to a finite end and holds no more bytes."""
    full, _ = subject.run()
    small, result = subject.run(store_settings=StoreSettings(dtype="bfloat16"))
    require(bool(result.isfinite().all()), "the result with a bfloat16 cache is not finite")
    if _modes(full.trace) == _modes(small.trace):
        # Not always fewer: what decisions compare with is kept in fp32.
        kept, before = small.trace.peak_cache_bytes, full.trace.peak_cache_bytes
        require(kept <= before, f"{kept:,} bytes in bfloat16, {before:,} in float32")


def check_the_host_waits_once_a_step(subject: PolicySubject) -> None:
    """A decision brings at most one number, or one batch of numbers, to the host a step."""
    engine, _ = subject.run()
    reads: Counter[int] = Counter()
    for record in engine.trace.records:
        reads[record.step] += record.host_reads
    step, most = max(reads.items(), key=lambda item: item[1])
    require(most <= 1, f"step {step} read {most} numbers one by one", "Use signals.read_many.")


def check_the_pipeline_is_left_as_it_was(subject: PolicySubject) -> None:
    """After a run, and after one that broke off, the pipeline is what it was."""
    case, pipeline = subject.case, subject.case.make_pipeline(0)
    bare = case.run(pipeline, STEPS, subject.layout, 0)
    before = Snapshot.of(pipeline)
    left = left_by_the_library(case, subject.layout)
    subject.run(pipeline=pipeline)
    before.require_unchanged(pipeline, "after a run", but=left)
    error = ScriptedError("raised on purpose")
    block = case.main_blocks(pipeline)[0]
    with raising(ScriptedError, "an error in a block"), failing_block(block, 1, error):
        subject.run(pipeline=pipeline)
    before.require_unchanged(pipeline, "after a run that broke off", but=left)
    require_same(case.run(pipeline, STEPS, subject.layout, 0), bare, "the bare pipeline afterwards")


def check_one_policy_serves_two_threads(subject: PolicySubject) -> None:
    """One composed policy in two runs at once does in each what it does alone."""
    case, policy = subject.case, subject.compose()
    pipelines = [case.make_pipeline(seed) for seed in range(2)]

    def run(pipeline: Any) -> Tensor:
        _, result = watched_run(case, policy, steps=STEPS, layout=subject.layout, pipeline=pipeline)
        return result

    alone = [run(pipeline) for pipeline in pipelines]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, pipelines))
    for expected, result in zip(alone, together, strict=True):
        require_same(result, expected, "a run beside another one with the same policy")


def _modes(trace: Trace) -> list[Mode]:
    return [record.mode for record in trace.records]


def _require_same_decisions(actual: Trace, expected: Trace, what: str) -> None:
    for mine, theirs in zip(actual.records, expected.records, strict=True):
        require(
            evolve(mine, seconds=theirs.seconds) == theirs,
            f"{what}, step {mine.step} of branch {mine.branch!r} is {mine.mode} ({mine.reason}), "
            f"not {theirs.mode} ({theirs.reason}), or differs in its counts",
        )


RUN_CHECKS: Final[tuple[Callable[[PolicySubject], None], ...]] = (
    check_deciding_changes_nothing,
    check_it_runs_any_number_of_steps,
    check_two_runs_decide_alike,
    check_the_trace_is_read_back,
    check_it_runs_with_a_smaller_cache,
    check_the_host_waits_once_a_step,
    check_one_policy_serves_two_threads,
)
"""What can only be a policy's own fault."""

PAIR_CHECKS: Final[tuple[Callable[[PolicySubject], None], ...]] = (
    check_nothing_is_used_before_it_was_computed,
    check_the_totals_add_up,
    check_branches_do_not_mix,
    check_guidance_layouts_decide_alike,
    check_the_bytes_are_those_held,
    check_the_pipeline_is_left_as_it_was,
)
"""What a policy and a backbone can break together."""

POLICY_CHECKS: Final = (*RECIPE_CHECKS, *RUN_CHECKS, *PAIR_CHECKS)
"""All checks of a policy, in the order in which they run."""
