"""The reference, without caching: every step runs in full."""

from __future__ import annotations

from typing import ClassVar, final

from attrs import frozen

from hetcache_core import CachePolicy, ModelInfo, PolicyRecipe

__all__ = ["Uncached"]


@final
@frozen(kw_only=True)
class Uncached(PolicyRecipe):
    """Runs every step in full and keeps nothing; it has no settings."""

    name: ClassVar[str] = "none"
    summary: ClassVar[str] = "run every step in full: the reference to compare with"
    source: ClassVar[str] = "the library's own computation"
    decides_on: ClassVar[str] = "nothing: all is computed"

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make a policy without any piece, which never departs from the library's forward."""
        return CachePolicy(name=self.name)
