"""Wan2.1-VACE on DiffSynth's ``WanVideoPipeline``.

The library's own ``model_fn_wan_video`` still runs, but is handed a ``dit`` whose ``blocks`` is one
object (the trunk) and a ``vace`` that returns no hints, so that the engine runs blocks and control
blocks only where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, final

from attrs import define, frozen

from hetcache_backends.wan.loading import import_diffsynth, load_checkpoint
from hetcache_core import (
    Backbone,
    BranchRows,
    EditRequest,
    Exporter,
    Features,
    Geometry,
    Grid,
    LoadRequest,
    ModelCalls,
    ModelInfo,
    RandomModels,
    StandIn,
    UnsupportedBackboneError,
    attached,
    binary_mask,
    check_options,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from hetcache_core import BlockCompiler, Engine, RunTrunk, TrunkCall

TEMPORAL_STRIDE: Final = 4
"""Pixel frames a latent frame covers, the first frame alone. Source: Wan2.1's VAE."""

VARIANTS: Final = {(1536, 30): "wan2.1-1.3b", (5120, 40): "wan2.1-14b"}
"""Published models by (width, blocks). Source: DiffSynth 2.1.12, ``configs/model_configs.py``."""

BRANCHES: Final = ("cond", "uncond")

PASSED: Final = ("vace_video", "vace_video_mask", "num_frames", "seed", "cfg_scale", "cfg_merge")
"""Arguments that ``edit`` passes beside those that all pipelines get."""

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

    def attach(self, pipeline: Any, engine: Engine) -> AbstractContextManager[None]:
        """Route the calls of ``model_fn``; see ``hetcache_core.backbone.routing``."""
        return routed(self, pipeline, engine)

    def load(self, request: LoadRequest) -> Any:
        """Load a checkpoint folder or hub id through DiffSynth's own loader."""
        return load_checkpoint(request)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse what ``WanVideoPipeline.__call__`` does not take."""
        check_wan_options(options)

    def edit(self, pipeline: Any, request: EditRequest) -> NDArray[np.uint8]:
        """Run one masked edit through ``WanVideoPipeline.__call__``."""
        return edit(pipeline, request)

    @property
    def exporter(self) -> Exporter:
        """What writes the DiT and the control branch as ONNX graphs."""
        from hetcache_backends.onnx.exporters import WanExporter

        return WanExporter(self.name)

    @property
    def random_models(self) -> RandomModels:
        """What makes a small Wan-VACE."""
        from hetcache_backends.wan.case import SMALL, WanModels

        return WanModels(self, SMALL)


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


def routed(
    backbone: Backbone,
    pipeline: Any,
    engine: Engine,
    make_trunk: Callable[..., TrunkCall] | None = None,
) -> AbstractContextManager[None]:
    """Route a Wan pipeline's model calls through an engine.

    Args:
        backbone: describes the pipeline.
        pipeline: the pipeline.
        engine: the engine.
        make_trunk: makes the trunk's calls, with the arguments of ``wan_trunk``, which is the default.
    """
    make_trunk = make_trunk or partial(_library_trunk, engine.compiler)
    dits = [pipeline.dit, *([pipeline.dit2] if pipeline.dit2 is not None else [])]
    return attached(backbone, engine, WanCalls(pipeline, make_trunk), dits)


def _library_trunk(compiler: BlockCompiler | None, **given: Any) -> TrunkCall:
    from hetcache_backends.wan.trunk import wan_trunk

    return wan_trunk(**given, compiler=compiler)


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
@define(eq=False)
class WanCalls(ModelCalls):
    """What the calls of ``model_fn_wan_video`` mean.

    Attributes:
        make_trunk: makes a call of the trunk of what its first block was given.
    """

    make_trunk: Callable[..., TrunkCall]

    latents: ClassVar[str] = "latents"
    function: ClassVar[tuple[str, str] | None] = ("model_fn", "dit")

    def refuse(self, model: Any, engine: Engine) -> None:
        """Refuse another kind of DiT, and sequence parallelism."""
        _need_wan_dit(model)
        if getattr(self.pipeline, "use_unified_sequence_parallel", False):
            raise _refusal("use_unified_sequence_parallel")

    def refuse_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Refuse arguments that change what a block call means."""
        for option in REFUSED_OPTIONS:
            value = arguments.get(option)
            if value is not None and value is not False:
                raise _refusal(option)

    def grid(self, model: Any, arguments: Mapping[str, Any]) -> Grid:
        """Lay out the tokens, those of reference images before the video's."""
        references = _reference_count(arguments.get("vace_reference_image"))
        patch_t, patch_h, patch_w = model.patch_size
        _, _, frames, height, width = arguments["latents"].shape
        return Grid(
            frames=frames // patch_t - references,
            height=height // patch_h,
            width=width // patch_w,
            prefix=references * (height // patch_h) * (width // patch_w),
            pixel_height=arguments["height"] * patch_h // height,
            pixel_width=arguments["width"] * patch_w // width,
            frame_stride=TEMPORAL_STRIDE,
        )

    def mask(self, model: Any, arguments: Mapping[str, Any]) -> Tensor | None:
        """Take the mask from the pipeline's own arguments, in pixels and with all of its frames."""
        return _pixel_mask(arguments, self.grid(model, arguments))

    def run_branches(self, arguments: Mapping[str, Any], context: str | None) -> tuple[str, ...]:
        """Both branches, or the conditional one alone."""
        return BRANCHES if arguments.get("cfg_scale", 1.0) != 1.0 else BRANCHES[:1]

    def branches(
        self, arguments: Mapping[str, Any], context: str | None, call: int
    ) -> tuple[BranchRows, ...]:
        """Name the branch by the library's ``positive``, both where they share a call."""
        if arguments.get("cfg_merge") and arguments.get("cfg_scale", 1.0) != 1.0:
            return BranchRows.split(len(BRANCHES), *BRANCHES)
        positive = arguments.get("positive")
        # Before DiffSynth 2.1.3 the call does not say which branch it is; cond comes first.
        first = positive if positive is not None else call == 0
        return (BranchRows(BRANCHES[0] if first else BRANCHES[1], 0, 1),)

    def expert(self, model: Any) -> str:
        """Name the expert of a two-stage pipeline (Wan2.2)."""
        if self.pipeline.dit2 is None:
            return ""
        return "low-noise" if model is self.pipeline.dit2 else "high-noise"

    def stand_in(
        self, model: Any, arguments: Mapping[str, Any], run: RunTrunk
    ) -> tuple[Any, dict[str, Any]]:
        """Give the library's function one block, the trunk, and a control branch without hints."""
        from hetcache_backends.wan.trunk import WanControl

        vace, control = arguments.get("vace"), None
        if vace is not None and arguments.get("vace_context") is not None:
            scale = float(arguments.get("vace_scale", 1.0))
            control = WanControl(model=vace, context=arguments["vace_context"], scale=scale)

        def trunk(x: Tensor, context: Tensor, t_mod: Tensor, freqs: Tensor) -> Tensor:
            return run(
                self.make_trunk(
                    dit=model,
                    inputs=x,
                    context=context,
                    modulation=t_mod,
                    freqs=freqs,
                    control_branch=control,
                )
            )

        return StandIn(model, blocks=[trunk]), {"vace": _no_hints if control else vace}


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


def _pixel_mask(arguments: Mapping[str, Any], grid: Grid) -> Tensor | None:
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
        return torch.ones(shape, dtype=torch.bool)
    return binary_mask(frames[: shape[0]])  # (F, H, W)


def check_wan_options(options: Mapping[str, Any]) -> None:
    """Refuse arguments that ``WanVideoPipeline.__call__`` does not take, or that ``edit`` passes."""
    pipeline_type, _ = import_diffsynth()
    check_options(options, pipeline_type.__call__, passed=PASSED)


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
