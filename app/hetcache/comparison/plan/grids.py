"""Ready grids: the ablations of the HetCache paper, and what changes with size, length and task."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Final

from attrs import frozen

from hetcache.running.specs import ALL, PRESETS

__all__ = ["GRIDS", "ReadyGrid"]

BUILTIN: Final = "builtin"
"""The clip set of grids, unless other clips are named."""

VARIED: Final = f"{BUILTIN}:medium-moving-object-0,large-still-object-0,small-moving-background-0"
"""Clips that differ in the size, the motion and the content of the mask."""

ONE: Final = f"{BUILTIN}:medium-moving-object-0"

METHODS: Final = "fewer-steps,teacache,pab,adacache,fastcache,hetcache"
"""The methods of the paper's main table."""

CONTEXT_RATIO: Final = 0.3
"""Share of the context that stays active while its choice is studied. Source: HetCache's default."""

SELECTORS: Final = ("uniform", "kmeans", "attention", "both")
"""Neither k-means nor attention, each of them, and both. Source: HetCache (CVPR 2026), ablation."""

RATIOS: Final = (0.1, 0.2, 0.3, 0.5)
CLUSTERS: Final = (4, 8, 16, 32)

FRONT_SPEEDUPS: Final = "1.5,2,3,4,6"

STEPLESS: Final = ("fastcache", "fastercache-cfg", "pab", "toca")
"""Policies that decide no steps and meet no speed-up: their presets are their points on the front."""


@frozen(kw_only=True)
class ReadyGrid:
    """A grid with a name; what the user gives besides goes first.

    Attributes:
        summary: What it shows.
        policies: Policies, as ``--policies`` takes them.
        clips: Clips, as ``--clips`` takes them.
        target_speedups: Speed-ups, as ``--target-speedups`` takes them, or None.
        frames: What the number of frames is multiplied with, one after the other.
        sides: What height and width are multiplied with, one after the other.
        outpainting: The border is painted instead of what a mask says.
    """

    summary: str
    policies: str
    clips: str = VARIED
    target_speedups: str | None = None
    frames: tuple[float, ...] = (1.0,)
    sides: tuple[float, ...] = (1.0,)
    outpainting: bool = False


GRIDS: Final[Mapping[str, ReadyGrid]] = {
    "ablation-guidance": ReadyGrid(
        summary="how the active context is chosen: k-means and attention, on and off",
        policies=",".join(
            f"hetcache:context_ratio={CONTEXT_RATIO};selector={selector}" for selector in SELECTORS
        ),
    ),
    "ablation-context": ReadyGrid(
        summary="how much context stays active, and of how many clusters it is chosen",
        policies=",".join(
            f"hetcache:context_ratio={ratio};selector.clusters={clusters}"
            for ratio, clusters in product(RATIOS, CLUSTERS)
        ),
    ),
    "resolution": ReadyGrid(
        summary="at half, once, one and a half and twice the size",
        policies=METHODS,
        clips=ONE,
        sides=(0.5, 1.0, 1.5, 2.0),
    ),
    "length": ReadyGrid(
        summary="at half, once, twice and three times the length",
        policies=METHODS,
        clips=ONE,
        frames=(0.5, 1.0, 2.0, 3.0),
    ),
    "outpainting": ReadyGrid(
        summary="the border is painted around the middle of the picture",
        policies=METHODS,
        clips=f"{BUILTIN}:outpainting-*",
        outpainting=True,
    ),
    "front": ReadyGrid(
        summary="all policies at five speed-ups: the Pareto front",
        policies=",".join(
            (ALL, *(f"{policy}@{preset}" for policy in STEPLESS for preset in PRESETS))
        ),
        target_speedups=FRONT_SPEEDUPS,
    ),
}
"""The grids by name."""
