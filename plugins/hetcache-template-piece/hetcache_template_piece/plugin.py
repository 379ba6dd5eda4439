"""Tells hetcache what this distribution provides; imports nothing heavy."""

from __future__ import annotations

from hetcache_core import Registration, hookimpl


@hookimpl
def hetcache_register_selectors() -> list[Registration]:
    """Called by `discover()`."""
    return [
        Registration(
            name="near",
            target="hetcache_template_piece.selector:Near",
            summary="the context next to the edit first",
        )
    ]
