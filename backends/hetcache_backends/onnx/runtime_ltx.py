"""What ``onnx-runtime`` is where the folder holds LTX-Video: diffusers' pipeline around onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, final

from attrs import frozen

from hetcache_backends.diffusers.ltx_video import VARIANTS, LtxCalls, LtxVideo
from hetcache_backends.onnx.folder import RUNS_WITH, need_float32, need_onnx, need_runtime
from hetcache_backends.onnx.ltx import OpenedLtx, assemble_ltx, export_ltx, open_ltx
from hetcache_core import (
    Backbone,
    EditRequest,
    Features,
    Geometry,
    LoadRequest,
    ModelInfo,
    RandomModels,
    UnsupportedBackboneError,
    attached,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hetcache_core import Engine
    from hetcache_core.testing import BackboneCase

MODEL: Final = "OnnxLtxModel"


@final
@frozen
class OnnxLtx(Backbone):
    """Runs a folder that ``hetcache export --backbone ltx-video`` wrote."""

    name: ClassVar[str] = RUNS_WITH
    summary: ClassVar[str] = "exported LTX-Video on ONNX Runtime"
    library: ClassVar[str] = "onnxruntime"
    features: ClassVar[Features] = LtxVideo.features.with_values(compiled=False)
    geometry: ClassVar[Geometry] = LtxVideo.geometry

    def accepts(self, pipeline: object) -> bool:
        """Whether the pipeline's transformer is graphs of LTX-Video."""
        return type(getattr(pipeline, "transformer", None)).__name__ == MODEL

    def describe(self, pipeline: Any) -> ModelInfo:
        """Describe the exported transformer."""
        sizes = pipeline.transformer.config
        return ModelInfo(
            backbone=self.name,
            variant=VARIANTS.get((sizes.width, sizes.layers), ""),
            layers=sizes.layers,
            width=sizes.width,
            heads=sizes.heads,
        )

    @contextmanager
    def attach(self, pipeline: Any, engine: Engine) -> Iterator[None]:
        """Attach as ``ltx-video`` does, with a trunk of graphs."""
        if engine.policy.guidance is not None:
            raise UnsupportedBackboneError(
                f"policy {engine.policy.name!r} predicts one guidance branch from the other, and "
                "LTX-Video runs both in one call",
                where=f"backbone {self.name}",
                remedy="Use another policy",
            )
        from hetcache_backends.onnx.trunk import onnx_ltx_trunk

        calls = LtxCalls(pipeline, onnx_ltx_trunk, library=False)
        with attached(self, engine, calls, [pipeline.transformer]):
            yield

    def load(self, request: LoadRequest) -> Any:
        """Load a folder of graphs of LTX-Video."""
        need_float32(request)
        folder = Path(str(request.model)).expanduser()
        return assemble_ltx(open_ltx(folder, request.device))

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse what ``MaskedLTXPipeline.__call__`` does not take."""
        LtxVideo().check_options(options)

    def edit(self, pipeline: Any, request: EditRequest) -> NDArray[np.uint8]:
        """Run one masked edit as ``ltx-video`` does."""
        return LtxVideo().edit(pipeline, request)

    @property
    def random_models(self) -> RandomModels:
        """What exports small LTX-Videos and loads the graphs."""
        return _LtxGraphs(self)


@final
@frozen
class _LtxGraphs(RandomModels):
    backbone: OnnxLtx

    def pipeline(self, request: LoadRequest) -> Any:
        from hetcache_backends.diffusers.random_models import LtxModels

        need_float32(request)
        need_runtime()
        models = LtxModels(self.backbone)
        return assemble_ltx(exported(lambda: models.pipeline(request), request.device))

    def case(self) -> BackboneCase:
        from hetcache_backends.diffusers.cases import ltx_case

        need_onnx(exports=True)
        need_runtime()
        return ltx_case(self.backbone).with_values(
            make_pipeline=lambda seed: assemble_ltx(_small(seed)),
            main_blocks=lambda p: [b.feed_forward for b in p.transformer.transformer_blocks],
            counts_flops=False,
        )


def exported(make: Callable[[], Any], device: str) -> OpenedLtx:
    """Export a pipeline and open what was written; nothing stays on the disk.

    Args:
        make: makes the pipeline.
        device: "cpu", "cuda" or "cuda:N".
    """
    # Some systems do not let a file go that is mapped into memory.
    with tempfile.TemporaryDirectory(prefix="hetcache-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        export_ltx(make(), folder, backbone=LtxVideo.name, model=None)
        return open_ltx(folder, device)


@lru_cache
def _small(seed: int) -> OpenedLtx:
    from hetcache_backends.diffusers.cases import small_ltx

    return exported(lambda: small_ltx(seed), "cpu")
