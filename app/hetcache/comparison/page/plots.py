"""A comparison's pictures: speed-up against fidelity, and what every policy did at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hetcache.comparison.page.labels import place
from hetcache.comparison.page.palette import LETTERS, MODES, Look, looks_of
from hetcache.comparison.results.lines import Line, Setting, Speed, Summary
from hetcache.comparison.results.summary import front
from hetcache.media.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "AXIS",
    "FIDELITY_AXIS",
    "Panel",
    "ceiling",
    "panels",
    "pareto",
    "timelines",
    "write_plots",
]

AXIS: Final[dict[Speed, str]] = {"flops": "speed-up in FLOPs", "clock": "speed-up on the clock"}
FIDELITY_AXIS: Final = "PSNR to uncached in the mask, dB"

PANEL_WIDTH: Final = 7.5
PANEL_HEIGHT: Final = 5.0
ROW_HEIGHT: Final = 0.26
"""Of a policy in the timelines, in inches."""

DPI: Final = 150
LABEL_SIZE: Final = 7
MARKER: Final = 6.0
"""Width of a marker in points."""

HEADROOM: Final = 0.12
"""How far above the best PSNR the identical videos are drawn, as a share of the range."""

LEAST_RANGE: Final = 5.0
"""Least range of the axis in dB, so that equal values do not fill the picture."""

Panel = tuple[Setting, int, list[Line]]
"""Model and size, number of steps, and the lines but the uncached one."""


def write_plots(summary: Summary, folder: Path) -> dict[str, Path]:
    """Draw everything into a folder, each file whole or not at all.

    Args:
        summary: What was summed up.
        folder: Where the files go.

    Returns:
        The files: "pareto" and "pareto_clock", both also with "_svg", and "timelines". Nothing
        is drawn while there is only the uncached run.

    Raises:
        ConfigError: A file cannot be written.
    """
    if not panels(summary):
        return {}
    by_clock = pareto(summary, "clock")
    figures = {
        "pareto": (pareto(summary, "flops"), "pareto.png"),
        "pareto_svg": (pareto(summary, "flops"), "pareto.svg"),
        "pareto_clock": (by_clock, "pareto-clock.png"),
        "pareto_clock_svg": (by_clock, "pareto-clock.svg"),
        "timelines": (timelines(summary), "timelines.png"),
    }
    files = {}
    for name, (figure, file) in figures.items():
        files[name] = folder / file
        with replacing(files[name]) as part:
            figure.savefig(part)
    return files


def panels(summary: Summary) -> list[Panel]:
    """Part the lines into those that may be drawn together.

    Speed-up and fidelity are held against an uncached run, so only lines with the same one share
    a picture.
    """
    found = []
    for setting in summary.settings:
        lines = [line for line in summary.at(setting) if not line.is_reference]
        for steps in dict.fromkeys(line.steps for line in lines):
            found.append((setting, steps, [line for line in lines if line.steps == steps]))
    return found


def pareto(summary: Summary, speed: Speed) -> Figure:
    """Draw speed-up against fidelity, one panel for each model, size and number of steps.

    Args:
        summary: What was summed up.
        speed: Which speed-up is on the horizontal axis.
    """
    from matplotlib.figure import Figure

    drawn = panels(summary)
    looks = looks_of(summary)
    figure = Figure(figsize=(PANEL_WIDTH, PANEL_HEIGHT * len(drawn)), dpi=DPI)
    margin = 0.6 / (PANEL_HEIGHT * len(drawn))
    figure.subplots_adjust(left=0.09, right=0.98, bottom=margin, top=1 - margin, hspace=0.3)
    for axes, (setting, steps, lines) in zip(
        figure.subplots(len(drawn), squeeze=False)[:, 0], drawn, strict=True
    ):
        axes.set_title(f"{setting}, {steps} steps", fontsize=9, parse_math=False)
        axes.set_xlabel(AXIS[speed])
        axes.set_ylabel(FIDELITY_AXIS)
        axes.grid(alpha=0.3)
        _draw_points(axes, lines, speed, looks)
    return figure


def ceiling(lines: Sequence[Line]) -> tuple[float, float, float]:
    """Find the vertical range of a panel in dB.

    Returns:
        Lower end, upper end, and where identical videos are drawn, whose PSNR is infinite.
    """
    finite = [y for line in lines if (y := line.fidelity) is not None and math.isfinite(y)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    span = max(high - low, LEAST_RANGE)
    return low - HEADROOM * span, high + 2 * HEADROOM * span, high + HEADROOM * span


def timelines(summary: Summary) -> Figure:
    """Draw what every policy did at every step, for the first clip and seed of each line."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    drawn = panels(summary)
    heights = [len(lines) + 3 for _, _, lines in drawn]
    figure = Figure(
        figsize=(PANEL_WIDTH, 0.5 + ROW_HEIGHT * sum(heights)), dpi=DPI, layout="constrained"
    )
    all_axes = figure.subplots(len(drawn), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (setting, steps, lines) in zip(all_axes, drawn, strict=True):
        for row, line in enumerate(lines):
            for letter in LETTERS:
                spans = [(i, 1) for i, mode in enumerate(line.modes) if mode == letter]
                axes.broken_barh(
                    spans, (row - 0.4, 0.8), color=MODES[letter].color, edgecolor="white", lw=0.4
                )
        axes.set_yticks(
            range(len(lines)), [line.label for line in lines], fontsize=LABEL_SIZE, parse_math=False
        )
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlim(0, max(len(line.modes) for line in lines) or 1)
        axes.set_title(
            f"{setting}, {steps} steps: first clip and seed", fontsize=9, parse_math=False
        )
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    patches = [Patch(color=MODES[letter].color, label=MODES[letter].title) for letter in LETTERS]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), frameon=False)
    return figure


