"""What the extra ``app`` installs, and what is said where it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from hetcache_core import UnsupportedBackboneError

__all__ = ["needs_app"]

LIBRARIES: Final = frozenset(
    {"PIL", "av", "matplotlib", "numpy", "rich", "torchmetrics", "typer", "yaml"}
)
"""What the extra installs, by the names of the modules."""


@contextmanager
def needs_app() -> Iterator[None]:
    """Say how to get a library of the extra that is missing.

    Raises:
        UnsupportedBackboneError: One is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in LIBRARIES:
            raise
        raise UnsupportedBackboneError(
            f"{missing} is not installed", remedy="Run: pip install 'hetcache[app]'"
        ) from error
