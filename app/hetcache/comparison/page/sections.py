"""The built-in sections of the report's page: tables, plots, timelines and videos."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Final, final

from attrs import frozen

from hetcache.comparison.page.plots import (
    drawn_columns,
    legend,
    looks_of,
    panels,
    pareto,
    timelines,
)
from hetcache.comparison.page.scenes import Scene
from hetcache.comparison.page.section import Reported, ReportSection
from hetcache.comparison.page.viewer import viewer_data
from hetcache.comparison.results.columns import Column, columns_of_table, footnotes, method
from hetcache.comparison.results.summary import Line, Setting, Summary, front
from hetcache.quality.metric import MetricColumn

__all__ = ["Plots", "Tables", "Timelines", "Videos"]


@final
@frozen
class Tables(ReportSection):
    """What every policy cost and how good its output is."""

    name = "tables"
    title = "Tables"
    rank = 10

    def render(self, reported: Reported) -> str:
        """Write a table for each model and size, and how its figures were averaged."""
        summary = reported.summary
        tables = (_table(summary, setting) for setting in summary.settings)
        notes = (f'<p class="notes">{escape(note)}</p>' for note in footnotes(summary))
        return "".join((FILTER, *tables, *notes))


@final
@frozen
class Plots(ReportSection):
    """Speed-up against quality, metric by metric."""

    name = "plots"
    title = "Speed-up against fidelity"
    rank = 20

    def render(self, reported: Reported) -> str:
        """Draw the fidelity in the mask; each further metric folded away."""
        summary = reported.summary
        if not panels(summary):
            return "<p>There is nothing but the uncached run yet.</p>"
        columns = drawn_columns(summary)
        folded = (
            f"<details><summary>{escape(column.heading)}</summary>{_plots(summary, column)}</details>"
            for column in columns[1:]
        )
        return "".join((*(_plots(summary, column) for column in columns[:1]), *folded))


@final
@frozen
class Timelines(ReportSection):
    """What every policy did at each step."""

    name = "timelines"
    title = "What every policy did at each step"
    rank = 30

    def render(self, reported: Reported) -> str:
        """Draw the first clip and seed of each policy."""
        parts = [f"<div>{legend().svg()}</div><p>Of the first clip and seed of each policy.</p>"]
        for panel in panels(reported.summary):
            title = escape(panel.title)
            parts.append(
                f'<h3>{title}</h3><div class="scroll" tabindex="0" role="region" '
                f'aria-label="Timelines: {title}">{timelines(panel).svg()}</div>'
            )
        return "".join(parts)


FILTER: Final = '<label class="filter">Show methods with <input type="search"></label>'

FIRST: Final = {
    "flops_speedup": 0,
    "psnr_reference_mask": 1,
    "psnr_reference": 2,
    "clock_speedup": 3,
}
"""Places of the columns that stand before the others."""


@final
@frozen
class Videos(ReportSection):
    """The videos of a clip and seed, in step."""

    name = "videos"
    title = "Videos"
    rank = 40

    def render(self, reported: Reported) -> str:
        """Embed the videos that fit, and the player's controls."""
        place = files("hetcache.comparison.page") / "static" / "viewer.html"
        data = viewer_data(reported.scenes, reported.results)
        return (
            f"{_said_of_videos(reported.scenes)}{place.read_text(encoding='utf-8')}"
            f'<script type="application/json" id="data">{data}</script>'
        )


def _table(summary: Summary, setting: Setting) -> str:
    lines = summary.at(setting)
    parts = [f"<h3>{escape(str(setting))}</h3>"]
    if lines:
        label = f'role="region" aria-label="{escape(f"Table: {setting}")}"'
        parts.append(
            f'<div class="scroll" tabindex="0" {label}><table class="sortable"><thead><tr>'
        )
        parts.append('<th scope="col"><button type="button">method</button></th>')
        columns = _most_asked_first(columns_of_table(summary))
        parts += (
            f'<th scope="col" data-name="{escape(column.name)}" data-better="{column.better}"'
            f'{_hint(column.better)}><button type="button">{escape(column.title)}</button></th>'
            for column in columns
        )
        best = {
            id(line)
            for steps in {line.steps for line in lines}
            for line in front((line for line in lines if line.steps == steps), summary.fidelity)
        }
        parts.append("</tr></thead><tbody>")
        parts += (_row(line, columns, on_front=id(line) in best) for line in lines)
        parts.append("</tbody></table></div>")
        parts.append(
            '<p class="notes">◆: nothing else is both faster, in FLOPs, and closer to the '
            "uncached output in the mask.</p>"
        )
    refused = [refusal for refusal in summary.refused if refusal.setting == setting]
    if refused:
        parts.append("<p>Refused, and why:</p><ul>")
        parts += (f"<li>{escape(str(refusal))}</li>" for refusal in refused)
        parts.append("</ul>")
    return "".join(parts)


def _most_asked_first(columns: Iterable[Column]) -> list[Column]:
    """Put what people compare first, so that a narrow window shows it beside the methods."""
    return sorted(columns, key=lambda column: FIRST.get(column.name, len(FIRST)))


def _hint(better: str) -> str:
    return f' title="{better} is better"' if better else ""


def _row(line: Line, columns: Iterable[Column], *, on_front: bool) -> str:
    mark = ' <span title="on the Pareto front">◆</span>' if on_front else ""
    cells = [f'<th scope="row">{escape(method(line))}{mark}</th>']
    for column in columns:
        value = column.number(line)
        known = "" if value is None else "Infinity" if value == math.inf else repr(float(value))
        shade = "" if known else ' class="none"'
        cells.append(f'<td data-value="{known}"{shade}>{escape(column.text(line))}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _plots(summary: Summary, column: MetricColumn) -> str:
    looks = looks_of(summary)
    parts = []
    for panel in panels(summary):
        parts.append(f'<h3>{escape(panel.title)}</h3><div class="side">')
        parts += (
            f"<div>{pareto(panel, speed, column, looks).svg()}</div>"
            for speed in ("flops", "clock")
        )
        parts.append("</div>")
    return "".join(parts)


def _said_of_videos(scenes: Sequence[Scene]) -> str:
    shown = sum(len(scene.rows) for scene in scenes)
    missing = [scene for scene in scenes if scene.left_out]
    if not missing:
        return "" if shown else "<p>This folder holds no videos.</p>"
    left_out = sum(len(scene.left_out) for scene in missing)
    items = "".join(
        f"<li>{escape(f'{scene.setting}, {scene.steps} steps, {scene.clip}, seed {scene.seed}')}: "
        f"{escape(', '.join(scene.left_out))}</li>"
        for scene in missing
    )
    return (
        f"<details><summary>{left_out} of {shown + left_out} videos are not in this page, which "
        "would be too large with them. <code>--clip NAME</code> chooses clips, and "
        "<code>--max-bytes</code> says how large it may be.</summary>"
        f"<ul>{items}</ul></details>"
    )
