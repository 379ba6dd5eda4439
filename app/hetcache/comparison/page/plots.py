"""A comparison's pictures: speed-up against quality, and what every policy did at every step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from attrs import frozen

from hetcache.comparison.page.drawing import Drawing, Line, Point, Shape, Words, stack
from hetcache.comparison.page.labels import place
from hetcache.comparison.results.summary import Line as Summed
from hetcache.comparison.results.summary import Setting, Speed, Summary, front
from hetcache.quality.metric import MetricColumn
from hetcache_core.files import replacing, write_text

__all__ = [
    "LETTERS",
    "MODES",
    "Look",
    "ModeLook",
    "Panel",
    "drawn_columns",
    "legend",
    "looks_of",
    "panels",
    "pareto",
    "timelines",
    "write_plots",
]

AXIS: Final[dict[Speed, str]] = {"flops": "speed-up in FLOPs", "clock": "speed-up on the clock"}

# Source: Okabe and Ito, "Color universal design", 2008, which colour-blind people can tell apart;
# without black and yellow, which vanish on one of the two backgrounds.
COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")

SHAPES: Final[Mapping[str, tuple[Point, ...]]] = {
    "circle": tuple(
        (5 * math.cos(turn * math.pi / 8), 5 * math.sin(turn * math.pi / 8)) for turn in range(16)
    ),
    "square": ((-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)),
    "triangle": ((0, -5.5), (5.5, 4.5), (-5.5, 4.5)),
    "diamond": ((0, -6), (6, 0), (0, 6), (-6, 0)),
    "turned": ((0, 5.5), (5.5, -4.5), (-5.5, -4.5)),
}
"""Outlines of the markers, in pixels around a point."""

WIDTH, HEIGHT = 660, 420
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 44
"""Margins around the area of the points, in pixels."""

CHARACTER: Final = 6.2
"""Width of a character in pixels, at most on average; the browser's font is not known here."""

TEXT: Final = 13
"""Height of a label in pixels."""

RADIUS: Final = 5.0
"""Of a marker in pixels."""

TICKS: Final = 6
"""Ticks on an axis, about."""

HEADROOM: Final = 0.12
"""How far above the best value the identical videos are drawn, as a share of the range."""

LEAST_RANGE: Final = 0.12
"""Least range of the axis as a share of its values, so that equal ones do not fill the picture."""

CELL, ROW = 18, 20
"""Width of a step and height of a policy in the timelines, in pixels."""

NAMES: Final = 190
"""Width of the policies' names in the timelines, in pixels."""


@frozen(kw_only=True)
class Panel:
    """Lines that may be drawn together: speed-up is held against an uncached run, which they share.

    Attributes:
        setting: Model and size.
        steps: Steps of the sampler.
        lines: All but the uncached one.
    """

    setting: Setting
    steps: int
    lines: tuple[Summed, ...]

    @property
    def title(self) -> str:
        """Model, size and steps."""
        return f"{self.setting}, {self.steps} steps"


@frozen(kw_only=True)
class Look:
    """How the points of a policy are drawn.

    Attributes:
        color: As "#rrggbb".
        marker: A name in ``SHAPES``.
    """

    color: str
    marker: str


@frozen(kw_only=True)
class ModeLook:
    """How a step is drawn.

    Attributes:
        title: What it did.
        color: As "#rrggbb"; the three differ in lightness as well as in hue.
    """

    title: str
    color: str


MODES: Final = MappingProxyType(
    {
        "f": ModeLook(title="full", color="#0072B2"),
        "p": ModeLook(title="partial", color="#E69F00"),
        "r": ModeLook(title="reused", color="#DDDDDD"),
    }
)
"""By the letters of a row's modes."""

LETTERS: Final = tuple(MODES)


def looks_of(summary: Summary) -> dict[str, Look]:
    """Give every policy the same look in all panels: thirty different ones, then again."""
    policies = dict.fromkeys(line.policy for line in summary.lines if not line.is_reference)
    markers = tuple(SHAPES)
    return {
        policy: Look(color=COLORS[number % len(COLORS)], marker=markers[number % len(markers)])
        for number, policy in enumerate(policies)
    }


def panels(summary: Summary) -> list[Panel]:
    """Part the lines into those that may be drawn together."""
    found = []
    for setting in summary.settings:
        lines = [line for line in summary.at(setting) if not line.is_reference]
        for steps in dict.fromkeys(line.steps for line in lines):
            own = tuple(line for line in lines if line.steps == steps)
            found.append(Panel(setting=setting, steps=steps, lines=own))
    return found


