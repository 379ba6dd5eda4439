"""Where the labels of points go, so that none covers another, or a point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

__all__ = ["Box", "overlap", "place"]

Box = tuple[float, float, float, float]
"""Left, lower, right and upper edge; which way is up does not matter."""

DIRECTIONS: Final = 16
"""Directions in which a place for a label is looked for; the first is to the right."""

RINGS: Final = 40
"""Distances at which it is looked for."""

GROWTH: Final = 1.5
"""From one distance to the next, in label heights per ring, halved: near places are tried first."""


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    bounds: Box,
    *,
    marker: float,
) -> list[Box]:
    """Find a place for the label of every point: the nearest one that is free.

    Args:
        points: x and y of each point.
        sizes: Width and height of each label, in the same unit.
        bounds: Where labels may be.
        marker: Half the width of a point's marker.

    Returns:
        The box of each label. Where no place is free, that which covers least.
    """
    taken: list[Box] = [(x - marker, y - marker, x + marker, y + marker) for x, y in points]
    found = []
    for point, size in zip(points, sizes, strict=True):
        best, least = None, math.inf
        for box in _candidates(point, size, marker):
            covered = sum(overlap(box, other) for other in taken) + _outside(box, bounds)
            if covered < least:
                best, least = box, covered
            if not covered:
                break
        if best is None:
            raise ValueError(f"no place for a label of {size} at {point}")
        taken.append(best)
        found.append(best)
    return found


def overlap(one: Box, other: Box) -> float:
    """Return the area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _outside(box: Box, bounds: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1]) - overlap(box, bounds)


def _candidates(
    point: tuple[float, float], size: tuple[float, float], marker: float
) -> Iterator[Box]:
    """Give boxes around a point, the nearest first."""
    (x, y), (width, height) = point, size
    for ring in range(RINGS):
        gap = marker + 2 + ring * height * GROWTH / 2
        for index in range(DIRECTIONS):
            angle = 2 * math.pi * index / DIRECTIONS
            across, along = math.cos(angle), math.sin(angle)
            left = x + across * (gap + width / 2) - width / 2
            low = y + along * (gap + height / 2) - height / 2
            yield (left, low, left + width, low + height)
