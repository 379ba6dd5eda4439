"""Windows that are finished, kept beside the output until all are: an interrupted edit goes on from there."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import asdict, frozen

from hetcache.media.arrays import member_of
from hetcache.running.console import note
from hetcache.running.run import RunResult
from hetcache_core import HetCacheError
from hetcache_core.files import read_bytes, replacing
from hetcache_core.records.trace import Trace

if TYPE_CHECKING:
    from attrs import Attribute

    from hetcache.editing.config import EditConfig

__all__ = ["KeptWindows"]

ELSEWHERE: Final = ("output", "trace", "answer", "audio")
"""What of an edit's options makes no difference to what a window shows."""

DIGITS: Final = 12

LARGEST_REST: Final = 1 << 16
"""Bytes that a file of frames has beside them."""


@frozen(kw_only=True)
class KeptWindows:
    """A folder of finished windows.

    Attributes:
        folder: Where they are; its name has a digest of all that they depend on.
    """

    folder: Path

    @classmethod
    def of(cls, config: EditConfig) -> KeptWindows:
        """Name the folder of an edit: beside its output, and another one for any other edit."""
        asked = asdict(config, filter=_matters)
        files = [list(_state(Path(path))) for path in (config.video, config.mask) if path]
        text = json.dumps([asked, files, version("hetcache")], sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
        return cls(folder=Path(config.output).with_name(f".windows-{digest}"))

    def load(self, name: str, shape: tuple[int, ...]) -> RunResult | None:
        """Read a finished window of (f, h, w, 3) frames; None where there is none, or no whole one."""
        pixels, trace = self._files(name)
        if not (pixels.exists() and trace.exists()):
            return None
        try:
            data = read_bytes(pixels, most=math.prod(shape) + LARGEST_REST)
            frames = member_of(data, "frames", shape, np.uint8)
            seconds = float(member_of(data, "total_seconds", (), np.float64))
            return RunResult(frames=frames, trace=Trace.load(trace), total_seconds=seconds)
        except (ValueError, HetCacheError):
            note(f"{pixels.name} in {self.folder} is damaged; the window is run again")
            return None

    def save(self, name: str, result: RunResult) -> None:
        """Keep a window. The pixels come first, so that a trace stands for a whole one."""
        self.folder.mkdir(exist_ok=True)
        pixels, trace = self._files(name)
        with replacing(pixels) as part, part.open("wb") as file:
            np.savez(file, frames=result.frames, total_seconds=result.total_seconds)
        result.trace.save(trace)

    def count(self) -> int:
        """Count the finished windows."""
        return len(list(self.folder.glob("cached-*.json")))

    def remove(self) -> None:
        """Forget them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.npz", self.folder / f"{name}.json"


def _matters(attribute: Attribute[object], _value: object) -> bool:
    return attribute.name not in ELSEWHERE


def _state(path: Path) -> Iterator[tuple[str, int, int]]:
    """Give name, size and time of a file, or of every file in a folder."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        of_file = file.stat()
        yield str(file.absolute()), of_file.st_size, of_file.st_mtime_ns
