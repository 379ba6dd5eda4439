"""``hetcache report``: a comparison as one HTML page that needs nothing else and asks for nothing."""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from hetcache.comparison.page.data import viewer_data
from hetcache.comparison.page.palette import LETTERS, MODES, looks_of
from hetcache.comparison.page.plots import panels
from hetcache.comparison.page.scenes import Scene, choose, find_scenes, only
from hetcache.comparison.page.svg import pareto_svg, timelines_svg
from hetcache.comparison.results.columns import COLUMNS, footnotes, method
from hetcache.comparison.results.folder import Results
from hetcache.comparison.results.lines import Line, Setting, Summary
from hetcache.comparison.results.summary import front, summarize
from hetcache.media.files import check_writable, write_text
from hetcache_core import ConfigError
from hetcache_core.errors import nearest_name

__all__ = ["Page", "write_page"]

PLACE: Final = re.compile(r"\{\{(\w+)\}\}")
"""Where something goes into the template."""


@frozen(kw_only=True)
class Page:
    """A written page.

    Attributes:
        output: The file.
        size_bytes: Its size.
        videos: Runs whose videos are in it.
        left_out: Runs whose videos are not, since they would make it too large.
        summary: What its tables show.
    """

    output: Path
    size_bytes: int
    videos: int
    left_out: int
    summary: Summary

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON."""
        return {
            "output": str(self.output),
            "bytes": self.size_bytes,
            "videos": self.videos,
            "left_out": self.left_out,
            **self.summary.to_dict(),
        }


def write_page(
    folder: Path,
    *,
    output: Path | None = None,
    clips: Sequence[str] = (),
    max_bytes: int,
) -> Page:
    """Write a comparison as one HTML page.

    Args:
        folder: What ``hetcache compare`` has filled.
        output: The page; by default ``report.html`` in the folder.
        clips: Names of the clips whose videos are shown; by default all.
        max_bytes: Most bytes that the videos may take; those that do not fit are named.

    Raises:
        ConfigError: The folder holds no comparison or no finished run, there is no such clip, or
            the page cannot be written.
    """
    output = folder / "report.html" if output is None else output
    results = Results(folder=folder)
    plan = results.read_plan()
    summary = summarize(results)
    if not summary.settings:
        raise ConfigError(
            f"{folder} holds no finished run yet", remedy="Run `hetcache compare` to its end."
        )
    check_writable(output, option="--output")
    scenes = find_scenes(summary, results)
    _check_clips(clips, scenes)
    chosen = choose(only(scenes, clips), results, max_bytes)
    text = _page(summary, chosen, results, plan)
    write_text(output, text)
    return Page(
        output=output,
        size_bytes=len(text.encode()),
        videos=sum(len(scene.rows) for scene in chosen),
        left_out=sum(len(scene.left_out) for scene in chosen),
        summary=summary,
    )


def _check_clips(clips: Sequence[str], scenes: list[Scene]) -> None:
    known = sorted({scene.clip for scene in scenes})
    for clip in clips:
        if clip not in known:
            raise ConfigError(
                f"there is no video of a clip called {clip!r}",
                where="--clip",
                remedy=f"There are {', '.join(known) or 'none'}.",
                given=clip,
                allowed=known,
                nearest=nearest_name(clip, known),
            )


def _page(summary: Summary, scenes: list[Scene], results: Results, plan: dict[str, Any]) -> str:
    folder = files("hetcache.comparison.page") / "static"
    style = (folder / "report.css").read_text(encoding="utf-8")
    scripts = [(folder / f"{name}.js").read_text(encoding="utf-8") for name in ("table", "viewer")]
    script = "{\n" + "}\n{\n".join(scripts) + "}\n"
    values = {
        "title": escape(f"Comparison of caching policies: {results.folder.resolve().name}"),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "intro": _intro(plan),
        "tables": "".join(_table(summary, setting) for setting in summary.settings)
        + "".join(f'<p class="notes">{escape(note)}</p>' for note in footnotes(summary)),
        "plots": _plots(summary),
        "timelines": _timelines(summary),
        "videos": _said_of_videos(scenes),
        "data": viewer_data(scenes, results),
    }
    template = (folder / "report.html").read_text(encoding="utf-8")
    return PLACE.sub(lambda place: values[place[1]], template)


def _hash(text: str) -> str:
    """Write a hash as a Content-Security-Policy wants it: nothing else may run in the page."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _intro(plan: dict[str, Any]) -> str:
    asked = escape(json.dumps(plan, indent=2, ensure_ascii=False))
    return (
        f"<p>Made by hetcache {escape(version('hetcache'))}.</p>"
        f"<details><summary>What was asked for</summary><pre>{asked}</pre></details>"
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
        parts += (
            f'<th scope="col" data-name="{column.name}" data-better="{column.better}"'
            f'{_hint(column.better)}><button type="button">{escape(column.title)}</button></th>'
            for column in COLUMNS
        )
        best = {
            id(line)
            for steps in {line.steps for line in lines}
            for line in front(line for line in lines if line.steps == steps)
        }
        parts.append("</tr></thead><tbody>")
        parts += (_row(line, on_front=id(line) in best) for line in lines)
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


def _hint(better: str) -> str:
    return f' title="{better} is better"' if better else ""


def _row(line: Line, *, on_front: bool) -> str:
    mark = ' <span title="on the Pareto front">◆</span>' if on_front else ""
    cells = [f'<th scope="row">{escape(method(line))}{mark}</th>']
    for column in COLUMNS:
        value = column.number(line)
        known = "" if value is None else "Infinity" if value == math.inf else repr(float(value))
        shade = "" if known else ' class="none"'
        cells.append(f'<td data-value="{known}"{shade}>{escape(column.text(line))}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _plots(summary: Summary) -> str:
    looks = looks_of(summary)
    parts = []
    for panel in panels(summary):
        setting, steps, _ = panel
        parts.append(f'<h3>{escape(f"{setting}, {steps} steps")}</h3><div class="side">')
        parts += (f"<div>{pareto_svg(panel, speed, looks)}</div>" for speed in ("flops", "clock"))
        parts.append("</div>")
    return "".join(parts) or "<p>There is nothing but the uncached run yet.</p>"


def _timelines(summary: Summary) -> str:
    keys = "".join(
        f'<svg width="14" height="14" aria-hidden="true"><rect width="14" height="14" '
        f'fill="{MODES[letter].color}"/></svg> {MODES[letter].title} &emsp;'
        for letter in LETTERS
    )
    parts = [f"<p>{keys} Of the first clip and seed of each policy.</p>"]
    for panel in panels(summary):
        setting, steps, _ = panel
        title = escape(f"{setting}, {steps} steps")
        parts.append(
            f'<h3>{title}</h3><div class="scroll" tabindex="0" role="region" '
            f'aria-label="Timelines: {title}">{timelines_svg(panel)}</div>'
        )
    return "".join(parts)


def _said_of_videos(scenes: list[Scene]) -> str:
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
