"""Wan2.1-VACE on diffusers' ``WanVACEPipeline``.

The control branch is taken out of the library's forward, which would run all of it before the first
block: the engine runs its blocks where their hints are consumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final, final

from attrs import define, field, frozen

from hetcache_backends.diffusers.common import (
    COND,
    UNCOND,
    DiffusersCalls,
    is_pipeline,
    missing_library,
)
from hetcache_backends.diffusers.parallel import even, share_wan_vace, split
from hetcache_backends.folders import backbone_of
from hetcache_backends.wan.wan_vace import VARIANTS
from hetcache_core import (
    Backbone,
    BranchRows,
    EditRequest,
    Features,
    Geometry,
    Grid,
    LoadRequest,
    ModelInfo,
    RandomModels,
    StandIn,
    UnsupportedBackboneError,
    attached,
    binary_mask,
    check_options,
    load_pipeline,
    overridden,
    run_edit,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from hetcache_core import BlockCompiler, Engine, RunTrunk

MODEL: Final = "WanVACETransformer3DModel"

CHECKPOINT: Final = "Wan-AI/Wan2.1-VACE-1.3B-diffusers"
"""A published checkpoint in diffusers' layout."""

MASK_SCALE: Final = (0.0, 1.0)
"""Black and white as the pipeline prepares a mask. Source: ``WanVACEPipeline.preprocess_conditions``."""


@final
@frozen
class WanVaceDiffusers(Backbone):
    """Adapter for diffusers' pipelines around ``WanVACETransformer3DModel``."""

    name: ClassVar[str] = "wan-vace-diffusers"
    summary: ClassVar[str] = "Wan2.1-VACE video editing (diffusers)"
    library: ClassVar[str] = "diffusers"
    features: ClassVar[Features] = Features(control=True, compiled=True)
    geometry: ClassVar[Geometry] = Geometry(size_multiple=16, frame_stride=4)

    def accepts(self, pipeline: object) -> bool:
        """Whether this is a diffusers pipeline around a Wan-VACE transformer."""
        return is_pipeline(pipeline, MODEL)

    def describe(self, pipeline: Any) -> ModelInfo:
        """Describe the pipeline's transformer, the first one of two."""
        model = _models(pipeline)[0]
        heads, layers = int(model.config.num_attention_heads), len(model.blocks)
        width = heads * int(model.config.attention_head_dim)
        return ModelInfo(
            backbone=self.name,
            variant=VARIANTS.get((width, layers), ""),
            layers=layers,
            width=width,
            heads=heads,
            control_layers=tuple(sorted(model.config.vace_layers)),
        )

    @contextmanager
    def attach(self, pipeline: Any, engine: Engine) -> Iterator[None]:
        """Route the transformers' calls; see ``hetcache_core.backbone.routing``."""
        if not self.accepts(pipeline):
            raise UnsupportedBackboneError(
                f"{self.name} carries diffusers' pipelines around a {MODEL}, not a "
                f"{type(pipeline).__name__}"
            )
        calls = WanVaceCalls(pipeline, engine.compiler)
        with attached(self, engine, calls, _models(pipeline)):
            yield

    def load(self, request: LoadRequest) -> Any:
        """Load a folder or hub id in diffusers' layout; the VAE is kept in fp32, as Wan asks."""
        try:
            import torch
            from diffusers import WanVACETransformer3DModel
            from diffusers.pipelines.wan.pipeline_wan_vace import WanVACEPipeline
        except ImportError as error:
            raise missing_library(error) from error
        dtypes = {"default": getattr(torch, request.dtype), "vae": torch.float32}
        return load_pipeline(
            WanVACEPipeline,
            request,
            accepts=self.accepts,
            example=CHECKPOINT,
            dtype=dtypes,
            carries=WanVACETransformer3DModel,
            right=backbone_of,
        )

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse what ``WanVACEPipeline.__call__`` does not take."""
        try:
            from diffusers.pipelines.wan.pipeline_wan_vace import WanVACEPipeline
        except ImportError as error:
            raise missing_library(error) from error
        check_options(options, WanVACEPipeline.__call__, passed=("video", "mask", "num_frames"))

    def edit(self, pipeline: Any, request: EditRequest) -> NDArray[np.uint8]:
        """Run one masked edit through ``WanVACEPipeline.__call__``."""
        import numpy as np
        from PIL import Image

        arguments = {
            "video": [Image.fromarray(frame) for frame in request.video],
            "mask": [Image.fromarray(mask.astype(np.uint8) * 255) for mask in request.mask],
            "num_frames": len(request.video),
        }
        return run_edit(pipeline, arguments, request)

    def share_rows(self, pipeline: Any) -> None:
        """Share them by the library's Ulysses attention."""
        for model in _models(pipeline):
            share_wan_vace(model)

    @property
    def random_models(self) -> RandomModels:
        """What makes a small ``WanVACEPipeline``."""
        from hetcache_backends.diffusers.random_models import WanVaceModels

        return WanVaceModels(self)


