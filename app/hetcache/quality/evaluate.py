"""``hetcache evaluate``: videos that exist already, held against a ground truth."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from attrs import evolve, field, frozen

from hetcache.media.options import MaskConfig
from hetcache.quality.measure import check_tools, describe, measure_columns
from hetcache.quality.metric import (
    Against,
    MetricColumn,
    QualityTools,
    SetMetric,
    Value,
    find_metrics,
)
from hetcache.quality.pairs import Pair, companion, pairs
from hetcache.quality.regions import regions
from hetcache.quality.weights import WeightsConfig
from hetcache.running.cells import to_cell
from hetcache.running.console import note
from hetcache.running.device import choose_device
from hetcache.running.groups import JsonConfig
from hetcache.running.options import written
from hetcache_core import ConfigError, setting
from hetcache_core.files import write_text
from hetcache_core.settings.declare import group

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from hetcache.media.video import VideoClip
    from hetcache_core import Registry

__all__ = [
    "ClipScores",
    "EvaluateConfig",
    "Evaluation",
    "evaluate",
    "print_evaluation",
    "write_csv",
]

NOT_GIVEN: Final[Mapping[Against, str]] = {"prompt": "needs --prompt"}
"""What a metric says when there is nothing to hold the result against."""

TOKEN_PIXELS: Final = 16
"""Side of a token in pixels. Source: Wan2.1, whose codec divides by 8 and its transformer by 2."""

ALL: Final = "mean"
"""Name of the row over all clips; its VFID is that of the sets."""

ARROWS: Final = {"higher": "↑", "lower": "↓"}


@final
@frozen(kw_only=True)
class EvaluateConfig:
    """One evaluation, as it is asked for; its fields are the options of ``hetcache evaluate``."""

    gt: str = setting(
        doc="the ground truth: a video, or a folder of videos", metadata=written(metavar="PATH")
    )
    pred: str = setting(
        doc="what is judged: a video, or a folder of videos of the same names",
        metadata=written(metavar="PATH"),
    )
    mask: str | None = setting(
        None,
        doc="where was edited, for PSNR by region; one for all, or a folder with one for each",
        metadata=written(metavar="PATH"),
    )
    reading: MaskConfig = group(MaskConfig())
    composite: str | None = setting(
        None,
        doc="measure with the pixels of this video, or of this folder's, outside of the mask",
        metadata=written(metavar="PATH"),
    )
    prompt: str = setting("", doc="what the videos should show, for the CLIP score")
    token_pixels: int = setting(
        TOKEN_PIXELS, ge=1, doc="side of a token in pixels; the margin is two tokens wide"
    )
    weights: WeightsConfig = group(WeightsConfig())
    device: str = setting(
        "auto", doc="auto, cpu, cuda or cuda:N", metadata=written(metavar="DEVICE")
    )
    output: str | None = setting(
        None,
        doc="write the values of every clip to this CSV file",
        metadata=written("--output", "-o", metavar="FILE", writes="file", suffixes=(".csv",)),
    )
    answer: JsonConfig = group(JsonConfig())

    def __attrs_post_init__(self) -> None:
        """Make sure that there is a mask to composite with."""
        if self.composite is not None and self.mask is None:
            raise ConfigError("--composite needs a --mask", setting="mask")


@frozen(kw_only=True)
class ClipScores:
    """The values of one clip.

    Attributes:
        name: Name of the video, without a suffix.
        frames: Frames that were compared.
        metrics: Values by the names of the columns.
    """

    name: str
    frames: int
    metrics: Mapping[str, Value]


@frozen(kw_only=True)
class Evaluation:
    """All that an evaluation found.

    Attributes:
        columns: What is measured of every clip, and of all together.
        clips: The values of every clip.
        mean: Their means over the clips that have a value; noted how many have none, and why.
        sets: What is measured between all of ``pred`` and all of ``gt``.
        composite: Whether it was measured with compositing.
        notes: What a person should know.
    """

    columns: tuple[MetricColumn, ...]
    clips: tuple[ClipScores, ...]
    mean: Mapping[str, Value]
    sets: Mapping[str, Value]
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
            **_plain(self.sets),
            "notes": list(self.notes),
        }


def evaluate(config: EvaluateConfig, registry: Registry) -> Evaluation:
    """Hold videos against a ground truth, one after the other.

    Args:
        config: What is asked for.
        registry: Where metrics are looked up.

    Raises:
        ConfigError: A file cannot be used, or videos do not go together.
    """
    tools = evolve(config.weights.tools(), device=choose_device(config.device))
    metrics = find_metrics(registry)
    columns = tuple(column for metric in metrics for column in metric.truth_columns())
    check_tools(metrics, tools)
    found = pairs(Path(config.gt), Path(config.pred))
    notes: list[str] = []
    clips, described = [], []
    for pair in found:
        taken = _read(pair, config, alone=len(found) == 1)
        for text in taken.notes:
            note(text)
        notes += taken.notes
        clips.append(_scores(pair, taken, config, columns, tools))
        described.append([describe(metrics, video, tools) for video in (taken.result, taken.truth)])
    return Evaluation(
        columns=columns,
        clips=tuple(clips),
        mean={name: _mean([clip.metrics[name] for clip in clips]) for name in clips[0].metrics},
        sets={
            metric.name: _of_sets(metric, described)
            for metric in metrics
            if isinstance(metric, SetMetric)
        },
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
    import numpy as np

    from hetcache.media.masks import read_mask
    from hetcache.media.video import read_video

    made = read_video(pair.pred, option="--pred")
    result = made.frames  # (F, H, W, 3)
    count, height, width, _ = result.shape
    # One frame more shows whether there are more, where the file itself does not say.
    truth = read_video(pair.gt, option="--gt", max_frames=count + 1)
    notes = [*made.notes, *truth.notes]
    if made.colours != truth.colours:
        notes.append(
            f"{pair.pred} is {made.colours} and {pair.gt} {truth.colours}: they are compared as BT.709 SDR"
        )
    if len(truth.frames) > count:
        whole = "" if truth.total is None else f" of its {truth.total}"
        notes.append(f"{pair.gt} is cut to the first {count}{whole} frames, as {pair.pred} has")
    _fits(truth, pair.gt, result, pair.pred, option="--gt")
    mask = None
    if config.mask is not None:
        path = companion(Path(config.mask), pair.name, alone=alone, option="--mask")
        read = read_mask(
            path,
            frames=count,
            height=height,
            width=width,
            total=truth.total,
            options=config.reading,
        )
        mask = read.pixels
        notes += read.notes
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


def _scores(
    pair: Pair,
    taken: _Taken,
    config: EvaluateConfig,
    columns: tuple[MetricColumn, ...],
    tools: QualityTools,
) -> ClipScores:
    import numpy as np

    areas = {"whole": np.ones(taken.result.shape[:3], np.bool_)}
    if taken.mask is not None:
        areas = regions(taken.mask, config.token_pixels)
    found = measure_columns(
        columns, taken.result, {"truth": taken.truth}, areas, config.prompt, tools, NOT_GIVEN
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


def _of_sets(metric: SetMetric, described: list[list[dict[str, NDArray[Any]]]]) -> Value:
    import numpy as np

    results, truths = (
        [vectors[metric.file] for vectors in side if metric.file in vectors]
        for side in zip(*described, strict=True)
    )
    if not truths:
        return Value(value=None, note=f"needs {metric.needs}")
    return metric.distance(np.stack(results), np.stack(truths))


def _plain(values: Mapping[str, Value]) -> dict[str, dict[str, Any]]:
    return {name: {"value": value.value, "note": value.note} for name, value in values.items()}


def print_evaluation(found: Evaluation) -> None:
    """Print the values for people: a table, and below it what could not be measured.

    Args:
        found: The values.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console()
    overall = found.clips[0].metrics if len(found.clips) == 1 else found.mean
    of_clips = [column for column in found.columns if column.name in overall]
    measured = [column for column in of_clips if overall[column.name].value is not None]
    composited = ", with compositing" if found.composite else ""
    frames = sum(clip.frames for clip in found.clips)
    heading = f"{_count(len(found.clips), 'clip')}, {_count(frames, 'frame')}{composited}"
    console.print(Text(heading, style="bold"), soft_wrap=True)
    console.print(_table(found, measured))
    for column in of_clips:
        if column not in measured:
            console.print(Text(f"{column.label}: {overall[column.name].note}"), soft_wrap=True)
    for column in found.columns:
        if column.name in found.sets:
            shown = column.show(found.sets[column.name])
            console.print(Text(f"{column.label}: {shown}"), soft_wrap=True)


