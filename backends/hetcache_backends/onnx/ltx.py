"""LTX-Video pipelines to folders of graphs, and back to pipelines whose transformer is graphs."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy, deepcopy
from pathlib import Path
from typing import Any, Final, final

import torch
from attrs import frozen

from hetcache_backends.diffusers.common import missing_library
from hetcache_backends.diffusers.ltx_video import CHECKPOINT
from hetcache_backends.onnx.folder import (
    AROUND,
    RUNS_WITH,
    LtxSizes,
    Manifest,
    need_onnx,
    read_manifest,
    whole_path,
    write_manifest,
)
from hetcache_core import LoadRequest, UnsupportedBackboneError, load_pipeline

OLDEST_TORCH: Final = "2.13"
"""The oldest whose export was seen to work; that of 2.6 was seen to fail."""


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
    from hetcache_backends.onnx.export import new_folder, write_graphs
    from hetcache_backends.onnx.ltx_parts import ltx_parts

    parts = ltx_parts(pipeline.transformer)
    with new_folder(folder) as part:
        written = write_graphs(parts, part)
        if model is None:
            around = {name: _copied(each) for name, each in pipeline.components.items()}
            kind(**{**around, "transformer": None}).save_pretrained(part / AROUND)
        manifest = Manifest(
            backbone=backbone,
            sizes=_sizes(pipeline.transformer),
            graphs={},
            words=None,
            checkpoint=whole_path(model),
            notice=getattr(pipeline, "hetcache_notice", None),
        )
        return write_manifest(part, manifest, written)


@final
@frozen(eq=False, kw_only=True)
class OpenedLtx:
    """A folder of graphs in memory; the folder itself is not needed any more.

    Attributes:
        manifest: its manifest.
        sessions: by the names of the graphs; several pipelines may share them.
        around: a pipeline without transformer; several pipelines may share its models.
        device: where the sessions run.
    """

    manifest: Manifest[LtxSizes]
    sessions: Mapping[str, Any]
    around: Any
    device: str


def open_ltx(folder: Path, device: str) -> OpenedLtx:
    """Read a folder of graphs of an LTX-Video model; no transformer of torch is made.

    Args:
        folder: the folder.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        UnsupportedBackboneError: it is no such folder, a library is missing, its checkpoint is, or
            onnxruntime cannot run it on this device.
    """
    manifest = read_manifest(folder)
    kind = _pipeline_kind()
    from hetcache_backends.onnx.session import open_sessions

    sessions = open_sessions(folder, manifest, device)
    place = manifest.checkpoint or str(folder / AROUND)
    request = LoadRequest(model=place, device=device, dtype="float32")
    around = load_pipeline(
        kind, request, accepts=lambda _: True, example=CHECKPOINT, without=("transformer",)
    )
    return OpenedLtx(manifest=manifest, sessions=sessions, around=around, device=device)


def assemble_ltx(opened: OpenedLtx) -> Any:
    """Put a pipeline together around the sessions of a folder.

    Args:
        opened: the folder.
    """
    from hetcache_backends.onnx.ltx_model import OnnxLtxModel
    from hetcache_backends.onnx.session import Graph

    manifest = opened.manifest
    graphs = {name: Graph(name, session) for name, session in opened.sessions.items()}
    model = OnnxLtxModel(graphs, manifest.sizes, opened.device)
    scheduler = type(opened.around.scheduler).from_config(opened.around.scheduler.config)
    components = {**opened.around.components, "scheduler": scheduler, "transformer": model}
    pipeline = _pipeline_kind()(**components)
    pipeline.hetcache_backbone = RUNS_WITH
    if manifest.notice:
        pipeline.hetcache_notice = manifest.notice
    return pipeline


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
