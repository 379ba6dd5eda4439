"""The command that writes a model as ONNX graphs."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from hetcache.editing.config import option_help
from hetcache.running.console import find_plugins, print_json
from hetcache.running.export_config import ExportConfig, make_export_config

__all__ = ["export"]

EXPORT: Final = option_help(ExportConfig)


def export(
    *,
    output: Annotated[str | None, typer.Option("--output", "-o", help=EXPORT["output"])] = None,
    backbone: Annotated[str | None, typer.Option(help=EXPORT["backbone"])] = None,
    model: Annotated[str | None, typer.Option(help=EXPORT["model"])] = None,
    json: Annotated[
        bool, typer.Option("--json", help="print JSON, and nothing else, on stdout")
    ] = False,
) -> None:
    """Write a model as ONNX graphs of the parts that caching runs or leaves out."""
    given: dict[str, Any] = {name: value for name, value in locals().items() if value is not None}
    del given["json"]
    asked = make_export_config(given)

    from hetcache.running.export import export as run_export
    from hetcache.running.export import print_export

    made = run_export(asked, find_plugins())
    if json:
        print_json(made.to_dict())
    else:
        print_export(made)
