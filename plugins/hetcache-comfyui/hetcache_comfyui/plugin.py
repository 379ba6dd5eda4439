"""Tells hetcache what this distribution provides; imports nothing heavy."""

from __future__ import annotations

from hetcache_core import Registration, hookimpl

__all__ = ["hetcache_register_backbones"]


@hookimpl
def hetcache_register_backbones() -> list[Registration]:
    """Name the backbones."""
    return [
        Registration(
            name="comfy-wan",
            target="hetcache_comfyui.backbones:ComfyWan",
            summary="Wan2.1 and 2.2, VACE among them, sampled by ComfyUI",
        ),
        Registration(
            name="comfy-ltx",
            target="hetcache_comfyui.backbones:ComfyLtx",
            summary="LTX-Video, sampled by ComfyUI",
        ),
        Registration(
            name="comfy-any",
            target="hetcache_comfyui.backbones:ComfyAny",
            summary="any diffusion model of ComfyUI, whole calls at a time",
        ),
    ]
