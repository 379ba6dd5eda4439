"""``hetcache report``: a comparison as one HTML page that needs nothing else and asks for nothing."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from hetcache.comparison.page.scenes import Scene, choose, find_scenes, only
from hetcache.comparison.page.section import Reported, ReportSection, check_html
from hetcache.comparison.results.folder import Results
from hetcache.comparison.results.summary import Summary, summarize
from hetcache.media.files import check_writable
from hetcache.quality.metric import find_metrics
from hetcache.running.console import note, one_line
from hetcache_core import ConfigError
from hetcache_core.errors import nearest_name
from hetcache_core.files import write_text

if TYPE_CHECKING:
    from hetcache_core import Registry

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
    registry: Registry,
    *,
    output: Path | None = None,
    clips: Sequence[str] = (),
    max_bytes: int,
) -> Page:
    """Write a comparison as one HTML page.

    Args:
        folder: What ``hetcache compare`` has filled.
        registry: Where metrics and sections are looked up.
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
    summary = summarize(results, find_metrics(registry))
    if not summary.settings:
        raise ConfigError(
            f"{folder} holds no finished run yet", remedy="Run `hetcache compare` to its end."
        )
    check_writable(output, option="--output")
    scenes = find_scenes(summary, results)
    _check_clips(clips, scenes)
    chosen = choose(only(scenes, clips), results, max_bytes)
    reported = Reported(results=results, summary=summary, plan=plan, scenes=tuple(chosen))
    text = _page(reported, registry)
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


def _page(reported: Reported, registry: Registry) -> str:
    folder = files("hetcache.comparison.page") / "static"
    style = (folder / "report.css").read_text(encoding="utf-8")
    scripts = [(folder / f"{name}.js").read_text(encoding="utf-8") for name in ("table", "viewer")]
    script = "{\n" + "}\n{\n".join(scripts) + "}\n"
    written = {section: _section(section, reported) for section in _sections(registry)}
    shown = {section: text for section, text in written.items() if text}
    values = {
        "title": escape(
            f"Comparison of caching policies: {reported.results.folder.resolve().name}"
        ),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "intro": _intro(reported.plan),
        "nav": " ".join(f'<a href="#{each.name}">{escape(each.title)}</a>' for each in shown),
        "sections": "\n".join(
            f'<section id="{each.name}">\n<h2>{escape(each.title)}</h2>\n{text}\n</section>'
            for each, text in shown.items()
        ),
    }
    template = (folder / "report.html").read_text(encoding="utf-8")
    return PLACE.sub(lambda place: values[place[1]], template)


def _sections(registry: Registry) -> list[ReportSection]:
    names = registry.names("report section")
    loaded = [registry.load("report section", name)() for name in names]
    return sorted(loaded, key=lambda section: (section.rank, section.name))


def _section(section: ReportSection, reported: Reported) -> str:
    """Write a section; one that fails says so in its place, and the others are written."""
    try:
        text = section.render(reported)
        check_html(text, subject=f"report section {section.name!r}")
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything
        said = one_line(f"{type(error).__name__}: {error}")
        note(f"the report section {section.name} failed: {said}", kind="warning")
        text = f"<p>This section could not be written: {escape(said)}</p>"
    return text


def _hash(text: str) -> str:
    """Write a hash as a Content-Security-Policy wants it: nothing else may run in the page."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _intro(plan: Mapping[str, Any]) -> str:
    asked = escape(json.dumps(plan, indent=2, ensure_ascii=False))
    return (
        f"<p>Made by hetcache {escape(version('hetcache'))}.</p>"
        f"<details><summary>What was asked for</summary><pre>{asked}</pre></details>"
    )
