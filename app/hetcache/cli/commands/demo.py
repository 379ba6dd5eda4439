"""``hetcache demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from hetcache.cli.command import Command
from hetcache.editing.config import DemoConfig
from hetcache.running.console import answer, loading

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["DemoCommand"]


@final
class DemoCommand(Command):
    """Edit an embedded clip without and with caching, and show both side by side."""

    name: ClassVar[str] = "demo"
    config: ClassVar[type[DemoConfig]] = DemoConfig

    def run(self, config: DemoConfig, registry: Registry) -> int:
        """Show what caching does, and report what it cost."""
        loading(config.model.backbone)
        from hetcache.editing.demo import demo
        from hetcache.editing.report import print_report

        report = demo(config, registry)
        answer(report, lambda: print_report(report), as_json=config.answer.json)
        return 0
