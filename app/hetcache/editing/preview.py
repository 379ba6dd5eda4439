"""``hetcache preview``: what a model would see of an edit, as tokens, without the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
from attrs import asdict, frozen
from PIL import Image

from hetcache.editing.config import EditConfig, SpanConfig
from hetcache.editing.job import Job, prepare
from hetcache.editing.strip import even, stacked
from hetcache.media.options import VIDEO_SUFFIXES, MaskConfig
from hetcache.media.video import write_video
from hetcache.running.console import note
from hetcache.running.groups import JsonConfig, ModelConfig
from hetcache.running.options import written
from hetcache_core import Grid, Role, setting
from hetcache_core.files import replacing
from hetcache_core.settings.declare import build, group

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hetcache.editing.windows import Window
    from hetcache_core import Backbone, Registry

__all__ = ["Preview", "PreviewConfig", "count_roles", "preview"]

PICTURE_SUFFIXES: Final = (".png", ".webp", ".jpg")

TINTS: Final = {Role.GENERATIVE: (255, 64, 64), Role.MARGIN: (255, 200, 64)}
"""Colours of tokens that a partial step runs; the context stays as it is."""

STRENGTH: Final = 0.45


@final
@frozen(kw_only=True)
class PreviewConfig:
    """What is previewed; its fields are the options of ``hetcache preview``."""

    video: str = setting(doc="the video to edit", metadata=written(metavar="FILE"))
    mask: str = setting(
        doc="where to edit: a video, a folder of pictures or one picture; white is edited",
        metadata=written(metavar="PATH"),
    )
    output: str = setting(
        doc="the picture to write (.png, .webp or .jpg)",
        metadata=written(
            "--output", "-o", metavar="FILE", writes="file", suffixes=PICTURE_SUFFIXES
        ),
    )
    clip: str | None = setting(
        None,
        doc="also write all frames, as a video",
        metadata=written(metavar="FILE", writes="file", suffixes=VIDEO_SUFFIXES),
    )
    reading: MaskConfig = group(MaskConfig())
    model: ModelConfig = group(ModelConfig())
    span: SpanConfig = group(SpanConfig())
    crop: str = setting(
        "none", doc="the part that the model sees, as in an edit", metadata=written(metavar="BOX")
    )
    margin: int = setting(1, ge=0, doc="width of the margin in tokens, as hetcache has it")
    answer: JsonConfig = group(JsonConfig())


@frozen(kw_only=True)
class Preview:
    """What there is to know of an edit before it is run.

    Attributes:
        backbone: Name of the model's backbone.
        frames: Frames that will be written.
        windows: Runs of the model that they take; windows with nothing to edit take none.
        height: Height that the model works at.
        width: Width that the model works at.
        tokens: Tokens of a window.
        generative: Share of the tokens that the mask touches, over all windows that are run.
        margin: Share of those next to them.
        active: Share that a partial step runs: both.
        files: What was written, by role.
        notes: What a person should know.
    """

    backbone: str
    frames: int
    windows: int
    height: int
    width: int
    tokens: int
    generative: float
    margin: float
    active: float
    files: Mapping[str, str]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON output."""
        return {**asdict(self), "notes": list(self.notes)}


def preview(config: PreviewConfig, registry: Registry) -> Preview:
    """Draw the roles of the tokens over the frames, at the size that the model works at.

    Args:
        config: What is asked for.
        registry: Where the backbone and the partitioner are looked up.

    Raises:
        HetCacheError: Something is wrong with what was asked for; nothing was written.
    """
    backbone = config.model.find(registry)
    asked = EditConfig(
        video=config.video,
        mask=config.mask,
        output="",
        reading=config.reading,
        model=config.model,
        span=config.span,
        crop=config.crop,
    )
    job = prepare(asked, backbone)
    for text in job.notes:
        note(text)
    shown = job.fit.video_to_model(job.clip.frames)  # (F, h, w, 3)
    counts = np.zeros(len(Role))
    run = 0
    for window, roles, grid, _ in count_roles(job, backbone, registry, margin=config.margin):
        run += 1
        counts += np.bincount(roles.reshape(-1), minlength=len(Role))
        _tint(shown, window, roles, grid)
    shares = counts / counts.sum()
    files = _write(config, job, shown)
    return Preview(
        backbone=backbone.name,
        frames=len(shown),
        windows=run,
        height=shown.shape[1],
        width=shown.shape[2],
        tokens=grid.tokens,
        generative=float(shares[Role.GENERATIVE]),
        margin=float(shares[Role.MARGIN]),
        active=float(shares[Role.GENERATIVE] + shares[Role.MARGIN]),
        files=files,
        notes=job.notes,
    )


def count_roles(
    job: Job, backbone: Backbone, registry: Registry, *, margin: int
) -> Iterator[tuple[Window, NDArray[np.uint8], Grid, NDArray[np.bool_]]]:
    """Give the tokens of each window that is run their roles.

    Args:
        job: The edit.
        backbone: Its model.
        registry: Where the partitioner is looked up.
        margin: Width of the margin in tokens.

    Yields:
        The window, (T, h, w) uint8 values of ``Role``, the grid, and the (F, H, W) mask at the model's size.
    """
    kind = registry.load("partitioner", "mask")
    partitioner = build(kind, {"margin": margin}, where="--margin", pieces=registry)
    for window in job.windows:
        request = job.request(window, job.clip.frames)
        if request is not None:
            grid = backbone.geometry.grid(*request.mask.shape)
            yield window, _roles(partitioner, request.mask, grid), grid, request.mask


def _roles(partitioner: Any, mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.uint8]:
    """Give every token of a window its role, (T, h, w)."""
    import torch

    roles = partitioner.partition(torch.from_numpy(mask), grid).roles
    found: NDArray[np.uint8] = roles.view(grid.frames, grid.height, grid.width).numpy()
    return found


def _tint(shown: NDArray[np.uint8], window: Window, roles: NDArray[np.uint8], grid: Grid) -> None:
    """Colour the frames that a window brings anew, token by token."""
    large = roles.repeat(grid.pixel_height, 1).repeat(grid.pixel_width, 2)  # (T, h, w) in pixels
    for index in range(window.start + window.shared, min(window.stop, len(shown))):
        inside = index - window.start + int(grid.first_frame_alone) * (grid.frame_stride - 1)
        of_frame = large[inside // grid.frame_stride]
        for role, tint in TINTS.items():
            tinted = shown[index][of_frame == role] * (1 - STRENGTH) + np.array(tint) * STRENGTH
            shown[index][of_frame == role] = np.rint(tinted)


def _write(config: PreviewConfig, job: Job, shown: NDArray[np.uint8]) -> dict[str, str]:
    chosen = even(len(shown))
    with replacing(Path(config.output)) as part:
        rows = {"red: masked tokens; yellow: their margin; the rest is context": shown[chosen]}
        Image.fromarray(stacked(rows)).save(part)
    files = {"picture": config.output}
    if config.clip is not None:
        write_video(Path(config.clip), shown, job.clip.fps, times=job.clip.times)
        files["clip"] = config.clip
    return files
