"""Finding the clips that ``--clips`` names: those in a folder, or of a registered set."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hetcache.comparison.plan.clips import ClipSource, FileClip, SetClip
from hetcache.media.options import PICTURES
from hetcache.media.video import CONTAINERS
from hetcache_core import ClipSet, ConfigError
from hetcache_core.files import read_text

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["clips_in_folder", "clips_of_set", "find_clips"]

LONGEST_PROMPT: Final = 1 << 20
"""Bytes of a file with a prompt."""

VIDEO_SUFFIXES: Final = frozenset({*CONTAINERS, ".avi", ".gif", ".mpg", ".webm"})


def find_clips(text: str, registry: Registry) -> tuple[ClipSource, ...]:
    """Read ``--clips``: a folder, or the name of a set with patterns after a colon.

    Args:
        text: Such as ``clips/``, ``builtin`` or ``builtin:small-*,large-still-*``.
        registry: Where sets are looked up.

    Raises:
        HetCacheError: There is no such folder, set or clip.
    """
    folder = Path(text)
    if text and folder.is_dir():
        return clips_in_folder(folder)
    name, colon, patterns = text.partition(":")
    try:
        clips: ClipSet = registry.load("clip set", name)()
    except ConfigError as error:
        error.where = "--clips"
        error.remedy += " Or name a folder with a folder for each clip."
        raise
    return clips_of_set(clips, patterns.split(",") if colon else ["*"])


def clips_of_set(clips: ClipSet, patterns: Sequence[str]) -> tuple[ClipSource, ...]:
    """Choose clips of a set.

    Args:
        clips: The set.
        patterns: Names, with ``*`` and ``?`` as in file names.

    Raises:
        ConfigError: A pattern fits no clip.
    """
    names = clips.names()
    for pattern in patterns:
        if not fnmatch.filter(names, pattern.strip()):
            raise ConfigError(
                f"the clip set {clips.name} has no clip {pattern.strip()!r}",
                where="--clips",
                given=pattern,
                allowed=names,
                remedy=f"It has {', '.join(names)}.",
            )
    chosen = [
        name
        for name in names
        if any(fnmatch.fnmatchcase(name, pattern.strip()) for pattern in patterns)
    ]
    return tuple(SetClip(clips=clips, clip=name) for name in chosen)


def clips_in_folder(folder: Path) -> tuple[FileClip, ...]:
    """Find the clips in a folder: one folder each.

    In each, ``video.*`` or ``source.*`` and ``mask.*`` or a folder ``mask``, and where there are,
    ``prompt.txt`` and ``truth.*``.

    Args:
        folder: The folder.

    Raises:
        ConfigError: There is none, or one lacks something.
    """
    below = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if not below:
        raise ConfigError(
            f"the folder {folder} holds no clips",
            where="--clips",
            remedy="Give every clip a folder of its own, with video.mp4 and mask.png.",
        )
    return tuple(_in_folder(path) for path in below)


def _in_folder(folder: Path) -> FileClip:
    video = _one_of(folder, ("video", "source"), VIDEO_SUFFIXES)
    mask = _one_of(folder, ("mask",), VIDEO_SUFFIXES | PICTURES | {""})
    lacking = [name for name, path in (("video.*", video), ("mask.*", mask)) if path is None]
    if video is None or lacking:
        raise ConfigError(f"the clip {folder} has no {' and no '.join(lacking)}", where="--clips")
    prompt = folder / "prompt.txt"
    text = read_text(prompt, where="--clips", most=LONGEST_PROMPT) if prompt.exists() else ""
    return FileClip(
        video=video,
        mask=mask,
        prompt=text.strip(),
        truth=_one_of(folder, ("truth",), VIDEO_SUFFIXES),
        called=folder.name,
        where="--clips",
    )


def _one_of(folder: Path, stems: Sequence[str], suffixes: Collection[str]) -> Path | None:
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.stem in stems and path.suffix.lower() in suffixes
    ]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ConfigError(f"the clip {folder} has both {names}", where="--clips")
    return found[0] if found else None
