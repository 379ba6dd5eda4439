"""Where finished runs arrive: one process writes all files of a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from attrs import define, field, frozen
from PIL import Image

from hetcache.comparison.plan.footage import Footage, video_to_bytes
from hetcache.comparison.plan.grid import Unit
from hetcache.comparison.results.folder import FRAME_PSNR, Results, Row, RowKey
from hetcache.comparison.work.tasks import Done
from hetcache.running.console import one_line
from hetcache.running.specs import PolicySpec
from hetcache_core.files import replacing, write_text
from hetcache_core.files import write_bytes as write_whole

__all__ = ["Desk", "Failure", "write_array", "write_bytes", "write_clip", "write_features"]


@frozen(kw_only=True)
class Failure:
    """A run that raised something that is no mistake of the user's.

    Attributes:
        key: Which run.
        traceback: What it raised.
        file: Where that stands.
    """

    key: RowKey
    traceback: str
    file: Path

    @property
    def reason(self) -> str:
        """Its last line."""
        return one_line(self.traceback.strip().splitlines()[-1])


@define(eq=False)
class Desk:
    """Where finished runs arrive: one process writes all files.

    Attributes:
        results: The comparison's folder.
        finished: Ids of the runs that have a row.
        failures: Runs that raised what nobody expects.
        on_row: Called with every row, after it is on disk.
    """

    results: Results
    finished: set[str] = field(factory=set)
    failures: list[Failure] = field(factory=list)
    on_row: Callable[[Row], None] = lambda _row: None

    def pending(self, unit: Unit) -> list[tuple[RowKey, PolicySpec]]:
        """List the runs of a unit that have no row and did not fail."""
        failed = {failure.key.id for failure in self.failures}
        return [run for run in unit.runs if run[0].id not in self.finished | failed]

    def take(self, done: Done) -> None:
        """Write the files of a run, and then its row, which says that it is finished."""
        key = done.row.key
        if done.reference:
            write_bytes(self.results.reference_path(key), done.reference)
        if done.row.status == "ok":
            folder = self.results.run_folder(key)
            write_bytes(folder / "video.mp4", done.video)
            write_bytes(folder / "trace.json", done.trace.encode())
            write_features(folder, done.features)
            if done.frame_psnr is not None:
                write_array(folder / FRAME_PSNR, done.frame_psnr)
        self.results.append(done.row)
        self.results.error_path(key).unlink(missing_ok=True)
        self.finished.add(key.id)
        self.on_row(done.row)

    def fail(self, key: RowKey, traceback: str) -> None:
        """Note that a run failed, and write down how; another comparison tries it again."""
        file = self.results.error_path(key)
        write_bytes(file, traceback.encode("utf-8", "replace"))
        self.failures.append(Failure(key=key, traceback=traceback, file=file))


def write_clip(results: Results, footage: Footage) -> None:
    """Write what a clip looks like into the folder of a comparison.

    Args:
        results: The folder.
        footage: The clip.
    """
    clip = footage.clip
    folder = results.clip_folder(clip.name)
    write_bytes(folder / "source.mp4", video_to_bytes(clip.video, footage))
    if clip.truth is not None:
        write_bytes(folder / "truth.mp4", video_to_bytes(clip.truth, footage))
    frames, height, width = clip.mask.shape
    tall = clip.mask.reshape(frames * height, width).astype(np.uint8) * np.uint8(255)
    with replacing(folder / "mask.png") as part:
        Image.fromarray(tall).save(part)
    about = {
        "name": clip.name,
        "prompt": clip.prompt,
        "frames": frames,
        "height": height,
        "width": width,
    }
    write_text(folder / "clip.json", json.dumps(about, indent=2) + "\n")


def write_features(folder: Path, features: Mapping[str, Any]) -> None:
    """Write what metrics of sets made of a video into its folder, by the names of files."""
    for file, vector in features.items():
        write_array(folder / file, vector)


def write_array(path: Path, values: Any) -> None:
    """Write an array, whole or not at all, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        np.save(part, values)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)
