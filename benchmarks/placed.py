"""A pattern for `hetcache:pattern=…` with full steps where `auto` has them, and partial ones between them.

    python benchmarks/placed.py --steps 30 --full 6 --partial 4

prints thirty letters: F for a full step, p for a partial one in the middle of the widest gaps, s for a
reused one. Gaps are measured as `auto` does, by how far the sampler goes.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

from hetcache_policies.auto import EXPONENT, positions

SHIFT = 5.0
"""Of the noise levels of Wan2.1-VACE's pipeline (docs/backbones.md)."""


def noise_levels(steps: int) -> list[float]:
    """Return the noise levels of a run, from 1 down; it ends at 0."""
    even = [1 - index / steps for index in range(steps)]
    return [SHIFT * level / (1 + (SHIFT - 1) * level) for level in even]


def nearest(places: list[float], wanted: float, free: set[int]) -> int:
    """Return the step among ``free`` whose place is nearest to the wanted one."""
    return min(free, key=lambda step: abs(places[step] - wanted))


def pattern(steps: int, full: int, partial: int) -> str:
    """Return a letter a step.

    Args:
        steps: of the run.
        full: full steps, the first and the last of all among them; at least 2.
        partial: partial steps between them.
    """
    places = list(positions(noise_levels(steps), EXPONENT))
    end, letters = places[-1], ["s"] * steps
    for index in range(full):
        free = {step for step, letter in enumerate(letters) if letter == "s"}
        letters[nearest(places, end * index / (full - 1), free)] = "F"
    for _ in range(partial):
        computed = [step for step, letter in enumerate(letters) if letter != "s"]
        gaps = [(a, b) for a, b in pairwise(computed) if b - a > 1]
        first, last = max(gaps, key=lambda gap: places[gap[1]] - places[gap[0]])
        middle = (places[first] + places[last]) / 2
        letters[nearest(places, middle, set(range(first + 1, last)))] = "p"
    return "".join(letters)


def main() -> None:
    """Print the pattern."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--full", type=int, required=True)
    parser.add_argument("--partial", type=int, required=True)
    options = parser.parse_args()
    if not 1 < options.full <= options.full + options.partial <= options.steps:
        parser.error("a run has at least two full steps, and no more computed ones than steps")
    print(pattern(options.steps, options.full, options.partial))


if __name__ == "__main__":
    main()
