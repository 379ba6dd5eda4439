"""``hetcache compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from hetcache.cli.command import Command
from hetcache.comparison.config import CompareConfig
from hetcache.running.console import note, print_json

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["CompareCommand"]


@final
class CompareCommand(Command):
    """Run policies, backbones, clips and seeds against each other; a row for every run."""

    name: ClassVar[str] = "compare"
    config: ClassVar[type[CompareConfig]] = CompareConfig

    def run(self, config: CompareConfig, registry: Registry) -> int:
        """Make the runs that are not there yet, and the tables and plots of all; 1 where one failed."""
        from rich.console import Console

        from hetcache.comparison.compare import compare
        from hetcache.comparison.page.tables import print_tables, write_all

        made = compare(config, registry)
        files = write_all(made.summary, made.results.folder)
        if made.failed:
            note(made.failed, kind="error")
        status = 1 if made.failed else 0
        if config.answer.json:
            print_json(made.to_dict())
            return status
        console = Console()
        print_tables(made.summary, console)
        console.print(f"rows: {made.results.rows_path}", soft_wrap=True)
        for name, path in files.items():
            console.print(f"{name}: {path}", soft_wrap=True)
        return status
