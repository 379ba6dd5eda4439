"""What a policy keeps in a run of given size: counted by the rules of the engine, nothing is run.

A step policy keeps the residual of each of its spans (the model's output where whole calls are reused),
as often as its predictor looks back. Steps that run some of the tokens need the keys and values of all
blocks, and the control hints of these tokens. Whoever compares computed steps with what was expected of them
keeps a few outputs. What block policies keep is asked of them, block by block.
What a decision keeps to compare with is left out: it is a few thousand tokens at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from attrs import define, field, frozen

from hetcache_core.engine.run_state import make_active
from hetcache_core.policy.partial import ControlMode, KVMode
from hetcache_core.policy.recipe import ReusePoint
from hetcache_core.records.trace import Trace
from hetcache_core.steps import BlockKey, Stack, StepInfo, SubLayer

if TYPE_CHECKING:
    from hetcache_core.backbone.adapter import RunInfo
    from hetcache_core.policy.pieces import BlockAction
    from hetcache_core.policy.recipe import CachePolicy

__all__ = ["Footprint", "footprint"]


@frozen(kw_only=True)
class Footprint:
    """What is kept for one branch.

    Attributes:
        words: What it is.
        elements: Numbers of it, but for those below.
        fixed_bytes: Bytes of what is kept in a dtype of its own.
        levels: What is left out or reused: steps, branches, blocks, sub-layers, tokens.
    """

    words: tuple[str, ...]
    elements: int
    levels: tuple[str, ...]
    fixed_bytes: int = 0

    def bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of it where the store keeps its tensors in ``dtype``."""
        return self.elements * dtype.itemsize + self.fixed_bytes


def footprint(policy: CachePolicy, run: RunInfo, *, latents: int) -> Footprint:
    """Count what a policy keeps for one branch of a run.

    Args:
        policy: The composition.
        run: The run, whose mask is needed where the policy needs one.
        latents: Numbers in the latents of one branch.
    """
    ranks = 1 if run.ranks is None else run.ranks.size
    tensor, history = run.grid.tokens // ranks * run.model.width, policy.predictor.history
    words, elements, levels, fixed_bytes = [], 0, [], 0
    if policy.sampler_share < 1:
        levels.append("run")
    if policy.reuse_point is ReusePoint.OUTPUT:
        words.append(_times(history, "output minus latents"))
        elements += history * latents
        levels.append("steps")
    elif policy.step is not None:
        words += [_times(len(policy.spans), _times(history, "residual"))]
        elements += len(policy.spans) * history * tensor
        levels.append("steps")
    if policy.measures:
        outputs = 3 if policy.predictor.measured is not None else 2
        words.append(_times(outputs, "output"))
        fixed_bytes += outputs * latents * torch.float32.itemsize
    if policy.guidance is not None:
        levels.append("branches")
    active = make_active(policy, run, _no_trace(run))
    if active is not None and policy.partial is not None and not active.too_many:
        levels.append("tokens")
        hints, keys = len(run.model.control_layers), policy.partial.keys
        if policy.partial.kv_mode is KVMode.CACHED:
            kept = keys.kept_layers(run.model.layers)
            which = "all" if len(kept) == run.model.layers else str(len(kept))
            words.append(_times(keys.history, f"keys and values of {which} blocks"))
            recomputes = policy.partial.control_mode is ControlMode.RECOMPUTE
            controls = sum(layer in kept for layer in run.model.control_layers) if recomputes else 0
            tokens = -(-run.grid.tokens // keys.stride)
            numbers = 2 * (len(kept) + controls) * keys.history * tokens * run.model.width
            if keys.dtype is None:
                elements += numbers
            else:
                dtype: torch.dtype = getattr(torch, keys.dtype)
                fixed_bytes += numbers * dtype.itemsize
        if history > 1:
            words.append(_times(history, "residual of active tokens"))
            elements += history * active.count * run.model.width
        if policy.partial.control_mode is ControlMode.REUSE and hints:
            words.append("hints of active tokens")
            elements += hints * active.count * run.model.width
    slots = _ask(policy, run)
    levels += slots.levels
    for count, what in ((len(slots.blocks), "block residual"), (len(slots.parts), "part output")):
        if count:
            words.append(_times(count, _times(history, what)))
            elements += count * history * tensor
    return Footprint(
        words=tuple(words),
        elements=elements,
        levels=tuple(dict.fromkeys(levels)),
        fixed_bytes=fixed_bytes,
    )


@define
class _Slots:
    blocks: set[BlockKey] = field(factory=set)
    parts: set[tuple[BlockKey, SubLayer]] = field(factory=set)
    some_rows: bool = False

    @property
    def levels(self) -> list[str]:
        found = ["blocks"] if self.blocks else []
        found += ["sub-layers"] if self.parts else []
        return [*found, "tokens"] if self.some_rows else found

    def take(self, key: BlockKey, action: BlockAction, *, whole: bool) -> None:
        if whole and action.store:
            self.blocks.add(key)
        self.parts |= {(key, part) for part, act in action.parts.items() if act.store}
        self.some_rows |= any(act.rows is not None for act in action.parts.values())


def _ask(policy: CachePolicy, run: RunInfo) -> _Slots:
    """Ask a block policy at every step what it would keep; it is shown no signals."""
    slots = _Slots()
    if policy.blocks is None:
        return slots
    decider, hidden = policy.blocks.begin(run), torch.zeros(1, 1, 1)
    for index in range(run.steps):
        step = StepInfo(
            index=index,
            total=run.steps,
            timestep=run.timesteps[index],
            sigma=run.sigmas[index],
        )
        for layer in range(run.model.layers):
            key = BlockKey(Stack.MAIN, layer)
            slots.take(key, decider.block(step, run.branches[0], key, hidden), whole=True)
        for layer in range(len(run.model.control_layers)):
            key = BlockKey(Stack.CONTROL, layer)
            slots.take(key, decider.control(step, run.branches[0], key), whole=False)
    return slots


def _times(count: int, what: str) -> str:
    return what if count == 1 else f"{count} x {what}"


def _no_trace(run: RunInfo) -> Trace:
    return Trace(
        policy="",
        settings={},
        backbone=run.model.backbone,
        variant=run.model.variant,
        steps=run.steps,
        requested_steps=run.steps,
        tokens=run.grid.tokens,
    )
