"""Fewer sampler steps: what the sampler is told."""

from __future__ import annotations

import pytest

from hetcache_core.engine.loop import Engine
from hetcache_core.errors import ConfigError
from hetcache_core.policy.recipe import combine
from hetcache_core.steps import ModelInfo
from hetcache_policies.every_nth import PRESETS as UNIFORM
from hetcache_policies.every_nth import EveryNth
from hetcache_policies.fewer_steps import PRESETS, FewerSteps

MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)


def test_the_sampler_takes_the_share_of_the_steps_asked_for() -> None:
    engine = Engine(policy=FewerSteps(share=0.36).compose(MODEL))
    assert [engine.sampler_steps(asked) for asked in (1, 20, 50, 100)] == [1, 7, 18, 36]


def test_the_whole_share_is_the_uncached_run() -> None:
    assert Engine(policy=FewerSteps(share=1.0).compose(MODEL)).sampler_steps(50) == 50


def test_nothing_but_the_sampler_is_asked_for() -> None:
    policy = FewerSteps().compose(MODEL)
    assert policy.needs() == {"sampler"}
    assert (policy.step, policy.blocks, policy.guidance) == (None, None, None)


def test_it_goes_with_any_policy() -> None:
    both = combine(FewerSteps(share=0.5).compose(MODEL), EveryNth().compose(MODEL))
    assert both.name == "fewer-steps+every-nth"
    assert both.sampler_share == 0.5
    assert both.step is not None


def test_presets_cost_what_uniform_skipping_costs() -> None:
    assert PRESETS.keys() == UNIFORM.keys()
    assert [PRESETS[name]["share"] for name in ("quality", "balanced", "fast")] == [0.5, 0.36, 0.28]


def test_it_meets_a_speedup_by_its_share_of_steps() -> None:
    engine = Engine(policy=FewerSteps(**FewerSteps.at_speedup(2.5)).compose(MODEL))
    assert engine.sampler_steps(50) == 20
    assert EveryNth.at_speedup(2.5) == {}


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_outside_of_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="share must be"):
        FewerSteps(share=share)
