"""The one loop: asks the policy, runs what it decided, stores what will be needed, records it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, evolve, field

from hetcache_core.active import ActiveRows
from hetcache_core.clock import Clock
from hetcache_core.errors import CacheStateError, ConfigError, ContractError
from hetcache_core.guards import Guards
from hetcache_core.passes import KeysUse, Pass, ScoreRequest, full_flops
from hetcache_core.policy import (
    BlockDecider,
    CachePolicy,
    ControlMode,
    GuidanceDecider,
    KVMode,
    Predictor,
    ReusePoint,
    StepDecider,
)
from hetcache_core.signals import Signals
from hetcache_core.steps import Decision, Mode, Span, StepInfo
from hetcache_core.store import CacheStore, Kind, Slot, Stored, StoreSettings
from hetcache_core.tokens import Role
from hetcache_core.trace import CallRecord, Trace

if TYPE_CHECKING:
    from torch import Tensor

    from hetcache_core.backbone import ModelCall, RunInfo
    from hetcache_core.trunk import TrunkCall

_log = logging.getLogger(__name__)


class _Hold(Predictor):
    """The last computed value stands in."""

    @property
    def history(self) -> int:
        return 1

    def predict(self, values: Sequence[Stored], *, step: int, gain: float | None) -> Tensor:
        return values[-1].value


@define(eq=False, kw_only=True)
class _Run:
    """State of one run; nothing of it outlives the run."""

    info: RunInfo
    store: CacheStore
    trace: Trace
    clock: Clock
    step_decider: StepDecider | None
    block_decider: BlockDecider | None
    guidance: GuidanceDecider | None
    active: ActiveRows | None
    expert: str = ""
    step: int = -1
    decision: Decision | None = None
    settled: Mode | None = None
    deciding: str = ""
    reused_in_row: int = 0
    sizes: list[Tensor] = field(factory=list)
    tables: dict[str, Tensor] = field(factory=dict)
    outputs: dict[str, Tensor] = field(factory=dict)
    predicted: bool = False
    chosen_at: int = -1


@define(eq=False, kw_only=True)
class Engine:
    """Runs one policy; a backbone calls it for every run, model call, trunk call and step.

    Attributes:
        policy: what to do.
        settings: the policy's settings, for the trace.
        store_settings: how tensors are kept.
        guards: steps that run in full whatever the policy says.
        on_step: called after every step with its records, or None.
        on_run: called with the trace of every finished run, or None.
    """

    policy: CachePolicy
    settings: Mapping[str, Any] = field(factory=dict)
    store_settings: StoreSettings = field(factory=StoreSettings)
    guards: Guards = field(factory=Guards)
    on_step: Callable[[StepInfo, Sequence[CallRecord]], None] | None = None
    on_run: Callable[[Trace], None] | None = None
    _run: _Run | None = field(default=None, init=False)
    _call: ModelCall | None = field(default=None, init=False)
    _record: CallRecord | None = field(default=None, init=False)
    _requested: int = field(default=0, init=False)

    # Runs and steps -----------------------------------------------------------------------------

    def sampler_steps(self, requested: int) -> int:
        """Say how many steps the sampler should take; called before its timesteps are set."""
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
        policy, active = self.policy, None
        if policy.partial is not None:
            if info.mask is None:
                raise ConfigError(
                    f"Policy {policy.name!r} needs the edit mask, but this call has none. Pass the mask "
                    "to the pipeline (vace_video_mask for Wan-VACE) or use a policy without token "
                    "roles, such as teacache."
                )
            assert policy.partitioner is not None  # noqa: S101 - CachePolicy refuses this
            partition = policy.partitioner.partition(info.mask, info.grid)
            active = ActiveRows(partition, policy.partial, policy.selector)
        trace = Trace(
            policy=policy.name,
            settings=dict(self.settings),
            backbone=info.model.backbone,
            variant=info.model.variant,
            steps=info.steps,
            requested_steps=self._requested or info.steps,
            tokens=info.grid.tokens,
        )
        if active is not None:
            trace.tokens_by_role = {r.name.lower(): active.partition.count(r) for r in Role}
            if active.too_many:
                trace.notes.append(
                    f"{active.share:.0%} of the tokens would be active in a partial step, more than "
                    f"{active.settings.max_active_share:.0%}: partial steps run in full."
                )
            if not active.partition.count(Role.CONTEXT):
                trace.notes.append("The mask leaves no context tokens to cache.")
        self._run = _Run(
            info=info,
            store=CacheStore(self.store_settings),
            trace=trace,
            clock=Clock(info.device),
            active=active,
            **self._deciders(info),
        )
        _log.info("run of %d steps with %s on %s", info.steps, policy.name, info.model.backbone)

    def end_step(self) -> None:
        """Close the step; the run ends with its last one."""
        run = self._need_run()
        step = self._step_info(run.step)
        if run.step_decider is not None and run.settled is not None:
            run.step_decider.settle(step, run.settled)
        if run.guidance is not None and not run.predicted and run.outputs:
            run.guidance.observe(step, run.outputs)
        run.reused_in_row = run.reused_in_row + 1 if run.settled is Mode.REUSE else 0
        run.outputs, run.predicted, run.decision, run.settled = {}, False, None, None
        if self.on_step is not None:
            self.on_step(step, [r for r in run.trace.records if r.step == step.index])
        if step.is_last:
            run.trace.complete = True
            self.end_run()

    def end_run(self) -> None:
        """End the run, free everything kept and hand out the trace; no run, no effect."""
        run, self._run = self._run, None
        if run is None:
            return
        self._call = None
        run.trace.denoise_seconds, seconds = run.clock.finish()
        for record, duration in zip(run.trace.records, seconds, strict=True):
            record.seconds = duration
        run.trace.peak_cache_bytes = run.store.peak_bytes
        run.trace.notes.extend(_findings(run))
        run.store.clear()
        if self.on_run is not None:
            self.on_run(run.trace)

    def abort_run(self) -> None:
        """Forget the run without a trace, after an exception."""
        run, self._run, self._call = self._run, None, None
        if run is not None:
            run.store.clear()

    # Calls ----------------------------------------------------------------------------------------

    def model_call(self, call: ModelCall, forward: Callable[[], Tensor]) -> Tensor:
        """Answer one DiT call of the pipeline.

        Args:
            call: what is called.
            forward: runs the library's own call, whose trunk comes back to ``run_trunk``.

        Returns:
            The model output, in the library's layout.

        Raises:
            CacheStateError: the step index does not follow on.
        """
        run = self._need_run()
        self._enter_step(run, call)
        self._call = call
        step = self._step_info(call.step)
        record = CallRecord(
            step=step.index,
            timestep=step.timestep,
            sigma=step.sigma,
            branch=call.key,
            expert=call.expert,
            mode=Mode.FULL,
            reason="",
            signal=None,
            tokens=run.info.grid.tokens,
            active=0,
        )
        self._record = record
        run.clock.start()
        output = self._answer(run, step, call, record, forward)
        run.clock.stop()
        if run.guidance is not None:
            run.outputs[call.key] = output
        ran = record.mode in (Mode.FULL, Mode.PARTIAL)
        if run.step_decider is not None and ran and run.deciding == call.key:
            rows = call.branches[0].rows
            latents = call.latents[rows] if call.latents.shape[0] > 1 else call.latents
            run.step_decider.output(step, latents, output[rows])
        record.cache_bytes = run.store.bytes
        if record.flops_full == 0:  # the trunk was not entered: cost as in the last call that did
            record.flops_full = next(
                (r.flops_full for r in reversed(run.trace.records) if r.flops_full), 0
            )
        run.trace.records.append(record)
        self._call = self._record = None
        _log.debug("step %d %s: %s (%s)", step.index, call.key, record.mode, record.reason)
        return output

    def _answer(
        self,
        run: _Run,
        step: StepInfo,
        call: ModelCall,
        record: CallRecord,
        forward: Callable[[], Tensor],
    ) -> Tensor:
        if run.guidance is not None and run.outputs:
            reason = run.guidance.predicts(step, call.key)
            if reason is not None:
                record.mode, record.reason = Mode.PREDICT, reason
                run.predicted = True
                return run.guidance.predict(step, call.key, run.outputs)
        if self.policy.reuse_point is ReusePoint.TRUNK:
            return forward()
        decision = self._decide(run, step, call, None)
        slot = Slot(Kind.OUTPUT)
        if decision.mode is Mode.REUSE and run.store.has(call.key, slot):
            record.mode, record.reason, record.signal = Mode.REUSE, decision.reason, decision.signal
            run.settled = run.settled or Mode.REUSE
            values = run.store.get(call.key, slot, like=call.latents)
            change = self._predictor.predict(values, step=step.index, gain=decision.gain)
            return call.latents + change
        output = forward()
        run.store.put_difference(
            call.key,
            slot,
            output,
            call.latents,
            step=step.index,
            history=self._predictor.history,
        )
        return output

    def run_trunk(self, trunk: TrunkCall) -> Tensor:
        """Answer the trunk of the call that is under way.

        Args:
            trunk: the call, its input (B, N, D).

        Returns:
            (B, N, D) trunk output.
        """
        run, call, record = self._need_run(), self._call, self._record
        if call is None or record is None:
            raise ContractError(
                "run_trunk was called outside model_call; the backbone must wrap it."
            )
        if trunk.x.shape[1] != run.info.grid.tokens:
            raise ContractError(
                f"The trunk has {trunk.x.shape[1]} tokens but the backbone announced a grid of "
                f"{run.info.grid.tokens}."
            )
        step = self._step_info(call.step)
        full = self._full_pass(run, step, call, trunk)
        decision = self._decide(run, step, call, trunk, full)
        decision = self._possible(run, step, call, decision)
        run.settled = run.settled or decision.mode
        record.mode, record.reason, record.signal = decision.mode, decision.reason, decision.signal
        record.flops_full = full_flops(trunk) + trunk.flops.outside()
        record.flops = trunk.flops.outside()
        if decision.mode is Mode.REUSE:
            output = self._reuse(run, call, trunk, full, decision)
            record.active = trunk.x.shape[1] if full.value is not None and full.value.next else 0
        elif decision.mode is Mode.PARTIAL:
            output = self._partial(run, step, call, trunk, record)
        else:
            output = self._full(run, step, call, trunk, full)
            record.active = trunk.x.shape[1]
            record.active_by_role = dict(run.trace.tokens_by_role)
        if full.value is not None:
            self._tally(record, full.value)
        return output

    # Deciding -------------------------------------------------------------------------------------

    def _decide(
        self,
        run: _Run,
        step: StepInfo,
        call: ModelCall,
        trunk: TrunkCall | None,
        full: _LazyPass | None = None,
    ) -> Decision:
        if run.decision is not None:
            return run.decision
        run.deciding = call.key
        if run.step_decider is None:
            run.decision = Decision(Mode.FULL, "policy runs every step")
            return run.decision
        signals = Signals(
            step,
            run.info.timesteps,
            call,
            trunk,
            lambda blocks: full.get().advance(blocks) if full is not None else call.latents,
            run.tables,
            run.store,
        )
        wanted = run.step_decider.decide(step, signals)
        run.decision = self.guards.apply(step, wanted, run.reused_in_row)
        if self._record is not None:
            self._record.host_reads = signals.reads
        return run.decision

    def _possible(self, run: _Run, step: StepInfo, call: ModelCall, wanted: Decision) -> Decision:
        """Fall back to FULL, with the reason, where the decision cannot be carried out."""
        if wanted.mode is Mode.FULL:
            return wanted
        span = wanted.span if wanted.mode is Mode.REUSE else Span()
        if not run.store.has(call.key, Slot(Kind.RESIDUAL, span)):
            return evolve(wanted, mode=Mode.FULL, reason="no cache yet")
        if wanted.mode is Mode.PARTIAL:
            if run.active is None:
                raise ContractError(
                    f"Policy {self.policy.name!r} asks for a partial step but has no PartialSettings."
                )
            if run.active.too_many:
                return evolve(
                    wanted,
                    mode=Mode.FULL,
                    reason=f"{run.active.share:.0%} of the tokens active, over "
                    f"{run.active.settings.max_active_share:.0%}",
                )
        return wanted

    # Running --------------------------------------------------------------------------------------

    def _full_pass(self, run: _Run, step: StepInfo, call: ModelCall, trunk: TrunkCall) -> _LazyPass:
        partial, active = self.policy.partial, run.active
        prepares = partial is not None and active is not None and not active.too_many
        prepares = prepares and not step.is_last

        def make() -> Pass:
            keys, score = KeysUse.OWN, None
            if prepares and partial is not None and active is not None:
                if partial.kv_mode is KVMode.CACHED:
                    keys = KeysUse.STORE
                if active.needs_scores and run.chosen_at != step.index:
                    score = ScoreRequest(
                        layers=frozenset(i % trunk.layers for i in partial.score_layers),
                        queries=active.score_queries(),
                        batch_rows=call.branches[0].rows,
                    )
            return Pass(
                trunk=trunk,
                rows=None,
                branch=call.key,
                step=step,
                store=run.store,
                predictor=self._predictor,
                blocks=run.block_decider,
                keys=keys,
                keep_hints=prepares
                and partial is not None
                and partial.control_mode is ControlMode.REUSE,
                score=score,
                keep_at=frozenset(
                    edge for s in self.policy.spans for edge in (s.front, trunk.layers - s.back)
                ),
            )

        return _LazyPass(make)

    def _full(
        self, run: _Run, step: StepInfo, call: ModelCall, trunk: TrunkCall, lazy: _LazyPass
    ) -> Tensor:
        full = lazy.get()
        keeps = run.step_decider is not None and not step.is_last
        keeps = keeps and self.policy.reuse_point is ReusePoint.TRUNK
        spans = self.policy.spans if keeps else ()
        output = full.advance(trunk.layers)
        full.marks[trunk.layers] = output
        for span in spans:
            run.store.put_difference(
                call.key,
                Slot(Kind.RESIDUAL, span),
                full.marks[trunk.layers - span.back],
                full.marks[span.front],
                step=step.index,
                history=self._predictor.history,
            )
            newest = run.store.newest(call.key, Slot(Kind.RESIDUAL, span))
            run.sizes.append(newest.abs().sum(dtype=torch.float32))
        if keeps and run.active is not None and not run.active.too_many:
            self._choose_rows(run, step, call, full, output)
        return output

    def _choose_rows(
        self, run: _Run, step: StepInfo, call: ModelCall, full: Pass, output: Tensor
    ) -> None:
        active = run.active
        if active is None:
            return
        if run.chosen_at != step.index:  # the first branch of a step chooses for all
            run.chosen_at = step.index
            features = output[call.branches[0].start] if active.needs_features else None
            active.after_full_step(full.score.total if full.score is not None else None, features)
        for index, hint in enumerate(full.hints):
            run.store.put(
                call.key,
                Slot(Kind.HINT, index),
                hint.index_select(1, active.current()),
                step=step.index,
            )
        full.hints.clear()

    def _partial(
        self, run: _Run, step: StepInfo, call: ModelCall, trunk: TrunkCall, record: CallRecord
    ) -> Tensor:
        partial, active = self.policy.partial, run.active
        if partial is None or active is None:
            raise ContractError("A partial step needs PartialSettings.")
        rows = active.current()
        part = Pass(
            trunk=trunk,
            rows=rows,
            branch=call.key,
            step=step,
            store=run.store,
            predictor=self._predictor,
            keys=KeysUse.CACHED if partial.kv_mode is KVMode.CACHED else KeysUse.OWN,
            stored_hints=partial.control_mode is ControlMode.REUSE,
        )
        computed = part.advance(trunk.layers)  # (B, n, D)
        slot = Slot(Kind.RESIDUAL, Span())
        stale = self._predictor.predict(
            run.store.get(call.key, slot, like=trunk.x), step=step.index, gain=None
        )
        output = trunk.x + stale
        output.index_copy_(1, rows, computed)
        change = computed - part.view.x
        if partial.residual_ema:
            change.lerp_(stale.index_select(1, rows), partial.residual_ema)
        if self._predictor.history == 1:
            run.store.write_rows(call.key, slot, rows, change, step=step.index)
        else:
            run.store.put(
                call.key,
                slot,
                stale.index_copy(1, rows, change),
                step=step.index,
                history=self._predictor.history,
            )
        record.active, record.active_by_role = active.count, dict(active.counts)
        self._tally(record, part)
        return output

    def _reuse(
        self, run: _Run, call: ModelCall, trunk: TrunkCall, lazy: _LazyPass, decision: Decision
    ) -> Tensor:
        span = decision.span
        hidden = lazy.get().advance(span.front) if span.front else trunk.x
        values = run.store.get(call.key, Slot(Kind.RESIDUAL, span), like=trunk.x)
        output = hidden + self._predictor.predict(values, step=call.step, gain=decision.gain)
        if span.back:
            tail = lazy.get()
            tail.hidden, tail.next = output, trunk.layers - span.back
            output = tail.advance(trunk.layers)
        return output

    # Small things ---------------------------------------------------------------------------------

    @property
    def _predictor(self) -> Predictor:
        return self.policy.predictor or _HOLD

    def _tally(self, record: CallRecord, done: Pass) -> None:
        record.flops += done.flops
        record.blocks_run += done.blocks_run
        record.control_run += done.control_run
        record.parts_reused += done.parts_reused

    def _deciders(self, info: RunInfo) -> dict[str, Any]:
        """Begin each piece once, so that one object may answer two questions with one state."""
        begun: dict[int, Any] = {}

        def begin(piece: Any) -> Any:
            if piece is None:
                return None
            if id(piece) not in begun:
                begun[id(piece)] = piece.begin(info)
            return begun[id(piece)]

        return {
            "step_decider": begin(self.policy.step),
            "block_decider": begin(self.policy.blocks),
            "guidance": begin(self.policy.guidance),
        }

    def _enter_step(self, run: _Run, call: ModelCall) -> None:
        if call.step != run.step:
            if call.step != run.step + 1 or call.step >= run.info.steps:
                raise CacheStateError(
                    f"The scheduler is at step {call.step} of {run.info.steps} after step {run.step}; "
                    "steps must follow on one another. Start the pipeline call again."
                )
            run.step = call.step
        if call.step > 0 and call.expert != run.expert:
            # Another model: nothing that the first one computed means anything to it.
            run.store.clear()
            run.tables.clear()
            deciders = self._deciders(run.info)
            run.step_decider = deciders["step_decider"]
            run.block_decider = deciders["block_decider"]
            run.guidance = deciders["guidance"]
            run.trace.notes.append(f"Cache reset at step {call.step}: expert {call.expert!r}.")
        run.expert = call.expert

    def _step_info(self, index: int) -> StepInfo:
        run = self._need_run()
        return StepInfo(
            index=index,
            total=run.info.steps,
            timestep=run.info.timesteps[index],
            sigma=run.info.sigmas[index],
            expert=run.expert,
        )

    def _need_run(self) -> _Run:
        if self._run is None:
            raise CacheStateError(
                "A model call arrived outside a run. The backbone must begin a run first."
            )
        return self._run


@define(eq=False)
class _LazyPass:
    """A pass over all rows that is made only if something asks for it."""

    _make: Callable[[], Pass]
    value: Pass | None = field(default=None, init=False)

    def get(self) -> Pass:
        if self.value is None:
            self.value = self._make()
        return self.value


def _findings(run: _Run) -> list[str]:
    """Say in words what a user should know about a run as a whole."""
    found = []
    if run.sizes:
        # One wait for the device, after the last step.
        sizes = torch.stack(run.sizes).tolist()
        if any(not math.isfinite(size) for size in sizes):
            found.append("A cached residual was not finite: the model produced NaN or infinity.")
        if any(size == 0 for size in sizes):
            found.append("A cached residual was all zero: the trunk changed nothing.")
    modes = run.trace.modes()
    if not run.trace.complete or run.step_decider is None or len(modes) < MIN_STEPS_TO_JUDGE:
        return found
    inner = set(modes[1:-1])
    if not inner & {Mode.REUSE, Mode.PARTIAL}:
        found.append("Nothing was reused: every step ran in full. A higher threshold would reuse.")
    elif inner == {Mode.REUSE}:
        found.append(
            "The signal never crossed its threshold: every step between the first and the last was "
            "reused. A lower threshold would compute some."
        )
    return found


_HOLD = _Hold()
MIN_STEPS_TO_JUDGE = 5
"""Shorter runs have too few steps between first and last to say anything about them."""
