"""Engines that run as any other and keep what passed through them, for the checks to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

from attrs import define, evolve, field
from torch import Tensor, nn

from hetcache_core.backbone import ModelCall, RunInfo
from hetcache_core.engine import Engine
from hetcache_core.policy import CachePolicy
from hetcache_core.testing.case import BackboneCase
from hetcache_core.trace import CallRecord, Trace
from hetcache_core.trunk import TrunkCall

CallKey = tuple[int, str]
"""Step and branch key of a call."""


@define(eq=False, kw_only=True)
class Seen:
    """What passed through an engine in one call.

    Attributes:
        call: the call.
        output: the model output, in the library's layout.
        trunk: the trunk call, or None if it was not entered.
        trunk_output: (B, N, D) what the engine answered it, or None.
        flops: FLOPs that torch counted, or None where nobody asked.
        held_bytes: bytes of the tensors that the store holds after the call, counted one by one.
    """

    call: ModelCall
    output: Tensor
    trunk: TrunkCall | None = None
    trunk_output: Tensor | None = None
    flops: int | None = None
    held_bytes: int = 0


@final
@define(eq=False, kw_only=True)
class WatchedEngine(Engine):
    """Keeps every call, and can hide branches from the engine.

    Attributes:
        only: the branch keys that the engine sees, or None for all; the pipeline is answered from
            ``pinned`` for the others.
        pinned: model outputs that the pipeline is answered, whatever the engine computes, so that
            two runs see the same latents.
        reverse: the engine sees the two calls of a step in reverse order; needs ``pinned``.
        count_flops: let torch count the FLOPs of each call.
        infos: the runs that began.
        seen: what passed, in order.
        steps_ended: how often a step was closed.
        traces: of the runs that ended.
    """

    only: frozenset[str] | None = None
    pinned: Mapping[CallKey, Tensor] = field(factory=dict)
    reverse: bool = False
    count_flops: bool = False
    infos: list[RunInfo] = field(factory=list, init=False)
    seen: list[Seen] = field(factory=list, init=False)
    steps_ended: int = field(default=0, init=False)
    traces: list[Trace] = field(factory=list, init=False)
    _entered: list[tuple[TrunkCall, Tensor]] = field(factory=list, init=False)
    _waiting: list[tuple[ModelCall, Callable[[], Tensor]]] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        """Keep the traces."""
        self.on_run = self.traces.append

    @property
    def outputs(self) -> dict[CallKey, Tensor]:
        """Model outputs by step and branch key."""
        return {(s.call.step, s.call.key): s.output for s in self.seen}

    @property
    def trace(self) -> Trace:
        """The trace of the last run that ended."""
        return self.traces[-1]

    def begin_run(self, info: RunInfo) -> None:
        """Start a run and keep what is known of it."""
        branches = info.branches[::-1] if self.reverse else info.branches
        if self.only is not None:
            branches = tuple(branch for branch in branches if branch in self.only)
        info = evolve(info, branches=branches)
        self.infos.append(info)
        super().begin_run(info)

    def end_step(self) -> None:
        """Close the step and count it."""
        self.steps_ended += 1
        super().end_step()

    def run_trunk(self, trunk: TrunkCall) -> Tensor:
        """Answer the trunk and keep it."""
        output = super().run_trunk(trunk)
        self._entered.append((trunk, output.clone()))
        return output

    def model_call(self, call: ModelCall, forward: Callable[[], Tensor]) -> Tensor:
        """Answer a call and keep it."""
        pinned = self.pinned.get((call.step, call.key))
        if self.only is not None and call.key not in self.only and pinned is not None:
            return pinned.clone()
        if self.reverse and pinned is not None and not self._waiting:
            self._waiting.append((call, forward))
            return pinned.clone()
        output = self._watch(call, forward)
        while self._waiting:
            self._watch(*self._waiting.pop())
        return output if pinned is None else pinned.clone()

    def _watch(self, call: ModelCall, forward: Callable[[], Tensor]) -> Tensor:
        self._entered.clear()
        flops = None
        if self.count_flops:
            output, flops = counting_flops(
                lambda: super(WatchedEngine, self).model_call(call, forward)
            )
        else:
            output = super().model_call(call, forward)
        trunk, trunk_output = self._entered[-1] if self._entered else (None, None)
        self.seen.append(
            Seen(
                call=call,
                output=output.clone(),
                trunk=trunk,
                trunk_output=trunk_output,
                flops=flops,
                held_bytes=self._held_bytes(),
            )
        )
        return output

    def _held_bytes(self) -> int:
        if self._run is None:
            return 0
        entries = [e for kept in self._run.store._values.values() for e in kept]  # noqa: SLF001 - the books are checked against what is really there
        return sum(e.value.untyped_storage().nbytes() for e in entries)


def counting_flops(call: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Run something and let torch count its FLOPs."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Not every release of torch has a formula for each fused attention kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = call()
    return output, counter.get_total_flops()


@define(eq=False, kw_only=True)
class Repeat:
    """One of several answers to the same call.

    Attributes:
        record: what was decided.
        seen: what passed.
        main: main blocks that ran, counted by their hooks.
        control: control blocks that ran, likewise.
    """

    record: CallRecord
    seen: Seen
    main: int
    control: int

    @property
    def trunk_output(self) -> Tensor:
        """(B, N, D)."""
        if self.seen.trunk_output is None:
            raise ValueError("The trunk was not entered in this call.")
        return self.seen.trunk_output


@define(eq=False)
class BlockCounter:
    """Counts the blocks that run.

    Attributes:
        main: main blocks so far.
        control: control blocks so far.
    """

    main: int = 0
    control: int = 0

    @contextmanager
    def counting(self, case: BackboneCase, pipeline: Any) -> Iterator[None]:
        """Hook a pipeline's blocks for as long as the context lasts."""

        def count_main(*_arguments: object) -> None:
            self.main += 1

        def count_control(*_arguments: object) -> None:
            self.control += 1

        hooked: list[tuple[Sequence[nn.Module], Callable[..., None]]] = [
            (case.main_blocks(pipeline), count_main),
            (case.control_blocks(pipeline), count_control),
        ]
        handles = [b.register_forward_hook(hook) for blocks, hook in hooked for b in blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@final
@define(eq=False, kw_only=True)
class ReplayEngine(Engine):
    """Answers each call of the pipeline several times, as the steps of a run with constant inputs.

    A policy's steps then differ in nothing but what was cached, so that what must come out is known.
    The pipeline goes on with the first answer.

    Attributes:
        repeats: how many steps each call is replayed for.
        counter: counts the blocks.
        count_flops: let torch count the FLOPs of each call.
        replays: the answers to each call, in order.
    """

    repeats: int
    counter: BlockCounter = field(factory=BlockCounter)
    count_flops: bool = False
    replays: list[list[Repeat]] = field(factory=list, init=False)
    _info: RunInfo | None = field(default=None, init=False)
    _steps_left: int = field(default=0, init=False)
    _inner: WatchedEngine | None = field(default=None, init=False)

    @property
    def running(self) -> bool:
        """Whether the pipeline's run has begun and not ended."""
        return self._info is not None

    def begin_run(self, info: RunInfo) -> None:
        """Keep what is known of the run."""
        self._info, self._steps_left = info, info.steps

    def end_step(self) -> None:
        """Count the steps; every call has a run of its own."""
        self._steps_left -= 1
        if not self._steps_left:
            self._info = None

    def run_trunk(self, trunk: TrunkCall) -> Tensor:
        """Hand the trunk to the engine of the call."""
        if self._inner is None:
            return super().run_trunk(trunk)
        return self._inner.run_trunk(trunk)

    def model_call(self, call: ModelCall, forward: Callable[[], Tensor]) -> Tensor:
        """Answer the call as a run of its own."""
        if self._info is None:
            return super().model_call(call, forward)
        inner = WatchedEngine(policy=self.policy, count_flops=self.count_flops)
        inner.begin_run(
            evolve(
                self._info,
                timesteps=(self._info.timesteps[call.step],) * self.repeats,
                sigmas=(self._info.sigmas[call.step],) * self.repeats,
                branches=tuple(branch.name for branch in call.branches),
            )
        )
        self._inner = inner
        counts = []
        for step in range(self.repeats):
            before = (self.counter.main, self.counter.control)
            inner.model_call(evolve(call, step=step), forward)
            inner.end_step()
            counts.append((self.counter.main - before[0], self.counter.control - before[1]))
        self._inner = None
        self.replays.append(
            [
                Repeat(record=record, seen=seen, main=main, control=control)
                for record, seen, (main, control) in zip(
                    inner.trace.records, inner.seen, counts, strict=True
                )
            ]
        )
        return inner.seen[0].output.clone()


def watched_run(
    case: BackboneCase,
    policy: CachePolicy,
    *,
    steps: int,
    layout: str,
    pipeline: Any = None,
    **options: Any,
) -> tuple[WatchedEngine, Tensor]:
    """Run a case with a policy.

    Args:
        case: the case.
        policy: what to do.
        steps: sampler steps.
        layout: guidance layout.
        pipeline: the pipeline, or None for a fresh one.
        **options: of ``WatchedEngine``.

    Returns:
        The engine that watched, and the pipeline's result.
    """
    pipeline = case.make_pipeline(0) if pipeline is None else pipeline
    engine = WatchedEngine(policy=policy, **options)
    with case.backbone.attach(pipeline, engine):
        result = case.run(pipeline, steps, layout, 0)
    return engine, result


def replay(
    case: BackboneCase,
    policy: CachePolicy,
    *,
    repeats: int,
    layout: str,
    steps: int = 2,
    count_flops: bool = False,
) -> list[list[Repeat]]:
    """Run a case and answer each of its calls several times; see ``ReplayEngine``."""
    pipeline = case.make_pipeline(0)
    engine = ReplayEngine(policy=policy, repeats=repeats, count_flops=count_flops)
    attached = case.backbone.attach(pipeline, engine)
    with engine.counter.counting(case, pipeline), attached:
        case.run(pipeline, steps, layout, 0)
    return engine.replays
