"""The command that turns a comparison into one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetcache.running.console import note, print_json
from hetcache.running.limits import read_size

__all__ = ["report"]


def report(
    folder: Annotated[Path, typer.Argument(help="what `hetcache compare` has filled")],
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="the page; by default report.html in the folder"),
    ] = None,
    clip: Annotated[
        list[str] | None,
        typer.Option(help="show only the videos of this clip; repeatable"),
    ] = None,
    max_bytes: Annotated[
        str, typer.Option(metavar="SIZE", help="most that the videos in the page may take")
    ] = "100MB",
    show: Annotated[bool, typer.Option("--open", help="open the page in the browser")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="print JSON, and nothing else, on stdout")
    ] = False,
) -> None:
    """Write a comparison as one HTML page: tables, plots, timelines, and the videos in step."""
    size = read_size(max_bytes, option="--max-bytes")

    from hetcache.comparison.page.html import write_page

    page = write_page(folder, output=output, clips=clip or (), max_bytes=size)
    if page.left_out:
        total = page.videos + page.left_out
        note(
            f"{page.left_out} of {total} videos are not in the page, which may take {max_bytes}; "
            "--clip chooses clips and --max-bytes allows more"
        )
    if json:
        print_json(page.to_dict())
    else:
        typer.echo(f"page: {page.output} ({page.size_bytes / 1e6:.1f} MB, {page.videos} runs)")
    if show:
        import webbrowser

        if not webbrowser.open(page.output.resolve().as_uri()):
            note(f"no browser was found; open {page.output} yourself", kind="warning")
