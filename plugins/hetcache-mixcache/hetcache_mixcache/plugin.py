"""Tells hetcache what this distribution provides; imports nothing heavy."""

from __future__ import annotations

from hetcache_core import Registration, hookimpl

__all__ = ["hetcache_register_policies"]


@hookimpl
def hetcache_register_policies() -> list[Registration]:
    """Name the policy."""
    return [
        Registration(
            name="mixcache",
            target="hetcache_mixcache.policy:MixCache",
            summary="reuse a step, a guidance branch or a range of blocks, whichever will show least",
        )
    ]
