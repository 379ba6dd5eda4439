"""``hetcache plugins check``: the contract kit, run on what an installed distribution registers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import asdict, evolve, frozen, has
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from hetcache_core import ConfigError, HetCacheError, Registry, UnsupportedBackboneError
from hetcache_core.errors import NOT_GIVEN, nearest_name
from hetcache_core.plugins.hookspecs import PROJECT_NAME
from hetcache_core.plugins.kinds import KINDS, Kind, load_object
from hetcache_core.plugins.registry import PluginRecord
from hetcache_core.settings.declare import build, declared

if TYPE_CHECKING:
    from hetcache_core.testing import BackboneCase, BoundCheck

__all__ = ["CheckRow", "CheckedDistribution", "Result", "check_distribution", "print_checked"]

Result = Literal["ok", "failed", "failed as expected", "not applicable"]

STYLES: Final[Mapping[Result, str]] = {
    "ok": "green",
    "failed": "red",
    "failed as expected": "yellow",
    "not applicable": "dim",
}


@frozen(kw_only=True)
class CheckRow:
    """The outcome of one check.

    Attributes:
        kind: What is checked: "plugin" or one of the kinds of things that plugins provide.
        name: Its name.
        on: The backbone that a policy ran on, else "".
        check: Name of the check.
        result: "not applicable" checks had nothing to look at; "failed as expected" are those for which
            the policy gives a reason.
        reason: What is wrong, or that reason, or why there was nothing to look at; one line.
        remedy: What to do about it.
    """

    kind: str
    name: str
    on: str = ""
    check: str
    result: Result
    reason: str = ""
    remedy: str = ""


@frozen(kw_only=True)
class CheckedDistribution:
    """The outcome of all checks.

    Attributes:
        distribution: The distribution.
        version: Its version.
        rows: One for each check.
    """

    distribution: str
    version: str
    rows: tuple[CheckRow, ...]

    @property
    def failed(self) -> int:
        """How many checks failed."""
        return self.counts["failed"]

    @property
    def counts(self) -> Counter[Result]:
        """How many checks came out how."""
        return Counter(row.result for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            "distribution": self.distribution,
            "version": self.version,
            "checks": [asdict(row) for row in self.rows],
            "ok": self.counts["ok"],
            "failed": self.failed,
            "failed_as_expected": self.counts["failed as expected"],
            "not_applicable": self.counts["not applicable"],
        }


def check_distribution(
    name: str, registry: Registry, begun: Callable[[str], None] = lambda _what: None
) -> CheckedDistribution:
    """Run the contract kit on everything that a distribution registers.

    Policies run all checks of a policy on the kit's own toy backbone, and on every installed backbone
    that has a contract case those that the two can break together. Backbones run all checks of a
    backbone. pytest is not needed.

    Args:
        name: The distribution.
        registry: What was discovered.
        begun: Called with what is checked next.

    Raises:
        ConfigError: No such distribution is installed, or it registers nothing.
    """
    records = [r for r in registry.plugins if _canonical(r.distribution) == _canonical(name)]
    if not records:
        raise _nothing_of(name, registry)
    rows: list[CheckRow] = []
    for record in records:
        rows.append(_loaded(record))
        for kind in KINDS.values():
            for provided in record.names(kind.name):
                begun(f"{kind.name} {provided}")
                rows += _check(kind, provided, registry)
    return CheckedDistribution(
        distribution=records[0].distribution, version=records[0].version, rows=tuple(rows)
    )


# What can be wrong before anything is checked


def _canonical(distribution: str) -> str:
    """Write a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _nothing_of(name: str, registry: Registry) -> ConfigError:
    known = sorted({record.distribution for record in registry.plugins if record.distribution})
    try:
        found = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        nearest = nearest_name(name, known)
        guess = f", did you mean {nearest!r}?" if nearest else ""
        return ConfigError(
            f"no distribution {name!r} is installed{guess}",
            where="hetcache plugins check",
            given=name,
            allowed=known,
            nearest=nearest,
            remedy=f"Installed distributions with plugins: {', '.join(known) or 'none'}.",
        )
    return ConfigError(
        f"{name} {found.version} is installed, but registers nothing",
        where="hetcache plugins check",
        given=name,
        allowed=known,
        remedy=f"Name a module in [project.entry-points.{PROJECT_NAME}] of its pyproject.toml. "
        f"Installed distributions with plugins: {', '.join(known) or 'none'}.",
    )