@final
@define(eq=False)
class WanVaceCalls(DiffusersCalls):
    """What the calls of a Wan-VACE transformer mean.

    Attributes:
        compiler: what blocks are run with, or None to run them as they are.
    """

    compiler: BlockCompiler | None
    _mask: Tensor | None = field(default=None, init=False)
    _references: int = field(default=0, init=False)

    def blocks(self, model: Any) -> Sequence[Any]:
        """Main and control blocks."""
        return [*model.blocks, *model.vace_blocks]

    def reset(self) -> None:
        """Forget the mask of the last run."""
        self._mask, self._references = None, 0

    @contextmanager
    def routed(self) -> Iterator[None]:
        """See the mask in the pipeline's own size, with all of its frames.

        The control latents hold every fourth frame of it only, and would miss tokens that a moving
        mask touches in between.
        """
        library = self.pipeline.prepare_masks

        def prepare_masks(
            mask: Tensor, reference_images: Any = None, *args: Any, **kwargs: Any
        ) -> Any:
            self._mask = binary_mask(mask[0], scale=MASK_SCALE).any(dim=0)  # (F, H, W)
            self._references = len(reference_images[0]) if reference_images else 0
            return library(mask, reference_images, *args, **kwargs)

        with overridden(self.pipeline, "prepare_masks", prepare_masks), DiffusersCalls.routed(self):
            yield

    def grid(self, model: Any, arguments: Mapping[str, Any]) -> Grid:
        """Lay out the tokens, those of reference images before the video's."""
        patch_t, patch_h, patch_w = model.config.patch_size
        _, _, frames, height, width = arguments["hidden_states"].shape
        height, width = height // patch_h, width // patch_w
        return Grid(
            frames=frames // patch_t - self._references,
            height=height,
            width=width,
            prefix=self._references * height * width,
            pixel_height=self.pipeline.vae_scale_factor_spatial * patch_h,
            pixel_width=self.pipeline.vae_scale_factor_spatial * patch_w,
            frame_stride=self.pipeline.vae_scale_factor_temporal * patch_t,
        )

    def mask(self, model: Any, arguments: Mapping[str, Any]) -> Tensor | None:
        """The mask that the pipeline prepared."""
        return self._mask

    def run_branches(self, arguments: Mapping[str, Any], context: str | None) -> tuple[str, ...]:
        """Both branches, each with calls of its own."""
        return (COND, UNCOND) if self.pipeline.do_classifier_free_guidance else (COND,)

    def branches(
        self, arguments: Mapping[str, Any], context: str | None, call: int
    ) -> tuple[BranchRows, ...]:
        """Name the branch by the pipeline's ``cache_context``, else by the order of calls."""
        by_order = COND if call == 0 else UNCOND
        name = context if context in {COND, UNCOND} else by_order
        return (BranchRows(name or by_order, 0, arguments["hidden_states"].shape[0]),)

    def expert(self, model: Any) -> str:
        """Name the expert of a two-stage pipeline (Wan2.2)."""
        if len(_models(self.pipeline)) == 1:
            return ""
        return "low-noise" if model is self.pipeline.transformer_2 else "high-noise"

    def stand_in(
        self, model: Any, arguments: Mapping[str, Any], run: RunTrunk
    ) -> tuple[Any, dict[str, Any]]:
        """Give the library's forward one block, the trunk, and an empty control branch."""
        from hetcache_backends.diffusers.trunks import wan_vace_trunk

        control, ranks = arguments["control_hidden_states"], self.ranks(model)
        even(self.grid(model, arguments).tokens, ranks, "the video")
        scales = arguments.get("control_hidden_states_scale")
        if scales is None:
            scales = control.new_ones(len(model.config.vace_layers))

        def trunk(
            hidden: Tensor, context: Tensor, modulation: Tensor, rotary: tuple[Tensor, Tensor]
        ) -> Tensor:
            return run(
                wan_vace_trunk(
                    model=model,
                    ranks=ranks,
                    inputs=hidden,
                    context=context,
                    modulation=modulation,
                    rotary=rotary,
                    control_latents=control,
                    control_scales=scales.unbind(),
                    compiler=self.compiler,
                )
            )

        stand_in = StandIn(
            model,
            blocks=[trunk],
            vace_blocks=[],
            vace_patch_embedding=_no_embedding,
            config=StandIn(model.config, vace_layers=[]),
        )
        changed = arguments if ranks is None else split(model, (), arguments)[1]
        return stand_in, {**changed, "control_hidden_states_scale": scales[:0]}


def _no_embedding(latents: Tensor) -> Tensor:
    """Stand in for the control embedding, which runs when the first hint is needed."""
    return latents.new_empty(latents.shape[0], 0, 0, 1, 1)


def _models(pipeline: Any) -> list[Any]:
    models = (pipeline.transformer, getattr(pipeline, "transformer_2", None))
    return [model for model in models if model is not None]
