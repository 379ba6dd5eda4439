"""A trunk that computes nothing, so that what is left is the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor

from harness.timing import Stopwatch
from hetcache_core import (
    BlockHooks,
    BranchRows,
    CachePolicy,
    Engine,
    FlopModel,
    Grid,
    Mode,
    ModelCall,
    ModelInfo,
    RunInfo,
    Stack,
    SubLayer,
    Trace,
    TrunkCall,
    TrunkView,
)

BRANCH = (BranchRows("cond", 0, 1),)


@final
@frozen
class IdleFlops(FlopModel):
    """One FLOP a row, so that budgets have something to count."""

    def outside(self) -> int:
        """Nothing is around the trunk."""
        return 0

    def sub_layer(self, stack: Stack, part: SubLayer, *, rows: int, keys: int) -> int:
        """One FLOP a row."""
        return rows

    def control_extra(self, index: int, *, rows: int) -> int:
        """One FLOP a row."""
        return rows


@final
@define(eq=False, kw_only=True)
class IdleTrunk(TrunkCall, TrunkView):
    """A call whose blocks hand on what they get.

    Attributes:
        x: (B, n, D) trunk input.
        layers: main blocks.
        control_layers: main block of each hint.
        heads: attention heads.
        flops: a count that costs nothing.
        tables: timestep embeddings (S, D) and modulations (S, 6 * D), made ahead.
    """

    x: Tensor
    layers: int
    control_layers: tuple[int, ...]
    heads: int
    tables: tuple[Tensor, Tensor]
    flops: FlopModel = field(factory=IdleFlops)

    def view(self, rows: Tensor | None) -> IdleTrunk:
        """Gather the input, as every backbone has to."""
        return self if rows is None else evolve(self, x=self.x.index_select(1, rows))

    def block(
        self, index: int, hidden: Tensor, hint: Tensor | None, hooks: BlockHooks | None
    ) -> Tensor:
        """Hand the state on, through whatever the hooks do with it."""
        return hidden if hooks is None else _through(hooks, hidden)

    def control(self, index: int, hooks: BlockHooks | None) -> Tensor:
        """Give the input out as a hint."""
        return self.x if hooks is None else _through(hooks, self.x)

    def timestep_embeddings(self, timesteps: Sequence[float]) -> Tensor:
        """Rows made ahead."""
        return self.tables[0][: len(timesteps)]

    def timestep_modulations(self, timesteps: Sequence[float]) -> Tensor:
        """Rows made ahead."""
        return self.tables[1][: len(timesteps)]

    def modulated_input(self, modulation: Tensor) -> Tensor:
        """Return the input in fp32."""
        return self.x.float()


def _through(hooks: BlockHooks, hidden: Tensor) -> Tensor:
    output = hidden
    if hooks.attends:
        output = hooks.attend(hidden, hidden, hidden, lambda q, _k, _v: q)
    for part in sorted(hooks.parts, key=lambda part: part.value):
        output = hooks.sub_layer(part, lambda rows=None: _at(hidden, rows))
    return output


def _at(hidden: Tensor, rows: Tensor | None) -> Tensor:
    return hidden if rows is None else hidden.index_select(1, rows)


@frozen(eq=False, kw_only=True)
class IdleRun:
    """What the engine does around a trunk of given size.

    Attributes:
        model: whose layers and width the trunk has.
        grid: its tokens.
        mask: (F, H, W) bool, on the device.
        dtype: of the trunk's input.
        device: of everything.
    """

    model: ModelInfo
    grid: Grid
    mask: Tensor
    dtype: torch.dtype
    device: str

    def info(self, steps: int) -> RunInfo:
        """Describe a run whose timesteps fall evenly."""
        sigmas = tuple(1 - index / steps for index in range(steps))
        return RunInfo(
            model=self.model,
            timesteps=tuple(1000 * sigma for sigma in sigmas),
            sigmas=sigmas,
            grid=self.grid,
            mask=self.mask,
            branches=("cond",),
            device=self.device,
        )

    def trunk(self, steps: int) -> IdleTrunk:
        """Make the trunk, whose input is noise and whose signals move evenly."""
        width = self.model.width
        generator = torch.Generator(self.device).manual_seed(0)
        place: dict[str, Any] = {"device": self.device, "generator": generator}
        ramp = torch.linspace(1, 2, steps, device=self.device)[:, None]  # (S, 1)
        tables = (torch.randn(width, **place) * ramp, torch.randn(6 * width, **place) * ramp)
        return IdleTrunk(
            x=torch.randn(1, self.grid.tokens, width, **place).to(self.dtype),
            layers=self.model.layers,
            control_layers=self.model.control_layers,
            heads=self.model.heads,
            tables=tables,
        )

    def run(
        self, trunk: IdleTrunk, policy: CachePolicy, steps: int, target_speedup: float | None = None
    ) -> tuple[list[float], Trace]:
        """Run every step of an edit; return the seconds of each, and the trace.

        Making the run (partitioning the mask) is part of the first step.
        """
        traces: list[Trace] = []
        engine = Engine(policy=policy, target_speedup=target_speedup, on_run=traces.append)
        engine.sampler_steps(steps)
        latents, watch = trunk.x[..., :1], Stopwatch(self.device)
        with torch.inference_mode():
            watch.mark()
            engine.begin_run(self.info(steps))
            for index in range(steps):
                call = ModelCall(step=index, branches=BRANCH, latents=latents)
                engine.model_call(call, lambda run: run(trunk))
                engine.end_step()
                watch.mark()
        return watch.laps_s(), traces[0]


def seconds_by_mode(laps_s: Sequence[float], trace: Trace) -> dict[Mode, list[float]]:
    """Sort the seconds of steps by what they did; the first one, which begins the run, is left out."""
    found: dict[Mode, list[float]] = {}
    for lap, mode in list(zip(laps_s, trace.modes(), strict=True))[1:]:
        found.setdefault(mode, []).append(lap)
    return found
