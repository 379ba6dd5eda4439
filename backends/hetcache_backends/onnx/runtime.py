"""The backbone that runs exported graphs: a library's own pipeline around onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from attrs import frozen

from hetcache_backends.onnx.folder import RUNS_WITH, LtxSizes, need_float32, read_manifest
from hetcache_backends.onnx.ltx import OnnxLtx
from hetcache_backends.onnx.wan import OnnxTinyVace, OnnxWanVace, WanGraphs
from hetcache_backends.tiny_vace.backbone import TinyVace
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


@final
@frozen
class OnnxRuntime(Backbone):
    """Runs a folder that ``hetcache export`` wrote, of whichever backbone.

    A folder or a pipeline is given to the adapter of its model. What is said of sizes and guidance
    here is that of ``wan-vace``; ``for_model`` gives the adapter of a folder.
    """

    name: ClassVar[str] = RUNS_WITH
    summary: ClassVar[str] = "exported Wan-VACE or LTX-Video on ONNX Runtime"
    library: ClassVar[str] = "onnxruntime"
    features: ClassVar[Features] = OnnxWanVace.features
    geometry: ClassVar[Geometry] = OnnxWanVace.geometry

    def for_model(self, model: str | None) -> Backbone:
        """Return the adapter for a folder; this one where there is none, which ``load`` will say."""
        try:
            return self if model is None else _of_folder(Path(model).expanduser())
        except UnsupportedBackboneError:
            return self

    def accepts(self, pipeline: object) -> bool:
        """Whether this backbone built the pipeline."""
        return any(adapter.accepts(pipeline) for adapter in (OnnxWanVace(), OnnxLtx()))

    def describe(self, pipeline: Any) -> ModelInfo:
        """Describe the exported model."""
        return _of_pipeline(pipeline).describe(pipeline)

    def attach(self, pipeline: Any, engine: Engine) -> AbstractContextManager[None]:
        """Attach as the exported backbone does, with a trunk of graphs."""
        return _of_pipeline(pipeline).attach(pipeline, engine)

    def load(self, request: LoadRequest) -> Any:
        """Load a folder that ``hetcache export`` wrote."""
        if request.model is None:
            raise UnsupportedBackboneError(
                f"{self.name} needs a folder that `hetcache export` wrote",
                remedy="Pass it as --model.",
            )
        need_float32(request)
        return _of_folder(Path(request.model).expanduser()).load(request)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse what ``WanVideoPipeline.__call__`` does not take."""
        OnnxWanVace().check_options(options)

    def edit(self, pipeline: Any, request: EditRequest) -> NDArray[np.uint8]:
        """Run one masked edit, as the backbone does that was exported."""
        return _of_pipeline(pipeline).edit(pipeline, request)

    @property
    def random_models(self) -> RandomModels:
        """What exports small Wan-VACEs and loads the graphs."""
        return WanGraphs(self)


def _of_folder(folder: Path) -> Backbone:
    """Return the adapter for what is in a folder.

    Raises:
        UnsupportedBackboneError: it holds no exported graphs.
    """
    manifest = read_manifest(folder)
    if isinstance(manifest.sizes, LtxSizes):
        return OnnxLtx()
    return OnnxTinyVace() if manifest.backbone == TinyVace.name else OnnxWanVace()


def _of_pipeline(pipeline: object) -> Backbone:
    """Return the adapter that built a pipeline; Wan's says what is wrong with one of none."""
    return OnnxLtx() if OnnxLtx().accepts(pipeline) else OnnxWanVace()
