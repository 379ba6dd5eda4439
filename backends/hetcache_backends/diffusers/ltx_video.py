"""LTX-Video on diffusers' pipelines; masked editing through ``MaskedLTXPipeline``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, final

from attrs import define, frozen

from hetcache_backends.diffusers.common import (
    COND,
    UNCOND,
    DiffusersCalls,
    is_pipeline,
    missing_library,
)
from hetcache_backends.folders import backbone_of
from hetcache_core import (
    Backbone,
    BranchRows,
    EditRequest,
    Exporter,
    Features,
    Geometry,
    Grid,
    LoadRequest,
    ModelInfo,
    RandomModels,
    StandIn,
    UnsupportedBackboneError,
    attached,
    check_options,
    load_pipeline,
    run_edit,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from hetcache_core import Engine, RunTrunk, TrunkCall

MODEL: Final = "LTXVideoTransformer3DModel"

CHECKPOINT: Final = "Lightricks/LTX-Video-0.9.5"
"""A published checkpoint in diffusers' layout."""

VARIANTS: Final = {(2048, 28): "ltx-video-2b"}
"""Published models by (width, blocks). Source: transformer/config.json of Lightricks/LTX-Video."""

PERTURBED: Final = "perturbed"

WINDOWED: Final = "LTXI2VLongMultiPromptPipeline"
"""Samples overlapping windows of one video in turn, so its model calls are not one run."""


