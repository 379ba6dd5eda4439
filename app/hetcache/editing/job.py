"""From files to a request that a backbone can run, and back to the frames of the video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from hetcache.editing.config import EditConfig
from hetcache.media.fit import Fit, plan_frames, plan_size
from hetcache.media.masks import read_mask
from hetcache.media.video import VideoClip, is_odd, read_video
from hetcache_core import ConfigError, EditRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hetcache_core import Backbone, Geometry

__all__ = ["Job", "prepare"]


@frozen(eq=False, kw_only=True)
class Job:
    """One edit, ready to run.

    Attributes:
        clip: The video, cut to the frames that are edited.
        mask: (F, H, W) bool at the video's size.
        fit: How the video and the model's size go together.
        request: What the backbone is asked.
        notes: What a person should know about it.
    """

    clip: VideoClip
    mask: NDArray[np.bool_] = field(repr=False)
    fit: Fit
    request: EditRequest
    notes: tuple[str, ...]

    def finish(self, edited: NDArray[np.uint8], *, composite: bool) -> NDArray[np.uint8]:
        """Bring a model's frames to the size of the video.

        Args:
            edited: (F, h, w, 3) uint8, as the model made them.
            composite: Take the video's own pixels outside of the mask.

        Returns:
            (F, H, W, 3) uint8.
        """
        result = self.fit.to_source(edited, self.clip.frames)  # (F, H, W, 3)
        if composite:
            result = np.where(self.mask[..., None], result, self.clip.frames)
        return result


def prepare(config: EditConfig, backbone: Backbone) -> Job:
    """Read the video and the mask, and fit both to a model.

    Args:
        config: What is asked for.
        backbone: The model; its sizes, lengths and guidance are taken.

    Raises:
        ConfigError: A file cannot be used, or does not go with the options.
    """
    geometry = backbone.geometry
    wanted = geometry.default_frames if config.given.frames is None else config.given.frames
    clip = read_video(Path(config.video), option="--video", max_frames=wanted)
    count = plan_frames(geometry, len(clip.frames), config.given.frames)
    notes = list(_notes_on_frames(config, geometry, clip, count))
    clip = clip.first(count)
    _, height, width, _ = clip.frames.shape
    fit = plan_size(geometry, (height, width), config.given.height, config.given.width)
    read = read_mask(
        Path(config.mask),
        frames=count,
        height=height,
        width=width,
        total=clip.total,
        options=config.reading,
    )
    mask, notes = read.pixels, [*notes, *clip.notes, *read.notes]
    notes += _notes_on_pictures(mask, fit)
    model_mask = fit.mask_to_model(mask)
    if not model_mask.any():
        raise ConfigError(
            "all of the mask lies in the border that the model does not see",
            where="--mask",
            remedy="Choose --height and --width with the proportions of the video.",
        )
    scale = config.given.cfg_scale
    request = EditRequest(
        video=fit.video_to_model(clip.frames),
        mask=model_mask,
        prompt=config.prompt,
        negative_prompt=config.negative_prompt,
        steps=config.steps,
        seed=config.seed,
        guidance_scale=backbone.guidance_scale if scale is None else scale,
        merge_guidance=config.cfg_merge,
        options=dict(config.given.options),
    )
    return Job(clip=clip, mask=mask, fit=fit, request=request, notes=tuple(notes))


def _notes_on_frames(
    config: EditConfig, geometry: Geometry, clip: VideoClip, count: int
) -> list[str]:
    available = len(clip.frames)
    if count == (clip.total if config.given.frames is None else config.given.frames):
        return []
    reasons = []
    if config.given.frames is None and available == geometry.default_frames:
        reasons.append(f"{config.model.spec.name} takes {available} unless --frames asks for more")
    if config.given.frames is not None and available < config.given.frames:
        reasons.append(f"there are no {config.given.frames}")
    if count < available:
        reasons.append(f"the model takes {geometry.frame_stride}k+{geometry.frame_offset}")
    whole = "" if clip.total is None else f" of {clip.total}"
    return [f"the first {count}{whole} frames are edited and written: {', and '.join(reasons)}"]


def _notes_on_pictures(mask: NDArray[np.bool_], fit: Fit) -> list[str]:
    (height, width), (_, _, seen_height, seen_width) = fit.source, fit.box
    notes = []
    if fit.resizes:
        notes.append(
            f"the model works at {fit.size[0]}x{fit.size[1]} (height x width), and the result is "
            f"resized to the video's {height}x{width}"
        )
    if fit.crops:
        notes.append(
            f"the model sees the middle {seen_height}x{seen_width} of {height}x{width}; the "
            "border stays as it is"
        )
    outside = fit.masked_outside(mask)
    if outside:
        notes.append(f"{outside} masked pixels lie in that border and are not edited")
    if mask.all():
        notes.append("the mask covers everything: there is no context to cache")
    if is_odd(height, width):
        notes.append("the odd size is kept by writing 4:4:4 colour, which some players cannot show")
    return notes
