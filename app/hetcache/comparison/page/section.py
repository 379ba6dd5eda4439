"""A section of the report's page, which plugins can provide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from hetcache.comparison.results.folder import Results

__all__ = ["ReportSection"]


class ReportSection(ABC):
    """One section of the page that ``hetcache report`` writes. Subclasses hold no state.

    Attributes:
        name: what it is called, and the anchor of its heading.
        summary: what it shows, on one line.
        title: its heading.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    title: ClassVar[str]

    @abstractmethod
    def render(self, results: Results) -> str:
        """Return the section as an HTML fragment without its heading; "" leaves the section out.

        Args:
            results: the folder of the comparison. Escape what is read of it.
        """
