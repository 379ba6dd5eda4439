"""The backbone that runs exported graphs: a library's own pipeline around onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from attrs import frozen

from hetcache_backends.onnx.folder import (
    RUNS_WITH,
    LtxSizes,
    need_float32,
    need_onnx,
    need_runtime,
    read_manifest,
)
from hetcache_backends.onnx.runtime_ltx import OnnxLtx
from hetcache_backends.onnx.wan import OpenedFolder, assemble, export_wan, open_folder
from hetcache_backends.tiny_vace.backbone import TinyVace
from hetcache_backends.wan import wan_vace
from hetcache_backends.wan.loading import import_diffsynth
from hetcache_core import (
    Backbone,
    EditRequest,
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
    from hetcache_core.testing import BackboneCase


class OnnxWan(Backbone):
    """Runs a folder of an exported Wan-VACE."""

    name: ClassVar[str] = RUNS_WITH
    summary: ClassVar[str] = "exported Wan-VACE or LTX-Video on ONNX Runtime"
    library: ClassVar[str] = "onnxruntime"
    features: ClassVar[Features] = wan_vace.WanVace.features.with_values(compiled=False)

    def for_model(self, model: str | None) -> Backbone:
        """Return the adapter for a folder; this one where there is none, which ``load`` will say."""
        try:
            return self if model is None else _adapter_of(Path(model).expanduser())
        except UnsupportedBackboneError:
            return self

    def accepts(self, pipeline: object) -> bool:
        """Whether this backbone built the pipeline."""
        built = wan_vace.is_wan_pipeline(pipeline) and wan_vace.owner(pipeline) == self.name
        return built or OnnxLtx().accepts(pipeline)

    def describe(self, pipeline: Any) -> ModelInfo:
        """Describe the exported model."""
        if OnnxLtx().accepts(pipeline):
            return OnnxLtx().describe(pipeline)
        return wan_vace.describe(pipeline, self.name)

    @contextmanager
    def attach(self, pipeline: Any, engine: Engine) -> Iterator[None]:
        """Attach as the exported backbone does, with a trunk of graphs."""
        if OnnxLtx().accepts(pipeline):
            with OnnxLtx().attach(pipeline, engine):
                yield
            return
        from hetcache_backends.onnx.trunk import onnx_wan_trunk

        with wan_vace.routed(self, pipeline, engine, onnx_wan_trunk):
            yield

    def load(self, request: LoadRequest) -> Any:
        """Load a folder that ``hetcache export`` wrote."""
        if request.model is None:
            raise UnsupportedBackboneError(
                f"{self.name} needs a folder that `hetcache export` wrote",
                remedy="Pass it as --model.",
            )
        need_float32(request)
        folder = Path(request.model).expanduser()
        if isinstance(_adapter_of(folder), OnnxLtx):
            return OnnxLtx().load(request)
        return assemble(open_folder(folder, request.device))

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse what ``WanVideoPipeline.__call__`` does not take."""
        wan_vace.check_wan_options(options)

    def edit(self, pipeline: Any, request: EditRequest) -> NDArray[np.uint8]:
        """Run one masked edit, as the backbone does that was exported."""
        from attrs import evolve

        if OnnxLtx().accepts(pipeline):
            return OnnxLtx().edit(pipeline, request)
        if pipeline.text_encoder is None:  # the codec of tiny-vace, which has no seams to hide
            request = evolve(request, options={"tiled": False, **request.options})
        return wan_vace.edit(pipeline, request)

    @property
    def random_models(self) -> RandomModels:
        """What exports small Wan-VACEs and loads the graphs."""
        return _WanGraphs(self)


@final
@frozen
class OnnxRuntime(OnnxWan):
    """Runs a folder that ``hetcache export`` wrote, of whichever backbone.

    What is said of sizes and guidance here is that of ``wan-vace``; ``for_model`` gives the adapter of
    a folder that holds another model.
    """

    geometry: ClassVar[Geometry] = wan_vace.WanVace.geometry


@final
@frozen
class OnnxTinyVace(OnnxWan):
    """Runs a folder of the exported embedded model, with its sizes and guidance."""

    geometry: ClassVar[Geometry] = TinyVace.geometry
    guidance_scale: ClassVar[float] = TinyVace.guidance_scale


@final
@frozen
class _WanGraphs(RandomModels):
    backbone: Backbone

    def pipeline(self, request: LoadRequest) -> Any:
        need_float32(request)
        import_diffsynth()
        need_runtime()
        from hetcache_backends.wan.case import RANDOM_NOTICE, RANDOM_SEED

        pipeline = assemble(_exported(RANDOM_SEED, request.device))
        pipeline.hetcache_notice = RANDOM_NOTICE.format(name=self.backbone.name)
        return pipeline

    def case(self) -> BackboneCase:
        from hetcache_backends.wan.case import SMALL, WanModels

        case = WanModels(self.backbone, SMALL).case()
        need_onnx(exports=True)
        need_runtime()
        return case.with_values(
            make_pipeline=lambda seed: assemble(_exported(seed, "cpu")),
            main_blocks=lambda pipeline: _feed_forwards(pipeline.dit.blocks),
            control_blocks=lambda pipeline: _feed_forwards(pipeline.vace.vace_blocks),
            counts_flops=False,
        )


def _adapter_of(folder: Path) -> Backbone:
    """Return the adapter for what is in a folder.

    Raises:
        UnsupportedBackboneError: it holds no exported graphs.
    """
    manifest = read_manifest(folder)
    if isinstance(manifest.sizes, LtxSizes):
        return OnnxLtx()
    return OnnxTinyVace() if manifest.backbone == TinyVace.name else OnnxRuntime()


def _feed_forwards(blocks: Any) -> list[Any]:
    return [block.feed_forward for block in blocks]


@lru_cache
def _exported(seed: int, device: str) -> OpenedFolder:
    """Export a small model with the weights of a seed; nothing stays on the disk."""
    from hetcache_backends.tiny_vace.pipeline import build_pipeline
    from hetcache_backends.wan.case import SMALL

    # Some systems do not let a file go that is mapped into memory.
    with tempfile.TemporaryDirectory(prefix="hetcache-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        pipeline = build_pipeline(seed=seed, config=SMALL)
        export_wan(pipeline, folder, backbone=RUNS_WITH, model=None)
        return open_folder(folder, device)
