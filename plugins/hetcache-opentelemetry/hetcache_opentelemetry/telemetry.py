"""A run's trace as a span and as metrics, sent to whatever providers the process has set."""

from __future__ import annotations

import re
import time
from collections import Counter
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Final

from attrs import frozen
from opentelemetry import metrics, trace

if TYPE_CHECKING:
    from opentelemetry.metrics import Counter as Count
    from opentelemetry.metrics import Histogram

    from hetcache_core import Trace

SCOPE: Final = "hetcache"
"""Name of the tracer and of the meter."""

_NUMBER: Final = re.compile(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?%?")
"""What differs between two reasons of one kind; with it, a metric would have endless series."""


@frozen(kw_only=True)
class Instruments:
    """What runs are counted with; the same ones for all runs of a process."""

    runs: Count
    steps: Count
    speedup: Histogram
    duration: Histogram
    peak: Histogram


@cache
def instruments() -> Instruments:
    """Make the instruments; those made before a provider is set take effect with it."""
    meter = metrics.get_meter(SCOPE)
    return Instruments(
        runs=meter.create_counter("hetcache.runs", "{run}", "runs that ended"),
        steps=meter.create_counter("hetcache.steps", "{step}", "steps by mode and reason"),
        speedup=meter.create_histogram(
            "hetcache.run.speedup", "1", "FLOPs without caching over FLOPs computed"
        ),
        duration=meter.create_histogram(
            "hetcache.run.duration", "s", "from the first model call to the end of the last step"
        ),
        peak=meter.create_histogram("hetcache.cache.peak", "By", "most bytes kept at once"),
    )


def kind_of(reason: str) -> str:
    """Return a reason without its numbers: ``signal 0.061 >= 0.05`` is ``signal # >= #``."""
    return _NUMBER.sub("#", reason)


def record(run: Trace) -> None:
    """Send a run: a span that ends now, an event for each of its steps, and the metrics.

    The span is a child of the one that is current in the run's thread.
    """
    totals, ended = run.totals(), time.time_ns()
    begun = ended - round(run.denoise_seconds * 1e9)
    labels = {"hetcache.policy": run.policy, "hetcache.backbone": run.backbone}
    attributes: dict[str, str | int | float | bool] = {
        **labels,
        **{f"hetcache.{name}": value for name, value in run.ids().items()},
        "hetcache.variant": run.variant,
        "hetcache.steps": run.steps,
        "hetcache.tokens": run.tokens,
        "hetcache.complete": run.complete,
        "hetcache.speedup": totals.flops_speedup,
        "hetcache.flops": totals.flops,
        "hetcache.cache_peak_bytes": totals.peak_cache_bytes,
    }
    if run.target_speedup is not None:
        attributes["hetcache.target_speedup"] = run.target_speedup
    span = trace.get_tracer(SCOPE).start_span(
        "hetcache.run", start_time=begun, attributes=attributes
    )
    at, kinds = begun, Counter[tuple[str, str]]()
    for step, group in groupby(run.records, key=lambda call: call.step):
        calls = list(group)
        first, seconds = calls[0], sum(call.seconds for call in calls)
        at = min(at + round(seconds * 1e9), ended)
        kinds[first.mode.value, kind_of(first.reason)] += 1
        details: dict[str, str | int | float] = {
            "hetcache.step": step,
            "hetcache.mode": first.mode.value,
            "hetcache.reason": first.reason,
            "hetcache.seconds": seconds,
            "hetcache.flops": sum(call.flops for call in calls),
            "hetcache.cache_bytes": calls[-1].cache_bytes,
        }
        if first.signal is not None:
            details["hetcache.signal"] = first.signal
        span.add_event("step", details, at)
    span.end(ended)
    to = instruments()
    to.runs.add(1, {**labels, "hetcache.complete": run.complete})
    to.speedup.record(totals.flops_speedup, labels)
    to.duration.record(run.denoise_seconds, labels)
    to.peak.record(totals.peak_cache_bytes, labels)
    for (mode, reason), count in kinds.items():
        to.steps.add(count, {**labels, "hetcache.mode": mode, "hetcache.reason": reason})
