"""The tables of policies in the documentation: ``hetcache policies --markdown``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from attrs import evolve

from hetcache.plugins.listing import SHOWN_MODEL
from hetcache.running.specs import PRESETS
from hetcache_core import ConfigError, Grid, RunInfo, footprint
from hetcache_core.settings.declare import build

if TYPE_CHECKING:
    from hetcache_core import PolicyRecipe, Registry

__all__ = ["policies_as_markdown"]

FRAMES, HEIGHT, WIDTH = 33, 480, 832
STEPS: Final = 50
CHANNELS: Final = 16
PIXELS: Final = 8
BRANCHES: Final = ("cond", "uncond")
HEADER: Final = (
    "policy", "decides on", "granularity", "keeps, for each branch", "MB", "mask", "calibration",
    "source",
)  # fmt: skip


def policies_as_markdown(registry: Registry) -> str:
    """Write the policies that say what they decide on as a table, and their presets as another.

    The bytes are those of a run of Wan2.1-VACE-1.3B with guidance, 33 frames of 480x832 and 50 steps,
    in bfloat16, with a box of an eighth of the picture as the mask.

    Args:
        registry: What was discovered.

    Raises:
        HetCacheError: A policy cannot be loaded.
    """
    kinds = [registry.policy(name) for name in registry.names("policy")]
    kinds = [kind for kind in kinds if kind.decides_on]
    lines = _table(HEADER, [_row(kind) for kind in kinds])
    shares = [
        [f"`{kind.name}`", *(f"{kind.preset_shares[preset]:.0%}" for preset in PRESETS)]
        for kind in kinds
        if all(preset in kind.preset_shares for preset in PRESETS)
    ]
    return "\n".join([*lines, "", *_table(("FLOPs computed", *PRESETS), shares)])


def _row(kind: type[PolicyRecipe]) -> list[str]:
    run = _wan()
    policy = build(kind, {}, where=f"policy {kind.name}").compose(run.model)
    kept = footprint(policy, run, latents=CHANNELS * run.grid.frames * _latent_size())
    megabytes = kept.bytes(torch.bfloat16) * len(BRANCHES) / 1e6
    return [
        f"`{kind.name}`",
        kind.decides_on,
        ", ".join(kept.levels) or "-",
        ", ".join(kept.words) or "-",
        f"{megabytes:.0f}" if kept.elements else "-",
        "needed" if "mask" in policy.needs() else "-",
        _calibration(kind),
        kind.source,
    ]


def _calibration(kind: type[PolicyRecipe]) -> str:
    if kind.calibrator() is None:
        return "-"
    unknown = evolve(SHOWN_MODEL, variant="")
    try:
        build(kind, {}, where=f"policy {kind.name}").compose(unknown)
    except ConfigError:
        return "needed for models without published values"
    return "possible"


def _latent_size() -> int:
    return (HEIGHT // PIXELS) * (WIDTH // PIXELS)


def _wan() -> RunInfo:
    """Describe the run that the bytes are given for."""
    token = 2 * PIXELS
    mask = torch.zeros(FRAMES, HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, HEIGHT // 4 : HEIGHT * 3 // 4, WIDTH * 3 // 8 : WIDTH * 5 // 8] = True
    sigmas = tuple(1 - index / STEPS for index in range(STEPS))
    return RunInfo(
        model=SHOWN_MODEL,
        timesteps=tuple(1000 * sigma for sigma in sigmas),
        sigmas=sigmas,
        grid=Grid(
            frames=(FRAMES - 1) // 4 + 1,
            height=HEIGHT // token,
            width=WIDTH // token,
            pixel_height=token,
            pixel_width=token,
            frame_stride=4,
        ),
        mask=mask,
        branches=BRANCHES,
        device="cpu",
    )


def _table(header: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    return [_line(header), _line(["---"] * len(header)), *map(_line, rows)]


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
