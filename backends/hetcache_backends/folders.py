"""Which backbone a folder of weights is for, read from its index alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

INDEX: Final = "model_index.json"
"""What ``save_pretrained`` of diffusers' pipelines writes."""

TRANSFORMERS: Final = {
    "LTXVideoTransformer3DModel": "ltx-video",
    "WanVACETransformer3DModel": "wan-vace-diffusers",
}
"""Backbones by the transformer's class in diffusers."""

SIGNS: Final = {"manifest.json": "onnx-runtime", "Wan2.1_VAE.pth": "wan-vace"}
"""Backbones by a file that their folders have: exported graphs, Wan-AI's own layout."""


def backbone_of(model: str) -> str | None:
    """Name the backbone that a folder is for, or None where it is no folder, or for none of these."""
    folder = Path(model).expanduser()
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return TRANSFORMERS.get((index.get("transformer") or ["", ""])[1])
    except (OSError, ValueError, AttributeError, IndexError):
        return next((name for file, name in SIGNS.items() if (folder / file).is_file()), None)
