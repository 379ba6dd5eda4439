"""Code of plugins is run so that it changes nothing for others."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["isolated", "short", "shown"]


@contextmanager
def isolated() -> Iterator[None]:
    """Run a plugin's import or hook: what it prints goes to stderr, and no warning becomes an error.

    Filters that silence warnings stay, since libraries that a plugin imports set them for themselves;
    those that raise, and changes to what was there, are taken back. What is raised passes: callers catch
    all of it but ``KeyboardInterrupt``.
    """
    filters: Any = warnings.filters
    before, show = list(filters), warnings.showwarning
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        warnings.showwarning = show
        if filters != before:
            filters[:] = [f for f in filters if f not in before and f[0] != "error"] + before
            with warnings.catch_warnings():
                pass  # makes Python forget what it made of the filters before


def short(error: BaseException) -> str:
    """Write an error of a plugin on one line; one that cannot be written is named by its class."""
    try:
        return " ".join(f"{type(error).__name__}: {error}".split())
    except Exception:  # noqa: BLE001 - another author's __str__
        return type(error).__name__


def shown(value: object) -> str:
    """Write a value of a plugin; one that cannot be written is named by its class."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - another author's __repr__
        return type(value).__name__
