"""Playing a policy without a model: the engine, its gate and its budget, on a trunk of known values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, final

import torch
from attrs import define, frozen
from torch import Tensor

from hetcache_core.backbone.adapter import FlopModel, ModelCall, RunInfo
from hetcache_core.backbone.trunk import BlockHooks, TrunkCall, TrunkView
from hetcache_core.engine.loop import Engine
from hetcache_core.policy.guards import Guards
from hetcache_core.policy.recipe import CachePolicy, PolicyRecipe
from hetcache_core.policy.signals import Signals
from hetcache_core.records.trace import Trace
from hetcache_core.steps import BranchRows, ModelInfo, Stack, SubLayer
from hetcache_core.tokens import Grid

Values = float | Sequence[float] | Callable[[int], float]
"""One number for all steps, one for each, or a function of the step's index."""

MODEL: Final = ModelInfo(backbone="played", variant="", layers=4, width=4, heads=1)

GRID: Final = Grid(frames=1, height=12, width=12, pixel_height=2, pixel_width=2, frame_stride=4)

MASK: Final = torch.zeros(1, 24, 24, dtype=torch.bool)
MASK[0, :4, :4] = True  # 4 of 144 tokens

TRAIN_STEPS: Final = 1000
"""Timesteps that models are usually trained with."""


def decide(
    policy: PolicyRecipe | CachePolicy,
    *,
    steps: int,
    signal: Values = 1.0,
    hidden: Values = 0.0,
    added: Values = 1.0,
    latents: Values = 0.0,
    outputs: Values = 0.0,
    sigmas: Sequence[float] | None = None,
    experts: Sequence[str] | None = None,
    branches: Sequence[str] = ("cond",),
    model: ModelInfo = MODEL,
    guards: Guards | None = None,
    target_speedup: float | None = None,
    threshold_factor: float = 1.0,
) -> Trace:
    """Play a policy over a run whose tensors hold one number each, and return what was done.

    The run goes through the engine, so its guards, its budget and its cache have their say as in any
    other. ``Trace.letters`` writes the modes as one letter a step.

    Args:
        policy: a recipe, or a composition of pieces.
        steps: steps that are asked for; a policy may have the sampler take fewer, ``S``.
        signal: timestep embedding, modulation and first modulated input of each step.
        hidden: input of the trunk.
        added: what every block adds to it.
        latents: what the model is called with.
        outputs: what the model answers where it runs.
        sigmas: noise levels; evenly from 1 downwards where none are given. Timesteps are 1000 times them.
        experts: name of the model of each step; one for all where none are given.
        branches: guidance branches, one call each.
        model: what the policy may know of the model.
        guards: as for ``accelerate``.
        target_speedup: as for ``accelerate``.
        threshold_factor: what ``Signals.threshold_factor`` is multiplied with.

    Returns:
        The trace of the run.
    """
    composed = policy if isinstance(policy, CachePolicy) else policy.composed(model)
    traces: list[Trace] = []
    engine = _Player(
        policy=composed,
        guards=guards or Guards(),
        target_speedup=target_speedup,
        on_run=traces.append,
        factor=threshold_factor,
    )
    steps = engine.sampler_steps(steps)
    levels = tuple(sigmas if sigmas is not None else (1 - index / steps for index in range(steps)))
    engine.begin_run(
        RunInfo(
            model=model,
            timesteps=tuple(TRAIN_STEPS * sigma for sigma in levels),
            sigmas=levels,
            grid=GRID,
            mask=MASK,
            branches=tuple(branches),
            device="cpu",
        )
    )
    signals = torch.tensor([_at(signal, index) for index in range(steps)])
    for index in range(steps):
        trunk = _Trunk(
            model=model,
            signals=signals,
            input=torch.full((1, GRID.tokens, 4), _at(hidden, index)),
            added=_at(added, index),
        )
        output = torch.full((1, 3), _at(outputs, index))

        def forward(
            run: Callable[[TrunkCall], Tensor], trunk: TrunkCall = trunk, output: Tensor = output
        ) -> Tensor:
            run(trunk)
            return output

        for branch in branches:
            call = ModelCall(
                step=index,
                branches=(BranchRows(branch, 0, 1),),
                latents=torch.full((1, 3), _at(latents, index)),
                expert=experts[index] if experts is not None else "",
            )
            engine.model_call(call, forward)
        engine.end_step()
    return traces[0]


def _at(values: Values, index: int) -> float:
    if callable(values):
        return values(index)
    return values[index] if isinstance(values, Sequence) else values


@final
@define(eq=False, kw_only=True)
class _Player(Engine):
    """Shows deciders another factor than the budget's."""

    factor: float

    def _signals(self, *asked: Any, **by_name: Any) -> Signals:
        signals = super()._signals(*asked, **by_name)
        signals.threshold_factor *= self.factor
        return signals


@final
@frozen
class _Flops(FlopModel):
    """A row of a sub-layer costs one."""

    def outside(self) -> int:
        return 0

    def sub_layer(self, stack: Stack, part: SubLayer, *, rows: int, keys: int) -> int:
        return rows

    def control_extra(self, index: int, *, rows: int) -> int:
        return 0


@final
@frozen(eq=False, kw_only=True)
class _View(TrunkView):
    rows: Tensor
    added: float

    @property
    def x(self) -> Tensor:
        return self.rows

    def block(
        self, index: int, hidden: Tensor, hint: Tensor | None, hooks: BlockHooks | None
    ) -> Tensor:
        return hidden + (self.added if hooks is None else self._change(hooks))

    def control(self, index: int, hooks: BlockHooks | None) -> Tensor:
        if hooks is not None:
            self._change(hooks)
        return torch.zeros_like(self.rows)

    def _change(self, hooks: BlockHooks) -> Tensor:
        """What a block adds, a third by each of its sub-layers."""
        change = torch.zeros_like(self.rows)
        for part in SubLayer:

            def compute(rows: Tensor | None = None, part: SubLayer = part) -> Tensor:
                if hooks.attends and part is SubLayer.SELF_ATTENTION:
                    hooks.attend(self.rows, self.rows, self.rows, lambda q, *_: q)
                like = self.rows if rows is None else self.rows.index_select(1, rows)
                return torch.full_like(like, self.added / len(SubLayer))

            change += hooks.sub_layer(part, compute) if part in hooks.parts else compute()
        return change


@final
@frozen(eq=False, kw_only=True)
class _Trunk(TrunkCall):
    model: ModelInfo
    signals: Tensor
    input: Tensor
    added: float

    @property
    def x(self) -> Tensor:
        return self.input

    @property
    def layers(self) -> int:
        return self.model.layers

    @property
    def control_layers(self) -> tuple[int, ...]:
        return self.model.control_layers

    @property
    def heads(self) -> int:
        return 1

    @property
    def flops(self) -> FlopModel:
        return _Flops()

    def view(self, rows: Tensor | None) -> TrunkView:
        at = self.input if rows is None else self.input.index_select(1, rows)
        return _View(rows=at, added=self.added)

    def timestep_embeddings(self, timesteps: Sequence[float]) -> Tensor:
        return self.signals[:, None]

    def timestep_modulations(self, timesteps: Sequence[float]) -> Tensor:
        return self.signals[:, None].expand(-1, 6)

    def modulated_input(self, modulation: Tensor) -> Tensor:
        return torch.ones_like(self.input) * modulation[0]
