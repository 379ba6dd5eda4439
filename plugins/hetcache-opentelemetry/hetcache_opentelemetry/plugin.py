"""Tells hetcache what this distribution observes; imports OpenTelemetry with the first run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hetcache_core import hookimpl

if TYPE_CHECKING:
    from hetcache_core import Trace


@hookimpl
def hetcache_observe_run(trace: Trace) -> None:
    """Called with a copy of the trace of every run that ended, in the run's thread."""
    from hetcache_opentelemetry.telemetry import record

    record(trace)
