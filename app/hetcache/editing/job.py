"""From files to a request that a backbone can run, and back to the frames of the video."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from hetcache.editing.config import EditConfig
from hetcache.editing.windows import Window, faded, plan_windows
from hetcache.media.fit import Fit, check_pixels, plan_crop, plan_part, plan_size
from hetcache.media.masks import read_mask
from hetcache.media.video import VideoClip, is_odd, read_image, read_video
from hetcache_core import ConfigError, EditRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hetcache_core import Backbone

__all__ = ["Job", "prepare"]


@frozen(eq=False, kw_only=True)
class Job:
    """One edit, ready to run.

    Attributes:
        clip: The video, cut to the frames that are edited.
        mask: (F, H, W) bool at the video's size.
        fit: How the video and the model's size go together.
        windows: What is run, one after the other.
        ask: Makes a request of a video and a mask at the model's size.
        composite: Whether the video's own pixels are taken outside of the mask.
        notes: What a person should know about it.
    """

    clip: VideoClip
    mask: NDArray[np.bool_] = field(repr=False)
    fit: Fit
    windows: tuple[Window, ...]
    ask: Callable[..., EditRequest] = field(repr=False)
    composite: bool
    notes: tuple[str, ...]

    def request(self, window: Window, result: NDArray[np.uint8]) -> EditRequest | None:
        """Ask for a window, or for nothing where none of its new frames has anything to edit.

        Args:
            window: The window.
            result: (F, H, W, 3) uint8, what earlier windows have made; elsewhere the video.
        """
        at = self._frames_of(window)
        mask = self.mask[at]  # a copy, as is the video
        mask[: window.known] = False
        if not mask[window.shared :].any():
            return None
        model_mask = self.fit.mask_to_model(mask)
        if not model_mask.any():
            return None
        return self.ask(video=self.fit.video_to_model(result[at]), mask=model_mask)

    def put(self, window: Window, made: NDArray[np.uint8], result: NDArray[np.uint8]) -> None:
        """Bring what a model made of a window to the size of the video, and put it in its place.

        Args:
            window: The window.
            made: (f, h, w, 3) uint8, as the model made them.
            result: (F, H, W, 3) uint8, changed in place.
        """
        inside = slice(window.start, min(window.stop, len(result)))
        length = inside.stop - inside.start
        source, mask = self.clip.frames[inside], self.mask[inside, ..., None]
        frames = self.fit.to_source(made[:length], source)
        frames = faded(window, result[inside][: window.shared], frames)
        result[inside] = np.where(mask, frames, source) if self.composite else frames

    def _frames_of(self, window: Window) -> NDArray[np.int64]:
        """Frames of a window, the last one again and again where the clip is too short for it."""
        return np.minimum(np.arange(window.start, window.stop), len(self.clip.frames) - 1)


def prepare(config: EditConfig, backbone: Backbone) -> Job:
    """Read the video and the mask, and fit both to a model.

    Args:
        config: What is asked for.
        backbone: The model; its sizes, lengths and guidance are taken.

    Raises:
        ConfigError: A file cannot be used, or does not go with the options.
    """
    geometry, span = backbone.geometry, config.span
    if config.video is not None:
        clip = read_video(
            Path(config.video), option="--video", start=span.start, max_frames=span.frames
        )
    else:
        clip = read_image(Path(str(config.image)), option="--image")
    count, height, width, _ = clip.frames.shape
    windows = plan_windows(geometry, count, window=span.window, overlap=span.overlap)
    if config.image and windows[0].stop > 1:
        raise ConfigError(
            f"{backbone.name} edits no picture alone: it makes at least {windows[0].stop} frames",
            where="--image",
            remedy="Choose another --backbone; `hetcache backbones` says what each takes.",
        )
    notes = _notes_on_frames(config, clip, windows)
    longest, asked = (
        max(w.stop - w.start for w in windows),
        (config.given.height, config.given.width),
    )
    fit = plan_size(geometry, (height, width), *asked)
    check_pixels(longest, *fit.size)
    read = read_mask(
        Path(config.mask),
        frames=span.start + count,
        height=height,
        width=width,
        total=clip.total,
        options=config.reading,
    )
    mask, notes = read.pixels[span.start :], [*notes, *clip.notes, *read.notes]
    if not mask.any():
        raise ConfigError(
            f"the mask {config.mask} is empty from frame {span.start} on",
            where="--mask",
            remedy="Begin at another frame with --start.",
        )
    part = plan_crop(geometry, mask, config.crop)
    if part is not None:
        fit = plan_part(geometry, (height, width), part, *asked)
        check_pixels(longest, *fit.size)
    notes += _notes_on_pictures(mask, fit)
    if not fit.mask_to_model(mask).any():
        raise ConfigError(
            "all of the mask lies outside of what the model sees",
            where="--mask",
            remedy="Choose --height and --width with the proportions of the video."
            if part is None
            else "Choose another --crop, or auto.",
        )
    scale = config.given.cfg_scale
    ask = partial(
        EditRequest,
        prompt=config.prompt,
        negative_prompt=config.negative_prompt,
        steps=config.steps,
        seed=config.seed,
        guidance_scale=backbone.guidance_scale if scale is None else scale,
        merge_guidance=config.cfg_merge,
        options=dict(config.given.options),
    )
    return Job(
        clip=clip,
        mask=mask,
        fit=fit,
        windows=windows,
        ask=ask,
        composite=config.composite,
        notes=tuple(notes),
    )


def _notes_on_frames(config: EditConfig, clip: VideoClip, windows: tuple[Window, ...]) -> list[str]:
    span, count, length = config.span, len(clip.frames), windows[0].stop
    notes = []
    if span.frames is not None and count < span.frames:
        notes.append(f"{count} frames are edited, since there are no {span.frames}")
    if length > count:
        notes.append(
            f"the model is given {length} frames, the last one {length - count + 1} times, since it "
            f"does not take {count}"
        )
    if len(windows) > 1:
        shared = windows[1].shared
        notes.append(
            f"{count} frames are edited in {len(windows)} windows of {length}, of which {shared} "
            "frames are shared with the one before"
        )
    return notes


def _notes_on_pictures(mask: NDArray[np.bool_], fit: Fit) -> list[str]:
    (height, width), (top, left, seen_height, seen_width) = fit.source, fit.box
    notes = []
    if fit.resizes:
        whole = f"{seen_height}x{seen_width}" if fit.feather else f"the video's {height}x{width}"
        notes.append(
            f"the model works at {fit.size[0]}x{fit.size[1]} (height x width), and the result is "
            f"resized to {whole}"
        )
    if fit.crops:
        where = f"{seen_height}x{seen_width} of {height}x{width}"
        where += f", from row {top} and column {left} on" if fit.feather else ""
        notes.append(
            f"the model sees {'' if fit.feather else 'the middle '}{where}; the "
            f"{'rest' if fit.feather else 'border'} stays as it is"
        )
    outside = fit.masked_outside(mask)
    if outside:
        notes.append(f"{outside} masked pixels lie in that border and are not edited")
    if mask.all():
        notes.append("the mask covers everything: there is no context to cache")
    if is_odd(height, width):
        notes.append("the odd size is kept by writing 4:4:4 colour, which some players cannot show")
    return notes