def drawn_columns(summary: Summary) -> list[MetricColumn]:
    """Return what speed-up is drawn against: fidelity first, then every metric with a value."""
    known = [
        column
        for column in summary.columns
        if any(line.value(column) is not None for line in summary.lines if not line.is_reference)
    ]
    first = [column for column in summary.columns if column == summary.fidelity]
    return [*first, *(column for column in known if column not in first)]


def write_plots(summary: Summary, folder: Path) -> dict[str, Path]:
    """Draw everything into a folder, each file whole or not at all.

    Args:
        summary: What was summed up.
        folder: Where the files go.

    Returns:
        The files: "pareto", "pareto_clock" and "timelines", each also with "_svg", and "metrics",
        a folder with a drawing for each further metric. Nothing is drawn while there is only the
        uncached run.

    Raises:
        ConfigError: A file cannot be written.
    """
    drawn, looks, columns = panels(summary), looks_of(summary), drawn_columns(summary)
    if not drawn:
        return {}

    def against(column: MetricColumn, speed: Speed) -> Drawing:
        return stack([pareto(panel, speed, column, looks) for panel in drawn])

    drawings = {"timelines": stack([legend(), *map(timelines, drawn)])}
    if columns:
        drawings["pareto"] = against(columns[0], "flops")
        drawings["pareto_clock"] = against(columns[0], "clock")
    files: dict[str, Path] = {}
    for name, drawing in drawings.items():
        path = folder / f"{name.replace('_', '-')}.png"
        files |= {name: path, f"{name}_svg": path.with_suffix(".svg")}
        with replacing(path) as part:
            drawing.picture().save(part)
        write_text(files[f"{name}_svg"], drawing.svg(file=True))
    if columns[1:]:
        files["metrics"] = folder / "metrics"
        files["metrics"].mkdir(exist_ok=True)
    for column in columns[1:]:
        drawing = against(column, "flops")
        write_text(files["metrics"] / f"{column.name}.svg", drawing.svg(file=True))
    return files


def pareto(panel: Panel, speed: Speed, column: MetricColumn, looks: Mapping[str, Look]) -> Drawing:
    """Draw speed-up against quality.

    Args:
        panel: What is drawn.
        speed: Which speed-up is on the horizontal axis.
        column: Which metric is on the vertical axis.
        looks: Colour and shape of every policy.
    """
    heading = f"{column.heading} ({column.better} is better)"
    found = [
        (line, gain, value)
        for line in panel.lines
        if (gain := line.speedup(speed)) is not None and (value := line.value(column)) is not None
    ]
    parts: list[Line | Shape | Words] = []
    if not found:
        parts.append(Words(text="nothing to draw", at=(WIDTH / 2, HEIGHT / 2)))
    else:
        low, high, identical = _range([value for *_, value in found])
        points = [(line, gain, min(value, identical)) for line, gain, value in found]
        gains = [gain for _, gain, _ in points]
        start, end = min(1.0, *gains) - 0.05, max(gains) * 1.08

        def at(gain: float, value: float) -> Point:
            across = LEFT + (gain - start) / (end - start) * (WIDTH - LEFT - RIGHT)
            return across, HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

        for gain in _ticks(start, end):
            x, _ = at(gain, low)
            parts.append(Line(kind="grid", points=((x, TOP), (x, HEIGHT - BOTTOM))))
            parts.append(Words(text=f"{gain:g}x", at=(x, HEIGHT - BOTTOM + 16), kind="tick"))
        for value in _ticks(low, high):
            _, y = at(start, value)
            parts.append(Line(kind="grid", points=((LEFT, y), (WIDTH - RIGHT, y))))
            parts.append(Words(text=f"{value:g}", at=(LEFT - 6, y + 4), anchor="end", kind="tick"))
        if any(value == math.inf for *_, value in found):
            _, y = at(start, identical)
            parts.append(Line(kind="same", points=((LEFT, y), (WIDTH - RIGHT, y))))
            parts.append(Words(text="identical", at=(LEFT + 4, y - 4), anchor="start", kind="tick"))
        parts.append(Words(text=AXIS[speed], at=(WIDTH / 2, HEIGHT - 6)))
        parts.append(Words(text=heading, at=(14, HEIGHT / 2), turned=True))
        best = front(panel.lines, column, speed)
        placed = [(line, at(gain, value)) for line, gain, value in points]
        corners = sorted(point for line, point in placed if line in best)
        way = [corners[0]]
        for x, y in corners[1:]:
            way += [(way[-1][0], y), (x, y)]
        parts.append(Line(kind="front", points=tuple(way)))
        said = {id(line): _said(line, gain, value, column) for line, gain, value in found}
        parts += _marks(placed, best, said, looks)
    return Drawing(
        width=WIDTH,
        height=HEIGHT,
        kind="plot",
        title=panel.title,
        name=f"{AXIS[speed]} against {heading}: {panel.title}",
        parts=tuple(parts),
    )