def _draw_points(axes: Axes, lines: list[Line], speed: Speed, looks: Mapping[str, Look]) -> None:
    low, high, identical = ceiling(lines)
    axes.set_ylim(low, high)
    points = [
        (line, x, min(y, identical))
        for line in lines
        if (x := line.speedup(speed)) is not None and (y := line.fidelity) is not None
    ]
    if not points:
        axes.text(0.5, 0.5, "nothing to draw", ha="center", transform=axes.transAxes)
        return
    furthest = max(x for _, x, _ in points)
    axes.set_xlim(min(1.0, *(x for _, x, _ in points)) - 0.05, furthest + 0.08 * furthest)
    on_front = front(lines, speed)
    best = sorted((x, y) for line, x, y in points if line in on_front)
    axes.plot(*zip(*best, strict=True), color="0.6", lw=1, drawstyle="steps-pre", zorder=1)
    if any(y == identical for _, _, y in points):
        axes.axhline(identical, color="0.6", lw=0.8, ls=":", zorder=0)
        _text(
            axes, "identical", (0.0, identical), transform=axes.get_yaxis_transform(), va="bottom"
        )
    for line, x, y in points:
        look = looks[line.policy]
        edge = "black" if (x, y) in best else "none"
        axes.plot(x, y, look.marker, color=look.color, ms=MARKER, mec=edge, mew=0.8, zorder=2)
    _draw_labels(axes, points)


def _draw_labels(axes: Axes, points: list[tuple[Line, float, float]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure: Any = axes.figure
    canvas: Any = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    pixels = [tuple(axes.transData.transform((x, y))) for _, x, y in points]
    texts = [_text(axes, line.label, (x, y), va="bottom") for line, x, y in points]
    extents = [text.get_window_extent(renderer) for text in texts]
    area = axes.get_window_extent(renderer)
    per_point = figure.dpi / 72
    boxes = place(
        pixels,
        [(extent.width, extent.height) for extent in extents],
        (area.x0, area.y0, area.x1, area.y1),
        marker=MARKER * per_point / 2,
    )
    back = axes.transData.inverted()
    for text, box, pixel, (_, x, y) in zip(texts, boxes, pixels, points, strict=True):
        text.set_position(back.transform(box[:2]))
        nearest = [min(max(value, box[axis]), box[axis + 2]) for axis, value in enumerate(pixel)]
        if math.dist(nearest, pixel) > 2 * MARKER * per_point:
            end = back.transform(nearest)
            axes.plot((x, end[0]), (y, end[1]), color="0.6", lw=0.5, zorder=1)


def _text(axes: Axes, words: str, at: tuple[float, float], **keywords: Any) -> Any:
    return axes.text(*at, words, fontsize=LABEL_SIZE, parse_math=False, **keywords)
