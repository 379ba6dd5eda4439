"""Following ComfyUI's sampling: runs, steps and calls of the diffusion model.

What a session is for is a guider: it holds the model, the conditioning and the options, and its ``sample``
is what a pipeline's call is elsewhere. For the length of a session its options name three wrappers more, at
the places that ComfyUI keeps for them. They see the schedule, the steps and the calls of the model. Nothing
of ComfyUI is imported: what is needed of it comes with the calls.
"""

from __future__ import annotations

import inspect
import math
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, final

import torch
from attrs import define, field, frozen
from torch import Tensor

from hetcache_core import (
    Backbone,
    BranchRows,
    Grid,
    ModelCall,
    PipelineBusyError,
    RunInfo,
    UnsupportedBackboneError,
)

if TYPE_CHECKING:
    from hetcache_core import Engine, RunTrunk

KEY: Final = "hetcache"
"""Under which wrappers are known to ComfyUI."""

TIMESTEPS: Final = 1000.0
"""Timestep of pure noise in flow matching."""

NAMES: Final = {0: "cond", 1: "uncond"}
"""Branches by their place among a guider's conditionings."""


def options_of(guider: Any) -> dict[str, Any]:
    """Return what a guider's options say to the model's blocks and wrappers."""
    found: dict[str, Any] = guider.model_options.get("transformer_options", {})
    return found


def is_guider(pipeline: object) -> bool:
    """Whether an object samples as ComfyUI's guiders do."""
    patcher = getattr(pipeline, "model_patcher", None)
    return hasattr(pipeline, "model_options") and hasattr(patcher, "model")


def model_of(guider: Any) -> Any:
    """Return the diffusion model that a guider samples with."""
    return guider.model_patcher.model.diffusion_model


@final
@frozen(eq=False)
class DiffusionCall:
    """One call of a diffusion model.

    Attributes:
        guider: who samples.
        model: the diffusion model.
        given: arguments of its innermost function, by name.
        masked: (B, C, T, h, w) noise mask of the sampling, where it has one: 1 where it may change.
    """

    guider: Any
    model: Any
    given: Mapping[str, Any]
    masked: Tensor | None
    _executor: Any
    _arguments: inspect.BoundArguments

    @property
    def x(self) -> Tensor:
        """Input (B, C, ...): noisy latents, and behind their channels whatever else the model is given."""
        found: Tensor = self.given["x"]
        return found

    @property
    def options(self) -> dict[str, Any]:
        """What ComfyUI and other nodes tell the model's blocks."""
        found: dict[str, Any] = self.given["transformer_options"]
        return found

    @property
    def latents(self) -> Tensor:
        """Noisy latents (B, C, ...), without other channels of the input."""
        form = getattr(self.guider.model_patcher.model, "latent_format", None)
        channels = getattr(form, "latent_channels", self.x.shape[1])
        return self.x[:, :channels]

    def library(self, stand_in: Any = None, **options: Any) -> Tensor:
        """Run the library's own code, with wrappers of other nodes that lie within ours.

        Args:
            stand_in: what it gets in place of the model, or None for the model itself.
            **options: what ``transformer_options`` hold instead.

        Raises:
            UnsupportedBackboneError: something that is no method has taken the place of the model's own.
        """
        executor, arguments = self._executor, self._arguments
        positional, named = list(arguments.args), dict(arguments.kwargs)
        if options:
            changed = {**self.options, **options}
            if "transformer_options" in named:
                named["transformer_options"] = changed
            else:
                positional[list(arguments.arguments).index("transformer_options")] = changed
        own = executor.original
        if stand_in is not None:
            code = getattr(own, "__func__", None)
            if code is None:
                raise UnsupportedBackboneError(
                    f"Something has replaced the forward of this {type(self.model).__name__}",
                    remedy="Leave out the node that does, or use the policy 'easycache'",
                )
            executor.original = types.MethodType(code, stand_in)
        try:
            output: Tensor = executor(*positional, **named)
        finally:
            executor.original = own
        return output


