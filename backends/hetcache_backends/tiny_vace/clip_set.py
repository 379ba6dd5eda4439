"""The generated clips as a set to compare policies on."""

from __future__ import annotations

from typing import ClassVar, final

from attrs import frozen

from hetcache_backends.tiny_vace.clips import CLIP_SET_VERSION, builtin_clips
from hetcache_core import ClipSet, ConfigError, EvaluationClip, nearest_name

SIZE_MULTIPLE = 16


@final
@frozen
class BuiltinClips(ClipSet):
    """28 generated clips with known answers, at any size; see ``clips.builtin_clips``."""

    name: ClassVar[str] = "builtin"
    summary: ClassVar[str] = (
        "28 generated clips: masks of 5, 15 and 40 %, still, moving, outpainting"
    )
    version: ClassVar[str] = str(CLIP_SET_VERSION)

    def names(self) -> tuple[str, ...]:
        """Names such as "small-moving-object-0"."""
        return tuple(spec.name for spec in builtin_clips())

    def clip(self, name: str, *, frames: int, height: int, width: int) -> EvaluationClip:
        """Draw one clip; 4k+1 frames, height and width multiples of 16."""
        if frames % 4 != 1 or height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            raise ConfigError(
                f"the clip set builtin has no clips of {frames}x{height}x{width}",
                remedy="Take 4k+1 frames, and a height and width that are multiples of 16.",
            )
        specs = {s.name: s for s in builtin_clips(frames=frames, height=height, width=width)}
        if name not in specs:
            nearest = nearest_name(name, specs)
            raise ConfigError(
                f"the clip set builtin has no clip {name!r}"
                + (f", did you mean {nearest!r}?" if nearest else "")
            )
        clip = specs[name].render()
        return EvaluationClip(
            name=name,
            prompt=clip.prompt,
            video=clip.video,
            mask=clip.mask > 0,
            truth=clip.target,
        )
