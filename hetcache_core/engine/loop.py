"""The one loop: asks the policy, runs what it decided, stores what will be needed, records it."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from attrs import define, evolve, field

from hetcache_core.backbone.compiling import BlockCompiler
from hetcache_core.engine.block_pass import (
    full_flops,
    partial_flops,
    some_tokens_refused,
    tokens_of,
)
from hetcache_core.engine.byte_limit import fit_to_limit
from hetcache_core.engine.flop_budget import Budget, Costs
from hetcache_core.engine.footprint import footprint
from hetcache_core.engine.gate import Gate
from hetcache_core.engine.held import own_bytes
from hetcache_core.engine.run_state import Clock, RunState, make_active
from hetcache_core.engine.trunk_run import TrunkExecution
from hetcache_core.errors import (
    CacheStateError,
    ContractError,
    NonFiniteError,
    RunCancelledError,
    UnsupportedBackboneError,
)
from hetcache_core.policy.guards import Guards
from hetcache_core.policy.partial import ControlMode
from hetcache_core.policy.recipe import CachePolicy, ReusePoint
from hetcache_core.policy.signals import Signals
from hetcache_core.records.trace import CallRecord, Change, StepRecord, Trace
from hetcache_core.steps import WHOLE_TRUNK, Decision, Mode, StepInfo
from hetcache_core.store import CacheStore, Kind, Slot, StoreSettings

if TYPE_CHECKING:
    from torch import Tensor

    from hetcache_core.backbone.adapter import ModelCall, RunInfo
    from hetcache_core.backbone.trunk import RunTrunk, TrunkCall

_log = logging.getLogger("hetcache.runs")


@define(eq=False, kw_only=True)
class Engine:
    """Runs one policy; a backbone calls it for every run, model call, trunk call and step.

    Attributes:
        policy: what to do.
        settings: the policy's settings, for the trace.
        store_settings: how tensors are kept.
        guards: steps that a user wants computed, on top of those set in the policy's settings.
        target_speedup: FLOPs without caching over FLOPs with it, or None to leave it to the policy.
        compiler: what the backbone's blocks are run with, or None to run them as they are.
        on_step: called after every step with its records, or None.
        on_run: called with the trace of every run that ended, or None.
        session_id: identifies the session in traces and log records; a run's is this and its number.
    """

    policy: CachePolicy
    settings: Mapping[str, Any] = field(factory=dict)
    store_settings: StoreSettings = field(factory=StoreSettings)
    guards: Guards = field(factory=Guards)
    target_speedup: float | None = None
    compiler: BlockCompiler | None = None
    on_step: Callable[[StepInfo, Sequence[CallRecord]], None] | None = None
    on_run: Callable[[Trace], None] | None = None
    session_id: str = field(factory=lambda: uuid4().hex[:12])
    cancelled: threading.Event = field(factory=threading.Event, init=False)
    """Set from any thread: the run ends before its next step, and its trace is kept."""
    _begun: int = field(default=0, init=False)
    _run: RunState | None = field(default=None, init=False)
    _requested: int = field(default=0, init=False)

    # Runs and steps

    def sampler_steps(self, requested: int) -> int:
        """Say how many steps the sampler should take; called before its timesteps are set.

        A backbone that learns only later how many were really asked for (a schedule cut short) calls
        again before the run begins.
        """
        self._requested = requested
        return max(1, round(requested * self.policy.sampler_share))

    @property
    def running(self) -> bool:
        """Whether a run has begun and not ended."""
        return self._run is not None

    def begin_run(self, info: RunInfo) -> None:
        """Start a run; an unfinished one before it is ended first.

        Raises:
            ConfigError: the policy needs a mask and the run has none.
        """
        self.end_run()
        self._begun += 1
        trace = Trace(
            run_id=f"{self.session_id}-{self._begun}",
            session_id=self.session_id,
            policy=self.policy.name,
            settings=dict(self.settings),
            backbone=info.model.backbone,
            variant=info.model.variant,
            steps=info.steps,
            requested_steps=self._requested or info.steps,
            tokens=info.grid.tokens,
            target_speedup=self.target_speedup,
            notes=list(self.policy.notes),
        )
        if info.evaluations > 1:
            trace.notes.append(
                f"The sampler evaluates the model {info.evaluations} times for a step that is asked "
                f"for; each evaluation is a step here, {info.steps} in all."
            )
        self._run = RunState(
            info=info,
            policy=self.policy,
            store=CacheStore(self.store_settings),
            trace=trace,
            clock=Clock(info.device),
            active=make_active(self.policy, info, trace),
            gate=Gate(
                steps=info.steps,
                asked=self.guards.over(self.policy.asked),
                defaults=self.policy.guards,
            ),
            budget=None,
        )
        self._run.budget = self._budget(self._run)
        if info.ranks is not None:
            try:
                _fit_ranks(self.policy, info, self.compiler)
            except BaseException:
                self.abort_run()
                raise
        _log.info(
            "%d steps with %s on %s", info.steps, trace.policy, trace.backbone, extra=trace.ids()
        )

    def end_step(self, latents: Tensor | None = None, guided: Tensor | None = None) -> None:
        """Close the step; the run ends with its last one.

        Args:
            latents: what the sampler made of the step, in the library's layout; looked at once, when
                the run ends.
            guided: what the sampler made it of: the model's output after guidance, in the layout of one
                branch. Without it, the first branch stands for all where a policy measures.

        Raises:
            NonFiniteError: the run ended, and the latents hold NaN or infinity.
            RunCancelledError: it was cancelled while steps are left.
        """
        run = self._need_run()
        if latents is not None:
            run.finite.append(latents.isfinite().all())
        records = run.leave(guided)
        step = run.step_info(run.index)
        if self.on_step is not None:
            try:
                self.on_step(step, records)
            except BaseException:
                self.abort_run()
                raise
        if step.is_last:
            run.trace.complete = True
            self.end_run()
        else:
            del run  # the traceback of an error would else keep what the run keeps
            self._heed_cancel()

    def _heed_cancel(self) -> None:
        """Between two steps: end the run where it was cancelled."""
        if not self.cancelled.is_set() or self._run is None:
            return
        trace, done = self._run.trace, self._run.index + 1
        trace.notes.append(f"Cancelled after {done} of {trace.steps} steps.")
        self.end_run()
        raise RunCancelledError(steps_done=done, steps=trace.steps, run_id=trace.run_id)

    def end_run(self) -> None:
        """End the run, free everything kept and hand out the trace; no run, no effect."""
        run, self._run = self._run, None
        if run is None:
            return
        self.cancelled.clear()  # what came too late for this run is not meant for the next
        trace = run.finish()
        ended = "ended" if trace.complete else "ended early"
        _log.info("%s: %s", ended, trace.summary(), extra=trace.ids())
        if self.on_run is not None:
            self.on_run(trace)
        if run.broken_at is not None and trace.complete:
            raise NonFiniteError(
                f"the latents hold NaN or infinity from step {run.broken_at} of {trace.steps} on",
                where=f"policy {trace.policy} on {trace.backbone}",
                remedy="Such frames would be black. Lower the strength of guidance, or compute in "
                "bfloat16 or float32 where it was float16",
                first_step=run.broken_at,
                steps=trace.steps,
            )

    def abort_run(self) -> None:
        """Forget the run without a trace, after an exception."""
        run, self._run = self._run, None
        if run is not None:
            self.cancelled.clear()
            run.store.clear()

    # Calls

    def model_call(self, call: ModelCall, forward: Callable[[RunTrunk], Tensor]) -> Tensor:
        """Answer one DiT call of the pipeline.

        Args:
            call: what is called.
            forward: runs the library's own call, and has the trunk inside it answered by what it is
                given.

        Returns:
            The model output, in the library's layout.

        Raises:
            CacheStateError: the step index does not follow on.
            ContractError: the trunk has another size than the run's grid.
            RunCancelledError: the run was cancelled before the step that the call begins.
        """
        if call.step != self._need_run().index:
            self._heed_cancel()
        try:
            return self._called(call, forward)
        except BaseException:
            self.abort_run()  # whoever catches it inside the session would else keep the cache alive
            raise

    def _called(self, call: ModelCall, forward: Callable[[RunTrunk], Tensor]) -> Tensor:
        run = self._need_run()
        self._fit(run, call)
        step = run.enter(call)
        record = CallRecord(
            step=step.index,
            timestep=step.timestep,
            sigma=step.sigma,
            branch=call.key,
            expert=call.expert,
            tokens=run.info.grid.tokens,
        )
        run.recorder.call(call.key)
        run.clock.start()
        output = self._answer(
            run,
            step,
            call,
            record,
            forward,
        )
        output = run.innovation.correct(call, output)
        run.clock.stop()
        if run.guidance is not None:
            run.step.outputs[call.key] = output
        if run.step_decider is not None and run.step.deciding == call.key:
            self._show_output(run, step, call, record, output)
        run.store.count_outside(own_bytes(run.deciders))
        record.cache_bytes = run.store.bytes
        if record.flops_full == 0:  # the trunk was not entered: what it would have cost is known
            earlier = (r.flops_full for r in reversed(run.trace.records) if r.flops_full)
            record.flops_full = next(earlier, 0)
        run.trace.records.append(record)
        _log.debug(
            "step %d %s: %s (%s)",
            step.index,
            call.key,
            record.mode.value,
            record.reason,
            extra=run.trace.ids(),
        )
        return output

    def _fit(self, run: RunState, call: ModelCall) -> None:
        """Before anything is kept, change what is kept so that it stays under the byte limit."""
        if run.index >= 0 or run.store.settings.max_bytes is None:
            return
        fitted = fit_to_limit(run.policy, run.store.settings, run.info, call)
        if fitted.note:
            run.keep(fitted.policy, fitted.store, fitted.note)

    def _answer(
        self,
        run: RunState,
        step: StepInfo,
        call: ModelCall,
        record: CallRecord,
        library: Callable[[RunTrunk], Tensor],
    ) -> Tensor:
        forward = functools.partial(
            library, functools.partial(self._trunk, run, step, call, record, library)
        )
        if run.guidance is not None and run.step.signals is None:
            run.step.signals = self._signals(run, step, call, None, None)
        if run.guidance is not None and run.step.outputs and not step.computed:
            reason = run.guidance.predicts(step, call.key, run.step.mode or Mode.FULL)
            if reason is not None:
                record.mode, record.reason, run.step.predicted = Mode.PREDICT, reason, True
                run.recorder.predicted(step.index, call.key)
                signals = run.step.signals or self._signals(run, step, call, None, None)
                return run.guidance.predict(step, call.key, run.step.outputs, signals)
        if run.policy.reuse_point is ReusePoint.TRUNK:
            return forward()
        predictor, slot = run.policy.predictor, Slot(Kind.OUTPUT)
        decision = self._decide(run, step, call, record, None)

        def reused(gain: float | Tensor | None) -> Tensor:
            values = run.store.get(call.key, slot, like=call.latents)
            return call.latents + predictor.predict(values, step=step.index, gain=gain)

        if run.store.has(call.key, slot):
            if decision.mode is Mode.REUSE:
                self._settle(run, record, decision)
                return reused(run.innovation.gain if decision.gain is None else decision.gain)
            if run.innovation.due(step.index):
                run.innovation.ask(call, reused)
        output = forward()
        if not step.is_last:
            run.store.put_difference(
                call.key, slot, output, call.latents, step=step.index, history=predictor.history
            )
        return output

    def _trunk(
        self,
        run: RunState,
        step: StepInfo,
        call: ModelCall,
        record: CallRecord,
        library: Callable[[RunTrunk], Tensor],
        trunk: TrunkCall,
    ) -> Tensor:
        """Answer the trunk inside a call, its input (B, N, D), with (B, N, D)."""
        grid, ranks, entered = run.info.grid, run.info.ranks, tokens_of(trunk, run.info.ranks)
        tokens = grid.tokens
        if trunk.leading is not None:
            leading = trunk.leading * (1 if ranks is None else ranks.size)
            tokens += leading - grid.prefix
        if entered != tokens:
            raise ContractError(
                f"the trunk has {entered} tokens, the announced grid {tokens}",
                where=f"backbone {run.info.model.backbone}",
            )
        execution = TrunkExecution(
            run=run,
            step=step,
            call=call,
            trunk=trunk,
            record=record,
            computes_all=step.computed,
        )
        record.flops = trunk.flops.outside()
        record.flops_full = full_flops(trunk, ranks) + record.flops
        wanted = self._decide(run, step, call, record, trunk, execution.probe)
        decision = self._possible(run, call, wanted)
        if decision != wanted and run.step.deciding == call.key:
            _note(run, "cache", decision)
        self._settle(run, record, decision)
        if run.block_decider is not None and decision.mode is Mode.FULL:
            run.block_decider.enter_call(step, call.branches)
        if run.block_decider is not None and decision.mode is Mode.FULL and not run.step.prepared:
            run.step.prepared = True
            signals = self._signals(run, step, call, trunk, execution.probe)
            run.block_decider.prepare(step, signals)
            record.host_reads += signals.reads
        if decision.mode is Mode.REUSE:
            output = execution.reuse(decision)
        elif decision.mode is Mode.PARTIAL:
            output = execution.partial()
        else:
            if run.innovation.due(step.index) and run.store.has(
                call.key, Slot(Kind.RESIDUAL, WHOLE_TRUNK)
            ):
                asked = run.innovation.ask(
                    call, lambda gain: library(lambda entered: entered.x + execution.expected(gain))
                )
                record.flops += asked * trunk.flops.outside()
            output = execution.full()
        execution.close()
        return output

    # Deciding

    def _decide(
        self,
        run: RunState,
        step: StepInfo,
        call: ModelCall,
        record: CallRecord,
        trunk: TrunkCall | None,
        probe: Callable[[int], Tensor] | None = None,
    ) -> Decision:
        """Decide the step, once; its other calls get the same answer."""
        if run.step.decision is not None:
            return run.step.decision
        run.step.deciding = call.key
        if run.step_decider is None:
            run.step.decision = Decision(Mode.FULL, "every step is computed")
            _propose(run, step, run.step.decision)
            run.recorder.decided(step.index, run.step.decision)
            return run.step.decision
        costs = None
        if run.budget is not None:
            costs = self._costs(run, trunk, record)
            run.gate.give_way(run.budget.computed(costs))  # what reused steps cost shows in the run
            if step.index == 0 and run.policy.step is not None and run.policy.step.sigmas_only:
                self._solve(run, call, trunk, run.budget, costs)
        signals = self._signals(run, step, call, trunk, probe)
        proposed = decision = run.step_decider.decide(step, signals)
        _propose(run, step, proposed)
        if run.budget is not None and costs is not None:
            decision = run.budget.apply(step, proposed, costs, run.reused_in_row)
            if decision != proposed:
                _note(run, "budget", decision)
        if run.active is not None and run.active.empty:
            decision = evolve(decision, instead=Mode.FULL)
            if decision.mode is Mode.PARTIAL:
                reason = "the mask touches no token, so a partial step has none to compute"
                decision = evolve(decision, mode=Mode.REUSE, span=WHOLE_TRUNK, reason=reason)
                _note(run, "mask", decision)
        run.step.decision = run.gate.apply(step, decision, run.reused_in_row)
        if run.step.decision != decision:
            _note(run, "gate", run.step.decision)
        run.recorder.decided(step.index, run.step.decision)
        record.host_reads += signals.reads
        return run.step.decision

    def _signals(
        self,
        run: RunState,
        step: StepInfo,
        call: ModelCall,
        trunk: TrunkCall | None,
        probe: Callable[[int], Tensor] | None,
        threshold_factor: float | None = None,
    ) -> Signals:
        if threshold_factor is None:
            threshold_factor = run.budget.factor if run.budget is not None else 1.0
        return Signals(
            step,
            run.info.timesteps,
            run.info.grid,
            call,
            trunk,
            probe,
            run.ahead,
            run.store,
            threshold_factor,
            run.innovation.error,
            ranks=run.info.ranks,
        )

    def _possible(self, run: RunState, call: ModelCall, wanted: Decision) -> Decision:
        """Fall back to FULL, with the reason, where the decision cannot be carried out."""
        if wanted.mode is Mode.FULL:
            return wanted
        span = wanted.span if wanted.mode is Mode.REUSE else WHOLE_TRUNK
        if span not in run.policy.spans and run.policy.reuse_point is ReusePoint.TRUNK:
            raise ContractError(
                f"the decision reuses {span}, which is not among its spans",
                where=f"policy {run.policy.name}",
                remedy="Name it in CachePolicy.spans, so that computed steps keep its residual",
            )
        if not run.store.has(call.key, Slot(Kind.RESIDUAL, span)):
            return evolve(wanted, mode=Mode.FULL, reason="no cache yet")
        if wanted.mode is Mode.PARTIAL and run.active is not None and run.active.too_many:
            limit = run.active.settings.max_active_share
            reason = f"{run.active.share:.0%} of the tokens active, over {limit:.0%}"
            return evolve(wanted, mode=Mode.FULL, reason=reason)
        settings = run.policy.partial
        if (
            wanted.mode is Mode.PARTIAL
            and settings is not None
            and settings.control_mode is ControlMode.REUSE
            and run.info.model.control_layers
            and not run.store.has(call.key, Slot(Kind.HINT, 0))
        ):
            return evolve(wanted, mode=Mode.FULL, reason="no control hints of these tokens yet")
        return wanted

    def _settle(self, run: RunState, record: CallRecord, decision: Decision) -> None:
        record.mode, record.reason, record.signal = decision.mode, decision.reason, decision.signal
        run.step.mode = run.step.mode or decision.mode

    def _show_output(
        self, run: RunState, step: StepInfo, call: ModelCall, record: CallRecord, output: Tensor
    ) -> None:
        if run.step_decider is None or record.mode not in {Mode.FULL, Mode.PARTIAL}:
            return
        rows = call.branches[0].rows
        latents = call.latents[rows] if call.latents.shape[0] > 1 else call.latents
        run.step_decider.output(step, latents, output[rows])

    # Budget

    def _budget(self, run: RunState) -> Budget | None:
        """Make the budget, or None where none was asked for or nothing could keep it."""
        policy = run.policy
        if self.target_speedup is None or (policy.step is None and policy.blocks is None):
            return None
        steady = policy.blocks is None and policy.guidance is None
        budget = Budget(self.target_speedup, run.gate, steady=steady)
        run.gate.give_way(budget.total)
        return budget

    def _costs(self, run: RunState, trunk: TrunkCall | None, record: CallRecord) -> Costs:
        """Costs of the modes, counted where the trunk is at hand."""
        if trunk is None:  # whole calls are left out: nothing of them is run
            return Costs(partial=1.0, reuse=0.0)
        partial, settings = 1.0, run.policy.partial
        if run.active is not None and settings is not None and not run.active.too_many:
            rows = partial_flops(trunk, run.active.count, settings, run.info.ranks)
            partial = (rows + record.flops) / record.flops_full
        return Costs(partial=partial, reuse=record.flops / record.flops_full)

    def _solve(
        self,
        run: RunState,
        call: ModelCall,
        trunk: TrunkCall | None,
        budget: Budget,
        costs: Costs,
    ) -> None:
        """Play the whole schedule ahead with fresh deciders until its cost fits the budget."""

        def cost_at(factor: float) -> float:
            policy, spent, reused = run.policy.step, 0.0, 0
            if policy is None:
                return spent
            decider = policy.begin(run.info)
            for index in range(run.info.steps):
                step = run.step_info(index)
                signals = self._signals(run, step, call, trunk, None, factor)
                decision = run.gate.apply(step, decider.decide(step, signals), reused)
                mode = Mode.FULL if index == 0 else decision.mode
                decider.settle(step, mode)
                reused = reused + 1 if mode is Mode.REUSE else 0
                spent += costs.of(mode)
            return spent

        budget.solve(cost_at)

    def _need_run(self) -> RunState:
        if self._run is None:
            raise CacheStateError(
                "a model call arrived outside a run", remedy="The backbone must begin a run first"
            )
        return self._run


def _fit_ranks(policy: CachePolicy, info: RunInfo, compiler: BlockCompiler | None) -> None:
    """Refuse what processes that share their rows cannot carry.

    Raises:
        UnsupportedBackboneError: blocks are compiled, or some tokens are computed and others not.
    """
    if compiler is not None:
        raise UnsupportedBackboneError(
            "Blocks are not compiled where several processes share their rows",
            option="compile",
            remedy="Leave out compile, or run in one process.",
        )
    if "tokens" in footprint(policy, info, latents=0).levels:
        raise some_tokens_refused(f"policy {policy.name!r}")


def _propose(run: RunState, step: StepInfo, wanted: Decision) -> None:
    run.trace.decisions.append(
        StepRecord(step=step.index, wanted=wanted.mode, reason=wanted.reason, signal=wanted.signal)
    )


def _note(run: RunState, by: str, decision: Decision) -> None:
    run.trace.decisions[-1].changes.append(
        Change(by=by, mode=decision.mode, reason=decision.reason)
    )
