"""Tells hetcache what this distribution provides; imports nothing heavy."""

from __future__ import annotations

from hetcache_core import Registration, hookimpl

__all__ = ["hetcache_register_policies"]


@hookimpl
def hetcache_register_policies() -> list[Registration]:
    """Name the policy."""
    return [
        Registration(
            name="bwcache",
            target="hetcache_bwcache.policy:BWCache",
            summary="reuse steps while the outputs of all blocks have hardly changed",
        )
    ]
