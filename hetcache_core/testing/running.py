"""Running checks: one after the other, or as the parameters of a pytest test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from attrs import frozen

from hetcache_core.errors import ContractError

if TYPE_CHECKING:
    import pytest

Subject = TypeVar("Subject")


class NotApplicableError(Exception):
    """A check has nothing to look at in this subject, for the reason given."""


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
