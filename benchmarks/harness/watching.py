"""Comparison with an earlier measurement: ratios only, since seconds belong to a machine and its load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

from attrs import frozen

from harness.tables import Row, kept
from hetcache_core import ConfigError


class Better(Enum):
    """Which way a ratio gets better."""

    LOWER = "lower"
    HIGHER = "higher"
    SAME = "same"


@frozen(kw_only=True)
class Watched:
    """A column that is held against the earlier one.

    Attributes:
        better: which way it gets better.
        floor: changes of less than this are noise, whatever their share.
    """

    better: Better
    floor: float = 0.0


def regressions(
    old: Sequence[Mapping[str, str]],
    new: Sequence[Row],
    *,
    keys: Sequence[str],
    watched: Mapping[str, Watched],
    margin: float,
) -> list[Row]:
    """List what got worse by more than a margin.

    Args:
        old: rows of the earlier measurement.
        new: rows of this one.
        keys: columns that say which rows belong together.
        watched: columns that are compared.
        margin: share by which a ratio may get worse.

    Returns:
        A row for each ratio that got worse.

    Raises:
        ConfigError: the earlier rows lack a column, hold what is no number, or none of them belongs to
            a new one.
    """
    missing = [name for name in (*keys, *watched) if name not in old[0]]
    if missing:
        raise ConfigError(
            f"The earlier measurement lacks the columns {', '.join(missing)}",
            remedy="Name a file of the same benchmark and version.",
        )
    before = {tuple(row[k] for k in keys): row for row in old}
    pairs = [(before.get(tuple(kept(row.get(k)) for k in keys)), row) for row in new]
    both = [(past, row) for past, row in pairs if past is not None]
    if not both:
        raise ConfigError(
            "No row of the earlier measurement belongs to one of this",
            remedy="Measure with the options that it was made with "
            f"({', '.join(f'{k}={old[0][k]}' for k in keys)}, …).",
        )
    found: list[Row] = []
    for past, row in both:
        for name, rule in watched.items():
            was, value = _number(past[name], name), row.get(name)
            if was is None or not isinstance(value, int | float):
                continue
            if _worse(rule, was, float(value), margin):
                found.append(
                    {**{k: row.get(k) for k in keys}, "ratio": name, "was": was, "is": value}
                )
    return found


def _worse(rule: Watched, was: float, now: float, margin: float) -> bool:
    change = now - was
    if rule.better is Better.HIGHER:
        change = -change
    elif rule.better is Better.SAME:
        change = abs(change)
    return change > max(margin * abs(was), rule.floor)


def _number(text: str, column: str) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(
            f"Column {column} of the earlier measurement holds {text!r}, which is no number",
            remedy="Measure again with --output.",
        ) from error
