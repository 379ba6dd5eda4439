"""Where messages go: results to stdout, everything else to stderr, each on one line."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TextIO

from hetcache_core import Registry, discover
from hetcache_core.errors import PluginWarning

__all__ = ["answer", "find_plugins", "json_alone", "note", "one_line", "print_json"]

_STDOUT: Final[ContextVar[TextIO | None]] = ContextVar("stdout", default=None)
"""The stream that answers go to, where it is not everybody's."""


def one_line(text: object) -> str:
    """Write a message on one line."""
    return " ".join(str(text).split())


def note(text: str, *, kind: str = "note") -> None:
    """Say something on stderr."""
    print(f"{kind}: {one_line(text)}", file=sys.stderr)  # noqa: T201 - the command line speaks


def loading(what: str) -> None:
    """Say on a terminal, before anything large is imported, that something is about to come."""
    if sys.stderr.isatty():
        note(f"loading {what} …")


def print_json(values: Mapping[str, Any] | list[Any]) -> None:
    """Print one JSON document on stdout."""
    text = json.dumps(values, indent=2, allow_nan=False)
    print(text, file=_STDOUT.get() or sys.stdout)


@contextmanager
def json_alone() -> Iterator[None]:
    """While the block lasts, stdout gets what ``print_json`` prints; all else goes to stderr."""
    token = _STDOUT.set(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _STDOUT.reset(token)


def answer(made: Any, show: Callable[[], None], *, as_json: bool) -> None:
    """Answer with JSON, or for people.

    Args:
        made: What a command has made; its ``to_dict`` is the JSON.
        show: Prints it for people.
        as_json: Which of the two.
    """
    if as_json:
        print_json(made.to_dict())
    else:
        show()


def find_plugins() -> tuple[Registry, tuple[str, ...]]:
    """Find the installed plugins.

    Returns:
        What was found, and a line for each plugin that cannot be used.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", PluginWarning)
        registry = discover()
    return registry, tuple(one_line(warning.message) for warning in caught)
