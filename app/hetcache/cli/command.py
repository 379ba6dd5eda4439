"""A command of the command line, which plugins can provide. Imports no typer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

__all__ = ["Command"]


class Command(ABC):
    """``hetcache NAME``. Subclasses hold no state.

    Attributes:
        name: what is typed after ``hetcache``.
        summary: what it does, on one line of the help.
        config: an attrs class whose fields, declared with ``hetcache_core.setting``, are the options.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    config: ClassVar[type[Any]]

    @abstractmethod
    def run(self, config: Any) -> int:
        """Do it.

        Args:
            config: an object of the class ``config``.

        Returns:
            The exit status: 0 if all went well.

        Raises:
            HetCacheError: something is wrong; the command line prints it on one line and exits with 2.
        """
