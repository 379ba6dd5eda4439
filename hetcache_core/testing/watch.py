"""Engines that run as any other and keep what passed through them, for the checks to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, final

from attrs import define, evolve, field
from torch import Tensor, nn

from hetcache_core.backbone.adapter import ModelCall, RunInfo
from hetcache_core.backbone.trunk import RunTrunk, TrunkCall
from hetcache_core.engine.held import own_bytes
from hetcache_core.engine.loop import Engine
from hetcache_core.policy.recipe import CachePolicy
from hetcache_core.records.trace import Trace
from hetcache_core.testing.case import BackboneCase
from hetcache_core.testing.comparing import Snapshot, failing_block, raising
from hetcache_core.testing.scripted import ScriptedError

CallKey = tuple[int, str]
"""Step and branch key of a call."""

_FEW: Final = 3
"""Steps after which every sampler has shown what it leaves."""

Forward = Callable[[RunTrunk], Tensor]
"""Runs the library's own call; see ``Engine.model_call``."""


@define(eq=False, kw_only=True)
class Seen:
    """What passed through an engine in one call.

    Attributes:
        call: the call.
        output: the model output, in the library's layout.
        trunk: the trunk call, or None if it was not entered.
        trunk_output: (B, N, D) what the engine answered it, or None.
        flops: FLOPs that torch counted, or None where nobody asked.
        held_bytes: bytes of the tensors that the store and the deciders hold after the call, counted one
            by one.
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
        tells_guided: the engine sees the guided output; without it, a measurement is of the first branch.
        infos: the runs that began.
        seen: what passed, in order.
        steps_ended: how often a step was closed.
        traces: of the runs that ended.
    """

    only: frozenset[str] | None = None
    pinned: Mapping[CallKey, Tensor] = field(factory=dict)
    reverse: bool = False
    count_flops: bool = False
    tells_guided: bool = True
    infos: list[RunInfo] = field(factory=list, init=False)
    seen: list[Seen] = field(factory=list, init=False)
    steps_ended: int = field(default=0, init=False)
    traces: list[Trace] = field(factory=list, init=False)
    _waiting: list[tuple[ModelCall, Forward]] = field(factory=list, init=False)

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

    def end_step(self, latents: Tensor | None = None, guided: Tensor | None = None) -> None:
        """Close the step and count it."""
        self.steps_ended += 1
        super().end_step(latents, guided if self.tells_guided else None)

    def model_call(self, call: ModelCall, forward: Forward) -> Tensor:
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

    def _watch(self, call: ModelCall, forward: Forward) -> Tensor:
        trunk, trunk_output, flops = None, None, None

        def kept(run: RunTrunk) -> Tensor:
            def keeping(entered: TrunkCall) -> Tensor:
                nonlocal trunk, trunk_output
                answer = run(entered)
                trunk, trunk_output = entered, answer.clone()
                return answer

            return forward(keeping)

        if self.count_flops:
            output, flops = counting_flops(
                lambda: super(WatchedEngine, self).model_call(call, kept)
            )
        else:
            output = super().model_call(call, kept)
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
        stored = sum(e.value.untyped_storage().nbytes() for e in entries)
        return stored + own_bytes(self._run.deciders)


def counting_flops(call: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Run something and let torch count its FLOPs."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Not every release of torch has a formula for each fused attention kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = call()
    return output, counter.get_total_flops()


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


def left_by_the_library(case: BackboneCase, layout: str) -> frozenset[str]:
    """Find what an error changes in a pipeline without any session: no session answers for that.

    Args:
        case: the case.
        layout: guidance layout.

    Returns:
        Places, as ``Snapshot.changes`` names them.
    """
    pipeline, error = case.make_pipeline(0), ScriptedError("raised on purpose")
    case.run(pipeline, _FEW, layout, 0)
    before = Snapshot.of(pipeline)
    failing = failing_block(case.main_blocks(pipeline)[-1], 1, error)
    with raising(ScriptedError, "an error in a block"), failing:
        case.run(pipeline, _FEW, layout, 0)
    return frozenset(before.changes(pipeline))
