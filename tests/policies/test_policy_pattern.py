"""Steps by a written pattern."""

from __future__ import annotations

import pytest

from hetcache_core.errors import ConfigError
from hetcache_core.records.trace import Trace
from hetcache_core.session import accelerate
from hetcache_core.settings.declare import build
from hetcache_core.testing import tiny_case
from hetcache_policies.hetcache import HetCache
from hetcache_policies.shared.pattern import PatternSteps


def trace_of(pattern: str, steps: int, **settings: object) -> Trace:
    case = tiny_case()
    pipeline = case.make_pipeline(0)
    recipe = HetCache(pattern=pattern, margin=0, **settings)
    with accelerate(pipeline, recipe, backbone=case.backbone) as session:
        case.run(pipeline, steps, "separate", 0)
    return session.trace


def modes(pattern: str, steps: int, first_steps: int = 1) -> str:
    trace = trace_of(pattern, steps, first_steps=first_steps)
    return "".join(mode.value[0] for mode in trace.modes())


def test_a_pattern_is_repeated_and_the_last_step_runs_in_full() -> None:
    assert modes("Fss", 8) == "frrfrrff"
    assert modes("Fsp", 7) == "frpfrpf"
    assert modes("F", 3) == "fff"


def test_the_pattern_begins_with_the_last_of_the_first_steps() -> None:
    assert modes("Fss", 9, first_steps=3) == "fffrrfrrf"


@pytest.mark.parametrize("pattern", ["", "sF", "pF", "FfF", "F s", "Fx"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="Fsspss"):
        PatternSteps(pattern=pattern)
    with pytest.raises(ConfigError, match="begin with F"):
        build(HetCache, {"pattern": pattern}, where="--set")


def test_hetcache_runs_a_pattern() -> None:
    trace = trace_of("Fsps", 10, first_steps=1)
    assert "".join(m.value[0] for m in trace.modes()) == "frprfrprff"
    assert {r.reason for r in trace.records} == {"pattern Fsps"}


def test_a_written_pattern_may_reuse_as_many_in_a_row_as_it_says() -> None:
    assert modes("Fssssss", 9) == "frrrrrrff"
