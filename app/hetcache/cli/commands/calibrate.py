"""``hetcache calibrate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from hetcache.cli.command import Command
from hetcache.editing.config import CalibrateConfig
from hetcache.running.console import answer

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["CalibrateCommand"]


@final
class CalibrateCommand(Command):
    """Measure what a policy needs to know of a model, on reference runs, and write it to a file."""

    name: ClassVar[str] = "calibrate"
    config: ClassVar[type[CalibrateConfig]] = CalibrateConfig

    def run(self, config: CalibrateConfig, registry: Registry) -> int:
        """Measure, and say what was found."""
        from hetcache.editing.calibrate import (
            SEARCHED,
            calibrate,
            print_calibration,
            print_search,
            search,
        )

        if config.policy == SEARCHED:
            found = search(config, registry)
            answer(found, lambda: print_search(found), as_json=config.answer.json)
            return 0
        made = calibrate(config, registry)
        answer(made, lambda: print_calibration(made, config.output), as_json=config.answer.json)
        return 0
