"""``hetcache evaluate``: videos that exist already, held against a ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import evolve, field, frozen

from hetcache.media.files import check_writable
from hetcache.media.masks import read_mask
from hetcache.media.video import VideoClip, read_video
from hetcache.quality.evaluate_config import EvaluateConfig
from hetcache.quality.measure import (
    METRICS,
    MetricInfo,
    QualityTools,
    Value,
    check_tools,
    clip_score,
    frechet_distance,
    measure_against,
    video_features,
)
from hetcache.quality.pairs import Pair, companion, pairs
from hetcache.running.console import note
from hetcache.running.device import choose_device
from hetcache_core import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EVALUATED", "ClipScores", "Evaluation", "evaluate"]

EVALUATED: Final[Mapping[str, MetricInfo]] = MappingProxyType(
    {
        "psnr": METRICS["psnr_truth"],
        "psnr_mask": METRICS["psnr_truth_mask"],
        "psnr_margin": evolve(
            METRICS["psnr_uncached_margin"], title="PSNR, margin", against="truth"
        ),
        "psnr_background": evolve(
            METRICS["psnr_uncached_background"], title="PSNR, background", against="truth"
        ),
        "ssim": METRICS["ssim_truth"],
        "lpips": METRICS["lpips_truth"],
        "flicker": evolve(METRICS["flicker"], title="flicker", against="truth"),
        "clip_score": METRICS["clip_score"],
    }
)
"""What is measured of every clip, by the keys of the JSON output; VFID is that of all together."""


@frozen(kw_only=True)
class ClipScores:
    """The values of one clip.

    Attributes:
        name: Name of the video, without a suffix.
        frames: Frames that were compared.
        metrics: A value for every name in ``EVALUATED``.
    """

    name: str
    frames: int
    metrics: Mapping[str, Value]


@frozen(kw_only=True)
class Evaluation:
    """All that an evaluation found.

    Attributes:
        clips: The values of every clip.
        mean: Their means over the clips that have a value; noted how many have none, and why.
        vfid: The Fréchet distance between all of ``pred`` and all of ``gt``.
        composite: Whether it was measured with compositing.
        notes: What a person should know.
    """

    clips: tuple[ClipScores, ...]
    mean: Mapping[str, Value]
    vfid: Value
    composite: bool
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON output."""
        return {
            "composite": self.composite,
            "clips": [
                {"name": clip.name, "frames": clip.frames, "metrics": _plain(clip.metrics)}
                for clip in self.clips
            ],
            "mean": _plain(self.mean),
            "vfid": _plain({"vfid": self.vfid})["vfid"],
            "notes": list(self.notes),
        }


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Hold videos against a ground truth, one after the other.

    Args:
        config: What is asked for.

    Raises:
        ConfigError: A file cannot be used, or videos do not go together.
    """
    if config.output is not None:
        if Path(config.output).suffix.lower() != ".csv":
            raise ConfigError(f"{config.output} does not end in .csv", where="--output")
        check_writable(Path(config.output), option="--output")
    tools = QualityTools(
        lpips=_path(config.lpips),
        video_features=_path(config.video_features),
        clip=_path(config.clip),
        device=choose_device(config.device),
    )
    check_tools(tools)
    found = pairs(Path(config.gt), Path(config.pred))
    notes: list[str] = []
    clips, features = [], []
    for pair in found:
        taken = _read(pair, config, alone=len(found) == 1)
        for text in taken.notes:
            note(text)
        notes += taken.notes
        clips.append(_scores(pair, taken, config, tools))
        features.append([video_features(video, tools) for video in (taken.truth, taken.result)])
    return Evaluation(
        clips=tuple(clips),
        mean={name: _mean([clip.metrics[name] for clip in clips]) for name in EVALUATED},
        vfid=_vfid(features),
        composite=config.composite is not None,
        notes=tuple(notes),
    )


@frozen(eq=False, kw_only=True)
class _Taken:
    """The frames of one pair: (F, H, W, 3) uint8 twice, and where was edited, (F, H, W) bool."""

    truth: NDArray[np.uint8] = field(repr=False)
    result: NDArray[np.uint8] = field(repr=False)
    mask: NDArray[np.bool_] | None = field(repr=False)
    notes: tuple[str, ...]


def _read(pair: Pair, config: EvaluateConfig, *, alone: bool) -> _Taken:
    result = read_video(pair.pred, option="--pred").frames  # (F, H, W, 3)
    count, height, width, _ = result.shape
    # One frame more shows whether there are more, where the file itself does not say.
    truth = read_video(pair.gt, option="--gt", max_frames=count + 1)
    notes = []
    if len(truth.frames) > count:
        whole = "" if truth.total is None else f" of its {truth.total}"
        notes.append(f"{pair.gt} is cut to the first {count}{whole} frames, as {pair.pred} has")
    _fits(truth, pair.gt, result, pair.pred, option="--gt")
    mask = None
    if config.mask is not None:
        path = companion(Path(config.mask), pair.name, alone=alone, option="--mask")
        mask = read_mask(path, frames=count, height=height, width=width)
    if config.composite is not None and mask is not None:
        path = companion(Path(config.composite), pair.name, alone=alone, option="--composite")
        source = read_video(path, option="--composite", max_frames=count)
        _fits(source, path, result, pair.pred, option="--composite")
        result = np.where(mask[..., None], result, source.frames)
    return _Taken(truth=truth.frames[:count], result=result, mask=mask, notes=tuple(notes))


def _fits(
    other: VideoClip, path: Path, result: NDArray[np.uint8], pred: Path, *, option: str
) -> None:
    """Make sure that a video has the size of the result, and no fewer frames."""
    frames, height, width, _ = other.frames.shape
    if (height, width) != result.shape[1:3]:
        raise ConfigError(
            f"{path} is {height}x{width} (height x width), but {pred} is "
            f"{result.shape[1]}x{result.shape[2]}",
            where=option,
        )
    if frames < len(result):
        raise ConfigError(
            f"{path} has {frames} frames, fewer than the {len(result)} of {pred}", where=option
        )


def _scores(pair: Pair, taken: _Taken, config: EvaluateConfig, tools: QualityTools) -> ClipScores:
    found = measure_against(taken.result, taken.truth, taken.mask, config.token_pixels, tools)
    found["clip_score"] = (
        clip_score(taken.result, config.prompt, tools)
        if config.prompt
        else Value(value=None, note="needs --prompt")
    )
    return ClipScores(name=pair.name, frames=len(taken.result), metrics=found)


def _mean(values: list[Value]) -> Value:
    """Average what there is, and say what there is not."""
    there = [value.value for value in values if value.value is not None]
    reasons = sorted({value.note for value in values if value.value is None})
    if not there:
        return Value(value=None, note=", ".join(reasons))
    left_out = len(values) - len(there)
    said = f"{left_out} of {len(values)} left out: {', '.join(reasons)}" if left_out else ""
    return Value(value=sum(there) / len(there), note=said)


def _vfid(features: list[list[NDArray[np.floating[Any]] | None]]) -> Value:
    truths, results = (
        [vector for vector in side if vector is not None] for side in zip(*features, strict=True)
    )
    if not truths:
        return Value(value=None, note=f"needs {METRICS['vfid'].needs}")
    return frechet_distance(np.stack(results), np.stack(truths))


def _plain(values: Mapping[str, Value]) -> dict[str, dict[str, Any]]:
    return {name: {"value": value.value, "note": value.note} for name, value in values.items()}


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
