"""Runs in OpenTelemetry's in-memory exporters."""

from __future__ import annotations

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from hetcache_core import Mode, RunCancelledError, Session, accelerate, discover
from hetcache_core.testing import TinyBackbone, TinyPipeline, scripted, tiny_video
from hetcache_opentelemetry.telemetry import kind_of

STEPS = 4


@pytest.fixture(scope="module")
def exporters() -> tuple[InMemorySpanExporter, InMemoryMetricReader]:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracer = TracerProvider()
    tracer.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(tracer)
    metrics.set_meter_provider(MeterProvider([reader]))
    return spans, reader


def points(reader: InMemoryMetricReader) -> dict[str, list]:
    data = reader.get_metrics_data()
    (resource,) = data.resource_metrics
    (scope,) = resource.scope_metrics
    return {metric.name: list(metric.data.data_points) for metric in scope.metrics}


def run(*, cancel: bool = False) -> Session:
    def on_step(*_arguments: object) -> None:
        if cancel:
            session.cancel()

    pipeline, (video, mask) = TinyPipeline(), tiny_video()
    session = accelerate(
        pipeline, scripted(Mode.FULL, Mode.REUSE), backbone=TinyBackbone(), on_step=on_step
    )
    with session:
        try:
            pipeline(video, mask, steps=STEPS)
        except RunCancelledError:
            assert cancel
    return session


def test_a_run_is_a_span_with_its_steps_and_is_counted(
    exporters: tuple[InMemorySpanExporter, InMemoryMetricReader],
) -> None:
    spans, reader = exporters
    assert "opentelemetry" in {plugin.name for plugin in discover().plugins}
    with trace.get_tracer("service").start_as_current_span("request") as request:
        made = run().trace
    span = next(s for s in spans.get_finished_spans() if s.name == "hetcache.run")
    assert span.parent.span_id == request.get_span_context().span_id
    said = dict(span.attributes)
    assert (said["hetcache.run_id"], said["hetcache.session_id"]) == tuple(made.ids().values())
    assert said["hetcache.speedup"] == made.totals().flops_speedup
    assert said["hetcache.complete"] is True
    assert [e.attributes["hetcache.mode"] for e in span.events] == [m.value for m in made.modes()]
    assert [e.attributes["hetcache.step"] for e in span.events] == list(range(STEPS))
    times = [span.start_time, *(e.timestamp for e in span.events), span.end_time]
    assert times == sorted(times)

    run(cancel=True)
    last = spans.get_finished_spans()[-1]
    assert last.attributes["hetcache.complete"] is False
    assert len(last.events) == 1

    found = points(reader)
    assert {p.attributes["hetcache.complete"]: p.value for p in found["hetcache.runs"]} == {
        True: 1,
        False: 1,
    }
    steps = found["hetcache.steps"]
    assert sum(p.value for p in steps) == STEPS + 1
    assert {p.attributes["hetcache.mode"] for p in steps} == {"full", "reuse"}
    assert all(p.attributes["hetcache.reason"] for p in steps)
    assert found["hetcache.run.speedup"][0].max == made.totals().flops_speedup
    assert found["hetcache.cache.peak"][0].max == made.peak_cache_bytes
    assert found["hetcache.run.duration"][0].count == 2


def test_a_reason_is_one_series_whatever_its_numbers() -> None:
    assert kind_of("signal 0.061 >= 5.0e-02") == kind_of("signal 1 >= 0.05") == "signal # >= #"
    assert kind_of("12% of the tokens active, over 85%") == "# of the tokens active, over #"
    assert kind_of("every step is computed") == "every step is computed"
