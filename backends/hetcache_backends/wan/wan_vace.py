"""Wan2.1-VACE on DiffSynth's ``WanVideoPipeline``.

For the length of a session the pipeline's ``model_fn`` and ``scheduler`` are stand-ins. The
library's own ``model_fn_wan_video`` still runs, but is handed a ``dit`` whose ``blocks`` is one
object (the trunk) and a ``vace`` that returns no hints and remembers its arguments, so that the
engine runs blocks and control blocks only where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, final

from attrs import define, field, frozen

from hetcache_backends.wan.loading import import_diffsynth, load_checkpoint
from hetcache_core import (
    Backbone,
    BranchRows,
    CacheStateError,
    EditRequest,
    Features,
    Geometry,
    Grid,
    LoadRequest,
    ModelCall,
    ModelInfo,
    PipelineBusyError,
    RunInfo,
    UnsupportedBackboneError,
    binary_mask,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from hetcache_core import Engine, RunTrunk, TrunkCall
    from hetcache_core.testing import BackboneCase

TEMPORAL_STRIDE: Final = 4
"""Pixel frames a latent frame covers, the first frame alone. Source: Wan2.1's VAE."""

VARIANTS: Final = {(1536, 30): "wan2.1-1.3b", (5120, 40): "wan2.1-14b"}
"""Published models by (width, blocks). Source: DiffSynth 2.1.12, ``configs/model_configs.py``."""

BRANCHES: Final = ("cond", "uncond")

WAN_MODELS: Final = {("diffsynth", "WanModel"), ("hetcache_backends", "OnnxWanModel")}
"""Packages and names of the classes that a pipeline's ``dit`` may have."""

REFUSED_OPTIONS: Final[Mapping[str, str]] = {
    "sliding_window_size": "sliding window",
    "sliding_window_stride": "sliding window",
    "audio_embeds": "speech-to-video",
    "longcat_latents": "LongCat-Video",
    "vap_hidden_state": "video-as-prompt",
    "pose_latents": "Wan-Animate",
    "face_pixel_values": "Wan-Animate",
    "music_feature": "WanToDance",
    "wantodance_refimage_feature": "WanToDance",
    "reference_latents": "Fun reference image",
    "tea_cache": "DiffSynth's own TeaCache (tea_cache_l1_thresh)",
    "use_unified_sequence_parallel": "unified sequence parallel",
    "skip_9th_layer": "WanToDance layer skipping",
    "use_gradient_checkpointing": "gradient checkpointing",
    "use_gradient_checkpointing_offload": "gradient checkpointing",
}
"""Arguments of ``model_fn_wan_video`` that change what a block call means, and what they are."""


@final
@frozen
class WanVace(Backbone):
    """Adapter for ``diffsynth.pipelines.wan_video.WanVideoPipeline``."""

    name: ClassVar[str] = "wan-vace"
    summary: ClassVar[str] = "Wan2.1-VACE video editing (DiffSynth)"
    library: ClassVar[str] = "diffsynth"
    features: ClassVar[Features] = Features(
        control=True, compiled=True, guidance=frozenset({"separate", "merged", "none"})
    )
    geometry: ClassVar[Geometry] = Geometry(size_multiple=16, frame_stride=TEMPORAL_STRIDE)

    def accepts(self, pipeline: object) -> bool:
        """Whether this is a DiffSynth Wan pipeline that no other backbone built."""
        return is_wan_pipeline(pipeline) and owner(pipeline) == self.name

    def describe(self, pipeline: Any) -> ModelInfo:
        """Describe the pipeline's DiT."""
        return describe(pipeline, self.name)

    @contextmanager
    def attach(self, pipeline: Any, engine: Engine) -> Iterator[None]:
        """Put stand-ins for ``model_fn`` and ``scheduler`` on the pipeline; see the module."""
        with attached(pipeline, engine, self.name):
            yield

    def load(self, request: LoadRequest) -> Any:
        """Load a checkpoint folder or hub id through DiffSynth's own loader."""
        return load_checkpoint(request)

    def edit(self, pipeline: Any, request: EditRequest) -> NDArray[np.uint8]:
        """Run one masked edit through ``WanVideoPipeline.__call__``."""
        return edit(pipeline, request)

    def export(
        self, pipeline: Any, folder: Path, *, model: str | None = None
    ) -> Mapping[str, object]:
        """Write the DiT and the control branch as ONNX graphs; see ``onnx_parts``."""
        from hetcache_backends.onnx.wan import export_wan

        return export_wan(pipeline, folder, backbone=self.name, model=model)

    def stand_in(self, request: LoadRequest) -> Any:
        """Make a small random Wan-VACE, with the codec and the words of ``tiny-vace``."""
        import_diffsynth()
        from hetcache_backends.wan.case import SMALL, wan_stand_in

        return wan_stand_in(self.name, SMALL, request)

    def contract_case(self) -> BackboneCase:
        """Return a small Wan-VACE with seeded weights."""
        import_diffsynth()
        from hetcache_backends.wan.case import SMALL, wan_case

        return wan_case(self, SMALL)


