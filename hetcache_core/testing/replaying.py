"""Replaying a call with constant inputs, so that what every step must come out as is known."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import final

from attrs import define, evolve, field
from torch import Tensor

from hetcache_core.backbone.adapter import ModelCall, RunInfo
from hetcache_core.backbone.trunk import TrunkCall
from hetcache_core.engine.loop import Engine
from hetcache_core.policy.partial import ControlMode, KVMode, PartialSettings
from hetcache_core.policy.recipe import CachePolicy
from hetcache_core.records.trace import CallRecord
from hetcache_core.steps import Mode
from hetcache_core.testing.case import BackboneCase
from hetcache_core.testing.comparing import (
    NotApplicableError,
    need,
    require,
    require_close,
    require_same,
    rounding_bound,
    subtraction_bound,
)
from hetcache_core.testing.watch import BlockCounter, Forward, Seen, WatchedEngine


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

    @property
    def running(self) -> bool:
        """Whether the pipeline's run has begun and not ended."""
        return self._info is not None

    def begin_run(self, info: RunInfo) -> None:
        """Keep what is known of the run."""
        self._info, self._steps_left = info, info.steps

    def end_step(self, latents: Tensor | None = None, guided: Tensor | None = None) -> None:
        """Count the steps; every call has a run of its own."""
        self._steps_left -= 1
        if not self._steps_left:
            self._info = None

    def model_call(self, call: ModelCall, forward: Forward) -> Tensor:
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
        counts = []
        for step in range(self.repeats):
            before = (self.counter.main, self.counter.control)
            inner.model_call(evolve(call, step=step), forward)
            inner.end_step()
            counts.append((self.counter.main - before[0], self.counter.control - before[1]))
        self.replays.append(
            [
                Repeat(record=record, seen=seen, main=main, control=control)
                for record, seen, (main, control) in zip(
                    inner.trace.records, inner.seen, counts, strict=True
                )
            ]
        )
        return inner.seen[0].output.clone()


def replay(
    case: BackboneCase,
    policy: CachePolicy,
    *,
    repeats: int,
    layout: str,
    count_flops: bool = False,
) -> list[list[Repeat]]:
    """Run one step and answer each of its calls several times; see ``ReplayEngine``."""
    pipeline = case.make_pipeline(0)
    engine = ReplayEngine(policy=policy, repeats=repeats, count_flops=count_flops)
    attached = case.backbone.attach(pipeline, engine)
    with engine.counter.counting(case, pipeline), attached:
        case.run(pipeline, 1, layout, 0)
    return engine.replays


def partial_settings(**changes: object) -> PartialSettings:
    """Make settings that keep a third of the context active."""
    return PartialSettings(**{"context_ratio": 0.3, "pad_to": 1, **changes})  # type: ignore[arg-type]  # fields by name


def partial_modes(
    case: BackboneCase, *, required: bool = True, **changes: object
) -> Iterator[PartialSettings]:
    """Make settings for every way in which a case can run partial steps.

    Args:
        case: the case.
        required: raise ``NotApplicableError`` if there is none.
        **changes: further settings.
    """
    if not (case.features.rows and case.features.mask):
        need(not required, "blocks do not run on some rows, or there is no mask")
        return
    keys = [KVMode.CACHED, KVMode.PRUNED] if case.features.attention else [KVMode.PRUNED]
    controls = list(ControlMode) if case.features.control else [ControlMode.RECOMPUTE]
    for kv_mode, control_mode in product(keys, controls):
        yield partial_settings(kv_mode=kv_mode, control_mode=control_mode, **changes)


def replays(
    case: BackboneCase, policy: CachePolicy, repeats: int
) -> Iterator[tuple[str, list[Repeat]]]:
    """Replay the first step's calls in every guidance layout; yields the layout and the answers."""
    for layout in case.layouts:
        for answers in replay(case, policy, repeats=repeats, layout=layout):
            yield layout, answers


def names_of(partial: PartialSettings) -> str:
    """Name the modes, for messages."""
    return f"{partial.kv_mode.value} keys, control {partial.control_mode.value}"


def trunk_of(repeat: Repeat) -> TrunkCall:
    """Return the trunk call of a repeat."""
    if repeat.seen.trunk is None:
        raise NotApplicableError("the trunk was not entered")
    return repeat.seen.trunk


def subtraction_of(repeat: Repeat) -> Tensor:
    """Bound what ``before + (after - before)`` may differ by in the trunk's output."""
    return subtraction_bound(trunk_of(repeat).x, repeat.trunk_output)


def rounding_of(repeat: Repeat) -> float:
    """Bound what another order of summation may change in the trunk's output."""
    trunk = trunk_of(repeat)
    return rounding_bound(repeat.trunk_output, trunk.layers, trunk.x.shape[-1])


def require_repeats(
    actual: Repeat, expected: Repeat, bound: Tensor | float | None, what: str, remedy: str = ""
) -> None:
    """Compare what the engine answered the trunk, then what became of it in the library's hands.

    Args:
        actual: the answer in question.
        expected: the answer that it must repeat.
        bound: what the trunk's output may differ by; None if no bit of either may differ.
        what: what is compared.
        remedy: where to look.
    """
    output, reference = actual.seen.output, expected.seen.output
    if bound is None:
        require_same(actual.trunk_output, expected.trunk_output, what, remedy)
        require_same(output, reference, f"model output, {what}", remedy)
        return
    require_close(actual.trunk_output, expected.trunk_output, bound, what, remedy)
    trunk = trunk_of(expected)
    limit = rounding_bound(reference, trunk.layers + 1, trunk.x.shape[-1])  # the head is one more
    require_close(output, reference, limit, f"model output, {what}", remedy)


def require_mode(repeat: Repeat, mode: Mode) -> None:
    """Raise unless a step did what the script said."""
    require(
        repeat.record.mode is mode,
        f"a {mode} step ran as {repeat.record.mode}: {repeat.record.reason}",
    )


def require_counts(repeat: Repeat, main: int, control: int, what: str) -> None:
    """Raise unless so many blocks ran, by their hooks and by the trace."""
    counted = (repeat.main, repeat.control)
    require(
        counted == (main, control),
        f"{what}: {counted[0]} main and {counted[1]} control blocks ran, not {main} and {control}",
    )
    said = (repeat.record.blocks_run, repeat.record.control_run)
    require(said == counted, f"{what}: the trace says that {said} blocks ran, not {counted}")
