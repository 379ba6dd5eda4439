"""A predictor is a setting of every policy that skips steps."""

from __future__ import annotations

import pytest
import torch
from attrs import evolve

from hetcache_core.plugins.discovery import discover
from hetcache_core.policy.pieces import Hold
from hetcache_core.policy.recipe import PolicyRecipe
from hetcache_core.session import accelerate
from hetcache_core.settings.declare import declared
from hetcache_core.steps import Mode, ModelInfo
from hetcache_core.testing import tiny_case
from hetcache_policies.shared.predictors import Linear, Taylor

CASE = tiny_case()
MODEL = ModelInfo(backbone="tiny", variant="", layers=4, width=32, heads=2)
STEPS = 16
REGISTRY = discover()
LOOSE = {"easycache": {"threshold": 1.0}}
"""Settings with which a policy reuses steps of random weights, where its own reuse none."""
LOADED = (REGISTRY.policy(name) for name in REGISTRY.names("policy"))
BUILT_IN = [
    kind(**kind.anywhere)
    for kind in LOADED
    if kind.__module__.startswith("hetcache_policies.") and not kind.needs_settings()
]
SKIPPING = [
    recipe
    for recipe in BUILT_IN
    if recipe.compose(MODEL).step is not None and recipe.name != "none"
]


def edit(recipe: PolicyRecipe) -> tuple[torch.Tensor, list[Mode]]:
    pipeline = CASE.make_pipeline(0)
    with accelerate(pipeline, recipe, backbone=CASE.backbone) as session:
        return CASE.run(pipeline, STEPS, "separate", 0), session.trace.modes()


@pytest.mark.parametrize("recipe", SKIPPING, ids=lambda recipe: recipe.name)
def test_every_policy_that_skips_steps_takes_a_predictor(recipe: PolicyRecipe) -> None:
    assert declared(type(recipe))["predictor"].kind == "predictor"
    for predictor in (Hold(), Linear(), Taylor(order=2)):
        assert evolve(recipe, predictor=predictor).compose(MODEL).predictor == predictor


@pytest.mark.parametrize("recipe", SKIPPING, ids=lambda recipe: recipe.name)
def test_what_is_predicted_arrives_in_the_result(recipe: PolicyRecipe) -> None:
    """Once two steps have been computed, a line goes elsewhere than where the last value stays."""
    asked = evolve(recipe, first_steps=2, **LOOSE.get(recipe.name, {}))
    (held, modes), (line, same) = (
        edit(evolve(asked, predictor=predictor)) for predictor in (Hold(), Linear())
    )
    assert Mode.REUSE in modes
    assert Mode.REUSE in same
    assert line.isfinite().all()
    assert not torch.equal(line, held)
