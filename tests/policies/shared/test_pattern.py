"""Steps by a written pattern."""

from __future__ import annotations

import pytest

from hetcache_core.errors import ConfigError
from hetcache_core.records.trace import Trace
from hetcache_core.settings.declare import build
from hetcache_core.testing import decide
from hetcache_policies.hetcache import HetCache
from hetcache_policies.shared.pattern import PatternSteps


def played(pattern: str, steps: int, first_steps: int = 1) -> Trace:
    return decide(HetCache(pattern=pattern, margin=0, first_steps=first_steps), steps=steps)


def test_a_pattern_is_repeated_and_the_last_step_runs_in_full() -> None:
    assert played("Fss", 8).letters() == "FssFssFF"
    assert played("Fsp", 7).letters() == "FspFspF"
    assert played("F", 3).letters() == "FFF"


def test_the_pattern_begins_with_the_last_of_the_first_steps() -> None:
    assert played("Fss", 9, first_steps=3).letters() == "FFFssFssF"


@pytest.mark.parametrize("pattern", ["", "sF", "pF", "FfF", "F s", "Fx"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="Fsspss"):
        PatternSteps(pattern=pattern)
    with pytest.raises(ConfigError, match="begin with F"):
        build(HetCache, {"pattern": pattern}, where="--set")


def test_hetcache_runs_a_pattern() -> None:
    trace = played("Fsps", 10)
    assert trace.letters() == "FspsFspsFF"
    assert {r.reason for r in trace.records} == {"pattern Fsps"}


def test_a_written_pattern_may_reuse_as_many_in_a_row_as_it_says() -> None:
    assert played("Fssssss", 9).letters() == "FssssssFF"
