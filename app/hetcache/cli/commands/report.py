"""``hetcache report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from attrs import frozen

from hetcache.cli.command import Command
from hetcache.running.console import answer, note
from hetcache.running.groups import JsonConfig
from hetcache.running.limits import read_size
from hetcache.running.options import written
from hetcache_core import setting
from hetcache_core.settings.declare import group

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["ReportCommand", "ReportConfig"]


@final
@frozen(kw_only=True)
class ReportConfig:
    """One page, as it is asked for."""

    folder: str = setting(
        doc="what `hetcache compare` has filled",
        metadata=written(metavar="FOLDER", positional=True),
    )
    output: str | None = setting(
        None,
        doc="the page",
        metadata=written(
            "--output",
            "-o",
            metavar="FILE",
            unset="report.html in the folder",
            writes="file",
            suffixes=(".html", ".htm"),
        ),
    )
    clip: tuple[str, ...] = setting(
        (), doc="show only the videos of this clip", metadata=written(unset="all")
    )
    max_bytes: str = setting(
        "100MB", doc="most that the videos in the page may take", metadata=written(metavar="SIZE")
    )
    open: bool = setting(default=False, doc="open the page in the browser")
    answer: JsonConfig = group(JsonConfig())


@final
class ReportCommand(Command):
    """Write a comparison as one HTML page: tables, plots, timelines, and the videos in step."""

    name: ClassVar[str] = "report"
    config: ClassVar[type[ReportConfig]] = ReportConfig

    def run(self, config: ReportConfig, registry: Registry) -> int:
        """Write the page, and say where it is."""
        size = read_size(config.max_bytes, option="--max-bytes")

        from hetcache.comparison.page.html import write_page

        page = write_page(
            Path(config.folder),
            registry,
            output=None if config.output is None else Path(config.output),
            clips=config.clip,
            max_bytes=size,
        )
        if page.left_out:
            total = page.videos + page.left_out
            note(
                f"{page.left_out} of {total} videos are not in the page, which may take "
                f"{config.max_bytes}; --clip chooses clips and --max-bytes allows more"
            )
        said = f"page: {page.output} ({page.size_bytes / 1e6:.1f} MB, {page.videos} runs)"
        answer(page, lambda: print(said), as_json=config.answer.json)  # noqa: T201 - the answer
        if config.open:
            import webbrowser

            if not webbrowser.open(page.output.resolve().as_uri()):
                note(f"no browser was found; open {page.output} yourself", kind="warning")
        return 0
