"""``hetcache export``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from hetcache.cli.command import Command
from hetcache.running.console import answer
from hetcache.running.export import ExportConfig, export, print_export

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["ExportCommand"]


@final
class ExportCommand(Command):
    """Write a model as ONNX graphs of the parts that caching runs or leaves out."""

    name: ClassVar[str] = "export"
    config: ClassVar[type[ExportConfig]] = ExportConfig

    def run(self, config: ExportConfig, registry: Registry) -> int:
        """Export, and say what was written."""
        made = export(config, registry)
        answer(made, lambda: print_export(made), as_json=config.answer.json)
        return 0