class DitCalls(ABC):
    """What the calls of one kind of diffusion model mean."""

    @abstractmethod
    def grid(self, call: DiffusionCall) -> Grid:
        """Lay out the tokens of a run by its first call."""

    @abstractmethod
    def answer(self, call: DiffusionCall, run: RunTrunk) -> Tensor:
        """Run the library's call with its trunk answered by ``run``: (B, C, ...)."""

    def mask(self, call: DiffusionCall, grid: Grid) -> Tensor | None:
        """Return the (F, H, W) bool edit mask of a run, or None.

        By default it is what the guider's attribute ``edit_mask`` holds, else the noise mask.

        Args:
            call: the run's first one.
            grid: its tokens.
        """
        given = getattr(call.guider, "edit_mask", None)
        if given is not None:
            return pixels(given, grid)
        return None if call.masked is None else from_latents(call.masked.amax((0, 1)), grid)


def pixels(mask: Tensor, grid: Grid) -> Tensor:
    """Fit a mask (F, H, W) in [0, 1] to a grid's size in pixels; one picture stands for all frames."""
    height, width = grid.height * grid.pixel_height, grid.width * grid.pixel_width
    if mask.shape[0] == 1:
        mask = mask.expand(grid.pixel_frames, -1, -1)
    mask = mask[: grid.pixel_frames].float()
    fitted = torch.nn.functional.adaptive_max_pool2d(mask[:, None], (height, width))[:, 0]
    return fitted > 0.5  # noqa: PLR2004 - nearer to white than to black


def from_latents(mask: Tensor, grid: Grid) -> Tensor:
    """Spread a mask (T, h, w) of latent frames over the pixel frames (F, H, W) that they stand for."""
    first = 1 if grid.first_frame_alone else grid.frame_stride
    counts = torch.full((mask.shape[0],), grid.frame_stride, device=mask.device)
    counts[0] = first
    return pixels(mask.float().repeat_interleave(counts, dim=0), grid)


