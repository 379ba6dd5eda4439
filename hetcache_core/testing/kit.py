"""The ways to run the contract kit: plain calls, and parameters for pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from hetcache_core.errors import ContractError
from hetcache_core.plugins.kinds import kind_of, load_object
from hetcache_core.policy.recipe import CachePolicy, PolicyRecipe
from hetcache_core.testing.case import BackboneCase
from hetcache_core.testing.checks.backbone import ATTACH_CHECKS
from hetcache_core.testing.checks.partial import PARTIAL_CHECKS
from hetcache_core.testing.checks.policy import POLICY_CHECKS
from hetcache_core.testing.checks.trunk import TRUNK_CHECKS
from hetcache_core.testing.running import (
    BoundCheck,
    CheckResult,
    as_parameters,
    bind,
    run_checks,
)
from hetcache_core.testing.subject import PieceSubject, PolicySubject
from hetcache_core.testing.tiny.case import tiny_case

if TYPE_CHECKING:
    import pytest

PolicyMaker = Callable[[], PolicyRecipe | CachePolicy]
"""Makes a policy, the same one each time; the class of a recipe is one."""

BACKBONE_CHECKS: Final = (*ATTACH_CHECKS, *TRUNK_CHECKS, *PARTIAL_CHECKS)
"""All checks of a backbone, in the order in which they run."""


def check_backbone(
    case: BackboneCase, *, expected_failures: Mapping[str, str] | None = None
) -> tuple[CheckResult, ...]:
    """Run every check of a backbone.

    Args:
        case: a small pipeline of the backbone.
        expected_failures: reasons by the names of checks that must fail; one that passes is an
            error, so that the list stays true.

    Returns:
        One result a check.

    Raises:
        ContractError: the first check that fails; says what was found and where to look.
    """
    return run_checks(_backbone_checks(case), expected_failures or {})


def check_policy(
    make: PolicyMaker,
    *,
    case: BackboneCase | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> tuple[CheckResult, ...]:
    """Run every check of a policy.

    Args:
        make: makes the policy: the recipe's class, or a function that gives it settings.
        case: the backbone to run it on; ``TinyBackbone`` where none is given.
        expected_failures: as in ``check_backbone``.

    Returns:
        One result a check.

    Raises:
        ContractError: the first check that fails; says what was found and where to look.
    """
    return run_checks(_policy_checks(None, make, case), expected_failures or {})


def parametrize_with_checks(
    *,
    backbones: Iterable[BackboneCase] = (),
    policies: Mapping[str, PolicyMaker] | Iterable[PolicyMaker] = (),
    pieces: Mapping[str, Iterable[Callable[[], object]]] | None = None,
    case: BackboneCase | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> pytest.MarkDecorator:
    """Make every check a pytest test of its own.

    Args:
        backbones: cases of backbones.
        policies: makers of policies, by name or each under the policy's own.
        pieces: makers of pieces by their kind, such as ``{"selector": [MySelector]}``.
        case: the backbone to run the policies on; ``TinyBackbone`` where none is given.
        expected_failures: reasons by the names of checks that must fail, as strict xfails.

    Returns:
        A decorator for a test that takes ``check`` and calls it.

    Example:
        ``@parametrize_with_checks(policies=[MyPolicy])`` above
        ``def test_contract(check): check()``.
    """
    named: list[tuple[str | None, PolicyMaker]] = (
        list(policies.items())
        if isinstance(policies, Mapping)
        else [(None, make) for make in policies]
    )
    checks = [check for each in backbones for check in _backbone_checks(each)]
    checks += [check for name, make in named for check in _policy_checks(name, make, case)]
    checks += [
        check
        for kind, makers in (pieces or {}).items()
        for make in makers
        for check in piece_checks(kind, make)
    ]
    return as_parameters(checks, expected_failures or {})


def piece_checks(kind: str, make: Callable[[], object]) -> list[BoundCheck]:
    """Bind the checks of a kind to a piece of it.

    Args:
        kind: name of the kind, such as "selector"; not "policy" or "backbone".
        make: makes the piece, the same one each time; its class is such a function.
    """
    found = kind_of(kind)
    if not found.checks:
        raise ContractError(
            f"a {found.name} is checked on its own", remedy=f"Use check_{found.name}."
        )
    return bind(load_object(found.checks), PieceSubject(make), str(make()))


def _backbone_checks(case: BackboneCase) -> list[BoundCheck]:
    return bind(BACKBONE_CHECKS, case, case.name)


def _policy_checks(
    name: str | None, make: PolicyMaker, case: BackboneCase | None
) -> list[BoundCheck]:
    subject = PolicySubject(name=name or make().name, make=make, case=case or tiny_case())
    return bind(POLICY_CHECKS, subject, subject.name)
