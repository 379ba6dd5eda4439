"""``TinyBackbone``: the adapter for ``TinyPipeline``, and the example for authors of backbones.

It attaches by stand-ins. For the length of a session the pipeline's ``model_fn`` and ``scheduler``
are replaced on the instance; the former hands the library's own function a model that looks like the
real one, but whose ``blocks`` is one object that asks the engine, and whose ``control`` runs nothing
and remembers what it was given. Neither the model nor any class is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor

from hetcache_core.backbone.adapter import (
    Backbone,
    EditRequest,
    Features,
    Geometry,
    LoadRequest,
    ModelCall,
    RandomModels,
    RunInfo,
)
from hetcache_core.backbone.trunk import RunTrunk
from hetcache_core.engine.loop import Engine
from hetcache_core.errors import PipelineBusyError
from hetcache_core.steps import BranchRows, ModelInfo
from hetcache_core.testing.case import BackboneCase
from hetcache_core.testing.tiny.model import PATCH, TinyDiT
from hetcache_core.testing.tiny.pipeline import FRAMES, PIXELS, TinyPipeline
from hetcache_core.testing.tiny.trunk import TinyCall
from hetcache_core.tokens import Grid

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class _StandIn:
    """Passes for an object: what it replaces comes first, the rest is the object's own."""

    def __init__(self, original: object, **replaced: object) -> None:
        self.__dict__.update(replaced)
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return type(self._original).forward(self, *args, **kwargs)  # type: ignore[attr-defined]


