"""``hetcache recommend``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from hetcache.cli.command import Command
from hetcache.editing.recommend import RecommendConfig
from hetcache.running.console import answer

if TYPE_CHECKING:
    from hetcache.editing.recommend import Recommendation
    from hetcache_core import Registry

__all__ = ["RecommendCommand"]


@final
class RecommendCommand(Command):
    """Say which model and policy to take for an edit, and why."""

    name: ClassVar[str] = "recommend"
    config: ClassVar[type[RecommendConfig]] = RecommendConfig

    def run(self, config: RecommendConfig, registry: Registry) -> int:
        """Choose, and print what to type."""
        from hetcache.editing.recommend import recommend

        made = recommend(config, registry)
        answer(made, lambda: _print(made), as_json=config.answer.json)
        return 0


def _print(made: Recommendation) -> None:
    from rich.console import Console

    console = Console()
    for reason in made.reasons:
        console.print(f"- {reason}", soft_wrap=True, highlight=False, markup=False)
    console.print(made.command, soft_wrap=True, highlight=False, markup=False)
