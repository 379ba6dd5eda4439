"""Videos that belong together: two files, or the files of two folders with the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from attrs import frozen

from hetcache_core import ConfigError

__all__ = ["VIDEOS", "Pair", "companion", "pairs"]

VIDEOS: Final = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
"""Suffixes of what is taken for a video in a folder."""


@frozen(kw_only=True)
class Pair:
    """Two videos that are held against each other.

    Attributes:
        name: The name of both, without a suffix.
        gt: The ground truth.
        pred: What is judged.
    """

    name: str
    gt: Path
    pred: Path


def pairs(gt: Path, pred: Path) -> list[Pair]:
    """Find the videos that belong together.

    Args:
        gt: A video, or a folder of videos.
        pred: Likewise.

    Returns:
        At least one pair; those of folders are sorted by name.

    Raises:
        ConfigError: One is a folder and the other is not, a folder has no videos, or a video has
            no partner.
    """
    for option, path in (("--gt", gt), ("--pred", pred)):
        if not path.exists():
            raise ConfigError(f"{path} does not exist", where=option)
    if not gt.is_dir() and not pred.is_dir():
        return [Pair(name=pred.stem, gt=gt, pred=pred)]
    if not (gt.is_dir() and pred.is_dir()):
        folder, file = (gt, pred) if gt.is_dir() else (pred, gt)
        raise ConfigError(
            f"{folder} is a folder, but {file} is not", remedy="Give two videos or two folders."
        )
    wanted, given = _videos(gt, "--gt"), _videos(pred, "--pred")
    alone = [
        f"only in {folder}: {', '.join(sorted(names))}"
        for folder, names in ((gt, wanted.keys() - given), (pred, given.keys() - wanted))
        if names
    ]
    if alone:
        raise ConfigError(
            f"videos without a partner of the same name, {'; '.join(alone)}",
            remedy="Videos are paired by their names without the suffix.",
        )
    return [Pair(name=name, gt=wanted[name], pred=given[name]) for name in sorted(given)]


def companion(path: Path, name: str, *, alone: bool, option: str) -> Path:
    """Find what belongs to one video: a mask or a source.

    Args:
        path: What the option names.
        name: Name of the video, without a suffix.
        alone: Whether there is only one video. If not, a folder holds something for each: a file
            or a folder with the video's name.
        option: The option.

    Returns:
        ``path`` itself, or what it holds for this video.

    Raises:
        ConfigError: It holds nothing for this video, or more than one thing.
    """
    if alone or not path.is_dir():
        return path
    found = [entry for entry in _listed(path, option) if _stem(entry) == name]
    if len(found) != 1:
        many = f"{len(found)} entries" if found else "nothing"
        raise ConfigError(f"{path} holds {many} called {name}", where=option)
    return found[0]


def _listed(folder: Path, option: str) -> list[Path]:
    try:
        # What a killed process left half-written has such a name.
        return sorted(path for path in folder.iterdir() if path.name[0] != ".")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}", where=option) from error


def _stem(entry: Path) -> str:
    return entry.name if entry.is_dir() else entry.stem


def _videos(folder: Path, option: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _listed(folder, option):
        if path.suffix.lower() not in VIDEOS or not path.is_file():
            continue
        if path.stem in found:
            raise ConfigError(
                f"{found[path.stem]} and {path} have the same name without the suffix", where=option
            )
        found[path.stem] = path
    if not found:
        raise ConfigError(
            f"the folder {folder} holds no videos ({', '.join(sorted(VIDEOS))})", where=option
        )
    return found