@final
@frozen
class LtxVideo(Backbone):
    """Adapter for diffusers' pipelines around ``LTXVideoTransformer3DModel``."""

    name: ClassVar[str] = "ltx-video"
    summary: ClassVar[str] = "LTX-Video, masked video-to-video (diffusers)"
    library: ClassVar[str] = "diffusers"
    features: ClassVar[Features] = Features(compiled=True, guidance=frozenset({"merged", "none"}))
    geometry: ClassVar[Geometry] = Geometry(
        size_multiple=32, frame_stride=8, default_size=(512, 704), default_frames=121
    )

    def accepts(self, pipeline: object) -> bool:
        """Whether this is a diffusers pipeline around an LTX-Video transformer."""
        return is_pipeline(pipeline, MODEL) and type(pipeline).__name__ != WINDOWED

    def describe(self, pipeline: Any) -> ModelInfo:
        """Describe the pipeline's transformer."""
        model = pipeline.transformer
        heads, layers = int(model.config.num_attention_heads), len(model.transformer_blocks)
        width = heads * int(model.config.attention_head_dim)
        return ModelInfo(
            backbone=self.name,
            variant=VARIANTS.get((width, layers), ""),
            layers=layers,
            width=width,
            heads=heads,
        )

    @contextmanager
    def attach(self, pipeline: Any, engine: Engine) -> Iterator[None]:
        """Route the transformer's calls; see ``hetcache_core.backbone.routing``."""
        if not self.accepts(pipeline):
            raise UnsupportedBackboneError(
                f"{self.name} carries diffusers' pipelines around a {MODEL}, not a "
                f"{type(pipeline).__name__}"
            )
        from hetcache_backends.diffusers.trunks import ltx_trunk

        calls = LtxCalls(pipeline, partial(ltx_trunk, compiler=engine.compiler))
        with attached(self, engine, calls, [pipeline.transformer]):
            yield

    def load(self, request: LoadRequest) -> Any:
        """Load a folder or hub id in diffusers' layout as a ``MaskedLTXPipeline``."""
        try:
            from diffusers import LTXVideoTransformer3DModel

            from hetcache_backends.diffusers.ltx_pipeline import MaskedLTXPipeline
        except ImportError as error:
            raise missing_library(error) from error
        return load_pipeline(
            MaskedLTXPipeline,
            request,
            accepts=self.accepts,
            example=CHECKPOINT,
            carries=LTXVideoTransformer3DModel,
            right=backbone_of,
        )

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse what ``MaskedLTXPipeline.__call__`` does not take."""
        try:
            from diffusers import LTXConditionPipeline

            from hetcache_backends.diffusers.ltx_pipeline import MaskedLTXPipeline
        except ImportError as error:
            raise missing_library(error) from error
        check_options(
            options,
            MaskedLTXPipeline.__call__,
            LTXConditionPipeline.__call__,
            passed=("source_video", "edit_mask", "num_frames"),
        )

    def edit(self, pipeline: Any, request: EditRequest) -> NDArray[np.uint8]:
        """Run one masked edit through ``MaskedLTXPipeline.__call__``.

        Raises:
            UnsupportedBackboneError: the pipeline is another one, or it cannot read the prompt.
        """
        from PIL import Image

        from hetcache_backends.diffusers.ltx_pipeline import MaskedLTXPipeline

        if not isinstance(pipeline, MaskedLTXPipeline):
            raise UnsupportedBackboneError(
                f"A {type(pipeline).__name__} takes no mask",
                remedy="Use MaskedLTXPipeline(**pipeline.components), of "
                "hetcache_backends.diffusers.ltx_pipeline.",
            )
        frames = [Image.fromarray(frame) for frame in request.video]
        arguments = {"source_video": frames, "edit_mask": request.mask, "num_frames": len(frames)}
        return run_edit(pipeline, arguments, request)

    @property
    def exporter(self) -> Exporter:
        """What writes the transformer as ONNX graphs."""
        from hetcache_backends.onnx.exporters import LtxExporter

        return LtxExporter(self.name)

    @property
    def random_models(self) -> RandomModels:
        """What makes a small ``MaskedLTXPipeline``."""
        from hetcache_backends.diffusers.random_models import LtxModels

        return LtxModels(self)


@final
@define(eq=False)
class LtxCalls(DiffusersCalls):
    """What the calls of an LTX-Video transformer mean.

    Attributes:
        make_trunk: makes a call of the trunk of what its first block was given.
        library: whether the blocks are the library's, whose options and attention are looked at.
    """

    make_trunk: Callable[..., TrunkCall]
    library: bool = True

    def blocks(self, model: Any) -> Sequence[Any]:
        """All blocks of the library's."""
        return model.transformer_blocks if self.library else ()

    def grid(self, model: Any, arguments: Mapping[str, Any]) -> Grid:
        """Lay out the tokens; only here are coordinates read from the device."""
        tokens = arguments["hidden_states"].shape[1]
        coordinates = arguments.get("video_coords")
        if coordinates is None:
            frames, height, width = (int(arguments[n]) for n in ("num_frames", "height", "width"))
        else:
            # Conditions at later frames come first; the video begins at the one origin.
            places = coordinates[0].cpu()  # (3, N)
            first = int((places == 0).all(dim=0).nonzero()[-1])
            rows, columns = places[1:, first:]
            height, width = rows.unique().numel(), columns.unique().numel()
            frames = (tokens - first) // (height * width)
        side = self.pipeline.vae_spatial_compression_ratio
        side *= self.pipeline.transformer_spatial_patch_size
        stride = self.pipeline.vae_temporal_compression_ratio
        stride *= self.pipeline.transformer_temporal_patch_size
        return Grid(
            frames=frames,
            height=height,
            width=width,
            prefix=tokens - frames * height * width,
            pixel_height=side,
            pixel_width=side,
            frame_stride=stride,
        )

    def branches(
        self, arguments: Mapping[str, Any], context: str | None, call: int
    ) -> tuple[BranchRows, ...]:
        """Name the batch rows; the conditional ones decide, so they are named first."""
        names = [COND]
        if self.pipeline.do_classifier_free_guidance:
            names = [UNCOND, COND]
            if getattr(self.pipeline, "do_spatio_temporal_guidance", False):
                names.append(PERTURBED)
        return BranchRows.split(arguments["hidden_states"].shape[0], *names)

    def stand_in(
        self, model: Any, arguments: Mapping[str, Any], run: RunTrunk
    ) -> tuple[Any, dict[str, Any]]:
        """Give the library's forward one block, the trunk."""

        def trunk(
            hidden_states: Tensor,
            encoder_hidden_states: Tensor,
            temb: Tensor,
            image_rotary_emb: tuple[Tensor, Tensor],
            encoder_attention_mask: Tensor | None,
        ) -> Tensor:
            return run(
                self.make_trunk(
                    model=model,
                    inputs=hidden_states,
                    context=encoder_hidden_states,
                    context_bias=encoder_attention_mask,
                    modulation=temb,
                    rotary=image_rotary_emb,
                )
            )

        return StandIn(model, transformer_blocks=[trunk]), {}
