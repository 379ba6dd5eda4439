"""Exported LTX-Video: pipelines to folders of graphs, and back to pipelines that run on them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from copy import copy, deepcopy
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, final

import torch
from attrs import frozen

from hetcache_backends.diffusers.common import missing_library
from hetcache_backends.diffusers.ltx_video import CHECKPOINT, VARIANTS, LtxCalls, LtxVideo
from hetcache_backends.onnx.folder import (
    AROUND,
    RUNS_WITH,
    LtxSizes,
    Manifest,
    need_float32,
    need_onnx,
    need_runtime,
    read_manifest,
    whole_path,
)
from hetcache_backends.onnx.session import OpenedFolder, open_sessions, through_folder
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
    load_pipeline,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hetcache_core import Engine
    from hetcache_core.testing import BackboneCase

MODEL: Final = "OnnxLtxModel"

OLDEST_TORCH: Final = "2.13"
"""The oldest whose export was seen to work; that of 2.6 was seen to fail."""


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

    def attach(self, pipeline: Any, engine: Engine) -> AbstractContextManager[None]:
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
        return attached(self, engine, calls, [pipeline.transformer])

    def load(self, request: LoadRequest) -> Any:
        """Load a folder of graphs of LTX-Video."""
        need_float32(request)
        folder = Path(str(request.model)).expanduser()
        return assemble_ltx(open_ltx(folder, request.device, around=request.around))

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
        return assemble_ltx(_exported(models.pipeline(request), request.device))

    def case(self) -> BackboneCase:
        from hetcache_backends.diffusers.cases import ltx_case

        need_onnx(exports=True)
        need_runtime()
        return ltx_case(self.backbone).with_values(
            make_pipeline=lambda seed: assemble_ltx(_small(seed)),
            main_blocks=lambda p: [b.feed_forward for b in p.transformer.transformer_blocks],
            counts_flops=False,
        )


def export_ltx(
    pipeline: Any, folder: Path, *, backbone: str, model: str | None
) -> Mapping[str, object]:
    """Write the transformer of an LTX-Video pipeline as graphs.

    Args:
        pipeline: the pipeline, in float32 on the CPU.
        folder: a folder that does not exist yet.
        backbone: name of the pipeline's backbone.
        model: checkpoint that VAE, text encoder and scheduler are to be loaded from again; without
            one they are saved in the folder.

    Returns:
        The manifest.

    Raises:
        UnsupportedBackboneError: the model cannot be exported, or a library is missing.
        ConfigError: the folder cannot be written.
    """
    need_onnx(exports=True)
    if torch.__version__ < OLDEST_TORCH:
        raise UnsupportedBackboneError(
            f"torch {torch.__version__} writes the sizes of an example into the graphs of LTX-Video",
            where=f"backbone {backbone}",
            remedy=f"Export with torch {OLDEST_TORCH} or newer; the graphs then run beside any torch",
        )
    kind = _pipeline_kind()
    from hetcache_backends.onnx.export import write_folder
    from hetcache_backends.onnx.ltx_parts import ltx_parts

    manifest = Manifest(
        backbone=backbone,
        sizes=_sizes(pipeline.transformer),
        graphs={},
        words=None,
        checkpoint=whole_path(model),
        notice=getattr(pipeline, "hetcache_notice", None),
    )

    def around(written: Path) -> None:
        from safetensors import SafetensorError

        if model is None:
            copies = {name: _copied(each) for name, each in pipeline.components.items()}
            try:
                kind(**{**copies, "transformer": None}).save_pretrained(written / AROUND)
            except SafetensorError as error:  # what it makes of a full disk
                raise OSError(str(error)) from error

    return write_folder(folder, ltx_parts(pipeline.transformer), manifest, around)


def open_ltx(folder: Path, device: str, *, around: str | None = None) -> OpenedFolder[LtxSizes]:
    """Read a folder of graphs of an LTX-Video model; no transformer of torch is made.

    Args:
        folder: the folder.
        device: "cpu", "cuda" or "cuda:N".
        around: checkpoint for what lies not in the folder, which is loaded from only where it is given.

    Raises:
        UnsupportedBackboneError: it is no such folder, a library is missing, its checkpoint is, or
            onnxruntime cannot run it on this device.
    """
    manifest = read_manifest(folder, around=around)
    place = manifest.outside() or str(folder / AROUND)
    kind = _pipeline_kind()
    sessions = open_sessions(folder, manifest, device)
    request = LoadRequest(model=place, device=device, dtype="float32")
    rest = load_pipeline(
        kind, request, accepts=lambda _: True, example=CHECKPOINT, without=("transformer",)
    )
    return OpenedFolder(manifest=manifest, sessions=sessions, around=rest, device=device)


def assemble_ltx(opened: OpenedFolder[LtxSizes]) -> Any:
    """Put a pipeline together around the sessions of a folder.

    Args:
        opened: the folder; what is around its transformer is a pipeline without one, whose models
            may be shared.
    """
    from hetcache_backends.onnx.ltx_model import OnnxLtxModel

    around = opened.around
    pipeline = _pipeline_kind()(
        **{
            **around.components,
            "scheduler": type(around.scheduler).from_config(around.scheduler.config),
            "transformer": OnnxLtxModel(opened.graphs(), opened.manifest.sizes, opened.device),
        }
    )
    return opened.marked(pipeline)


def _copied(component: Any) -> Any:
    """Copy a component without its weights; saving writes into its configuration."""
    copied = copy(component)
    if hasattr(component, "register_to_config"):
        copied.register_to_config()  # diffusers' configuration becomes another object
    if "config" in getattr(component, "__dict__", {}):
        copied.config = deepcopy(component.config)
    return copied


def _pipeline_kind() -> Any:
    try:
        from hetcache_backends.diffusers.ltx_pipeline import MaskedLTXPipeline
    except ImportError as error:
        raise missing_library(error) from error
    return MaskedLTXPipeline


def _sizes(model: Any) -> LtxSizes:
    """Read the sizes of an ``LTXVideoTransformer3DModel``."""
    block = model.transformer_blocks[0]
    return LtxSizes(
        width=int(model.proj_in.out_features),
        layers=len(model.transformer_blocks),
        heads=int(block.attn1.heads),
        ffn=int(block.ff.net[2].in_features),
        patch_size=int(model.config.patch_size),
        patch_size_t=int(model.config.patch_size_t),
        in_channels=int(model.proj_in.in_features),
        head_channels=int(model.proj_out.out_features),
        text_width=int(model.caption_projection.linear_1.in_features),
        freq_dim=int(model.time_embed.emb.time_proj.num_channels),
        eps=float(block.norm1.eps),
    )


def _exported(pipeline: Any, device: str) -> OpenedFolder[LtxSizes]:
    return through_folder(
        lambda folder: export_ltx(pipeline, folder, backbone=LtxVideo.name, model=None),
        lambda folder: open_ltx(folder, device),
    )


@lru_cache
def _small(seed: int) -> OpenedFolder[LtxSizes]:
    from hetcache_backends.diffusers.cases import small_ltx

    return _exported(small_ltx(seed), "cpu")