@define(eq=False)
class _Link:
    """Carries the calls of one pipeline to one engine."""

    pipeline: TinyPipeline
    engine: Engine
    step: int = field(default=0, init=False)
    scheduler: Any = field(init=False)
    model_fn: Callable[..., Tensor] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.scheduler, self.model_fn = self.pipeline.scheduler, self.pipeline.model_fn

    def set_timesteps(self, steps: int) -> None:
        self.engine.abort_run()  # one that an error cut short
        self.scheduler.set_timesteps(self.engine.sampler_steps(steps))
        self.step = 0

    def scheduler_step(self, velocity: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
        following: Tensor = self.scheduler.step(velocity, timestep, latents)
        self.engine.end_step(following, velocity)
        self.step += 1
        return following

    def call_model(
        self, *, model: TinyDiT, latents: Tensor, positive: bool | None, **arguments: Any
    ) -> Tensor:
        call = ModelCall(
            step=self.step,
            branches=_branches(len(latents), positive=positive),
            latents=latents,
            expert=self._expert(model),
        )
        if not self.engine.running:
            self.engine.begin_run(self._run_info(latents, positive=positive, **arguments))

        def forward(run: RunTrunk) -> Tensor:
            return self.model_fn(
                model=_model_stand_in(model, run), latents=latents, positive=positive, **arguments
            )

        return self.engine.model_call(call, forward)

    def _run_info(
        self,
        latents: Tensor,
        *,
        positive: bool | None,
        mask: Tensor | None,
        references: int,
        guidance_scale: float,
        **_arguments: Any,
    ) -> RunInfo:
        frames, height, width = latents.shape[2:]
        grid = Grid(
            frames=frames - references,
            height=height // PATCH[1],
            width=width // PATCH[2],
            prefix=references * (height // PATCH[1]) * (width // PATCH[2]),
            pixel_height=PATCH[1] * PIXELS,
            pixel_width=PATCH[2] * PIXELS,
            frame_stride=FRAMES,
        )
        branches = ("cond",) if guidance_scale == 1 else ("cond", "uncond")
        return RunInfo(
            model=describe(self.pipeline),
            timesteps=tuple(self.scheduler.timesteps.tolist()),
            sigmas=tuple(self.scheduler.sigmas.tolist()),
            grid=grid,
            mask=mask.to(latents.device) if mask is not None else None,
            branches=branches[::-1] if positive is False else branches,
            device=str(latents.device),
            sampler="euler",
        )

    def _expert(self, model: TinyDiT) -> str:
        if self.pipeline.model2 is None:
            return ""
        return "second" if model is self.pipeline.model2 else "first"


def _model_stand_in(model: TinyDiT, run: RunTrunk) -> _StandIn:
    remembered: list[Tensor] = []

    def control(_x: Tensor, control: Tensor, *_arguments: Tensor) -> tuple[()]:
        remembered.append(control)
        return ()

    def trunk(x: Tensor, text: Tensor, modulation: Tensor, rotary: Tensor) -> Tensor:
        return run(
            TinyCall(
                model=model,
                x=x,
                text=text,
                modulation=modulation,
                rotary=rotary,
                control=remembered[0] if remembered else None,
            )
        )

    return _StandIn(model, blocks=[trunk], control=control if model.control else None)


def _branches(rows: int, *, positive: bool | None) -> tuple[BranchRows, ...]:
    if positive is None:  # both in one call, the conditional one first
        return BranchRows("cond", 0, rows // 2), BranchRows("uncond", rows // 2, rows)
    return (BranchRows("cond" if positive else "uncond", 0, rows),)


def describe(pipeline: TinyPipeline) -> ModelInfo:
    """Describe the pipeline's model."""
    config = pipeline.model.config
    return ModelInfo(
        backbone=TinyBackbone.name,
        variant="",
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        control_layers=config.control_layers,
    )


@final
class TinyBackbone(Backbone):
    """Runs ``TinyPipeline``, a toy in plain torch, with a caching policy."""

    name: ClassVar[str] = "tiny"
    summary: ClassVar[str] = "a toy transformer in plain torch, for tests and examples"
    library: ClassVar[str] = "torch"
    features: ClassVar[Features] = Features(
        control=True, guidance=frozenset({"separate", "merged", "none"})
    )
    geometry: ClassVar[Geometry] = Geometry(
        size_multiple=PATCH[1] * PIXELS,
        frame_stride=FRAMES,
        default_size=(32, 32),
        default_frames=5,
    )

    def accepts(self, pipeline: object) -> bool:
        """Whether this is a ``TinyPipeline``."""
        return isinstance(pipeline, TinyPipeline)

    def describe(self, pipeline: TinyPipeline) -> ModelInfo:
        """Describe the pipeline's model."""
        return describe(pipeline)

    @contextmanager
    def attach(self, pipeline: TinyPipeline, engine: Engine) -> Iterator[None]:
        """Route the pipeline's calls through an engine.

        Raises:
            PipelineBusyError: another session is active on the pipeline.
        """
        if isinstance(pipeline.scheduler, _StandIn):
            raise PipelineBusyError(pipeline=type(pipeline).__name__)
        link = _Link(pipeline, engine)
        pipeline.model_fn = link.call_model
        pipeline.scheduler = _StandIn(
            link.scheduler, set_timesteps=link.set_timesteps, step=link.scheduler_step
        )
        try:
            yield
        finally:
            pipeline.model_fn, pipeline.scheduler = link.model_fn, link.scheduler

    def load(self, request: LoadRequest) -> TinyPipeline:
        """Make a pipeline with random weights; ``request.model`` may give their seed."""
        pipeline = TinyPipeline(seed=int(request.model or 0))
        pipeline.model.to(device=request.device, dtype=getattr(torch, request.dtype))
        return pipeline

    def edit(self, pipeline: TinyPipeline, request: EditRequest) -> NDArray[np.uint8]:
        """Run one masked edit and decode it."""
        latents = pipeline(
            torch.from_numpy(request.video),
            torch.from_numpy(request.mask),
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            steps=request.steps,
            guidance_scale=request.guidance_scale,
            merge_guidance=request.merge_guidance,
            seed=request.seed,
            **request.options,
        )
        frames: NDArray[np.uint8] = pipeline.decode(latents).cpu().numpy()
        return frames

    def notice(self, pipeline: TinyPipeline) -> str:
        """Say that the weights are random."""
        return "The weights are random: this shows how a policy runs, not how good its videos are."

    @property
    def random_models(self) -> RandomModels:
        """What ``load`` makes: its weights are random anyway."""
        return _TinyModels(self)


@final
@frozen
class _TinyModels(RandomModels):
    backbone: TinyBackbone

    def pipeline(self, request: LoadRequest) -> TinyPipeline:
        return self.backbone.load(evolve(request, model=None))

    def case(self) -> BackboneCase:
        from hetcache_core.testing.tiny.case import tiny_case

        return tiny_case()
