"""What the app itself provides, registered as anybody else's pieces would be."""

from __future__ import annotations

from hetcache.cli.builtin import COMMANDS
from hetcache_core import Registration, hookimpl

__all__ = [
    "hetcache_register_commands",
    "hetcache_register_metrics",
    "hetcache_register_report_sections",
]


@hookimpl
def hetcache_register_metrics() -> list[Registration]:
    """Name the built-in metrics."""
    return []


@hookimpl
def hetcache_register_commands() -> list[Registration]:
    """Name the built-in commands."""
    return COMMANDS


@hookimpl
def hetcache_register_report_sections() -> list[Registration]:
    """Name the built-in sections of the report's page."""
    return []
