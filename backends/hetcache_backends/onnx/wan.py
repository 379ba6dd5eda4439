"""Wan pipelines to folders of graphs, and back to pipelines whose DiT runs on onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from attrs import frozen

from hetcache_backends.onnx.folder import (
    CODEC,
    RUNS_WITH,
    Manifest,
    WanSizes,
    need_onnx,
    read_manifest,
    whole_path,
    write_manifest,
)
from hetcache_backends.wan.loading import FILES_AROUND, import_diffsynth, load_checkpoint
from hetcache_core import LoadRequest, UnsupportedBackboneError


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
    from hetcache_backends.onnx.export import new_folder, write_graphs
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
    with new_folder(folder) as part:
        written = write_graphs(parts, part)
        if words is not None:
            from safetensors.torch import save

            (part / CODEC).write_bytes(save(pipeline.vae.state_dict()))
        manifest = Manifest(
            backbone=backbone,
            sizes=_sizes(pipeline.dit, pipeline.vace),
            graphs={},
            words=words,
            checkpoint=None if words is not None else whole_path(model),
            notice=getattr(pipeline, "hetcache_notice", None),
        )
        return write_manifest(part, manifest, written)


@final
@frozen(eq=False, kw_only=True)
class OpenedFolder:
    """A folder of graphs in memory; the folder itself is not needed any more.

    Attributes:
        manifest: its manifest.
        sessions: by the names of the graphs; several pipelines may share them.
        codec: weights of the embedded codec, or None where VAE and text encoder are a checkpoint's.
        device: where the sessions run.
    """

    manifest: Manifest[WanSizes]
    sessions: Mapping[str, Any]
    codec: Mapping[str, Any] | None
    device: str


def open_folder(folder: Path, device: str) -> OpenedFolder:
    """Read a folder of graphs.

    Args:
        folder: the folder.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        UnsupportedBackboneError: it is no such folder, a library is missing, or onnxruntime cannot
            run it on this device.
    """
    manifest = read_manifest(folder)
    import_diffsynth()
    from safetensors.torch import load

    from hetcache_backends.onnx.session import open_sessions

    return OpenedFolder(
        manifest=manifest,
        sessions=open_sessions(folder, manifest, device),
        codec=load((folder / CODEC).read_bytes()) if manifest.words is not None else None,
        device=device,
    )


def assemble(opened: OpenedFolder) -> Any:
    """Put a pipeline together around the sessions of a folder.

    Args:
        opened: the folder.
    """
    from hetcache_backends.onnx.session import Graph
    from hetcache_backends.onnx.wan_model import OnnxControl, OnnxWanModel

    pipeline, manifest = _around(opened), opened.manifest
    graphs = {name: Graph(name, session) for name, session in opened.sessions.items()}
    pipeline.dit = OnnxWanModel(graphs, manifest.sizes)
    pipeline.vace = OnnxControl(graphs, manifest.sizes) if manifest.sizes.control_layers else None
    pipeline.hetcache_backbone = RUNS_WITH
    if manifest.notice:
        pipeline.hetcache_notice = manifest.notice
    return pipeline


def _around(opened: OpenedFolder) -> Any:
    """Make everything but the transformer: scheduler, codec or VAE, words or text encoder."""
    import torch

    manifest, device = opened.manifest, opened.device
    if manifest.words is None or opened.codec is None:
        return load_checkpoint(
            LoadRequest(model=manifest.checkpoint, device=device, dtype="float32"), FILES_AROUND
        )
    from hetcache_backends.tiny_vace.backbone import TinyVace
    from hetcache_backends.tiny_vace.fill import add_fill
    from hetcache_backends.tiny_vace.pipeline import pipeline_without_models

    config = _tiny_config(manifest.sizes, manifest.words)
    pipeline: Any = pipeline_without_models(config, device=device, dtype=torch.float32)
    pipeline.vae.load_state_dict(opened.codec)
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