def _table(found: Evaluation, measured: Sequence[MetricColumn]) -> Table:
    """Put clips into rows and metrics into columns, with the units in their headings."""
    from rich.table import Table

    table = Table()
    table.add_column("")
    for column in measured:
        heading = "\n".join(column.label.split(", "))
        unit = f"{ARROWS[column.better]} {column.metric.unit}".rstrip()
        table.add_column(f"{heading}\n{unit}", justify="right")
    rows = [(clip.name, clip.metrics) for clip in found.clips]
    if len(rows) > 1:
        rows.append((ALL, found.mean))
    for name, metrics in rows:
        if metrics is found.mean:
            table.add_section()
        cells = (column.show(metrics[column.name], unit=False) for column in measured)
        table.add_row(name, *cells)
    return table


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def write_csv(found: Evaluation, path: Path) -> None:
    """Write a row for every clip, and one over all; a metric without a value says why.

    Args:
        found: The values.
        path: The file.

    Raises:
        ConfigError: It cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["clip", "frames", *found.mean, *found.sets])
    for clip in found.clips:
        cells = (_cell(clip.metrics[name]) for name in found.mean)
        rows.writerow([to_cell(clip.name), clip.frames, *cells, *("" for _ in found.sets)])
    frames = sum(clip.frames for clip in found.clips)
    rows.writerow([ALL, frames, *map(_cell, found.mean.values()), *map(_cell, found.sets.values())])
    write_text(path, text.getvalue())


def _cell(value: Value) -> str:
    return to_cell(value.note) if value.value is None else repr(value.value)
