"""``hetcache compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from hetcache.cli.command import Command
from hetcache.comparison.config import CompareConfig
from hetcache.running.console import print_json

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["CompareCommand"]


@final
class CompareCommand(Command):
    """Run policies, backbones, clips and seeds against each other; a row for every run."""

    name: ClassVar[str] = "compare"
    config: ClassVar[type[CompareConfig]] = CompareConfig

    def run(self, config: CompareConfig, registry: Registry) -> int:
        """Make the runs that are not there yet, and the tables and plots of all."""
        from rich.console import Console

        from hetcache.comparison.compare import compare
        from hetcache.comparison.page.tables import print_tables, write_all

        made = compare(config, registry)
        files = write_all(made.summary, made.results.folder)
        if config.answer.json:
            print_json(made.to_dict())
            return 0
        console = Console()
        print_tables(made.summary, console)
        console.print(f"rows: {made.results.rows_path}", soft_wrap=True)
        for name, path in files.items():
            console.print(f"{name}: {path}", soft_wrap=True)
        return 0
