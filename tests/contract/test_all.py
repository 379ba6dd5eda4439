"""Every installed policy and every installed backbone, through the contract kit.

Policies run all their checks on ``TinyBackbone``. On each installed backbone that has a case of its
own they run those checks that policy and backbone can break together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from hetcache_core import (
    CachePolicy,
    PluginLoadError,
    PolicyRecipe,
    UnsupportedBackboneError,
    discover,
)
from hetcache_core.session import resolve_policy
from hetcache_core.testing import (
    BACKBONE_CHECKS,
    PAIR_CHECKS,
    POLICY_CHECKS,
    BackboneCase,
    NotApplicableError,
    PolicySubject,
    bind,
    tiny_case,
)

REGISTRY = discover()

COMPOSITIONS = ("pab+teacache", "adacache+teacache", "hetcache+taylorseer")
"""Compositions of policies that answer different questions, or give way to one another."""

HAVE = [name for name in COMPOSITIONS if {*name.split("+")} <= {*REGISTRY.names("policy")}]
POLICIES = [name for name in REGISTRY.names("policy") if not REGISTRY.policy(name).needs_settings()]
"""Those that run with nothing given; ``replay`` goes through the kit in its own tests."""


@cache
def case_of(backbone: str) -> BackboneCase:
    try:
        models = REGISTRY.backbone(backbone)().random_models
        case = None if models is None else models.case()
        if case is not None:
            case.make_pipeline(0)  # its library may be missing
    except (UnsupportedBackboneError, PluginLoadError, ModuleNotFoundError) as error:
        absent = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        if isinstance(absent, ModuleNotFoundError) and str(absent.name).startswith("hetcache"):
            raise
        pytest.skip(str(error))
    if case is None:
        pytest.skip(f"{backbone} has no random models")
    return case


def maker_of(policy: str, case: BackboneCase) -> Callable[[], PolicyRecipe | CachePolicy]:
    if "+" in policy:
        model = case.backbone.describe(case.make_pipeline(0))
        return lambda: resolve_policy(policy, {}, None, model, REGISTRY)[0]
    kind = REGISTRY.policy(policy)
    # Settings with which a policy runs on models that it knows nothing of.
    settings: dict[str, Any] = dict(getattr(kind, "anywhere", {}))
    return lambda: kind(**settings)


def run(check: Callable[[Any], None], subject: Any, name: str) -> None:
    try:
        bind([check], subject, name)[0]()
    except NotApplicableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("check", BACKBONE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("backbone", REGISTRY.names("backbone"))
def test_backbone(backbone: str, check: Callable[[BackboneCase], None]) -> None:
    run(check, case_of(backbone), backbone)


@pytest.mark.parametrize("check", POLICY_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("policy", [*POLICIES, *HAVE])
def test_policy_on_the_tiny_backbone(policy: str, check: Callable[[PolicySubject], None]) -> None:
    case = tiny_case()
    run(check, PolicySubject(name=policy, make=maker_of(policy, case), case=case), policy)


@pytest.mark.parametrize("check", PAIR_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("policy", [*POLICIES, *HAVE])
@pytest.mark.parametrize("backbone", REGISTRY.names("backbone"))
def test_policy_on_backbone(
    backbone: str, policy: str, check: Callable[[PolicySubject], None]
) -> None:
    case = case_of(backbone)
    subject = PolicySubject(name=policy, make=maker_of(policy, case), case=case)
    run(check, subject, f"{policy} on {backbone}")


def test_the_built_in_plugins_are_all_usable() -> None:
    broken = [(p.name, p.error) for p in REGISTRY.plugins if p.status != "ok"]
    assert not broken
