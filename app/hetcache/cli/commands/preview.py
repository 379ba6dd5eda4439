"""``hetcache preview``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from hetcache.cli.command import Command
from hetcache.editing.preview import PreviewConfig
from hetcache.running.console import answer

if TYPE_CHECKING:
    from hetcache.editing.preview import Preview
    from hetcache_core import Registry

__all__ = ["PreviewCommand"]


@final
class PreviewCommand(Command):
    """Show what a model would see of an edit: mask, margin and context as tokens, without the model."""

    name: ClassVar[str] = "preview"
    config: ClassVar[type[PreviewConfig]] = PreviewConfig

    def run(self, config: PreviewConfig, registry: Registry) -> int:
        """Draw it, and say how many tokens a partial step would run."""
        from hetcache.editing.preview import preview

        made = preview(config, registry)
        answer(made, lambda: _print(made), as_json=config.answer.json)
        return 0


def _print(made: Preview) -> None:
    from rich.console import Console

    runs = "1 window" if made.windows == 1 else f"{made.windows} windows"
    size = f"{made.frames} frames of {made.height}x{made.width} in {runs}"
    roles = f"masked {made.generative:.1%}, margin {made.margin:.1%}"
    lines = [
        f"{made.backbone}, {size}, {made.tokens:,} tokens each",
        f"{roles}: a partial step runs {made.active:.1%} of the tokens",
        *(f"{role}: {path}" for role, path in made.files.items()),
    ]
    for line in lines:
        Console().print(line, soft_wrap=True, highlight=False, markup=False)
