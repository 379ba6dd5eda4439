"""The command that compares policies, backbones and clips."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from rich.console import Console

from hetcache.comparison.config import CompareConfig, make_compare_config
from hetcache.editing.config import assignments, option_help
from hetcache.running.console import find_plugins, print_json

__all__ = ["compare"]

COMPARE: Final = option_help(CompareConfig)


def compare(
    *,
    output: Annotated[str | None, typer.Option("--output", "-o", help=COMPARE["output"])] = None,
    backbones: Annotated[str | None, typer.Option(help=COMPARE["backbones"])] = None,
    policies: Annotated[str | None, typer.Option(help=COMPARE["policies"])] = None,
    grid: Annotated[str | None, typer.Option(help=COMPARE["grid"])] = None,
    target_speedups: Annotated[str | None, typer.Option(help=COMPARE["target_speedups"])] = None,
    video: Annotated[str | None, typer.Option(help=COMPARE["video"])] = None,
    mask: Annotated[str | None, typer.Option(help=COMPARE["mask"])] = None,
    prompt: Annotated[str | None, typer.Option(help=COMPARE["prompt"])] = None,
    invert_mask: Annotated[
        bool | None, typer.Option("--invert-mask/--no-invert-mask", help=COMPARE["invert_mask"])
    ] = None,
    clips: Annotated[str | None, typer.Option(help=COMPARE["clips"])] = None,
    seeds: Annotated[str | None, typer.Option(help=COMPARE["seeds"])] = None,
    steps: Annotated[int | None, typer.Option(help=COMPARE["steps"])] = None,
    repeat: Annotated[int | None, typer.Option(help=COMPARE["repeat"])] = None,
    frames: Annotated[int | None, typer.Option(help=COMPARE["frames"])] = None,
    height: Annotated[int | None, typer.Option(help=COMPARE["height"])] = None,
    width: Annotated[int | None, typer.Option(help=COMPARE["width"])] = None,
    cfg_scale: Annotated[float | None, typer.Option(help=COMPARE["cfg_scale"])] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="NAME=VALUE",
            help="an argument of the model library's own call; repeatable",
        ),
    ] = None,
    composite: Annotated[
        bool | None, typer.Option("--composite/--no-composite", help=COMPARE["composite"])
    ] = None,
    lpips: Annotated[str | None, typer.Option(metavar="FILE", help=COMPARE["lpips"])] = None,
    video_features: Annotated[
        str | None, typer.Option(metavar="FILE", help=COMPARE["video_features"])
    ] = None,
    clip: Annotated[str | None, typer.Option(metavar="FOLDER", help=COMPARE["clip"])] = None,
    max_cache_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help=COMPARE["max_cache_bytes"])
    ] = None,
    cache_dtype: Annotated[str | None, typer.Option(help=COMPARE["cache_dtype"])] = None,
    cache_device: Annotated[str | None, typer.Option(help=COMPARE["cache_device"])] = None,
    device: Annotated[str | None, typer.Option(help=COMPARE["device"])] = None,
    dtype: Annotated[str | None, typer.Option(help=COMPARE["dtype"])] = None,
    engine: Annotated[str | None, typer.Option(help=COMPARE["engine"])] = None,
    workers: Annotated[int | None, typer.Option(help=COMPARE["workers"])] = None,
    ray_address: Annotated[str | None, typer.Option(help=COMPARE["ray_address"])] = None,
    resume: Annotated[
        bool | None, typer.Option("--resume/--no-resume", help=COMPARE["resume"])
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="print JSON, and nothing else, on stdout")
    ] = False,
) -> None:
    """Run policies, backbones, clips and seeds against each other; a row for every run."""
    given: dict[str, Any] = {name: value for name, value in locals().items() if value is not None}
    del given["json"]
    if "options" in given:
        given["options"] = assignments(given["options"], option="--option")
    asked = make_compare_config(given)

    from hetcache.comparison.compare import compare as run_comparison
    from hetcache.comparison.page.tables import print_tables, write_all
    from hetcache.comparison.results.summary import summarize

    made = run_comparison(asked, find_plugins())
    files = write_all(made.results)
    if json:
        print_json(made.to_dict())
        return
    console = Console()
    print_tables(summarize(made.results), console)
    console.print(f"rows: {made.results.rows_path}", soft_wrap=True)
    for name, path in files.items():
        console.print(f"{name}: {path}", soft_wrap=True)
