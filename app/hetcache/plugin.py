"""What the app itself provides, registered as anybody else's pieces would be."""

from __future__ import annotations

from hetcache.cli.commands import COMMANDS
from hetcache_core import Registration, hookimpl

__all__ = [
    "hetcache_register_commands",
    "hetcache_register_metrics",
    "hetcache_register_report_sections",
]


@hookimpl
def hetcache_register_metrics() -> list[Registration]:
    """Name the built-in metrics."""
    return [
        Registration(
            name="psnr",
            target="hetcache.quality.psnr:Psnr",
            summary="how far the pixels of two videos are apart, by region",
        ),
        Registration(
            name="ssim",
            target="hetcache.quality.ssim:Ssim",
            summary="how alike the structures of two videos are",
        ),
        Registration(
            name="lpips",
            target="hetcache.quality.lpips:Lpips",
            summary="how far apart two videos are to a network trained on pictures",
        ),
        Registration(
            name="flicker",
            target="hetcache.quality.flicker:Flicker",
            summary="how unsteady the difference between two videos is",
        ),
        Registration(
            name="vfid",
            target="hetcache.quality.vfid:Vfid",
            summary="Fréchet distance between the features of results and of right answers",
        ),
        Registration(
            name="clip_score",
            target="hetcache.quality.clip_score:ClipScore",
            summary="how well a video goes with its prompt",
        ),
    ]


@hookimpl
def hetcache_register_commands() -> list[Registration]:
    """Name the built-in commands."""
    return COMMANDS


@hookimpl
def hetcache_register_report_sections() -> list[Registration]:
    """Name the built-in sections of the report's page."""
    place = "hetcache.comparison.page.sections"
    return [
        Registration(
            name="tables",
            target=f"{place}:Tables",
            summary="what every policy cost and how good its output is",
        ),
        Registration(
            name="plots",
            target=f"{place}:Plots",
            summary="speed-up against quality, metric by metric",
        ),
        Registration(
            name="timelines",
            target=f"{place}:Timelines",
            summary="what every policy did at each step",
        ),
        Registration(
            name="videos",
            target=f"{place}:Videos",
            summary="the videos of a clip and seed, in step",
        ),
    ]
