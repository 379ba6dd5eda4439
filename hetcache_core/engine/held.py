"""What deciders keep: with the store, as signals, and in fields of their own.

Counted while a run goes on, and ahead of it by playing the deciders on tensors that have sizes but no
values; so the byte limit and what is reported hold for policies of others as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from attrs import field, frozen

from hetcache_core.policy.recipe import CachePolicy, ReusePoint
from hetcache_core.policy.signals import ScheduleSignals, Signals
from hetcache_core.steps import BlockKey, BranchRows, Mode, Stack, StepInfo, SubLayer
from hetcache_core.store import CacheStore, Kind, Slot

if TYPE_CHECKING:
    from torch import Tensor

    from hetcache_core.backbone.adapter import ModelCall, RunInfo

__all__ = ["begun", "own_bytes", "played_bytes"]

SIX: Final = 6
"""Shifts, scales and gates of a block: what its modulation holds of each channel."""

READS: Final = (0.0, math.inf)
"""What a decision is told while it is played: nothing has changed, and everything has."""


def begun(policy: CachePolicy, run: RunInfo) -> dict[str, Any]:
    """Begin each piece once, so that one object may answer several questions with one state.

    Returns:
        The deciders by the name of their place in the policy; None where it has none.
    """
    made: dict[int, Any] = {}
    deciders = {}
    for place in ("step", "blocks", "guidance"):
        piece = getattr(policy, place)
        if piece is not None and id(piece) not in made:
            made[id(piece)] = piece.begin(run)
        deciders[place] = made.get(id(piece))
    return deciders


def own_bytes(deciders: Iterable[object]) -> int:
    """Count the bytes of all tensors that deciders hold in their fields; views of one count once."""
    storages = {}
    for tensor in _tensors(list(deciders), set()):
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()  # noqa: SLF001 - the only name of a storage on "meta"
    return sum(storages.values())


def _tensors(value: object, seen: set[int]) -> Iterator[Tensor]:
    if id(value) in seen or isinstance(
        value, Signals
    ):  # what those hold is the call's and the store's
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from _tensors(inner, seen)
    elif hasattr(value, "__attrs_attrs__"):
        for attribute in value.__attrs_attrs__:
            yield from _tensors(getattr(value, attribute.name, None), seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        for inner in vars(value).values():
            yield from _tensors(inner, seen)


def played_bytes(policy: CachePolicy, run: RunInfo, call: ModelCall) -> int:
    """Count what the deciders of a run will hold at most, before anything is computed.

    Args:
        policy: the composition.
        run: the run.
        call: its first call.

    Returns:
        Bytes of signals and of tensors in fields. Where a decider cannot be played, since it looks at
        values by itself, only what it held until then; the run is stopped then where it passes a limit.
    """
    return max(
        _play(policy, run, call, told, obeys=obeys) for told in READS for obeys in (False, True)
    )


@frozen(eq=False)
class _Trunk:
    """Stands for a trunk whose tensors have sizes and no values."""

    x: Tensor
    channels: int = field(kw_only=True)

    def timestep_embeddings(self, timesteps: tuple[float, ...]) -> Tensor:
        return torch.empty(len(timesteps), self.channels, device="meta")

    def timestep_modulations(self, timesteps: tuple[float, ...]) -> Tensor:
        return torch.empty(len(timesteps), SIX * self.channels, device="meta")

    def modulated_input(self, _modulation: Tensor) -> Tensor:
        return self.x.float()


def _play(policy: CachePolicy, run: RunInfo, call: ModelCall, told: float, *, obeys: bool) -> int:
    """Play a run in which steps do what was decided, or in which all are computed whatever was."""
    first = call.branches[0]
    rows = first.stop - first.start
    latents = call.latents[:rows].to("meta")
    shape = (rows, run.grid.tokens, run.model.width)
    x = torch.empty(shape, dtype=latents.dtype, device="meta")
    trunk: Any = _Trunk(x, channels=run.model.width)
    alone = attrs.evolve(call, latents=latents, branches=(BranchRows(first.name, 0, rows),))
    store, ahead, most = CacheStore(), ScheduleSignals(), 0
    deciders = begun(policy, run)
    whole = policy.reuse_point is ReusePoint.OUTPUT
    for index in range(run.steps):
        step = StepInfo(
            index=index, total=run.steps, timestep=run.timesteps[index], sigma=run.sigmas[index]
        )
        signals = Signals(
            step,
            run.timesteps,
            run.grid,
            alone,
            None if whole else trunk,
            lambda _: x,
            ahead,
            store,
            told=told,
        )
        try:
            _take_step(deciders, step, signals, run, x, latents, obeys=obeys)
        except Exception:  # noqa: BLE001 - another author's decider, which needs values
            break
        finally:
            most = max(most, store.bytes_of(Kind.SIGNAL) + own_bytes(deciders.values()))
        for span in () if whole else policy.spans:
            store.put(alone.key, Slot(Kind.RESIDUAL, span), x, step=index)
    return most


def _take_step(
    deciders: Mapping[str, Any],
    step: StepInfo,
    signals: Signals,
    run: RunInfo,
    x: Tensor,
    latents: Tensor,
    *,
    obeys: bool,
) -> None:
    """Let deciders see a step."""
    steps, blocks, guidance = deciders["step"], deciders["blocks"], deciders["guidance"]
    if steps is not None:
        decision = steps.decide(step, signals)
        if obeys and decision.mode is Mode.REUSE and not step.is_first:
            steps.settle(step, decision.mode)
            return
    for number, name in enumerate(run.branches if blocks is not None else ()):
        blocks.enter_call(step, (BranchRows(name, 0, x.shape[0]),))
        if not number:
            blocks.prepare(step, signals)
        for stack, count in (
            (Stack.CONTROL, len(run.model.control_layers)),
            (Stack.MAIN, run.model.layers),
        ):
            for layer in range(count):
                _take_block(blocks, step, name, BlockKey(stack, layer), x)
    if steps is not None:
        steps.output(step, latents, latents)
        steps.settle(step, Mode.FULL)
    if guidance is not None:
        guidance.observe_outputs(step, dict.fromkeys(run.branches, latents), Mode.FULL, signals)


def _take_block(blocks: Any, step: StepInfo, branch: str, key: BlockKey, x: Tensor) -> None:
    main = key.stack is Stack.MAIN
    action = blocks.block(step, branch, key, x) if main else blocks.control(step, branch, key)
    for part in SubLayer:
        if part in action.observe:
            blocks.observe(step, branch, key, part, x)
    if main and action.observe_block:
        blocks.observe(step, branch, key, None, x)
