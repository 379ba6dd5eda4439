"""A command of the command line, which plugins can provide. Imports no typer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["Command"]


class Command(ABC):
    """``hetcache NAME``; made without arguments. The summary that it is registered with is its help.

    Attributes:
        name: what is typed after ``hetcache``; ``plugins-NAME`` is ``hetcache plugins NAME``.
        config: an attrs class whose fields, declared with ``hetcache_core.setting``, are the options:
            their names, types, defaults, ranges and texts. ``hetcache.running.options.written`` says
            what a field cannot say of itself.
        reads_file: whether ``--config FILE`` names a YAML file with values of options.
        takes_jobs: whether ``--jobs FILE`` names a YAML file with many sets of them, for ``run_jobs``.
        shows_plugins: whether it shows itself which plugins cannot be used, so that nothing else has to.
    """

    name: ClassVar[str]
    config: ClassVar[type[Any]]
    reads_file: ClassVar[bool] = False
    takes_jobs: ClassVar[bool] = False
    shows_plugins: ClassVar[bool] = False

    @abstractmethod
    def run(self, config: Any, registry: Registry) -> int:
        """Do it.

        Args:
            config: an object of the class ``config``.
            registry: what was discovered.

        Returns:
            The exit status: 0 if all went well.

        Raises:
            HetCacheError: something is wrong; the command line prints it on one line and exits with 2.
        """

    def run_jobs(self, configs: Sequence[Any], registry: Registry) -> int:
        """Do many, one after the other; arguments, status and errors as of ``run``."""
        return max((self.run(config, registry) for config in configs), default=0)
