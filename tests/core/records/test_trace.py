"""A trace sums up what was decided, and comes back from JSON as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attrs import evolve

from hetcache_core import CallRecord, ConfigError, Mode, PartialSettings, Trace
from hetcache_core.files import write_text
from hetcache_core.records.trace import SCHEMA_VERSION
from hetcache_core.testing import scripted, tiny_case
from hetcache_core.testing.watch import watched_run


def record(step: int, mode: Mode, branch: str = "cond", **values: object) -> CallRecord:
    return evolve(
        CallRecord(
            step=step, timestep=900.0 - step, sigma=0.5, branch=branch, expert="", tokens=10
        ),
        mode=mode,
        reason="scripted",
        **values,
    )


@pytest.fixture
def trace() -> Trace:
    costs = {"flops_full": 100, "host_reads": 1, "seconds": 0.5}
    return Trace(
        policy="p",
        settings={"threshold": 0.1, "layers": [1, 2]},
        backbone="tiny",
        variant="",
        steps=3,
        requested_steps=3,
        tokens=10,
        records=[
            record(0, Mode.FULL, flops=100, **costs),
            record(0, Mode.FULL, "uncond", flops=100, **costs),
            record(1, Mode.PARTIAL, flops=40, **costs),
            record(1, Mode.PREDICT, "uncond", flops=0, **costs),
            record(2, Mode.REUSE, flops=10, **costs),
            record(2, Mode.REUSE, "uncond", flops=10, **costs),
        ],
        denoise_seconds=4.0,
        peak_cache_bytes=3 * 2**20,
        complete=True,
    )


def test_the_mode_of_a_step_is_that_of_its_first_call(trace: Trace) -> None:
    assert trace.modes() == [Mode.FULL, Mode.PARTIAL, Mode.REUSE]


def test_totals_are_sums_over_the_calls(trace: Trace) -> None:
    totals = trace.totals()
    assert (totals.steps_full, totals.steps_partial, totals.steps_reused) == (1, 1, 1)
    assert totals.calls == 6
    assert (totals.flops, totals.flops_full) == (260, 600)
    assert totals.flops_speedup == pytest.approx(600 / 260)
    assert (totals.call_seconds, totals.denoise_seconds) == (3.0, 4.0)
    assert totals.host_reads == 6


def test_steps_that_the_sampler_never_took_count_as_work_left_out(trace: Trace) -> None:
    trace.requested_steps = 6
    assert trace.totals().flops_full == 1200


def test_the_summary_is_one_line_with_the_numbers(trace: Trace) -> None:
    assert trace.summary() == (
        "p on tiny: 1 full, 1 partial, 1 reused of 3 steps; 2.31x fewer FLOPs; cache peak 3.0 MiB"
    )


def test_an_empty_trace_has_totals(trace: Trace) -> None:
    totals = evolve(trace, records=[]).totals()
    assert (totals.calls, totals.flops, totals.flops_speedup) == (0, 0, 1.0)


def test_a_trace_is_read_back_as_it_was_written(trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace.save(path)
    assert Trace.load(path) == trace
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"]


def test_a_real_trace_is_read_back_with_its_totals(tmp_path: Path) -> None:
    policy = scripted(Mode.FULL, Mode.PARTIAL, Mode.REUSE, partial=PartialSettings())
    engine, _ = watched_run(tiny_case(), policy, steps=6, layout="separate")
    path = tmp_path / "trace.json"
    engine.trace.save(path)
    plain = json.loads(path.read_text())
    assert plain["schema_version"] == SCHEMA_VERSION
    assert plain["totals"]["steps_partial"] == 2
    assert plain["records"][2]["mode"] == "partial"
    assert Trace.load(path) == engine.trace


def test_another_schema_version_is_refused_with_both_versions(trace: Trace) -> None:
    plain = {**trace.to_dict(), "schema_version": 99}
    with pytest.raises(ConfigError, match=f"schema 99; this version reads {SCHEMA_VERSION}"):
        Trace.from_dict(plain)


@pytest.mark.parametrize("text", ["", "[]", "{}", "nothing", '{"schema_version": 1}'])
def test_a_file_that_is_no_trace_is_refused_by_its_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"other\.json"):
        Trace.load(path)


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json cannot be read"):
        Trace.load(tmp_path / "none.json")


def test_an_unknown_mode_in_a_record_is_refused(trace: Trace) -> None:
    plain = trace.to_dict()
    plain["records"][0]["mode"] = "sideways"
    with pytest.raises(ConfigError, match=r"not whole: records\[0\]\.mode must be one of"):
        Trace.from_dict(plain)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"]