def timelines(panel: Panel) -> Drawing:
    """Draw what every policy did at every step, for the first clip and seed of each line."""
    longest = max((len(line.modes) for line in panel.lines), default=0)
    parts: list[Line | Shape | Words] = []
    for row, line in enumerate(panel.lines):
        top = row * ROW
        counts = ", ".join(f"{line.modes.count(mode)} {MODES[mode].title}" for mode in LETTERS)
        parts.append(
            Words(
                text=_short(line.label),
                at=(NAMES - 8, top + 14),
                anchor="end",
                said=f"{line.label}: {counts}",
            )
        )
        for step, letter in enumerate(line.modes):
            if letter in MODES:
                left = NAMES + step * CELL
                parts.append(
                    Shape(
                        kind="step",
                        points=_box(left, top + 2, CELL - 1, ROW - 4),
                        color=MODES[letter].color,
                        said=f"{line.label}, step {step}: {MODES[letter].title}",
                    )
                )
    height = len(panel.lines) * ROW + 24
    for step in range(0, longest, 5):
        middle = NAMES + step * CELL + CELL / 2
        parts.append(Words(text=str(step), at=(middle, height - 6), kind="tick"))
    return Drawing(
        width=NAMES + longest * CELL + 8,
        height=height,
        kind="timelines",
        title=panel.title,
        name=f"What every policy did at each step: {panel.title}",
        parts=tuple(parts),
    )


def legend() -> Drawing:
    """Draw which colour stands for what a step did."""
    parts: list[Shape | Words] = []
    for number, look in enumerate(MODES.values()):
        left = 8 + 80 * number
        parts.append(Shape(kind="step", points=_box(left, 4, 14, 14), color=look.color))
        parts.append(Words(text=look.title, at=(left + 20, 15), anchor="start"))
    name = "Colours of the steps: " + ", ".join(look.title for look in MODES.values())
    return Drawing(
        width=8 + 80 * len(MODES), height=ROW + 2, kind="key", name=name, parts=tuple(parts)
    )


def _range(values: Sequence[float]) -> tuple[float, float, float]:
    """Find the lower and upper end of an axis, and where identical videos are, which are infinite."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    span = max(high - low, LEAST_RANGE * abs(high)) or 1.0
    low = high - span
    return low - HEADROOM * span, high + 2 * HEADROOM * span, high + HEADROOM * span


def _marks(
    placed: Sequence[tuple[Summed, Point]],
    best: Sequence[Summed],
    said: Mapping[int, str],
    looks: Mapping[str, Look],
) -> Iterator[Line | Shape | Words]:
    """Draw points, each with its label and a line to it where it had to go far."""
    boxes = place(
        [point for _, point in placed],
        [(len(_short(line.label)) * CHARACTER, TEXT) for line, _ in placed],
        (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
        marker=RADIUS + 1,
    )
    for (line, (x, y)), box in zip(placed, boxes, strict=True):
        near = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
        if math.dist(near, (x, y)) > 4 * RADIUS:
            yield Line(kind="leader", points=((x, y), near))
        look = looks[line.policy]
        yield Shape(
            kind="mark",
            points=tuple((x + across, y + down) for across, down in SHAPES[look.marker]),
            color=look.color,
            said=said[id(line)],
            best=line in best,
            reached=True,
        )
        middle = (box[0] + box[2]) / 2
        yield Words(text=_short(line.label), at=(middle, box[3] - 3), kind="label")


def _said(line: Summed, gain: float, value: float, column: MetricColumn) -> str:
    number = f"{value:.{column.metric.digits}f} {column.metric.unit}".strip()
    shown = "identical" if value == math.inf else number
    return f"{line.label}: {gain:.2f}x, {shown}; clips x seeds: {line.cases}"


def _short(label: str) -> str:
    """Cut a long label, which is whole in what is said of it."""
    most = NAMES // 7
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _box(left: float, top: float, width: float, height: float) -> tuple[Point, ...]:
    right, bottom = left + width, top + height
    return (left, top), (right, top), (right, bottom), (left, bottom)


def _ticks(low: float, high: float) -> list[float]:
    """Give round numbers between two, about as many as ``TICKS``."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(count * step, 10) for count in range(first, last + 1)]
