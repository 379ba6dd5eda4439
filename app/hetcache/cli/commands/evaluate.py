"""``hetcache evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from hetcache.cli.command import Command
from hetcache.quality.evaluate import EvaluateConfig, evaluate, print_evaluation, write_csv
from hetcache.running.console import answer

if TYPE_CHECKING:
    from hetcache_core import Registry

__all__ = ["EvaluateCommand"]


@final
class EvaluateCommand(Command):
    """Hold videos against a ground truth: PSNR, SSIM, LPIPS, flicker, VFID and CLIP score."""

    name: ClassVar[str] = "evaluate"
    config: ClassVar[type[EvaluateConfig]] = EvaluateConfig

    def run(self, config: EvaluateConfig, registry: Registry) -> int:
        """Measure, and show the values."""
        found = evaluate(config, registry)
        if config.output is not None:
            write_csv(found, Path(config.output))
        answer(found, lambda: print_evaluation(found), as_json=config.answer.json)
        return 0
