"""The commands that judge videos which are there already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from hetcache.editing.config import option_help
from hetcache.quality.evaluate_config import EvaluateConfig, make_evaluate_config
from hetcache.running.console import print_json

__all__ = ["evaluate", "vbench"]

EVALUATE: Final = option_help(EvaluateConfig)


def evaluate(
    *,
    gt: Annotated[str | None, typer.Option(help=EVALUATE["gt"])] = None,
    pred: Annotated[str | None, typer.Option(help=EVALUATE["pred"])] = None,
    mask: Annotated[str | None, typer.Option(help=EVALUATE["mask"])] = None,
    composite: Annotated[
        str | None, typer.Option(metavar="SOURCE", help=EVALUATE["composite"])
    ] = None,
    prompt: Annotated[str | None, typer.Option(help=EVALUATE["prompt"])] = None,
    token_pixels: Annotated[int | None, typer.Option(help=EVALUATE["token_pixels"])] = None,
    lpips: Annotated[str | None, typer.Option(metavar="FILE", help=EVALUATE["lpips"])] = None,
    video_features: Annotated[
        str | None, typer.Option(metavar="FILE", help=EVALUATE["video_features"])
    ] = None,
    clip: Annotated[str | None, typer.Option(metavar="FOLDER", help=EVALUATE["clip"])] = None,
    device: Annotated[str | None, typer.Option(help=EVALUATE["device"])] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help=EVALUATE["output"])] = None,
    json: Annotated[
        bool, typer.Option("--json", help="print JSON, and nothing else, on stdout")
    ] = False,
) -> None:
    """Hold videos against a ground truth: PSNR, SSIM, LPIPS, flicker, VFID and CLIP score."""
    given: dict[str, Any] = {name: value for name, value in locals().items() if value is not None}
    del given["json"]
    asked = make_evaluate_config(given)

    from hetcache.quality.evaluate import evaluate as run_evaluation
    from hetcache.quality.evaluate_view import print_evaluation, write_csv

    found = run_evaluation(asked)
    if asked.output is not None:
        write_csv(found, Path(asked.output))
    if json:
        print_json(found.to_dict())
    else:
        print_evaluation(found)


def vbench(
    folder: Annotated[str, typer.Argument(help="folder of videos")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="after --, what `vbench evaluate` takes: -- --dimension NAME"),
    ] = None,
) -> None:
    """Hand a folder of videos to an installed VBench."""
    from hetcache.quality.vbench import vbench as run_vbench

    raise typer.Exit(run_vbench(Path(folder), arguments or []))
