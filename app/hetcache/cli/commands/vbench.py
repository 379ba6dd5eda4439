"""``hetcache vbench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from attrs import frozen

from hetcache.cli.command import Command
from hetcache.quality.vbench import vbench
from hetcache.running.options import written
from hetcache_core import setting

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["VbenchCommand", "VbenchConfig"]


@final
@frozen(kw_only=True)
class VbenchConfig:
    """What VBench is handed."""

    folder: str = setting(
        doc="folder of videos", metadata=written(metavar="FOLDER", positional=True)
    )
    arguments: tuple[str, ...] = setting(
        (),
        doc="after --, what `vbench evaluate` takes: -- --dimension NAME",
        metadata=written(metavar="ARGUMENTS", positional=True),
    )


@final
class VbenchCommand(Command):
    """Hand a folder of videos to an installed VBench."""

    name: ClassVar[str] = "vbench"
    config: ClassVar[type[VbenchConfig]] = VbenchConfig

    def run(self, config: VbenchConfig, registry: Registry) -> int:
        """Run VBench, and end as it does."""
        return vbench(Path(config.folder), config.arguments)
