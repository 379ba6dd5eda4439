"""``hetcache describe``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from attrs import frozen

from hetcache.cli.command import Command
from hetcache.running.console import print_json
from hetcache.running.groups import JsonConfig
from hetcache.running.options import written
from hetcache_core import setting
from hetcache_core.settings.declare import group

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["DescribeCommand", "DescribeConfig"]


@final
@frozen(kw_only=True)
class DescribeConfig:
    """What is to be described."""

    subject: str = setting(
        doc="a pipeline or transformer of diffusers, or package.module:Class",
        metadata=written(metavar="CLASS", positional=True),
    )
    backbone: str = setting(
        "diffusers", doc="backbone that goes by descriptions", metadata=written()
    )
    answer: JsonConfig = group(JsonConfig())


@final
class DescribeCommand(Command):
    """Write a first description of a model's class, for a model set of your own."""

    name: ClassVar[str] = "describe"
    config: ClassVar[type[DescribeConfig]] = DescribeConfig

    def run(self, config: DescribeConfig, registry: Registry) -> int:
        """Print it."""
        description = registry.backbone(config.backbone)().draft(config.subject)
        if config.answer.json:
            print_json({"subject": config.subject, "description": description})
        else:
            print(description)  # noqa: T201 - the command line answers
        return 0
