"""What one comparison is asked to do: the options of ``hetcache compare``."""

from __future__ import annotations

from typing import Final, Literal, final

from attrs import frozen

from hetcache.media.options import MaskConfig
from hetcache.quality.weights import WeightsConfig
from hetcache.running.device import PlaceConfig
from hetcache.running.groups import (
    MOST_FRAMES,
    MOST_STEPS,
    JsonConfig,
    PictureConfig,
    WorkersConfig,
)
from hetcache.running.limits import CacheConfig
from hetcache.running.options import written
from hetcache_core import ConfigError, setting
from hetcache_core.settings.declare import group

__all__ = ["CompareConfig", "GridName"]

GridName = Literal[
    "ablation-guidance", "ablation-context", "resolution", "length", "outpainting", "front"
]

REPEAT: Final = 3
"""Of three clocks the middle one is told from a disturbed one."""


@final
@frozen(kw_only=True)
class CompareConfig:
    """One comparison: the options of ``hetcache compare``, and what ``hetcache.compare`` takes."""

    output: str = setting(
        "results",
        doc="folder for rows, videos, tables and plots",
        metadata=written("--output", "-o", metavar="FOLDER", writes="folder"),
    )
    backbones: str = setting(
        "tiny-vace",
        doc="NAME or NAME=MODEL, by commas; NAME=random takes a small random model of its classes",
    )
    policies: str | None = setting(
        None,
        doc="NAME, NAME@fast, NAME@3x or NAME:setting=value;setting=value, by commas; or all",
        metadata=written(unset="all"),
    )
    grid: GridName | None = setting(None, doc="a ready grid instead, or its clips and sizes")
    target_speedups: str | None = setting(
        None,
        doc="ask every policy for each of these speed-ups, by commas",
        metadata=written(metavar="FLOAT,..."),
    )
    video: str | None = setting(None, doc="the video to edit", metadata=written(metavar="FILE"))
    mask: str | None = setting(
        None,
        doc="where to edit: a video, a folder of pictures or one picture; white is edited",
        metadata=written(metavar="PATH"),
    )
    prompt: str = setting("", doc="what to put into the mask")
    reading: MaskConfig = group(MaskConfig())
    clips: str | None = setting(
        None,
        doc="a folder with a folder for each clip, or a clip set: builtin, builtin:small-*",
        metadata=written(metavar="FOLDER|SET"),
    )
    seeds: str = setting(
        "0", doc="seeds of the noise, by commas", metadata=written(metavar="INT,...")
    )
    steps: int = setting(50, ge=1, le=MOST_STEPS, doc="steps of the sampler")
    repeat: int = setting(REPEAT, ge=1, le=1000, doc="how often every run is made, for the clock")
    frames: int | None = setting(
        None,
        ge=1,
        le=MOST_FRAMES,
        doc="how many frames",
        metadata=written(unset="the model's own number"),
    )
    given: PictureConfig = group(PictureConfig())
    composite: bool = setting(
        default=False, doc="measure with the video's own pixels outside of the mask"
    )
    weights: WeightsConfig = group(WeightsConfig())
    cache: CacheConfig = group(CacheConfig())
    place: PlaceConfig = group(PlaceConfig())
    work: WorkersConfig = group(WorkersConfig())
    resume: bool = setting(default=False, doc="go on with the comparison in the folder")
    answer: JsonConfig = group(JsonConfig())

    def __attrs_post_init__(self) -> None:
        """Make sure that options go together."""
        files = [f"--{name}" for name in ("video", "mask") if getattr(self, name) is not None]
        if self.clips is not None and files:
            raise ConfigError(
                f"--clips and {' and '.join(files)} name different clips",
                remedy="Give one of the two.",
            )
        outside = self.grid == "outpainting"
        if self.mask is not None and (self.video is None or outside):
            what = "--grid outpainting makes its own mask" if outside else "--mask needs a --video"
            raise ConfigError(what, setting="mask")
        if self.video is not None and self.mask is None and not outside:
            raise ConfigError("--video needs a --mask", setting="video")
        if self.video is None and self.clips is None and self.grid is None:
            raise ConfigError(
                "no clips are named",
                remedy="Give --video and --mask, or --clips FOLDER, or --clips builtin.",
            )
