"""``hetcache explain``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from attrs import frozen

from hetcache.cli.command import Command
from hetcache.running.console import answer
from hetcache.running.groups import JsonConfig
from hetcache.running.options import written
from hetcache_core import ConfigError, setting
from hetcache_core.settings.declare import group

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["ExplainCommand", "ExplainConfig"]


@final
@frozen(kw_only=True)
class ExplainConfig:
    """What is to be explained."""

    trace: str = setting(
        doc="what --trace has written", metadata=written(metavar="TRACE", positional=True)
    )
    other: str | None = setting(
        None,
        doc="another run's; says where the two part",
        metadata=written(metavar="OTHER", positional=True, unset="none"),
    )
    step: int | None = setting(
        None, ge=0, doc="one step, counted from 0", metadata=written(unset="all")
    )
    answer: JsonConfig = group(JsonConfig())


@final
class ExplainCommand(Command):
    """Say how the steps of a recorded run came to be what they were, or where two runs part."""

    name: ClassVar[str] = "explain"
    config: ClassVar[type[ExplainConfig]] = ExplainConfig

    def run(self, config: ExplainConfig, registry: Registry) -> int:
        """Read the traces and print what they say."""
        from hetcache.running.explain import explain, explain_difference, print_explained

        if config.other is None:
            found = explain(Path(config.trace), config.step)
        elif config.step is None:
            found = explain_difference(Path(config.trace), Path(config.other))
        else:
            raise ConfigError(
                "one step can be explained of one run, not of two",
                where="--step",
                setting="step",
                given=config.step,
                remedy="Leave it out, or give one trace",
            )
        answer(found, lambda: print_explained(found), as_json=config.answer.json)
        return 0
