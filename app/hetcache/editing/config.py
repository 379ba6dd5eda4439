"""What edits, demonstrations and calibrations are asked to do: options, keys of a file, arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Final, final

from attrs import frozen

from hetcache.media.options import PICTURE_SUFFIX, VIDEO_SUFFIXES, MaskConfig
from hetcache.running.device import PlaceConfig
from hetcache.running.groups import (
    MOST_FRAMES,
    MOST_STEPS,
    JsonConfig,
    ModelConfig,
    PictureConfig,
    PolicyConfig,
    WorkersConfig,
)
from hetcache.running.limits import CacheConfig, LimitsConfig
from hetcache.running.options import written
from hetcache_core import ConfigError, setting
from hetcache_core.settings.declare import group

__all__ = ["CalibrateConfig", "DemoConfig", "EditConfig", "SpanConfig"]

DEMO_STEPS: Final = 20
"""Enough for a policy to show all its kinds of steps, and under two minutes on two CPU cores."""

LARGEST_SEED: Final = 2**63
MOST_GPUS: Final = 64


@final
@frozen(kw_only=True)
class SpanConfig:
    """Which frames of a video are edited, and how many of them in one run of the model."""

    start: int = setting(0, ge=0, le=MOST_FRAMES, doc="the first frame, counted from 0")
    frames: int | None = setting(
        None, ge=1, le=MOST_FRAMES, doc="how many frames", metadata=written(unset="all that follow")
    )
    window: int | None = setting(
        None,
        ge=1,
        le=MOST_FRAMES,
        doc="frames that the model is given at once",
        metadata=written(unset="the model's own number"),
    )
    overlap: int | None = setting(
        None,
        ge=0,
        le=MOST_FRAMES,
        doc="frames that a window shares with the one before",
        metadata=written(unset="a quarter of it, and enough to fade over"),
    )


@final
@frozen(kw_only=True)
class EditConfig:
    """One edit, as it is asked for: the options of ``hetcache edit``, and what ``hetcache.edit`` takes."""

    video: str | None = setting(
        None, doc="the video to edit", metadata=written(metavar="FILE", unset="an image is given")
    )
    image: str | None = setting(
        None,
        doc="a picture to edit instead, as a video of one frame",
        metadata=written(metavar="FILE", unset="a video is given"),
    )
    mask: str = setting(
        doc="where to edit: a video, a folder of pictures or one picture; white is edited",
        metadata=written(metavar="PATH"),
    )
    output: str = setting(
        doc="the video to write (.mp4, .m4v, .mov or .mkv), or the picture (.png)",
        metadata=written(
            "--output",
            "-o",
            metavar="FILE",
            writes="file",
            suffixes=(*VIDEO_SUFFIXES, PICTURE_SUFFIX),
        ),
    )
    prompt: str = setting("", doc="what to put into the mask")
    negative_prompt: str = setting("", doc="what to keep out of it")
    reading: MaskConfig = group(MaskConfig())
    model: ModelConfig = group(ModelConfig())
    policy: PolicyConfig = group(PolicyConfig())
    steps: int = setting(50, ge=1, le=MOST_STEPS, doc="steps of the sampler")
    seed: int = setting(0, ge=0, lt=LARGEST_SEED, doc="seed of the noise")
    span: SpanConfig = group(SpanConfig())
    given: PictureConfig = group(PictureConfig())
    crop: str = setting(
        "none",
        doc="the part of the picture that the model sees: none for all of it, auto for a box around the "
        "mask, or HEIGHTxWIDTH+TOP+LEFT; the rest stays, and the seam fades",
        metadata=written(metavar="BOX"),
    )
    cfg_merge: bool = setting(default=False, doc="run both guidance branches in one call")
    place: PlaceConfig = group(PlaceConfig())
    gpus: int | None = setting(
        None,
        ge=2,
        le=MOST_GPUS,
        doc="how many GPUs of this machine share the rows of the model (on a CPU: processes)",
        metadata=written(unset="one"),
    )
    work: WorkersConfig = group(WorkersConfig())
    limits: LimitsConfig = group(LimitsConfig())
    cache: CacheConfig = group(CacheConfig())
    composite: bool = setting(
        default=True, doc="outside of the mask, keep the pixels of the video as they are"
    )
    audio: bool = setting(default=True, doc="keep the sound of the video")
    compare: bool = setting(
        default=False,
        doc="also run the reference, without caching, compare, and write it, both side by side and a strip "
        "of frames next to the output",
    )
    trace: str | None = setting(
        None,
        doc="write what every step did to this JSON file",
        metadata=written(metavar="FILE", writes="file"),
    )
    answer: JsonConfig = group(JsonConfig())

    def __attrs_post_init__(self) -> None:
        """Make sure that there is one thing to edit, and that the output is of its kind."""
        if (self.video is None) == (self.image is None):
            raise ConfigError(
                "give a video or an image, and not both"
                if self.image
                else "there is nothing to edit: give a video or an image",
                setting="video",
            )
        if self.image and (self.span.start or self.span.frames or self.span.window):
            raise ConfigError(
                "an image has one frame: leave out what chooses some", setting="image"
            )
        if (Path(self.output).suffix.lower() == PICTURE_SUFFIX) != bool(self.image):
            raise ConfigError(
                f"{self.output} cannot be what is made of {'an image' if self.image else 'a video'}",
                setting="output",
                remedy=f"Let its name end in {PICTURE_SUFFIX if self.image else VIDEO_SUFFIXES[0]}",
            )

    def beside(self) -> dict[str, Path]:
        """Files that are written next to the output, by role."""
        if not self.compare:
            return {}
        output = Path(self.output)
        return {
            "reference": output.with_stem(f"{output.stem}-reference"),
            "side by side": output.with_stem(f"{output.stem}-side-by-side"),
            "strip": output.with_name(f"{output.stem}-strip.png"),
        }


@final
@frozen(kw_only=True)
class DemoConfig:
    """One demonstration, as it is asked for; its fields are the options of ``hetcache demo``."""

    output: str = setting(
        "hetcache-demo",
        doc="folder for the videos, the strip and the traces",
        metadata=written("--output", "-o", metavar="FOLDER", writes="folder"),
    )
    model: ModelConfig = group(ModelConfig())
    policy: PolicyConfig = group(PolicyConfig())
    steps: int = setting(DEMO_STEPS, ge=1, le=MOST_STEPS, doc="steps of the sampler")
    seed: int = setting(0, ge=0, lt=LARGEST_SEED, doc="seed of the noise")
    place: PlaceConfig = group(PlaceConfig())
    limits: LimitsConfig = group(LimitsConfig())
    cache: CacheConfig = group(CacheConfig())
    answer: JsonConfig = group(JsonConfig())


@final
@frozen(kw_only=True)
class CalibrateConfig:
    """One calibration, as it is asked for; its fields are the options of ``hetcache calibrate``."""

    policy: str = setting(
        doc="the policy to measure for; `searched` looks for a schedule, which `replay` runs"
    )
    budget: str | None = setting(
        None,
        doc="with `searched`: how many times fewer FLOPs the schedule is to take, such as 4x",
        metadata=written(metavar="3x"),
    )
    output: str = setting(
        doc="the calibration file to write, or the schedule",
        metadata=written("--output", "-o", metavar="FILE", writes="file"),
    )
    model: ModelConfig = group(ModelConfig())
    video: tuple[str, ...] = setting(
        (),
        doc="a video to measure on, each with a mask",
        metadata=written(metavar="FILE", unset="the model's own clip"),
    )
    mask: tuple[str, ...] = setting(
        (), doc="where that video is edited", metadata=written(metavar="PATH")
    )
    prompt: str = setting("", doc="what to put into the masks")
    clips: int = setting(
        1,
        ge=1,
        le=1000,
        doc="without videos: how often to run the model's own clip, each with another seed",
    )
    steps: int = setting(
        50, ge=1, le=MOST_STEPS, doc="steps of the sampler, for which alone the file will be"
    )
    seed: int = setting(
        0, ge=0, lt=LARGEST_SEED, doc="seed of the noise; later clips count up from it"
    )
    frames: int | None = setting(
        None,
        ge=1,
        le=MOST_FRAMES,
        doc="how many frames",
        metadata=written(unset="the model's own number"),
    )
    given: PictureConfig = group(PictureConfig())
    place: PlaceConfig = group(PlaceConfig())
    answer: JsonConfig = group(JsonConfig())

    def __attrs_post_init__(self) -> None:
        """Make sure that videos and masks go together, and a budget with a search."""
        if self.budget is not None and self.policy != "searched":
            raise ConfigError(
                f"policy {self.policy} is measured without a budget",
                setting="budget",
                given=self.budget,
                remedy="Leave it out, or use --policy searched",
            )
        if len(self.video) != len(self.mask):
            raise ConfigError(
                f"every --video needs its --mask, got {len(self.video)} and {len(self.mask)}",
                setting="mask",
            )
