"""What backbones offer to be written as ONNX graphs with; nothing is imported before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from attrs import frozen

from hetcache_core import Exporter

__all__ = ["LtxExporter", "WanExporter"]


@final
@frozen
class WanExporter(Exporter):
    """Writes the DiT and the control branch of a Wan pipeline.

    Attributes:
        backbone: name of the pipeline's backbone.
    """

    backbone: str

    def export(
        self, pipeline: Any, folder: Path, *, model: str | None = None
    ) -> Mapping[str, object]:
        """Write the graphs; ``model`` is what VAE and text encoder are loaded from again."""
        from hetcache_backends.onnx.wan import export_wan

        return export_wan(pipeline, folder, backbone=self.backbone, model=model)


@final
@frozen
class LtxExporter(Exporter):
    """Writes the transformer of an LTX-Video pipeline.

    Attributes:
        backbone: name of the pipeline's backbone.
    """

    backbone: str

    def export(
        self, pipeline: Any, folder: Path, *, model: str | None = None
    ) -> Mapping[str, object]:
        """Write the graphs; without ``model`` the other parts are saved in the folder."""
        from hetcache_backends.onnx.ltx import export_ltx

        return export_ltx(pipeline, folder, backbone=self.backbone, model=model)