def is_wan_pipeline(pipeline: object) -> bool:
    """Whether an object is DiffSynth's Wan pipeline, without importing DiffSynth for it."""
    return any(
        kind.__module__.startswith("diffsynth.pipelines.wan_video")
        and kind.__name__ == "WanVideoPipeline"
        for kind in type(pipeline).__mro__
    )


def owner(pipeline: object) -> str:
    """Name of the backbone that a Wan pipeline belongs to."""
    return str(getattr(pipeline, "hetcache_backbone", WanVace.name))


def describe(pipeline: Any, backbone: str) -> ModelInfo:
    """Describe a Wan pipeline's model.

    Raises:
        UnsupportedBackboneError: the pipeline holds no Wan DiT.
    """
    dit = pipeline.dit
    _need_wan_dit(dit)
    width, layers = int(dit.dim), len(dit.blocks)
    return ModelInfo(
        backbone=backbone,
        variant=VARIANTS.get((width, layers), ""),
        layers=layers,
        width=width,
        heads=int(dit.blocks[0].num_heads),
        control_layers=tuple(pipeline.vace.vace_layers) if pipeline.vace is not None else (),
    )


@contextmanager
def attached(
    pipeline: Any, engine: Engine, backbone: str, trunk: Callable[..., TrunkCall] | None = None
) -> Iterator[None]:
    """Route a Wan pipeline's model calls through an engine.

    Args:
        pipeline: the pipeline.
        engine: the engine.
        backbone: name of the backbone.
        trunk: makes the trunk's calls, with the arguments of ``WanTrunk``, which is the default.

    Raises:
        PipelineBusyError: the pipeline is already in a session.
        UnsupportedBackboneError: it runs sequence-parallel, or holds another kind of DiT.
    """
    for dit in (pipeline.dit, pipeline.dit2):
        if dit is not None or dit is pipeline.dit:
            _need_wan_dit(dit)
    if isinstance(pipeline.scheduler, _SchedulerStandIn):
        raise PipelineBusyError(pipeline=type(pipeline).__name__)
    if getattr(pipeline, "use_unified_sequence_parallel", False):
        raise _refusal("use_unified_sequence_parallel")
    scheduler, model_fn = pipeline.scheduler, pipeline.model_fn
    make_trunk = trunk or partial(_wan_trunk, compiler=engine.compiler)
    router = _Router(pipeline, engine, backbone, scheduler, model_fn, make_trunk)
    pipeline.scheduler = _SchedulerStandIn(scheduler, router)
    pipeline.model_fn = router.model_fn
    try:
        yield
    finally:
        pipeline.scheduler, pipeline.model_fn = scheduler, model_fn


def _wan_trunk(**arguments: Any) -> TrunkCall:
    from hetcache_backends.wan.trunk import WanTrunk

    return WanTrunk(**arguments)


def _need_wan_dit(dit: Any) -> None:
    kind = type(dit)
    if (kind.__module__.partition(".")[0], kind.__name__) not in WAN_MODELS:
        raise UnsupportedBackboneError(
            f"The pipeline's dit is a {kind.__name__}; wan-vace carries WanModel (Wan2.1 and Wan2.2). "
            "LongCat-Video, Wan-Animate-2 and speech-to-video models run other code."
        )


