"""The entry-point module of the built-in policies, and what all of them have in common."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import attrs
import pytest

from hetcache_core.errors import ConfigError
from hetcache_core.plugins.hookspecs import Registration
from hetcache_core.policy.recipe import CachePolicy, PolicyRecipe
from hetcache_core.settings.declare import describe
from hetcache_core.steps import ModelInfo
from hetcache_policies.plugin import hetcache_register_policies

REGISTERED = hetcache_register_policies()
MODEL = ModelInfo(backbone="wan-vace", variant="wan2.1-1.3b", layers=30, width=1536, heads=12)


def load(registration: Registration) -> type[PolicyRecipe]:
    assert isinstance(registration.target, str)
    module, _, name = registration.target.partition(":")
    loaded = getattr(import_module(module), name)
    assert issubclass(loaded, PolicyRecipe)
    return loaded


FREE = [registration for registration in REGISTERED if not load(registration).needs_settings()]
"""Those that run with no setting given."""


def by_name(registration: Registration) -> str:
    return registration.name


def test_only_a_replay_needs_a_setting() -> None:
    assert {r.name for r in REGISTERED} - {r.name for r in FREE} == {"replay"}


def test_the_reference_and_one_policy_of_each_shape_are_registered() -> None:
    assert {"none", "teacache", "pab", "hetcache"} <= {r.name for r in REGISTERED}


def test_registering_imports_no_torch() -> None:
    code = (
        "import sys, hetcache_policies.plugin as p; p.hetcache_register_policies(); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("registration", REGISTERED, ids=by_name)
def test_a_target_is_the_class_that_its_registration_describes(registration: Registration) -> None:
    recipe = load(registration)
    assert (recipe.name, recipe.summary) == (registration.name, registration.summary)
    assert recipe.source


@pytest.mark.parametrize("registration", FREE, ids=by_name)
def test_every_setting_has_a_default_and_says_what_it_does(registration: Registration) -> None:
    recipe = load(registration)
    assert all(info.doc for info in describe(recipe))
    composed = recipe().compose(MODEL)
    assert isinstance(composed, CachePolicy)
    assert composed.name == registration.name


@pytest.mark.parametrize("registration", FREE, ids=by_name)
def test_recipes_are_frozen_values(registration: Registration) -> None:
    recipe = load(registration)
    assert recipe() == recipe()
    assert hash(recipe()) == hash(recipe())
    for field in attrs.fields(recipe):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(recipe(), field.name, None)


@pytest.mark.parametrize("registration", FREE, ids=by_name)
def test_presets_are_settings_of_the_policy_or_there_are_none(registration: Registration) -> None:
    recipe = load(registration)
    with pytest.raises(ConfigError, match="no preset 'slowest'"):
        recipe.preset("slowest", MODEL)
    if recipe.name == "none":
        return
    for preset in ("quality", "balanced", "fast"):
        recipe(**recipe.preset(preset, MODEL)).compose(MODEL)


def test_the_reference_has_no_piece() -> None:
    recipe = next(load(r) for r in REGISTERED if r.name == "none")
    assert recipe().compose(MODEL) == CachePolicy(name="none")
    assert not recipe().compose(MODEL).needs()


def test_teacache_says_so_where_no_polynomial_is_known_and_offers_calibration() -> None:
    from hetcache_policies.teacache import TeaCache

    known = ModelInfo(backbone="wan-vace", variant="wan2.1-1.3b", layers=30, width=1536, heads=12)
    unknown = ModelInfo(backbone="tiny-vace", variant="", layers=8, width=128, heads=4)
    assert TeaCache().compose(known).notes == ()
    (note,) = TeaCache().compose(unknown).notes
    assert "hetcache calibrate --backbone tiny-vace --policy teacache" in note
