"""Measures a clip by every metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from hetcache.quality.metric import (
    Against,
    Metric,
    MetricColumn,
    QualityTools,
    SetMetric,
    Value,
    columns_of,
)
from hetcache.quality.regions import regions
from hetcache_core import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["check_tools", "cut_to", "describe", "measure_columns", "measure_quality"]

NO_TOOLS: Final = QualityTools()

ABSENT: Final[Mapping[Against, str]] = {
    "reference": "no uncached output",
    "truth": "no ground truth",
    "prompt": "no prompt",
}
"""What a metric says when there is nothing to hold the result against."""


def measure_quality(
    metrics: Iterable[Metric],
    result: NDArray[np.uint8],
    *,
    mask: NDArray[np.bool_],
    token_pixels: int,
    reference: NDArray[np.uint8] | None = None,
    truth: NDArray[np.uint8] | None = None,
    prompt: str | None = None,
    tools: QualityTools = NO_TOOLS,
) -> dict[str, Value]:
    """Measure one clip by every metric.

    Args:
        metrics: The metrics, as ``find_metrics`` loads them.
        result: (F, H, W, 3) uint8, what is judged.
        mask: (F, H, W) bool; ``True`` is edited.
        token_pixels: Height and width of a token in pixels, for the margin around the mask.
        reference: (F, H, W, 3) uint8, the uncached output of the same seed.
        truth: (F or more, H, W, 3) uint8, the ground truth; what is longer than the result is cut.
        prompt: What the result should show.
        tools: Files of weights.

    Returns:
        A value for every column of ``columns_of`` that belongs to a clip, by name and in their
        order; those that cannot be measured have no value and say why.

    Raises:
        ConfigError: Two videos do not go together, or a file of weights cannot be used.
    """
    held: dict[Against, NDArray[np.uint8]] = {}
    if reference is not None:
        _check(result, reference, "the uncached output")
        held["reference"] = reference
    if truth is not None:
        held["truth"] = cut_to(truth, result)
    areas = regions(mask, token_pixels) if held else {}
    return measure_columns(columns_of(metrics), result, held, areas, prompt or "", tools)


def measure_columns(
    columns: Iterable[MetricColumn],
    result: NDArray[np.uint8],
    held: Mapping[Against, NDArray[np.uint8]],
    areas: Mapping[str, NDArray[np.bool_]],
    prompt: str,
    tools: QualityTools = NO_TOOLS,
    absent: Mapping[Against, str] = ABSENT,
) -> dict[str, Value]:
    """Fill columns for one clip.

    Args:
        columns: What is measured; those of sets of clips are passed over.
        result: (F, H, W, 3) uint8, what is judged.
        held: (F, H, W, 3) uint8, what it is held against.
        areas: (F, H, W) bool by region; "whole" alone where there is no mask.
        prompt: What the result should show, "" if nothing is said.
        tools: Files of weights.
        absent: What a column says where there is nothing to hold the result against.

    Raises:
        ConfigError: A file of weights cannot be used.
    """
    found: dict[str, Value] = {}
    done: dict[tuple[Metric, Against], Mapping[str, Value]] = {}
    for column in columns:
        metric, against = column.metric, column.against
        if isinstance(metric, SetMetric):
            continue
        known = bool(prompt) if against == "prompt" else against in held
        if known and (metric, against) not in done:
            wanted = held.get(against, result)
            done[metric, against] = metric.values(result, wanted, areas, prompt, tools)
        lacking = Value(value=None, note="needs --mask" if known else absent[against])
        found[column.name] = done.get((metric, against), {}).get(column.region, lacking)
    return found


def describe(
    metrics: Iterable[Metric], frames: NDArray[np.uint8], tools: QualityTools
) -> dict[str, NDArray[np.floating[Any]]]:
    """Describe (F, H, W, 3) uint8 frames for every metric of sets: (D,) by the names of files.

    Raises:
        ConfigError: A file of weights cannot be used.
    """
    of_sets = (metric for metric in metrics if isinstance(metric, SetMetric))
    found = {metric.file: metric.describe(frames, tools) for metric in of_sets}
    return {file: features for file, features in found.items() if features is not None}


def check_tools(metrics: Iterable[Metric], tools: QualityTools) -> None:
    """Load every file of weights that was given, so that a bad one is found before long work.

    Args:
        metrics: The metrics, which keep what the files hold.
        tools: The files.

    Raises:
        ConfigError: One cannot be used.
    """
    for metric in metrics:
        metric.check(tools)


def cut_to(truth: NDArray[np.uint8], result: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut a ground truth to the length of a result.

    Args:
        truth: (F or more, H, W, 3) uint8.
        result: (F, H, W, 3) uint8.

    Returns:
        (F, H, W, 3) uint8.

    Raises:
        ConfigError: It is shorter than the result, or of another size.
    """
    cut = truth[: len(result)]
    _check(result, cut, "the ground truth")
    return cut


def _check(result: NDArray[np.uint8], other: NDArray[np.uint8], name: str) -> None:
    if result.shape != other.shape:
        frames, height, width = other.shape[:3]
        raise ConfigError(
            f"{name} has {frames} frames of {height}x{width} (height x width), but the result "
            f"{len(result)} of {result.shape[1]}x{result.shape[2]}"
        )
