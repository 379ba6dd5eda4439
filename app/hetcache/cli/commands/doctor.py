"""``hetcache doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from hetcache.cli.command import Command
from hetcache.running.console import print_json
from hetcache.running.groups import JsonConfig

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["DoctorCommand"]


@final
class DoctorCommand(Command):
    """Show what is installed and what is missing."""

    name: ClassVar[str] = "doctor"
    config: ClassVar[type[JsonConfig]] = JsonConfig
    shows_plugins: ClassVar[bool] = True

    def run(self, config: JsonConfig, registry: Registry) -> int:
        """Examine everything that a run depends on; the status is 1 where something is missing."""
        from hetcache.plugins.doctor import examine, print_findings

        found = examine(registry)
        if config.json:
            print_json(found)
        else:
            print_findings(found)
        return 1 if found["problems"] else 0
