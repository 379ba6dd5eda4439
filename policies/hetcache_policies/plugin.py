"""The policies that come with hetcache, registered as anybody else's would be."""

from __future__ import annotations

from hetcache_core.hookspecs import Registration, hookimpl

__all__ = ["hetcache_register_policies"]


@hookimpl
def hetcache_register_policies() -> list[Registration]:
    """Name the built-in policies; their modules, and torch, are imported when one is asked for."""
    return [
        Registration(
            name="none",
            target="hetcache_policies.none:Uncached",
            summary="run every step in full: the reference to compare with",
        ),
        Registration(
            name="teacache",
            target="hetcache_policies.teacache:TeaCache",
            summary="reuse the trunk's residual until a timestep signal has drifted far enough",
        ),
        Registration(
            name="pab",
            target="hetcache_policies.pab:PyramidBroadcast",
            summary="reuse the outputs of attention layers for a few steps in mid-run",
        ),
        Registration(
            name="hetcache",
            target="hetcache_policies.hetcache:HetCache",
            summary="full, partial or reused steps; partial ones run the tokens of the edit only",
        ),
    ]
