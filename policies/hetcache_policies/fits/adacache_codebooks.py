"""Code books of AdaCache: how many steps a computed result is kept, by how fast attention changes.

A book was tuned on one model at one number of steps. Changes are per step, and a run of other length
has longer or shorter steps, so a change is brought to the book's steps first, and the rate back. At
the book's own number of steps this is the published rule. Thresholds belong to the model, too: no book
was published for Wan or LTX, whose users can give their own (``thresholds`` and ``rates``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, final

from attrs import frozen

__all__ = ["BOOKS", "CodeBook", "find_book"]


@final
@frozen(kw_only=True)
class CodeBook:
    """Rates by threshold.

    Attributes:
        thresholds: changes of attention per step, relative L1, ascending.
        rates: for a change below each threshold, steps from one computed step to the next.
        steps: number of steps ``S`` that both were tuned at; None takes them as they are.
    """

    thresholds: tuple[float, ...]
    rates: tuple[int, ...]
    steps: int | None

    def rate(self, change: float, steps: int) -> int:
        """Return the steps from a computed step to the next one, at least 1.

        Args:
            change: change of attention per step of the run; from the last threshold on, as for one
                that is no number, the next step is computed.
            steps: number of steps ``S`` of the run.
        """
        length = (self.steps or steps) / steps  # of one step of the run, in steps of the book
        for threshold, rate in zip(self.thresholds, self.rates, strict=True):
            if change / length < threshold:
                return max(1, math.floor(rate / length + 0.5))
        return 1


BOOKS: Final[Mapping[str, tuple[CodeBook, ...]]] = {
    "fast": (
        # Source: AdaCache (arXiv:2411.02397), appendix A.1: Open-Sora, temporal attention.
        CodeBook(thresholds=(0.08, 0.16, 0.24, 0.32, 0.40, 1.0), rates=(6, 5, 4, 3, 2, 1), steps=30),
        # Source: likewise. LightX2V takes this book for Wan, at any number of steps.
        CodeBook(thresholds=(0.03, 0.05, 0.07, 0.09, 0.11, 1.0), rates=(12, 10, 8, 6, 4, 3), steps=100),
    ),
    # Our design: half-way between the published two.
    "medium": (CodeBook(thresholds=(0.08, 0.16, 0.24, 1.0), rates=(4, 3, 2, 1), steps=30),),
    # Source: configs/sample_adacache.py of the reference code; the appendix prints it with a slip.
    "slow": (CodeBook(thresholds=(0.08, 0.16, 1.0), rates=(3, 2, 1), steps=30),),
}  # fmt: skip
"""Code books by name."""


def find_book(name: str, steps: int) -> CodeBook:
    """Return the book of a name that was tuned at the number of steps nearest in ratio."""
    return min(BOOKS[name], key=lambda book: abs(math.log((book.steps or steps) / steps)))
