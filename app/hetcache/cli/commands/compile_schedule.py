"""``hetcache compile-schedule``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from attrs import frozen

from hetcache.cli.command import Command
from hetcache.running.console import answer
from hetcache.running.groups import JsonConfig
from hetcache.running.options import written
from hetcache_core import setting
from hetcache_core.settings.declare import group

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["CompileScheduleCommand", "CompileScheduleConfig"]


@final
@frozen(kw_only=True)
class CompileScheduleConfig:
    """One schedule, as it is asked for."""

    trace: str = setting(
        doc="what --trace has written", metadata=written(metavar="TRACE", positional=True)
    )
    output: str = setting(
        doc="the schedule to write, a JSON file",
        metadata=written("--output", "-o", metavar="FILE", writes="file"),
    )
    answer: JsonConfig = group(JsonConfig())


@final
class CompileScheduleCommand(Command):
    """Make a schedule of a recorded run, which the policy replay follows without deciding anything."""

    name: ClassVar[str] = "compile-schedule"
    config: ClassVar[type[CompileScheduleConfig]] = CompileScheduleConfig

    def run(self, config: CompileScheduleConfig, registry: Registry) -> int:
        """Compile, and say what was written."""
        from hetcache.running.compile_schedule import compile_schedule, print_compiled

        made = compile_schedule(Path(config.trace), Path(config.output), registry)
        answer(made, lambda: print_compiled(made), as_json=config.answer.json)
        return 0
