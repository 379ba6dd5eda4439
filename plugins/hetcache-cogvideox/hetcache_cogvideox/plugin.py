"""Tells hetcache what this distribution provides; imports nothing heavy."""

from __future__ import annotations

from hetcache_core import Registration, hookimpl

__all__ = ["hetcache_register_backbones"]


@hookimpl
def hetcache_register_backbones() -> list[Registration]:
    """Name the backbone."""
    return [
        Registration(
            name="cogvideox",
            target="hetcache_cogvideox.backbone:CogVideoX",
            summary="CogVideoX, masked video-to-video (diffusers)",
        )
    ]
