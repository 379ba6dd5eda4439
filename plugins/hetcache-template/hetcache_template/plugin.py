"""Tells hetcache what this distribution provides; imports nothing heavy."""

from __future__ import annotations

from hetcache_core import Registration, hookimpl


@hookimpl
def hetcache_register_policies() -> list[Registration]:
    """Called by `discover()`."""
    return [
        Registration(
            name="latent-change",
            target="hetcache_template.policy:LatentChange",
            summary="reuse steps while the latents have changed little",
        )
    ]
