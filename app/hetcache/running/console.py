"""Where messages go: results to stdout, everything else to stderr, each on one line."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import typer

from hetcache_core import Registry, discover
from hetcache_core.errors import PluginWarning

__all__ = ["find_plugins", "note", "one_line", "print_json"]


def one_line(text: object) -> str:
    """Write a message on one line."""
    return " ".join(str(text).split())


def note(text: str, *, kind: str = "note") -> None:
    """Say something on stderr."""
    typer.echo(f"{kind}: {one_line(text)}", err=True)


def print_json(values: Mapping[str, Any] | list[Any]) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(values, indent=2, allow_nan=False))


def find_plugins(*, quietly: bool = False) -> Registry:
    """Find the installed plugins, with one line on stderr for each that cannot be used.

    Args:
        quietly: Leave these lines out, where the plugins are listed with their errors anyway.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", PluginWarning)
        registry = discover()
    for warning in () if quietly else caught:
        note(str(warning.message), kind="warning")
    return registry
