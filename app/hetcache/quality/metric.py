"""A metric: one number about an edited clip, which plugins can provide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Metric"]


class Metric(ABC):
    """One number about an edited clip, held against its reference. Subclasses hold no state.

    Attributes:
        name: what it is called in CSV files and in results.
        summary: what it measures, on one line.
        title: its column's heading.
        unit: its unit, "" where it has none.
        higher_is_better: whether higher values are better.
        digits: digits after the point that are worth showing.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool]
    digits: ClassVar[int] = 2

    @abstractmethod
    def measure(
        self, edited: NDArray[np.uint8], reference: NDArray[np.uint8], mask: NDArray[np.bool_]
    ) -> float | None:
        """Measure one clip.

        Args:
            edited: (F, H, W, 3) uint8, what is judged.
            reference: (F, H, W, 3) uint8, the uncached output of the same seed.
            mask: (F, H, W) bool; ``True`` is edited.

        Returns:
            The value in the metric's unit, or None where there is nothing to measure.
        """
