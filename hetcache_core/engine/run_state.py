"""State of one run, from its first model call to its last step; nothing of it outlives the run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import torch
from attrs import define, field

from hetcache_core.engine.active_rows import ActiveRows
from hetcache_core.engine.flop_budget import Budget, outcome
from hetcache_core.engine.gate import Gate
from hetcache_core.engine.held import begun
from hetcache_core.engine.innovation import Innovation
from hetcache_core.errors import CacheStateError, ConfigError
from hetcache_core.policy.pieces import BlockDecider, GuidanceDecider, StepDecider
from hetcache_core.policy.recipe import CachePolicy
from hetcache_core.policy.signals import ScheduleSignals, Signals
from hetcache_core.records.recording import Recorder
from hetcache_core.records.trace import CallRecord, Trace
from hetcache_core.steps import Decision, Mode, StepInfo
from hetcache_core.store import CacheStore, StoreSettings
from hetcache_core.tokens import Role

if TYPE_CHECKING:
    from torch import Tensor

    from hetcache_core.backbone.adapter import ModelCall, RunInfo

MIN_STEPS_TO_JUDGE: Final = 5
"""Shorter runs have too few steps between first and last to say anything about them."""


@define(eq=False)
class Clock:
    """Measures calls and the loop around them.

    On CUDA, calls are bracketed by events that are read once, when the run is over; elsewhere the
    monotonic clock is read.
    """

    device: str
    _begun: float | None = field(default=None, init=False)
    _marks: list[tuple[float, float]] = field(factory=list, init=False)
    _events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(factory=list, init=False)
    _open: float = field(default=0.0, init=False)
    _opened: torch.cuda.Event | None = field(default=None, init=False)

    @property
    def _cuda(self) -> bool:
        return self.device.startswith("cuda")

    def start(self) -> None:
        """Mark the beginning of a call."""
        if self._begun is None:
            if self._cuda:
                torch.cuda.synchronize(self.device)
            self._begun = time.perf_counter()
        if self._cuda:
            self._opened = torch.cuda.Event(enable_timing=True)
            self._opened.record(torch.cuda.current_stream(self.device))
        else:
            self._open = time.perf_counter()

    def stop(self) -> None:
        """Mark the end of the call."""
        if self._opened is not None:
            end = torch.cuda.Event(enable_timing=True)
            end.record(torch.cuda.current_stream(self.device))
            # Kept whole or not at all: a call that raised has no duration.
            self._events.append((self._opened, end))
        else:
            self._marks.append((self._open, time.perf_counter()))

    def finish(self) -> tuple[float, list[float]]:
        """Return seconds since the first call began, and the seconds of each call."""
        if self._begun is None:
            return 0.0, []
        if self._cuda:
            torch.cuda.synchronize(self.device)
        total = time.perf_counter() - self._begun
        if self._cuda:
            return total, [begin.elapsed_time(end) / 1000 for begin, end in self._events]
        return total, [end - begin for begin, end in self._marks]


@define(eq=False, kw_only=True)
class StepState:
    """What is known of the step under way.

    Attributes:
        deciding: key of the call on which the step was decided.
        decision: what was decided, before anything that made it impossible.
        signals: what a guidance decider keeps tensors with, or None where there is none.
        mode: what the deciding call did.
        outputs: model outputs by call, where guidance is predicted.
        predicted: whether the output of a branch was predicted.
        prepared: whether the block decider has looked at the step.
        called: keys of the calls so far.
    """

    deciding: str = ""
    decision: Decision | None = None
    signals: Signals | None = None
    mode: Mode | None = None
    outputs: dict[str, Tensor] = field(factory=dict)
    predicted: bool = False
    prepared: bool = False
    called: set[str] = field(factory=set)


@define(eq=False, kw_only=True)
class RunState:
    """One run.

    Attributes:
        info: what the backbone says about it.
        policy: what to do.
        store: what is kept.
        trace: what is recorded.
        clock: durations.
        active: rows of partial steps, or None.
        gate: what guards make of decisions.
        budget: what may be spent, or None.
        index: the step under way; -1 before the first.
        step: what is known of it.
        expert: the expert model of the last call.
        reused_in_row: steps reused directly before this one.
        chosen_at: step in which the active rows were last looked at.
        ahead: signals of all noise levels.
        sizes: fp32 scalars, sum of magnitudes of each kept residual.
        finite: bool scalars, whether the latents after each step hold finite values alone.
        broken_at: first step after which they do not, known when the run has finished.
        recorder: notes for the trace's plan.
        innovation: what computed steps find out about those that were not.
    """

    info: RunInfo
    policy: CachePolicy
    store: CacheStore
    trace: Trace
    clock: Clock
    active: ActiveRows | None
    gate: Gate
    budget: Budget | None
    step_decider: StepDecider | None = field(default=None, init=False)
    block_decider: BlockDecider | None = field(default=None, init=False)
    guidance: GuidanceDecider | None = field(default=None, init=False)
    index: int = field(default=-1, init=False)
    step: StepState = field(factory=StepState, init=False)
    expert: str = field(default="", init=False)
    reused_in_row: int = field(default=0, init=False)
    chosen_at: int = field(default=-1, init=False)
    ahead: ScheduleSignals = field(factory=ScheduleSignals, init=False)
    sizes: list[Tensor] = field(factory=list, init=False)
    finite: list[Tensor] = field(factory=list, init=False)
    broken_at: int | None = field(default=None, init=False)
    recorder: Recorder = field(factory=Recorder, init=False)
    innovation: Innovation = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Begin the pieces."""
        self._begin()
        self.innovation = Innovation(self.policy, self.info, self.store)
        refused = self.innovation.refused()
        if refused is not None:
            self.trace.notes.append(refused)

    def _begin(self) -> None:
        """Begin each piece once, so that one object may answer several questions with one state."""
        made = begun(self.policy, self.info)
        self.step_decider, self.block_decider = made["step"], made["blocks"]
        self.guidance = made["guidance"]

    @property
    def deciders(self) -> tuple[object, ...]:
        """All that decide."""
        return self.step_decider, self.block_decider, self.guidance

    def keep(self, policy: CachePolicy, settings: StoreSettings, note: str) -> None:
        """Before the first step: keep less, as the policy and the settings now say."""
        self.trace.notes.append(note)
        self.policy, self.store = policy, CacheStore(settings)
        self.innovation = Innovation(self.policy, self.info, self.store)
        self.active = make_active(policy, self.info, self.trace)
        self.trace.notes = list(dict.fromkeys(self.trace.notes))

    def step_info(self, index: int) -> StepInfo:
        """Describe a step."""
        return StepInfo(
            index=index,
            total=self.info.steps,
            timestep=self.info.timesteps[index],
            sigma=self.info.sigmas[index],
            expert=self.expert,
            computed=self.gate.computes(index) is not None,
        )

    def enter(self, call: ModelCall) -> StepInfo:
        """Follow the sampler to the step of a call.

        Raises:
            CacheStateError: the step does not follow on the last one.
        """
        if call.step != self.index:
            if call.step != self.index + 1 or call.step >= self.info.steps:
                raise CacheStateError(
                    f"the scheduler is at step {call.step} of {self.info.steps} after step {self.index}",
                    remedy="Steps must follow on one another; start the pipeline call again",
                    step=call.step,
                    expected_step=self.index + 1,
                )
            self.index, self.step = call.step, StepState()
        if call.key in self.step.called:
            raise CacheStateError(
                f"branch {call.key} is called a second time in step {call.step}",
                remedy="A branch's state would be mixed up; call the model once a branch and step",
                branch=call.key,
                step=call.step,
            )
        self.step.called.add(call.key)
        if call.step > 0 and call.expert != self.expert:
            # Another model: nothing that the first one computed means anything to it, so whatever
            # was counted or kept begins anew, its first steps too.
            self.store.clear()
            self.ahead = ScheduleSignals()
            self.innovation.forget()
            self.reused_in_row, self.chosen_at = 0, -1
            self.gate.starts.append(call.step)
            if self.active is not None:
                self.active.forget()
            self._begin()
            self.trace.notes.append(f"Cache reset at step {call.step}: expert {call.expert!r}.")
        self.expert = call.expert
        return self.step_info(call.step)

    def leave(self, guided: Tensor | None = None) -> list[CallRecord]:
        """Close the step under way, whose guided output this is, and return its records."""
        info, step, decided = self.step_info(self.index), self.step, None
        if self.trace.decisions and self.trace.decisions[-1].step == self.index:
            decided = self.trace.decisions[-1]
            decided.done = step.mode or Mode.FULL
        self.innovation.close(self.index, guided, decided, reused=step.mode is Mode.REUSE)
        if self.step_decider is not None and step.mode is not None:
            self.step_decider.settle(info, step.mode)
        if self.guidance is not None and step.signals is not None and not step.predicted:
            mode = step.mode or Mode.FULL
            self.guidance.observe_outputs(info, step.outputs, mode, step.signals)
        self.reused_in_row = self.reused_in_row + 1 if step.mode is Mode.REUSE else 0
        records = [r for r in self.trace.records if r.step == self.index]
        if self.budget is not None:
            full = sum(r.flops_full for r in records)
            cost = sum(r.flops for r in records) / full if full else 1.0
            self.budget.spend(info, step.mode, cost)
        return records

    def finish(self) -> Trace:
        """Read the clock, say what is worth saying, free what is kept and return the trace."""
        trace = self.trace
        trace.denoise_seconds, seconds = self.clock.finish()
        for record, duration in zip(trace.records, seconds, strict=True):
            record.seconds = duration
        trace.peak_cache_bytes = self.store.peak_bytes
        if self.store.peak_spilled_bytes:
            spilled = self.store.peak_spilled_bytes / 1e6
            trace.notes.append(f"{spilled:,.1f} MB of the cache were in host memory.")
        if self.store.clamped():
            trace.notes.append(
                "Values past the range of what the cache is kept in (float16: 65504) were kept as its "
                "largest number: keep it in bfloat16."
            )
        partition = self.active.partition if self.active is not None else None
        trace.guards = self.gate.described()
        trace.plan = self.recorder.plan(self.info, partition, self.policy.partial)
        if self.finite:
            # One wait for the device, after the last step.
            finite = torch.stack(self.finite).tolist()
            self.broken_at = finite.index(False) if False in finite else None
        trace.notes.extend(self.innovation.read())
        trace.notes.extend(self._findings())
        self.store.clear()
        return trace

    def _findings(self) -> list[str]:
        found = []
        if self.sizes:
            # One wait for the device, after the last step.
            sizes = torch.stack(self.sizes).tolist()
            if any(size == 0 for size in sizes):
                found.append("A cached residual was all zero: the trunk changed nothing.")
        trace = self.trace
        if trace.target_speedup is not None and trace.complete:
            found.append(outcome(trace, self.policy, self.gate))
        modes = trace.modes()
        caches = self.step_decider is not None or self.block_decider is not None
        if not trace.complete or not caches or len(modes) < MIN_STEPS_TO_JUDGE:
            return found
        parts = any(r.parts_reused or r.blocks_run < self.info.model.layers for r in trace.records)
        inner = set(modes[1:-1])
        if inner == {Mode.FULL} and not parts:
            found.append("Nothing was reused: every step ran in full.")
        elif inner == {Mode.REUSE}:
            found.append(
                "The signal never crossed its threshold: every step between the first and the last "
                "was reused."
            )
        return found


def make_active(policy: CachePolicy, info: RunInfo, trace: Trace) -> ActiveRows | None:
    """Make the rows of a policy's partial steps, or None where it has none.

    Raises:
        ConfigError: the policy needs a mask and the run has none.
    """
    if policy.partial is None or policy.partitioner is None:
        return None
    if info.mask is None:
        raise ConfigError(
            "it needs the edit mask, and this pipeline call has none",
            where=f"policy {policy.name}",
            remedy="Pass the edit mask to the pipeline's call, or use a policy without token roles, "
            "such as teacache",
        )
    partition = policy.partitioner.partition(info.mask, info.grid)
    active = ActiveRows(partition, policy.partial, policy.selector)
    trace.tokens_by_role = {role.name.lower(): partition.count(role) for role in Role}
    if active.empty:
        trace.notes.append(
            "The mask touches no token, so nothing is edited: partial steps reuse what is stored."
        )
    if active.too_many:
        trace.notes.append(
            f"{active.share:.0%} of the tokens would be active in a partial step, more than "
            f"{policy.partial.max_active_share:.0%}: partial steps run in full."
        )
    if not partition.count(Role.CONTEXT):
        trace.notes.append("The mask leaves no context tokens to cache.")
    return active
