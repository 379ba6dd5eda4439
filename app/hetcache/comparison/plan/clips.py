"""The clips of a comparison: where they come from, and how they are brought to a size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import numpy as np
from attrs import evolve, frozen

from hetcache.comparison.plan.footage import Footage
from hetcache.comparison.plan.sizes import Size, modest
from hetcache.media.fit import plan_frames, plan_size
from hetcache.media.masks import read_mask
from hetcache.media.options import MaskConfig
from hetcache.media.video import read_video
from hetcache_core import ClipSet, ConfigError, EvaluationClip

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hetcache_core import Geometry

__all__ = ["ClipSource", "FileClip", "Outpainted", "SetClip"]

FPS: Final = Fraction(16)
"""Rate of generated clips. Source: what Wan2.1 was trained at."""

SEEN: Final = 0.7
"""Share of both sides that outpainting keeps, in the middle: 51 % of the picture is painted."""

GREY: Final = 128
"""What stands where nothing is known yet. Source: what Wan-VACE's own pipelines put there."""


class ClipSource(ABC):
    """Where a clip comes from. Subclasses are frozen values, small enough to be copied around."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the clip is called in tables."""

    @abstractmethod
    def size(
        self, joint: Geometry, frames: int | None, height: int | None, width: int | None
    ) -> Size:
        """Return the size to work at.

        Args:
            joint: What all backbones take.
            frames: ``--frames``, or None.
            height: ``--height``, or None.
            width: ``--width``, or None.

        Raises:
            ConfigError: A file cannot be read, or is too short.
        """

    @abstractmethod
    def read(self, size: Size) -> Footage:
        """Read the clip.

        Raises:
            ConfigError: A file cannot be read, or there are no such frames.
        """


@final
@frozen(kw_only=True)
class SetClip(ClipSource):
    """A clip of a registered set."""

    clips: ClipSet
    clip: str

    @property
    def name(self) -> str:
        """The name in the set."""
        return self.clip

    def size(
        self, joint: Geometry, frames: int | None, height: int | None, width: int | None
    ) -> Size:
        """Take what is asked for, and a modest size otherwise."""
        usual = modest(joint)
        return Size(
            frames=frames or usual.frames,
            height=height or width or usual.height,
            width=width or height or usual.width,
        )

    def read(self, size: Size) -> Footage:
        """Let the set make or read it."""
        made = self.clips.clip(self.clip, frames=size.frames, height=size.height, width=size.width)
        return Footage(clip=made, fps=FPS)


@final
@frozen(kw_only=True)
class FileClip(ClipSource):
    """A clip in files.

    Attributes:
        video: The frames to edit.
        mask: Where: a video, a folder of pictures or a picture; None masks nothing yet.
        prompt: What belongs into the mask.
        truth: The right answer, or None.
        reading: How the mask is read.
        called: What the clip is called in tables.
        where: The option that named it, for messages.
    """

    video: Path
    mask: Path | None
    prompt: str = ""
    truth: Path | None = None
    reading: MaskConfig = MaskConfig()
    called: str
    where: str = "--video"

    @property
    def name(self) -> str:
        """The stem of the video, or the name of its folder."""
        return self.called

    def size(
        self, joint: Geometry, frames: int | None, height: int | None, width: int | None
    ) -> Size:
        """Keep the size of the video as far as the backbones take it, as ``hetcache edit`` does."""
        wanted = joint.default_frames if frames is None else frames
        source = read_video(self.video, option=self.where, max_frames=wanted)
        count = plan_frames(joint, len(source.frames), frames)
        if frames is not None and count < frames:
            raise ConfigError(
                f"{self.video} has {len(source.frames)} frames, which are fewer than {frames}",
                where="--frames",
                remedy=f"Take {count}.",
            )
        fit = plan_size(joint, (source.frames.shape[1], source.frames.shape[2]), height, width)
        return Size(frames=count, height=fit.size[0], width=fit.size[1])

    def read(self, size: Size) -> Footage:
        """Read the first frames and the mask, and crop and resize both."""
        source = read_video(self.video, option=self.where, max_frames=size.frames)
        count, height, width, _ = source.frames.shape
        if count < size.frames:
            raise ConfigError(
                f"{self.video} has {count} frames, and {size.frames} are needed", where=self.where
            )
        fit = plan_size(_exactly(size), (height, width), size.height, size.width)
        mask = np.zeros((count, height, width), np.bool_)
        if self.mask is not None:
            mask = read_mask(
                self.mask,
                frames=count,
                height=height,
                width=width,
                total=source.total,
                options=self.reading,
            ).pixels
        truth = None
        if self.truth is not None:
            answer = read_video(self.truth, option=self.where, max_frames=count)
            if answer.frames.shape != source.frames.shape:
                raise ConfigError(
                    f"{self.truth} and {self.video} differ in size or length", where=self.where
                )
            truth = fit.video_to_model(answer.frames)
        seen = fit.mask_to_model(mask)
        if self.mask is not None and not seen.any():
            raise ConfigError(
                f"all of the mask {self.mask} lies in the border that the models do not see",
                where=self.where,
                remedy="Choose --height and --width with the proportions of the video.",
            )
        return Footage(
            clip=EvaluationClip(
                name=self.called,
                prompt=self.prompt,
                video=fit.video_to_model(source.frames),
                mask=seen,
                truth=truth,
            ),
            fps=source.fps,
        )


@final
@frozen(kw_only=True)
class Outpainted(ClipSource):
    """A clip whose border is painted anew; what it shows now is the right answer."""

    source: ClipSource

    @property
    def name(self) -> str:
        """That of the source."""
        return self.source.name

    def size(
        self, joint: Geometry, frames: int | None, height: int | None, width: int | None
    ) -> Size:
        """That of the source."""
        return self.source.size(joint, frames, height, width)

    def read(self, size: Size) -> Footage:
        """Mask everything but the middle, and make it grey."""
        footage = self.source.read(size)
        video = footage.clip.video
        mask = np.ones(video.shape[:3], np.bool_)  # (F, H, W)
        rows, columns = (slice(*_middle(side)) for side in (size.height, size.width))
        mask[:, rows, columns] = False
        hidden: NDArray[np.uint8] = np.where(mask[..., None], np.uint8(GREY), video)
        clip = evolve(footage.clip, video=hidden, mask=mask, truth=video)
        return evolve(footage, clip=clip)


def _middle(side: int) -> tuple[int, int]:
    kept = round(side * SEEN)
    return (side - kept) // 2, (side - kept) // 2 + kept


def _exactly(size: Size) -> Geometry:
    """Return a geometry that takes every size, since this one was planned already."""
    from hetcache_core import Geometry

    return Geometry(size_multiple=1, frame_stride=1, default_size=(size.height, size.width))
