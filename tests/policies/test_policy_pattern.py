"""Steps by a written pattern."""

from __future__ import annotations

import pytest

from hetcache_core.errors import ConfigError
from hetcache_core.session import accelerate
from hetcache_core.settings.declare import build
from hetcache_core.testing import tiny_case
from hetcache_policies.hetcache import HetCache
from hetcache_policies.shared.pattern import PatternSteps


def modes(pattern: str, steps: int, **settings: int) -> str:
    piece = PatternSteps(pattern=pattern, **settings)
    return "".join(piece.mode(index, steps).value[0] for index in range(steps))


def test_a_pattern_is_repeated_and_the_last_step_runs_in_full() -> None:
    assert modes("Fss", 8) == "frrfrrff"
    assert modes("Fsp", 7) == "frpfrpf"
    assert modes("F", 3) == "fff"


def test_the_pattern_begins_with_the_last_step_of_the_warm_up() -> None:
    assert modes("Fss", 9, warmup_steps=3) == "fffrrfrrf"


@pytest.mark.parametrize("pattern", ["", "sF", "pF", "FfF", "F s", "Fx"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="Fsspss"):
        PatternSteps(pattern=pattern)
    with pytest.raises(ConfigError, match="begin with F"):
        build(HetCache, {"pattern": pattern}, where="--set")


def test_hetcache_runs_a_pattern() -> None:
    case = tiny_case()
    pipeline = case.make_pipeline(0)
    recipe = HetCache(pattern="Fsps", warmup_steps=1, margin=0)
    with accelerate(pipeline, recipe, backbone=case.backbone) as session:
        case.run(pipeline, 10, "separate", 0)
    assert "".join(m.value[0] for m in session.trace.modes()) == "frprfrprff"
    assert {r.reason for r in session.trace.records} <= {"pattern Fsps"}
