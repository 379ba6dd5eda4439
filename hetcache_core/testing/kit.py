"""Running checks: by plain calls one after the other, or as the parameters of a pytest test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from attrs import frozen

from hetcache_core.errors import ContractError
from hetcache_core.plugins.kinds import kind_of, load_object
from hetcache_core.policy.recipe import CachePolicy, PolicyRecipe
from hetcache_core.testing.case import BackboneCase
from hetcache_core.testing.checks.backbone import ATTACH_CHECKS
from hetcache_core.testing.checks.partial import PARTIAL_CHECKS
from hetcache_core.testing.checks.policy import POLICY_CHECKS
from hetcache_core.testing.checks.trunk import TRUNK_CHECKS
from hetcache_core.testing.comparing import NotApplicableError
from hetcache_core.testing.subject import PieceSubject, PolicySubject
from hetcache_core.testing.tiny.case import tiny_case

if TYPE_CHECKING:
    import pytest

Subject = TypeVar("Subject")

PolicyMaker = Callable[[], PolicyRecipe | CachePolicy]
"""Makes a policy, the same one each time; the class of a recipe is one."""

BACKBONE_CHECKS: Final = (*ATTACH_CHECKS, *TRUNK_CHECKS, *PARTIAL_CHECKS)
"""All checks of a backbone, in the order in which they run."""


@frozen
class CheckResult:
    """The outcome of one check.

    Attributes:
        check: name of the check.
        status: "not applicable" checks had nothing to look at; "failed as expected" ones are those
            for which a reason was given.
        reason: why, for the latter two.
    """

    check: str
    status: Literal["passed", "not applicable", "failed as expected"]
    reason: str = ""


@frozen
class BoundCheck:
    """One check of one subject; call it.

    Attributes:
        subject_name: what failures are reported under.
        run: runs the check.
        name: name of the check.
    """

    subject_name: str
    run: Callable[[], None]
    name: str

    def __call__(self) -> None:
        """Run the check.

        Raises:
            ContractError: the subject breaks its contract; names the subject and the check.
            NotApplicableError: there is nothing to look at.
        """
        try:
            self.run()
        except ContractError as error:
            # Errors of the engine itself come without the names.
            error.subject = error.subject or self.subject_name
            error.check = error.check or self.name
            error.where = error.where or f"{error.subject}, {error.check}"
            raise


def bind(
    checks: Iterable[Callable[[Subject], None]], subject: Subject, name: str
) -> list[BoundCheck]:
    """Bind checks to a subject."""

    def bound(check: Callable[[Subject], None]) -> BoundCheck:
        return BoundCheck(name, lambda: check(subject), check.__name__)

    return [bound(check) for check in checks]


def run_checks(
    checks: Sequence[BoundCheck], expected_failures: Mapping[str, str]
) -> tuple[CheckResult, ...]:
    """Run checks in order.

    Args:
        checks: the checks.
        expected_failures: reasons by the names of checks that must fail.

    Raises:
        ContractError: a check fails, one passes that was expected to fail, or a name in
            ``expected_failures`` is no check.
    """
    _refuse_unknown(checks, expected_failures)
    return tuple(_run(check, expected_failures.get(check.name)) for check in checks)


def _run(check: BoundCheck, expected: str | None) -> CheckResult:
    try:
        check()
    except NotApplicableError as error:
        return CheckResult(check.name, "not applicable", str(error))
    except ContractError:
        if expected is None:
            raise
        return CheckResult(check.name, "failed as expected", expected)
    if expected is not None:
        raise ContractError(
            f"passes, but was expected to fail: {expected}",
            subject=check.subject_name,
            check=check.name,
            remedy="Take it out of expected_failures.",
        )
    return CheckResult(check.name, "passed")


def as_parameters(
    checks: Sequence[BoundCheck], expected_failures: Mapping[str, str]
) -> pytest.MarkDecorator:
    """Make the parametrization of a test that takes ``check`` and calls it."""
    import pytest

    _refuse_unknown(checks, expected_failures)

    def parameter(check: BoundCheck) -> Any:
        reason = expected_failures.get(check.name)
        marks = (
            [pytest.mark.xfail(reason=reason, strict=True, raises=ContractError)] if reason else []
        )
        skipping = BoundCheck(check.subject_name, lambda: _skipping(check), check.name)
        return pytest.param(skipping, id=f"{check.subject_name}-{check.name}", marks=marks)

    return pytest.mark.parametrize("check", [parameter(check) for check in checks])


def _skipping(check: BoundCheck) -> None:
    import pytest

    try:
        check()
    except NotApplicableError as error:
        pytest.skip(str(error))


def _refuse_unknown(checks: Sequence[BoundCheck], expected_failures: Mapping[str, str]) -> None:
    known = {check.name for check in checks}
    unknown = sorted(expected_failures.keys() - known)
    if unknown:
        raise ContractError(
            f"expected_failures names {', '.join(unknown)}, which no check is called",
            remedy=f"Known: {', '.join(sorted(known))}.",
        )


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


def check_piece(
    kind: str,
    make: Callable[[], object],
    *,
    expected_failures: Mapping[str, str] | None = None,
) -> tuple[CheckResult, ...]:
    """Run every check of a piece.

    Args:
        kind: name of its kind, such as "selector".
        make: makes the piece, the same one each time; its class is such a function.
        expected_failures: as in ``check_backbone``.

    Returns:
        One result a check.

    Raises:
        ContractError: the first check that fails; says what was found and where to look.
    """
    return run_checks(piece_checks(kind, make), expected_failures or {})


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