@define(eq=False)
class Router:
    """Stands between a guider's sampling and the calls of its model for one session."""

    backbone: Backbone
    guider: Any
    engine: Engine
    calls: DitCalls
    _sigmas: list[float] = field(factory=list, init=False)
    """Noise levels of the sampling under way, the last one of which no step begins with."""
    _next: int = field(default=0, init=False)
    """Step that follows on."""
    _open: bool = field(default=False, init=False)
    """Whether the sampler is inside a step that is followed."""
    _called: set[str] = field(factory=set, init=False)
    _shape: torch.Size | None = field(default=None, init=False)
    _names: dict[Any, str] = field(factory=dict, init=False)
    _sampler: str = field(default="", init=False)
    _masked: Tensor | None = field(default=None, init=False)

    @property
    def wrappers(self) -> dict[str, Callable[..., Any]]:
        """What is called at which of ComfyUI's places."""
        return {
            "sampler_sample": self.sampled,
            "predict_noise": self.stepped,
            "diffusion_model": self.called,
        }

    def sampled(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Follow one sampling, whose end frees all that is kept, also where it is interrupted."""
        arguments = inspect.signature(executor.original).bind(*args, **kwargs)
        given = arguments.arguments
        self.engine.abort_run()
        self._sigmas = [float(sigma) for sigma in given["sigmas"].tolist()]
        self._next, self._shape, self._masked = 0, None, given.get("denoise_mask")
        self._names.clear()
        self._sampler = self._sampler_of(executor.class_obj)
        try:
            result = executor(*args, **kwargs)
            self.engine.end_run()
        except BaseException:
            self.engine.abort_run()
            raise
        finally:
            self._sigmas, self._open = [], False
        return result

    def stepped(self, executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Follow one evaluation of the guided model: a step, where it is the schedule's next."""
        steps = len(self._sigmas) - 1
        # Samplers of higher order evaluate at a level once more, or between two: those are the library's.
        if self._next >= steps or not math.isclose(
            float(timestep.flatten()[0]), self._sigmas[self._next], rel_tol=1e-5
        ):
            return executor(x, timestep, *args, **kwargs)
        self._called, self._open = set(), True
        try:
            denoised = executor(x, timestep, *args, **kwargs)
        finally:
            self._open = False
        if not self._called:
            self._next = (
                steps  # the model does not ask its wrappers, or another cache is before this one
            )
            self.engine.end_run()
            return denoised
        guided = None
        if self._flow:
            level = timestep.view(-1, *[1] * (x.dim() - 1))
            guided = (x - denoised) / level
        self.engine.end_step(denoised, guided)
        self._next += 1
        return denoised

    def called(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Answer one call of the model, or leave it to the library."""
        if not self._open:
            return executor(*args, **kwargs)
        arguments = inspect.signature(executor.original).bind(*args, **kwargs)
        given = dict(arguments.arguments)
        for name, parameter in arguments.signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        call = DiffusionCall(
            self.guider, executor.class_obj, given, self._masked, executor, arguments
        )
        branches = self._branches(call)
        key = "+".join(branch.name for branch in branches)
        if not self.engine.running and self._next == 0:
            self._shape = call.x.shape[1:]
            self.engine.begin_run(self._run_info(call, branches))
        elsewhere = (
            call.x.shape[1:] != self._shape
        )  # a part of the picture, with a prompt of its own
        if not self.engine.running or elsewhere or key in self._called:
            return executor(*args, **kwargs)
        self._called.add(key)
        made = ModelCall(step=self._next, branches=branches, latents=call.latents)
        return self.engine.model_call(made, lambda run: self.calls.answer(call, run))

    @property
    def _flow(self) -> bool:
        """Whether the model says how latents flow, so that noise levels are shares."""
        sampling = self.guider.model_patcher.get_model_object("model_sampling")
        return float(sampling.sigma_max) <= 1

    def _branches(self, call: DiffusionCall) -> tuple[BranchRows, ...]:
        """Name the batch rows of a call by their conditionings; several of one branch are numbered."""
        places, known = call.options["cond_or_uncond"], self._names
        ids = call.options.get("uuids") or list(enumerate(places))
        for place, identity in zip(places, ids, strict=True):
            if identity not in known:
                name = NAMES.get(place, f"cond{place}")
                same = sum(n.partition("-")[0] == name for n in known.values())
                known[identity] = f"{name}-{same + 1}" if same else name
        return BranchRows.split(len(call.x), *(known[identity] for identity in ids))

    def _run_info(self, call: DiffusionCall, branches: tuple[BranchRows, ...]) -> RunInfo:
        levels = tuple(self._sigmas[:-1])
        if self._flow:
            timesteps = tuple(sigma * TIMESTEPS for sigma in levels)
        else:
            sampling = self.guider.model_patcher.get_model_object("model_sampling")
            timesteps = tuple(float(t) + 1 for t in sampling.timestep(torch.tensor(levels)))
            levels = tuple(sigma / math.sqrt(1 + sigma**2) for sigma in levels)
        grid = self.calls.grid(call)
        mask = self.calls.mask(call, grid)
        return RunInfo(
            model=self.backbone.describe(self.guider),
            timesteps=timesteps,
            sigmas=levels,
            grid=grid,
            mask=None if mask is None else mask.to(call.x.device),
            branches=tuple(branch.name for branch in branches),
            device=str(call.x.device),
            sampler=self._sampler,
        )

    def _sampler_of(self, sampler: Any) -> str:
        """Name the sampler: "euler" where a step follows the guided output in a straight line."""
        function = getattr(sampler, "sampler_function", None)
        name = getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")
        churned = getattr(sampler, "extra_options", {}).get("s_churn", 0)
        straight = self._flow and not churned and self._masked is None
        return name if name != "euler" or straight else "euler, not straight"


@contextmanager
def attached(backbone: Backbone, guider: Any, engine: Engine, calls: DitCalls) -> Iterator[None]:
    """Route the calls of a guider's model through an engine while the context lasts.

    Args:
        backbone: describes the model.
        guider: who samples; its options are replaced, and nothing of the model is.
        engine: what answers the calls.
        calls: what they mean.

    Raises:
        PipelineBusyError: the guider is in a session.
        UnsupportedBackboneError: it samples a long clip in overlapping parts.
    """
    before, options = guider.model_options, options_of(guider)
    if KEY in options.get("wrappers", {}).get("diffusion_model", {}):
        raise PipelineBusyError(pipeline=type(guider).__name__)
    if before.get("context_handler") is not None:
        raise UnsupportedBackboneError(
            "The model samples in context windows, whose calls are parts of a step",
            option="context_handler",
            remedy="Leave the context windows node out, or HetCache",
        )
    router = Router(backbone, guider, engine, calls)
    wrappers = {place: dict(keys) for place, keys in options.get("wrappers", {}).items()}
    for place, function in router.wrappers.items():
        wrappers.setdefault(place, {})[KEY] = [function]
    changed = {**before, "transformer_options": {**options, "wrappers": wrappers}}
    guider.model_options = changed
    try:
        yield
    finally:
        if guider.model_options is changed:
            guider.model_options = before
