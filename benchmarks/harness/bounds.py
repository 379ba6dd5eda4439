"""What a benchmark's numbers have to stay under or above."""

from __future__ import annotations

from attrs import frozen

from harness.tables import Row


@frozen(kw_only=True)
class Bound:
    """One bound and what was measured.

    Attributes:
        what: the quantity, and where it was measured.
        measured: its value.
        limit: what it is held to.
        upper: whether it has to stay at or under the limit, else at or above it.
    """

    what: str
    measured: float
    limit: float
    upper: bool

    @property
    def holds(self) -> bool:
        """Whether it is kept."""
        return self.measured <= self.limit if self.upper else self.measured >= self.limit

    def row(self) -> Row:
        """Return it as a row of a table."""
        return {
            "bound": self.what,
            "measured": self.measured,
            "limit": f"{'≤' if self.upper else '≥'} {self.limit:g}",
            "holds": "yes" if self.holds else "NO",
        }


def at_most(what: str, measured: float, limit: float) -> Bound:
    """Bound a quantity from above."""
    return Bound(what=what, measured=measured, limit=limit, upper=True)


def at_least(what: str, measured: float, limit: float) -> Bound:
    """Bound a quantity from below."""
    return Bound(what=what, measured=measured, limit=limit, upper=False)
