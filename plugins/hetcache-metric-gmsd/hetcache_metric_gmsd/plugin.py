"""Tells hetcache what this distribution provides; imports nothing heavy."""

from __future__ import annotations

from hetcache_core import Registration, hookimpl


@hookimpl
def hetcache_register_metrics() -> list[Registration]:
    """Called by `discover()`."""
    return [
        Registration(
            name="gmsd",
            target="hetcache_metric_gmsd.metric:Gmsd",
            summary="how unevenly the edges of two videos differ",
        )
    ]
