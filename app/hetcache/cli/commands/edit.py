"""``hetcache edit``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from hetcache.cli.command import Command
from hetcache.editing.config import EditConfig
from hetcache.running.console import answer

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["EditCommand"]


@final
class EditCommand(Command):
    """Edit the masked part of a video."""

    name: ClassVar[str] = "edit"
    config: ClassVar[type[EditConfig]] = EditConfig
    reads_file: ClassVar[bool] = True

    def run(self, config: EditConfig, registry: Registry) -> int:
        """Edit, and report what it cost."""
        from hetcache.editing.edit import edit
        from hetcache.editing.report import print_report

        report = edit(config, registry).report
        answer(report, lambda: print_report(report), as_json=config.answer.json)
        return 0
