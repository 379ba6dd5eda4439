"""``hetcache backbones``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from hetcache.cli.command import Command
from hetcache.running.console import print_json
from hetcache.running.groups import JsonConfig

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["BackbonesCommand"]


@final
class BackbonesCommand(Command):
    """List the models, what they can carry, and the sizes that they take."""

    name: ClassVar[str] = "backbones"
    config: ClassVar[type[JsonConfig]] = JsonConfig

    def run(self, config: JsonConfig, registry: Registry) -> int:
        """List them."""
        from hetcache.plugins.listing import backbones_as_json, print_backbones

        if config.json:
            print_json(backbones_as_json(registry))
        else:
            print_backbones(registry)
        return 0