def _refusal(option: str) -> UnsupportedBackboneError:
    return UnsupportedBackboneError(
        f"A session cannot carry {REFUSED_OPTIONS[option]} (argument {option!r}). Call the pipeline "
        "without it, or outside the session."
    )


@final
class _SchedulerStandIn:
    """The pipeline's scheduler, which also tells the router about runs and steps."""

    def __init__(self, target: Any, router: _Router) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_router", router)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._target, name, value)

    def set_timesteps(self, num_inference_steps: int, *args: Any, **kwargs: Any) -> Any:
        steps = self._router.engine.sampler_steps(num_inference_steps)
        result = self._target.set_timesteps(steps, *args, **kwargs)
        self._router.sampler_reset()
        return result

    def step(self, *args: Any, **kwargs: Any) -> Any:
        result = self._target.step(*args, **kwargs)
        self._router.sampler_stepped(result)
        return result


@define(eq=False)
class _Router:
    """Stands between the pipeline's loop and ``model_fn_wan_video`` for one session."""

    pipeline: Any
    engine: Engine
    backbone: str
    scheduler: Any
    library_fn: Callable[..., Any]
    make_trunk: Callable[..., TrunkCall]
    _step: int = field(default=0, init=False)
    _calls: int = field(default=0, init=False)

    def sampler_reset(self) -> None:
        """A pipeline call begins; whatever ran before was not finished."""
        self.engine.abort_run()
        self._step = self._calls = 0

    def sampler_stepped(self, latents: Tensor) -> None:
        """The scheduler has taken a step and made these latents."""
        if self.engine.running:
            self.engine.end_step(latents)
        self._step += 1
        self._calls = 0

    def model_fn(self, **arguments: Any) -> Tensor:
        """Answer one model call of the pipeline's loop."""
        from hetcache_backends.wan.trunk import WanControl

        for option in REFUSED_OPTIONS:
            value = arguments.get(option)
            if value is not None and value is not False:
                raise _refusal(option)
        dit, vace = arguments["dit"], arguments.get("vace")
        _need_wan_dit(dit)
        self._check_timestep(arguments["timestep"])
        if not self.engine.running:
            self.engine.begin_run(self._run_info(arguments))
        call = ModelCall(
            step=self._step,
            branches=self._branches(arguments),
            latents=arguments["latents"],
            expert=self._expert(dit),
        )
        self._calls += 1
        control = None
        if vace is not None and arguments.get("vace_context") is not None:
            control = WanControl(
                model=vace,
                context=arguments["vace_context"],
                scale=float(arguments.get("vace_scale", 1.0)),
            )

        def forward(run: RunTrunk) -> Tensor:
            def trunk(x: Tensor, context: Tensor, t_mod: Tensor, freqs: Tensor) -> Tensor:
                return run(
                    self.make_trunk(
                        dit=dit,
                        inputs=x,
                        context=context,
                        modulation=t_mod,
                        freqs=freqs,
                        control_branch=control,
                    )
                )

            stand_ins = {"dit": _DitStandIn(dit, trunk), "vace": _no_hints if control else vace}
            output: Tensor = self.library_fn(**{**arguments, **stand_ins})
            return output

        return self.engine.model_call(call, forward)

    def _check_timestep(self, given: Tensor) -> None:
        """The pipeline rounds the timestep to its dtype; the scheduler's own must round to it."""
        if self._step >= len(self.scheduler.timesteps):
            raise CacheStateError(
                f"The model is called after the scheduler's last step ({len(self.scheduler.timesteps)})."
            )
        if given.device.type != "cpu" and self._step > 0:
            return  # looking would wait for the device in every call
        own = self.scheduler.timesteps[self._step].to(dtype=given.dtype, device=given.device)
        if bool((given != own).any()):
            raise CacheStateError(
                f"The model is called with timestep {given.flatten()[0].item()} while the scheduler is "
                f"at step {self._step} (timestep {own.item()}). A session needs the pipeline's own loop."
            )

    def _run_info(self, arguments: Mapping[str, Any]) -> RunInfo:
        latents = arguments["latents"]
        timesteps = tuple(float(t) for t in self.scheduler.timesteps)
        sigmas = tuple(float(s) for s in self.scheduler.sigmas[: len(timesteps)])
        references = _reference_count(arguments.get("vace_reference_image"))
        patch_t, patch_h, patch_w = arguments["dit"].patch_size
        _, _, frames, height, width = latents.shape
        grid = Grid(
            frames=frames // patch_t - references,
            height=height // patch_h,
            width=width // patch_w,
            prefix=references * (height // patch_h) * (width // patch_w),
            pixel_height=arguments["height"] * patch_h // height,
            pixel_width=arguments["width"] * patch_w // width,
            frame_stride=TEMPORAL_STRIDE,
        )
        guided = arguments.get("cfg_scale", 1.0) != 1.0
        return RunInfo(
            model=describe(self.pipeline, self.backbone),
            timesteps=timesteps,
            sigmas=sigmas,
            grid=grid,
            mask=_pixel_mask(arguments, grid, latents),
            branches=BRANCHES if guided else BRANCHES[:1],
            device=str(latents.device),
        )

    def _branches(self, arguments: Mapping[str, Any]) -> tuple[BranchRows, ...]:
        if arguments.get("cfg_merge") and arguments.get("cfg_scale", 1.0) != 1.0:
            return tuple(BranchRows(name, i, i + 1) for i, name in enumerate(BRANCHES))
        positive = arguments.get("positive")
        # Before DiffSynth 2.1.3 the call does not say which branch it is; cond comes first.
        first = positive if positive is not None else self._calls == 0
        return (BranchRows(BRANCHES[0] if first else BRANCHES[1], 0, 1),)

    def _expert(self, dit: Any) -> str:
        if self.pipeline.dit2 is None:
            return ""
        return "low-noise" if dit is self.pipeline.dit2 else "high-noise"


@final
class _DitStandIn:
    """The DiT as ``model_fn_wan_video`` sees it: everything its own, but one block, the trunk."""

    def __init__(self, dit: Any, trunk: Callable[..., Any]) -> None:
        self._dit = dit
        self.blocks = [trunk]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dit, name)


