"""The report's pictures as inline SVG: nothing to load, and every point says what it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape
from typing import Final

from hetcache.comparison.page.labels import place
from hetcache.comparison.page.palette import LETTERS, MODES, Look
from hetcache.comparison.page.plots import AXIS, FIDELITY_AXIS, Panel, ceiling
from hetcache.comparison.results.lines import Line, Speed
from hetcache.comparison.results.summary import front

__all__ = ["pareto_svg", "timelines_svg"]

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

CELL, ROW = 18, 20
"""Width of a step and height of a policy in the timelines, in pixels."""

NAMES: Final = 190
"""Width of the policies' names in the timelines, in pixels."""

SHAPES: Final = {
    "o": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "s": "M-4.5-4.5h9v9h-9z",
    "^": "M0-5.5L5.5 4.5h-11z",
    "D": "M0-6L6 0L0 6L-6 0z",
    "v": "M0 5.5L5.5-4.5h-11z",
}
"""Outlines of matplotlib's markers."""


def pareto_svg(panel: Panel, speed: Speed, looks: Mapping[str, Look]) -> str:
    """Draw speed-up against fidelity.

    Args:
        panel: What is drawn.
        speed: Which speed-up is on the horizontal axis.
        looks: Colour and shape of every policy.
    """
    setting, steps, lines = panel
    low, high, identical = ceiling(lines)
    points = [
        (line, x, min(y, identical))
        for line in lines
        if (x := line.speedup(speed)) is not None and (y := line.fidelity) is not None
    ]
    name = f"{AXIS[speed]} against {FIDELITY_AXIS}: {setting}, {steps} steps"
    parts = [_opening(WIDTH, HEIGHT, "plot", name)]
    if not points:
        return f'{parts[0]}<text x="{WIDTH // 2}" y="{HEIGHT // 2}">nothing to draw</text></svg>'
    fastest = max(x for _, x, _ in points)
    start, end = min(1.0, *(x for _, x, _ in points)) - 0.05, fastest * 1.08

    def across(x: float) -> float:
        return LEFT + (x - start) / (end - start) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    for x in _ticks(start, end):
        at = f"{across(x):.1f}"
        parts.append(
            f'<path class="grid" d="M{at} {TOP}V{HEIGHT - BOTTOM}"/>'
            f'<text class="tick" x="{at}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}x'
            "</text>"
        )
    for y in _ticks(low, high):
        at = f"{down(y):.1f}"
        parts.append(
            f'<path class="grid" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{at}" dy="4" text-anchor="end">{y:g}</text>'
        )
    if any(y == identical for _, _, y in points):
        at = f"{down(identical):.1f}"
        parts.append(
            f'<path class="same" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>'
            f'<text class="tick" x="{LEFT + 4}" y="{at}" dy="-4">identical</text>'
        )
    parts.append(
        f'<text x="{WIDTH // 2}" y="{HEIGHT - 6}" text-anchor="middle">{AXIS[speed]}</text>'
        f'<text transform="translate(14 {HEIGHT // 2}) rotate(-90)" text-anchor="middle">'
        f"{FIDELITY_AXIS}</text>"
    )
    best = front(lines, speed)
    placed = [(line, across(x), down(y)) for line, x, y in points]
    on_front = sorted((x, y) for line, x, y in placed if line in best)
    steps_down = "".join(f"V{y:.1f}H{x:.1f}" for x, y in on_front[1:])
    (first_x, first_y), *_ = on_front
    parts.append(f'<path class="front" d="M{first_x:.1f} {first_y:.1f}{steps_down}"/>')
    parts += _marks(placed, best, speed, looks)
    return "".join([*parts, "</svg>"])


def timelines_svg(panel: Panel) -> str:
    """Draw what every policy did at every step, for the first clip and seed of each line."""
    setting, steps, lines = panel
    longest = max((len(line.modes) for line in lines), default=0)
    width, height = NAMES + longest * CELL + 8, len(lines) * ROW + 24
    name = f"What every policy did at each step: {setting}, {steps} steps"
    parts = [_opening(width, height, "timelines", name)]
    for row, line in enumerate(lines):
        top = row * ROW
        counts = ", ".join(
            f"{line.modes.count(letter)} {MODES[letter].title}" for letter in LETTERS
        )
        parts.append(
            f'<text x="{NAMES - 8}" y="{top + 14}" text-anchor="end">{escape(_short(line.label))}'
            f"<title>{escape(f'{line.label}: {counts}')}</title></text>"
        )
        parts += (
            f'<rect x="{NAMES + step * CELL}" y="{top + 2}" width="{CELL - 1}" '
            f'height="{ROW - 4}" fill="{MODES[letter].color}">'
            f"<title>{escape(f'{line.label}, step {step}: {MODES[letter].title}')}</title></rect>"
            for step, letter in enumerate(line.modes)
            if letter in MODES
        )
    for step in range(0, longest, 5):
        at = NAMES + step * CELL + CELL / 2
        parts.append(
            f'<text class="tick" x="{at}" y="{height - 6}" text-anchor="middle">{step}</text>'
        )
    return "".join([*parts, "</svg>"])


def _opening(width: int, height: int, kind: str, name: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" class="{kind}" role="group" '
        f'aria-label="{escape(name)}">'
    )


def _marks(
    placed: list[tuple[Line, float, float]],
    best: list[Line],
    speed: Speed,
    looks: Mapping[str, Look],
) -> Iterator[str]:
    """Draw points, each with its label and a line to it where it had to go far."""
    boxes = place(
        [(x, y) for _, x, y in placed],
        [(len(_short(line.label)) * CHARACTER, TEXT) for line, _, _ in placed],
        (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
        marker=RADIUS + 1,
    )
    for (line, x, y), box in zip(placed, boxes, strict=True):
        near = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
        if math.dist(near, (x, y)) > 4 * RADIUS:
            yield f'<path class="leader" d="M{x:.1f} {y:.1f}L{near[0]:.1f} {near[1]:.1f}"/>'
        look = looks[line.policy]
        kind = "mark best" if line in best else "mark"
        yield (
            f'<path class="{kind}" transform="translate({x:.1f} {y:.1f})" '
            f'd="{SHAPES[look.marker]}" fill="{look.color}" tabindex="0" role="img" '
            f'aria-label="{escape(_said(line, speed))}">'
            f"<title>{escape(_said(line, speed))}</title></path>"
            f'<text class="label" x="{(box[0] + box[2]) / 2:.1f}" y="{box[3] - 3:.1f}" '
            f'text-anchor="middle">{escape(_short(line.label))}</text>'
        )


def _said(line: Line, speed: Speed) -> str:
    gain, closeness = line.speedup(speed), line.fidelity
    shown = "identical" if closeness == math.inf else f"{closeness:.2f} dB"
    return f"{line.label}: {gain:.2f}x, {shown}; clips x seeds: {line.cases}"


def _short(label: str) -> str:
    """Cut a long label, which is whole in the title."""
    most = NAMES // 7
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _ticks(low: float, high: float) -> list[float]:
    """Give round numbers between two, about as many as ``TICKS``."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(count * step, 10) for count in range(first, last + 1)]
