"""The embedded backbone: the classes and the path of ``wan-vace`` at a size for a laptop."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from attrs import frozen

from hetcache_backends.wan import wan_vace
from hetcache_backends.wan.loading import import_diffsynth
from hetcache_core import (
    Backbone,
    EditRequest,
    Exporter,
    Features,
    Geometry,
    LoadRequest,
    RandomModels,
    UnsupportedBackboneError,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hetcache_core import Engine, ModelInfo

RANDOM_WEIGHTS_NOTICE = (
    "tiny-vace runs on random weights: speed and traces mean something, the picture does not."
)
SEED_OF_RANDOM_WEIGHTS = 0


@final
@frozen
class TinyVace(Backbone):
    """A small Wan-VACE that comes with the package."""

    name: ClassVar[str] = "tiny-vace"
    summary: ClassVar[str] = "Wan-VACE at a small size, embedded (DiffSynth)"
    library: ClassVar[str] = "diffsynth"
    features: ClassVar[Features] = wan_vace.WanVace.features
    geometry: ClassVar[Geometry] = Geometry(
        size_multiple=16,
        frame_stride=wan_vace.TEMPORAL_STRIDE,
        default_size=(384, 384),
        default_frames=17,
    )
    guidance_scale: ClassVar[float] = 2.0
    """More saturates the colors of the embedded model (MODEL_CARD.md)."""

    def accepts(self, pipeline: object) -> bool:
        """Whether this backbone built the pipeline."""
        return wan_vace.is_wan_pipeline(pipeline) and wan_vace.owner(pipeline) == self.name

    def describe(self, pipeline: Any) -> ModelInfo:
        """Describe the pipeline's DiT."""
        return wan_vace.describe(pipeline, self.name)

    def attach(self, pipeline: Any, engine: Engine) -> AbstractContextManager[None]:
        """Attach as ``wan-vace`` does."""
        return wan_vace.routed(self, pipeline, engine)

    def load(self, request: LoadRequest) -> Any:
        """Build the pipeline; ``model`` may name another safetensors file of the same shape."""
        import torch

        request.refuse("variant", "around", why="the weights of tiny-vace are one file, and whole")
        import_diffsynth()
        from hetcache_backends.tiny_vace.pipeline import WEIGHTS_PATH, build_pipeline

        weights = WEIGHTS_PATH if request.model is None else Path(request.model).expanduser()
        dtype = getattr(torch, request.dtype)
        if weights.is_file():
            pipeline = build_pipeline(device=request.device, dtype=dtype, weights=weights)
        elif request.model is None:
            pipeline = build_pipeline(
                device=request.device, dtype=dtype, seed=SEED_OF_RANDOM_WEIGHTS
            )
            pipeline.hetcache_notice = RANDOM_WEIGHTS_NOTICE
        else:
            raise UnsupportedBackboneError(
                f"{weights} is not a file. tiny-vace takes a safetensors file of its own shape, or no "
                "--model at all for the weights in the package."
            )
        pipeline.hetcache_backbone = self.name
        return pipeline

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse what ``WanVideoPipeline.__call__`` does not take."""
        wan_vace.check_wan_options(options)

    def edit(self, pipeline: Any, request: EditRequest) -> NDArray[np.uint8]:
        """Run one masked edit, untiled: the codec has no seams to hide."""
        from attrs import evolve

        untiled = evolve(request, options={"tiled": False, **request.options})
        return wan_vace.edit(pipeline, untiled)

    @property
    def exporter(self) -> Exporter:
        """What writes the DiT and the control branch as ONNX graphs."""
        from hetcache_backends.onnx.exporters import WanExporter

        return WanExporter(self.name)

    @property
    def random_models(self) -> RandomModels:
        """What makes the embedded model's shape."""
        from hetcache_backends.tiny_vace.config import TINY_VACE
        from hetcache_backends.wan.case import WanModels

        return WanModels(self, TINY_VACE)

    def sample(self) -> EditRequest:
        """Return the embedded demonstration clip."""
        from hetcache_backends.tiny_vace.clips import demo_clip

        clip = demo_clip()
        return EditRequest(
            video=clip.video,
            mask=clip.mask > 0,
            prompt=clip.prompt,
            guidance_scale=self.guidance_scale,
        )