@final
class _NoHints:
    """The control branch as ``model_fn_wan_video`` sees it: it runs nothing and adds nothing."""

    vace_layers_mapping: ClassVar[dict[int, int]] = {}

    def __call__(self, *_: Any, **__: Any) -> tuple[()]:
        return ()


_no_hints = _NoHints()


def _reference_count(images: Any) -> int:
    if images is None:
        return 0
    return len(images) if isinstance(images, list) else 1


def _pixel_mask(arguments: Mapping[str, Any], grid: Grid, latents: Tensor) -> Tensor | None:
    """Take the mask from the pipeline's own arguments: (F, H, W) bool, or None for no edit.

    All pixel frames are used; the control latents hold every fourth frame only and would miss
    tokens that a moving mask touches in between.
    """
    import torch

    if arguments.get("vace_context") is None:
        return None
    frames = arguments.get("vace_video_mask")
    shape = (
        grid.pixel_frames,
        grid.height * grid.pixel_height,
        grid.width * grid.pixel_width,
    )
    if frames is None:  # the library then edits everything
        return torch.ones(shape, dtype=torch.bool, device=latents.device)
    return binary_mask(frames[: shape[0]]).to(latents.device)  # (F, H, W)


def edit(pipeline: Any, request: EditRequest) -> NDArray[np.uint8]:
    """Run one masked edit and return (F, H, W, 3) uint8 frames."""
    import numpy as np
    from PIL import Image

    frames, height, width, _ = request.video.shape
    mask = [Image.fromarray(m.astype(np.uint8) * 255).convert("RGB") for m in request.mask]
    options: dict[str, Any] = {"progress_bar_cmd": _no_progress, **request.options}
    result = pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        vace_video=[Image.fromarray(f) for f in request.video],
        vace_video_mask=mask,
        num_frames=frames,
        height=height,
        width=width,
        seed=request.seed,
        num_inference_steps=request.steps,
        cfg_scale=request.guidance_scale,
        cfg_merge=request.merge_guidance,
        **options,
    )
    return np.stack([np.asarray(frame) for frame in result])


def _no_progress(iterable: Any) -> Any:
    return iterable
