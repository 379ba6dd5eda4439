"""The command that runs the contract kit on an installed distribution."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from hetcache.running.console import find_plugins, print_json

__all__ = ["check"]


def check(
    distribution: Annotated[
        str, typer.Argument(metavar="DIST", help="an installed distribution with plugins")
    ],
    *,
    json: Annotated[
        bool, typer.Option("--json", help="print JSON, and nothing else, on stdout")
    ] = False,
) -> None:
    """Run the contract kit on the policies, backbones and clip sets of a distribution."""
    from hetcache.plugins.check import check_distribution
    from hetcache.plugins.check_view import print_checked

    registry = find_plugins(quietly=True)
    with Console(stderr=True).status("checking") as status:
        checked = check_distribution(
            distribution, registry, lambda what: status.update(f"checking {what}")
        )
    if json:
        print_json(checked.to_dict())
    else:
        print_checked(checked)
    if checked.failed:
        raise typer.Exit(1)
