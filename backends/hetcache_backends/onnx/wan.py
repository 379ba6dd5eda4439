"""Exported Wan-VACE: pipelines to folders of graphs, and back to pipelines that run on them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from attrs import evolve, frozen

from hetcache_backends.onnx.folder import (
    CODEC,
    RUNS_WITH,
    Manifest,
    WanSizes,
    first_line,
    need_float32,
    need_onnx,
    need_runtime,
    read_manifest,
    whole_path,
)
from hetcache_backends.onnx.session import OpenedFolder, open_sessions, through_folder
from hetcache_backends.tiny_vace.backbone import TinyVace
from hetcache_backends.wan import wan_vace
from hetcache_backends.wan.loading import FILES_AROUND, import_diffsynth, load_checkpoint
from hetcache_core import (
    Backbone,
    EditRequest,
    Features,
    Geometry,
    LoadRequest,
    ModelInfo,
    RandomModels,
    UnsupportedBackboneError,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hetcache_core import Engine
    from hetcache_core.testing import BackboneCase


class OnnxWan(Backbone):
    """Runs a folder of an exported Wan-VACE, of whichever sizes."""

    name: ClassVar[str] = RUNS_WITH
    summary: ClassVar[str] = "exported Wan-VACE on ONNX Runtime"
    library: ClassVar[str] = "onnxruntime"
    features: ClassVar[Features] = wan_vace.WanVace.features.with_values(compiled=False)

    def accepts(self, pipeline: object) -> bool:
        """Whether the pipeline's DiT is graphs."""
        return wan_vace.is_wan_pipeline(pipeline) and wan_vace.owner(pipeline) == self.name

    def describe(self, pipeline: Any) -> ModelInfo:
        """Describe the exported model."""
        return wan_vace.describe(pipeline, self.name)

    def attach(self, pipeline: Any, engine: Engine) -> AbstractContextManager[None]:
        """Attach as ``wan-vace`` does, with a trunk of graphs."""
        from hetcache_backends.onnx.trunk import onnx_wan_trunk

        return wan_vace.routed(self, pipeline, engine, onnx_wan_trunk)

    def load(self, request: LoadRequest) -> Any:
        """Load a folder of graphs of Wan-VACE."""
        need_float32(request)
        return assemble(
            open_folder(
                Path(str(request.model)).expanduser(), request.device, around=request.around
            )
        )

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse what ``WanVideoPipeline.__call__`` does not take."""
        wan_vace.check_wan_options(options)

    def edit(self, pipeline: Any, request: EditRequest) -> NDArray[np.uint8]:
        """Run one masked edit, as the backbone does that was exported."""
        if pipeline.text_encoder is None:  # the codec of tiny-vace, which has no seams to hide
            request = evolve(request, options={"tiled": False, **request.options})
        return wan_vace.edit(pipeline, request)

    @property
    def random_models(self) -> RandomModels:
        """What exports small Wan-VACEs and loads the graphs."""
        return WanGraphs(self)


@final
@frozen
class OnnxWanVace(OnnxWan):
    """Runs a folder of an exported ``wan-vace``."""

    geometry: ClassVar[Geometry] = wan_vace.WanVace.geometry


@final
@frozen
class OnnxTinyVace(OnnxWan):
    """Runs a folder of the exported embedded model, with its sizes and guidance."""

    geometry: ClassVar[Geometry] = TinyVace.geometry
    guidance_scale: ClassVar[float] = TinyVace.guidance_scale


@final
@frozen
class WanGraphs(RandomModels):
    """Exports small Wan-VACEs and loads the graphs.

    Attributes:
        backbone: runs the graphs.
    """

    backbone: Backbone

    def pipeline(self, request: LoadRequest) -> Any:
        """Export the small random Wan-VACE, and load that."""
        need_float32(request)
        import_diffsynth()
        need_runtime()
        from hetcache_backends.wan.case import RANDOM_NOTICE, RANDOM_SEED

        pipeline = assemble(_exported(RANDOM_SEED, request.device))
        pipeline.hetcache_notice = RANDOM_NOTICE.format(name=self.backbone.name)
        return pipeline

    def case(self) -> BackboneCase:
        """Return a small Wan-VACE with seeded weights, exported into a temporary folder."""
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


def export_wan(
    pipeline: Any, folder: Path, *, backbone: str, model: str | None
) -> Mapping[str, object]:
    """Write the DiT and the control branch of a Wan pipeline as graphs.

    Args:
        pipeline: the pipeline, in float32 on the CPU.
        folder: a folder that does not exist yet.
        backbone: name of the pipeline's backbone.
        model: checkpoint that VAE and text encoder are to be loaded from again.

    Returns:
        The manifest.

    Raises:
        UnsupportedBackboneError: the model cannot be exported, or a library is missing.
        ConfigError: the folder cannot be written.
    """
    need_onnx(exports=True)
    from hetcache_backends.onnx.export import write_folder
    from hetcache_backends.onnx.wan_parts import wan_parts

    words = _words(pipeline)
    if getattr(pipeline, "dit2", None) is not None:
        raise UnsupportedBackboneError(
            "A Wan pipeline of two experts cannot be exported", remedy="Wan2.1-VACE can."
        )
    if words is None and model is None:
        raise UnsupportedBackboneError(
            "The graphs hold neither VAE nor text encoder, and where to load them from is not known",
            remedy="Name the checkpoint (--model).",
        )
    parts = wan_parts(pipeline.dit, pipeline.vace)
    manifest = Manifest(
        backbone=backbone,
        sizes=_sizes(pipeline.dit, pipeline.vace),
        graphs={},
        words=words,
        checkpoint=None if words is not None else whole_path(model),
        notice=getattr(pipeline, "hetcache_notice", None),
    )

    def codec(written: Path) -> None:
        from safetensors.torch import save

        if words is not None:
            (written / CODEC).write_bytes(save(pipeline.vae.state_dict()))

    return write_folder(folder, parts, manifest, codec)


def open_folder(folder: Path, device: str, *, around: str | None = None) -> OpenedFolder[WanSizes]:
    """Read a folder of graphs.

    Args:
        folder: the folder.
        device: "cpu", "cuda" or "cuda:N".
        around: checkpoint for VAE and text encoder, which is loaded from only where it is given.

    Raises:
        UnsupportedBackboneError: it is no such folder, a library is missing, or onnxruntime cannot
            run it on this device.
    """
    manifest = read_manifest(folder, around=around)
    manifest.outside()
    import_diffsynth()
    return OpenedFolder(
        manifest=manifest,
        sessions=open_sessions(folder, manifest, device),
        around=None if manifest.words is None else _codec(folder / CODEC),
        device=device,
    )


def _codec(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UnsupportedBackboneError(
            f"{path} cannot be read: {first_line(error)}", remedy="Export the model again."
        ) from error


def assemble(opened: OpenedFolder[WanSizes]) -> Any:
    """Put a pipeline together around the sessions of a folder.

    Args:
        opened: the folder; what is around its transformer are the weights of the embedded codec.
    """
    from hetcache_backends.onnx.wan_model import OnnxControl, OnnxWanModel

    pipeline, sizes, graphs = _around(opened), opened.manifest.sizes, opened.graphs()
    pipeline.dit = OnnxWanModel(graphs, sizes)
    pipeline.vace = OnnxControl(graphs, sizes) if sizes.control_layers else None
    return opened.marked(pipeline)


def _around(opened: OpenedFolder[WanSizes]) -> Any:
    """Make everything but the transformer: scheduler, codec or VAE, words or text encoder."""
    import torch

    manifest, device = opened.manifest, opened.device
    if manifest.words is None or opened.around is None:
        return load_checkpoint(
            LoadRequest(model=manifest.outside(), device=device, dtype="float32"), FILES_AROUND
        )
    from hetcache_backends.tiny_vace.fill import add_fill
    from hetcache_backends.tiny_vace.pipeline import pipeline_without_models

    config = _tiny_config(manifest.sizes, manifest.words)
    pipeline: Any = pipeline_without_models(config, device=device, dtype=torch.float32)
    pipeline.vae.load_state_dict(opened.around)
    pipeline.vae.to(device=device)
    if manifest.backbone == TinyVace.name:
        add_fill(pipeline)
    return pipeline


def _tiny_config(sizes: WanSizes, words: int) -> Any:
    from hetcache_backends.tiny_vace.config import TinyVaceConfig

    return TinyVaceConfig(
        z_dim=sizes.in_channels,
        dim=sizes.width,
        num_heads=sizes.heads,
        text_dim=sizes.text_width,
        text_length=words,
    )


def _words(pipeline: Any) -> int | None:
    """Words of a prompt where the pipeline has the embedded codec and words, else None."""
    from hetcache_backends.tiny_vace.codec import TinyCodec
    from hetcache_backends.tiny_vace.text import WordEmbedder

    if not isinstance(pipeline.vae, TinyCodec):
        return None
    lengths = [u.config.text_length for u in pipeline.units if isinstance(u, WordEmbedder)]
    return lengths[0] if lengths else None


def _sizes(dit: Any, vace: Any) -> WanSizes:
    """Read the sizes of a ``WanModel`` and its ``VaceWanModel``, or None for the latter."""
    block = dit.blocks[0]
    return WanSizes(
        width=int(dit.dim),
        layers=len(dit.blocks),
        heads=int(block.num_heads),
        ffn=int(block.ffn_dim),
        control_layers=tuple(vace.vace_layers) if vace is not None else (),
        patch_size=tuple(dit.patch_size),
        in_channels=int(dit.in_dim),
        control_channels=int(vace.vace_in_dim) if vace is not None else 0,
        head_channels=int(dit.head.head.out_features),
        text_width=int(dit.text_embedding[0].in_features),
        freq_dim=int(dit.freq_dim),
        eps=float(block.norm1.eps),
    )


def _feed_forwards(blocks: Any) -> list[Any]:
    return [block.feed_forward for block in blocks]


@lru_cache
def _exported(seed: int, device: str) -> OpenedFolder[WanSizes]:
    """Export a small model with the weights of a seed."""
    from hetcache_backends.tiny_vace.pipeline import build_pipeline
    from hetcache_backends.wan.case import SMALL

    pipeline = build_pipeline(seed=seed, config=SMALL)
    return through_folder(
        lambda folder: export_wan(pipeline, folder, backbone=RUNS_WITH, model=None),
        lambda folder: open_folder(folder, device),
    )
