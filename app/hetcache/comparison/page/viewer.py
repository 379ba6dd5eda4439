"""What the report's viewer is given: videos, token roles and errors of frames, as one JSON value."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field

from hetcache.comparison.page.roles import token_roles
from hetcache.comparison.page.scenes import Scene, video_of
from hetcache.comparison.results.folder import Results, Row
from hetcache.quality.psnr import frame_psnr
from hetcache.running.specs import REFERENCE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hetcache.media.video import VideoClip

__all__ = ["viewer_data"]

EXACT: Final = "Measured on the exact frames."
COPIES: Final = (
    "Measured on the compressed copies that are shown here, so the figures are a little off those "
    "in the tables, which come from the exact frames."
)

RECORDED: Final = "from the mask, with as many tokens of each role as a run recorded"
ASSUMED: Final = (
    "from the mask, with the ring around it in which the PSNR of the margin is measured, since the "
    "run recorded no roles"
)


def viewer_data(scenes: Sequence[Scene], results: Results) -> str:
    """Collect everything that the viewer shows.

    Args:
        scenes: What is embedded.
        results: The comparison's folder.

    Returns:
        JSON that may stand in an HTML page as it is: it holds no "<", ">" or "&".

    Raises:
        ConfigError: A video or a trace cannot be read.
    """
    collected = _Collected(results)
    values = {
        "scenes": [collected.scene(scene) for scene in scenes if scene.rows],
        "videos": collected.videos,
        "roles": collected.roles,
    }
    text = json.dumps(values, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@define
class _Collected:
    """Videos and roles, each once, however many scenes they are in."""

    results: Results
    videos: list[str] = field(factory=list)
    roles: list[dict[str, Any]] = field(factory=list)
    _known: dict[Path, int] = field(factory=dict)

    def scene(self, scene: Scene) -> dict[str, Any]:
        """Describe one clip and seed."""
        folder = self.results.clip_folder(scene.clip)
        mask = _read_mask(folder / "mask.png", scene)
        reference = next((row for row in scene.rows if row.key.policy == REFERENCE), None)
        held = None if reference is None else _read(video_of(self.results, reference))
        tracks = [
            self._track(name, name, path)
            for name in ("source", "truth")
            if (path := folder / f"{name}.mp4").exists()
        ]
        exact = True
        for row in scene.rows:
            path = video_of(self.results, row)
            if row is reference:
                tracks.append(self._track("uncached", "uncached", path))
            else:
                tracks.append(self._track("policy", row.key.label, path))
                errors, from_exact = self._errors(row, held, mask)
                tracks[-1]["psnr"] = None if errors is None else _plain(errors)
                exact = exact and from_exact
            tracks[-1]["roles"] = self._roles(row, mask)
        self._share_roles(tracks)
        return {
            "setting": f"{scene.setting}, {scene.steps} steps",
            "clip": scene.clip,
            "seed": scene.seed,
            "prompt": self.results.prompt(scene.clip),
            "frames": scene.setting.frames,
            "fps": float((held or _read(video_of(self.results, scene.rows[0]), 1)).fps),
            "measured": EXACT if exact else COPIES,
            "tracks": tracks,
        }

    def _track(self, kind: str, label: str, path: Path) -> dict[str, Any]:
        if path not in self._known:
            self._known[path] = len(self.videos)
            self.videos.append(b64encode(path.read_bytes()).decode())
        return {
            "kind": kind, "label": label, "video": self._known[path], "psnr": None, "roles": None,
        }  # fmt: skip

    def _share_roles(self, tracks: list[dict[str, Any]]) -> None:
        """Draw recorded roles, where a run of the scene has any, over all that recorded none."""
        found = {track["roles"] for track in tracks} - {None}
        recorded = {index for index in found if self.roles[index]["basis"] == RECORDED}
        shared = min(recorded or found, default=None)
        for track in tracks:
            if track["roles"] not in recorded:
                track["roles"] = shared

    def _errors(
        self, row: Row, held: VideoClip | None, mask: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float64] | None, bool]:
        """Return (F,) dB and whether they come from the exact frames."""
        stored = self.results.frame_psnr(row.key)
        if stored is not None:
            return stored, True
        if held is None or mask is None:
            return None, True
        made = _read(video_of(self.results, row)).frames
        if made.shape != held.frames.shape or len(made) != len(mask):
            return None, True
        return frame_psnr(made, held.frames, mask), False

    def _roles(self, row: Row, mask: NDArray[np.bool_] | None) -> int | None:
        import torch

        if mask is None or not (self.results.run_folder(row.key) / "trace.json").exists():
            return None
        found = token_roles(torch.from_numpy(mask), self.results.trace(row.key))
        if found is None:
            return None
        entry = {
            "width": found.grid.width,
            "height": found.grid.height,
            "latent": found.latent_frames(),
            "basis": RECORDED if found.recorded else ASSUMED,
            "data": b64encode(found.roles.numpy().tobytes()).decode(),
        }
        if entry not in self.roles:
            self.roles.append(entry)
        return self.roles.index(entry)


def _read(path: Path, max_frames: int | None = None) -> VideoClip:
    from hetcache.media.video import read_video

    return read_video(path, option="FOLDER", max_frames=max_frames)


def _read_mask(path: Path, scene: Scene) -> NDArray[np.bool_] | None:
    """Read the (F, H, W) mask of a clip; None where there is none of the scene's size."""
    import numpy as np

    from hetcache.media.pictures import opened_picture

    if not path.exists():
        return None
    setting = scene.setting
    shape = (setting.frames, setting.height, setting.width)
    remedy = f"Delete {path.parent}, and `hetcache compare --resume` makes it again."
    with opened_picture(path, remedy=remedy, most=math.prod(shape)) as picture:
        rows = np.asarray(picture.convert("L")) > np.iinfo(np.uint8).max // 2  # (F * H, W)
    return rows.reshape(shape) if rows.size == math.prod(shape) else None  # (F, H, W)


def _plain(errors: NDArray[np.float64]) -> list[float | str | None]:
    """Write errors for JSON, which has neither infinity nor NaN."""
    return [
        None if math.isnan(value) else "identical" if math.isinf(value) else round(value, 3)
        for value in map(float, errors)
    ]
