"""A small, really trained model of the Wan-VACE architecture, and the clips it is measured on.

The pipeline, the diffusion transformer and the control branch are DiffSynth's own classes at small
dimensions, so whatever is measured on `tiny_vace` goes through the code that users of Wan2.1-VACE
run. In the place of the VAE stands `tiny_vace.codec`, in the place of the text encoder
`tiny_vace.text`. `MODEL_CARD.md` beside this file says how the weights came to be.

Importing this package imports neither torch nor diffsynth.
"""

from __future__ import annotations

from hetcache_backends.tiny_vace.clips import (
    CLIP_SET_VERSION,
    Clip,
    ClipSpec,
    builtin_clips,
    demo_clip,
    make_clip,
)
from hetcache_backends.tiny_vace.config import TINY_VACE, TinyVaceConfig
from hetcache_backends.tiny_vace.pipeline import WEIGHTS_PATH, build_pipeline, weights_info

__all__ = [
    "CLIP_SET_VERSION",
    "TINY_VACE",
    "WEIGHTS_PATH",
    "Clip",
    "ClipSpec",
    "TinyVaceConfig",
    "build_pipeline",
    "builtin_clips",
    "demo_clip",
    "make_clip",
    "weights_info",
]