def _loaded(record: PluginRecord) -> CheckRow:
    row = CheckRow(kind="plugin", name=record.name, check="is_found_and_loads", result="ok")
    if record.error is not None:
        return _failed(row, record.error)
    if record.status != "ok":
        return evolve(row, result="failed", reason=f"the plugin is {record.status}")
    if not record.hooks:
        return evolve(
            row,
            result="failed",
            reason="the module implements no hook",
            remedy="Mark a function of a hook's name with @hookimpl.",
        )
    return row


def _failed(row: CheckRow, error: BaseException) -> CheckRow:
    if isinstance(error, HetCacheError):
        return evolve(
            row, result="failed", reason=_line(error.what), remedy=_line(error.remedy or "")
        )
    said = f"{type(error).__name__}: {error}"
    return evolve(
        row, result="failed", reason=_line(said), remedy="An error that the kit does not expect."
    )


def _line(text: str) -> str:
    """Return the first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


# The checks


def _run(checks: Iterable[BoundCheck], row: CheckRow) -> Iterator[CheckRow]:
    from hetcache_core.testing import NotApplicableError

    for check in checks:
        mine = evolve(row, check=check.name)
        try:
            check()
        except NotApplicableError as error:
            yield evolve(mine, result="not applicable", reason=_line(str(error)))
        except Exception as error:  # noqa: BLE001 - a stranger's code may raise anything
            yield _failed(mine, error)
        else:
            yield mine


def _check(kind: Kind, name: str, registry: Registry) -> list[CheckRow]:
    if kind.name == "policy":
        return _check_policy(name, registry)
    if kind.name == "backbone":
        return _check_backbone(name, registry)
    return _check_piece(kind, name, registry)


def _check_policy(name: str, registry: Registry) -> list[CheckRow]:
    from hetcache_core.testing import PAIR_CHECKS, POLICY_CHECKS, PolicySubject, bind, tiny_case

    row = CheckRow(kind="policy", name=name, check="loads", result="ok")
    try:
        kind = registry.policy(name)
    except HetCacheError as error:
        return [_failed(row, error)]
    missing = kind.needs_settings()
    if missing:
        unset = evolve(
            row,
            check="runs",
            result="not applicable",
            reason=f"it needs {', '.join(missing)}, which has no default",
            remedy="Call check_policy with settings of yours, or name some in `anywhere`.",
        )
        return [row, unset]

    def make() -> Any:
        return build(kind, kind.anywhere, where=f"policy {name}", pieces=registry)

    rows, toy = [row], tiny_case()
    subject = PolicySubject(name=name, make=make, case=toy)
    on_toy = _run(bind(POLICY_CHECKS, subject, name), evolve(row, on=toy.name))
    rows += [_held_against(kind.expected_failures, each, strict=True) for each in on_toy]
    for backbone in registry.names("backbone"):
        there = evolve(row, on=backbone, check="runs_on_it")
        case = _case_of(backbone, registry)
        if isinstance(case, str):
            rows.append(evolve(there, result="not applicable", reason=case))
            continue
        pair = PolicySubject(name=name, make=make, case=case)
        on_it = _run(bind(PAIR_CHECKS, pair, name), there)
        rows += [_held_against(kind.expected_failures, each, strict=False) for each in on_it]
    return rows


def _held_against(expected: Mapping[str, str], row: CheckRow, *, strict: bool) -> CheckRow:
    """Tell a failure that the policy gives a reason for from one that it does not know of.

    Args:
        expected: Reasons by the names of checks.
        row: The outcome.
        strict: Whether a check that passes all the same is wrong.
    """
    reason = expected.get(row.check)
    if reason is None or row.result == "not applicable":
        return row
    if row.result == "failed":
        return evolve(row, result="failed as expected", reason=_line(reason), remedy="")
    if not strict:
        return row
    return evolve(
        row,
        result="failed",
        reason=f"it passes, but was expected to fail: {_line(reason)}",
        remedy="Take it out of expected_failures.",
    )


def _check_backbone(name: str, registry: Registry) -> list[CheckRow]:
    from hetcache_core.testing import BACKBONE_CHECKS, bind

    row = CheckRow(kind="backbone", name=name, check="loads", result="ok")
    try:
        models = registry.backbone(name)().random_models
        case = None if models is None else models.case()
    except Exception as error:  # noqa: BLE001 - a stranger's code may raise anything
        return [_failed(row, error)]
    if case is None:
        reason = "it has no random models, so that nothing else can be checked"
        remedy = "Return a BackboneCase with a small pipeline from the case of its random_models."
        missing = evolve(row, check="has_a_case", result="failed", reason=reason, remedy=remedy)
        return [row, missing]
    return [row, *_run(bind(BACKBONE_CHECKS, case, name), row)]


def _check_piece(kind: Kind, name: str, registry: Registry) -> list[CheckRow]:
    from hetcache_core.testing import bind
    from hetcache_core.testing.subject import PieceSubject

    row = CheckRow(kind=kind.name, name=name, check="loads", result="ok")
    try:
        piece = registry.load(kind.name, name)
        checks = load_object(kind.checks)
        settings = declared(piece) if has(piece) else {}
        required = [name for name, info in settings.items() if info.default is NOT_GIVEN]
        if not required:
            piece()
    except Exception as error:  # noqa: BLE001 - a stranger's code may raise anything
        return [_failed(row, error)]
    if required:
        reason = f"it needs {', '.join(required)}, which has no default"
        return [row, evolve(row, check="works", result="not applicable", reason=reason)]
    return [row, *_run(bind(checks, PieceSubject(piece), name), row)]


def _case_of(backbone: str, registry: Registry) -> BackboneCase | str:
    """Return a backbone's case, or why there is none."""
    try:
        models = registry.backbone(backbone)().random_models
        if models is None:
            return f"the backbone {backbone} has no random models"
        case = models.case()
        case.make_pipeline(0)  # its library may be missing
    except (HetCacheError, ModuleNotFoundError) as error:
        library = isinstance(error, UnsupportedBackboneError | ModuleNotFoundError)
        return f"the backbone cannot be used here: {_line(str(error))}" if library else str(error)
    return case


# What is shown


def print_checked(checked: CheckedDistribution) -> None:
    """Print the checks for people, by what is checked and what it ran on."""
    parts: list[Text | Table] = [
        Text(f"{checked.distribution} {checked.version}".rstrip(), style="bold")
    ]
    for (kind, name, on), rows in groupby(checked.rows, lambda r: (r.kind, r.name, r.on)):
        parts.append(Text(f"\n{kind} {name}" + (f" on {on}" if on else "")))
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for row in rows:
            said = " ".join(text for text in (_sentence(row.reason), row.remedy) if text)
            check = row.check.removeprefix("check_").replace("_", " ")
            table.add_row(
                Text(f"  {row.result}", style=STYLES[row.result]),
                Text(f"{check}: {said}" if said else check),
            )
        parts.append(table)
    counts = ", ".join(f"{checked.counts[result]} {result}" for result in STYLES)
    Console().print(Group(*parts, Text(f"\n{len(checked.rows)} checks: {counts}")))


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", "?", "!")) else f"{text}."
