"""Colours and shapes, the same in pictures and in the browser, that colour-blind people can tell apart."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from attrs import frozen

from hetcache.comparison.results.lines import Summary

__all__ = ["LETTERS", "MODES", "Look", "ModeLook", "looks_of"]

# Source: Okabe and Ito, "Color universal design", 2008; without black and yellow, which vanish on
# one of the two backgrounds.
COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")

MARKERS: Final = ("o", "s", "^", "D", "v")
"""Names of matplotlib's markers: circle, square, triangle, diamond, triangle upside down."""


@frozen(kw_only=True)
class Look:
    """How the points of a policy are drawn.

    Attributes:
        color: As "#rrggbb".
        marker: One of matplotlib's names.
    """

    color: str
    marker: str


@frozen(kw_only=True)
class ModeLook:
    """How a step is drawn.

    Attributes:
        title: What it did.
        color: As "#rrggbb"; the three differ in lightness as well as in hue.
    """

    title: str
    color: str


MODES: Final = MappingProxyType(
    {
        "f": ModeLook(title="full", color="#0072B2"),
        "p": ModeLook(title="partial", color="#E69F00"),
        "r": ModeLook(title="reused", color="#DDDDDD"),
    }
)
"""By the letters of a row's modes."""

LETTERS: Final = tuple(MODES)


def looks_of(summary: Summary) -> dict[str, Look]:
    """Give every policy the same look in all panels: thirty different ones, then again."""
    policies = dict.fromkeys(line.policy for line in summary.lines if not line.is_reference)
    return {
        policy: Look(color=COLORS[number % len(COLORS)], marker=MARKERS[number % len(MARKERS)])
        for number, policy in enumerate(policies)
    }
