"""Checks of a clip set: its names, and that its clips are what was asked for, every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from hetcache_core.errors import ConfigError
from hetcache_core.plugins.clips import ClipSet, EvaluationClip
from hetcache_core.testing.comparing import raising, require
from hetcache_core.testing.subject import PieceSubject

FRAMES, HEIGHT, WIDTH = 5, 64, 96
"""A length and a size that every backbone takes."""

LOOKED_AT: Final = 3
"""Clips that are made; a set may hold hundreds."""


def _made(subject: PieceSubject) -> list[tuple[str, EvaluationClip]]:
    """Make its first clips."""
    clips: ClipSet = subject.make()
    return [(name, _clip(clips, name)) for name in clips.names()[:LOOKED_AT]]


def _clip(clips: ClipSet, name: str) -> EvaluationClip:
    return clips.clip(name, frames=FRAMES, height=HEIGHT, width=WIDTH)


def check_the_set_names_itself_and_its_clips(subject: PieceSubject) -> None:
    """It has a name, a summary and a version, and clips of different names."""
    for text in ("name", "summary", "version"):
        value = getattr(type(subject.make()), text, None)
        require(isinstance(value, str) and bool(value.strip()), f"{text} is {value!r}, not a text")
    names = subject.make().names()
    require(bool(names), "it has no clips")
    repeated = sorted({name for name in names if names.count(name) > 1})
    require(not repeated, f"several clips are called {', '.join(repeated)}")


def check_clips_have_the_size_that_was_asked_for(subject: PieceSubject) -> None:
    """Video, mask and truth have the frames, height and width of the request."""
    size = (FRAMES, HEIGHT, WIDTH)
    for name, clip in _made(subject):
        require(clip.name == name, f"asked for {name!r}, the clip calls itself {clip.name!r}")
        pictures = {"video": clip.video, "truth": clip.truth}
        for what, frames in pictures.items():
            if frames is None:
                continue
            found = f"{what} of {name!r} is {frames.dtype} {frames.shape}"
            require(frames.dtype == np.uint8 and frames.shape == (*size, 3), found)
        found = f"mask of {name!r} is {clip.mask.dtype} {clip.mask.shape}"
        require(clip.mask.dtype == np.bool_ and clip.mask.shape == size, found)
        require(bool(clip.mask.any()), f"the mask of {name!r} is empty")


def check_a_clip_is_the_same_every_time(subject: PieceSubject) -> None:
    """Made twice, a clip is the same."""
    for name, first in _made(subject):
        again = _clip(subject.make(), name)
        same = np.array_equal(first.video, again.video) and np.array_equal(first.mask, again.mask)
        require(same, f"{name!r} looks different the second time", "Draw from a fixed seed.")


def check_an_unknown_clip_is_refused(subject: PieceSubject) -> None:
    """A name that is none of the set's is a ``ConfigError``."""
    with raising(ConfigError, "an unknown clip"):
        _clip(subject.make(), "no clip of this set")


CLIP_SET_CHECKS: Final[tuple[Callable[[PieceSubject], None], ...]] = (
    check_the_set_names_itself_and_its_clips,
    check_clips_have_the_size_that_was_asked_for,
    check_a_clip_is_the_same_every_time,
    check_an_unknown_clip_is_refused,
)
"""All checks of a clip set, in the order in which they run."""
