"""The command that makes a schedule of a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetcache.running.console import find_plugins, print_json
from hetcache_core import ConfigError

__all__ = ["compile_schedule"]


def compile_schedule(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="what --trace has written")],
    *,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="the schedule to write, a JSON file")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="print JSON, and nothing else, on stdout")
    ] = False,
) -> None:
    """Make a schedule of a recorded run, which the policy replay follows without deciding anything."""
    if output is None:
        raise ConfigError("missing --output", where="hetcache compile-schedule", setting="output")

    from hetcache.running.compile_schedule import compile_schedule as run_compilation
    from hetcache.running.compile_schedule import print_compiled

    made = run_compilation(Path(trace), Path(output), find_plugins())
    if json:
        print_json(made.to_dict())
    else:
        print_compiled(made)
