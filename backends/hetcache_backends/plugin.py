"""Entry point of the built-in backbones and clips. Imports no model library."""

from __future__ import annotations

from hetcache_core import Registration, hookimpl


@hookimpl
def hetcache_register_backbones() -> list[Registration]:
    """Name the backbones; each is imported when it is first asked for."""
    return [
        Registration(
            name="tiny-vace",
            target="hetcache_backends.tiny_vace.backbone:TinyVace",
            summary="Wan-VACE at a small size, embedded (DiffSynth)",
        ),
        Registration(
            name="wan-vace",
            target="hetcache_backends.wan.wan_vace:WanVace",
            summary="Wan2.1-VACE video editing (DiffSynth)",
        ),
        Registration(
            name="wan-vace-diffusers",
            target="hetcache_backends.diffusers.wan_vace:WanVaceDiffusers",
            summary="Wan2.1-VACE video editing (diffusers)",
        ),
        Registration(
            name="diffusers",
            target="hetcache_backends.diffusers.adapter:DiffusersModels",
            summary="any described diffusion transformer, whole steps and blocks (diffusers)",
        ),
        Registration(
            name="ltx-video",
            target="hetcache_backends.diffusers.ltx_video:LtxVideo",
            summary="LTX-Video, masked video-to-video (diffusers)",
        ),
        Registration(
            name="onnx-runtime",
            target="hetcache_backends.onnx.runtime:OnnxRuntime",
            summary="exported Wan-VACE or LTX-Video on ONNX Runtime",
        ),
    ]


@hookimpl
def hetcache_register_clip_sets() -> list[Registration]:
    """Name the clip set; it is made when it is first asked for."""
    return [
        Registration(
            name="builtin",
            target="hetcache_backends.tiny_vace.clip_set:BuiltinClips",
            summary="28 generated clips: masks of 5, 15 and 40 %, still, moving, outpainting",
        ),
    ]


@hookimpl
def hetcache_register_model_sets() -> list[Registration]:
    """Name the model set."""
    return [
        Registration(
            name="builtin",
            target="hetcache_backends.diffusers.described:DiffusersModelSet",
            summary="transformers of diffusers 0.42",
        ),
    ]
