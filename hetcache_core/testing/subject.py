"""What is under test: a policy with the backbone that it is tested on, or a piece on its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from attrs import frozen
from torch import Tensor

from hetcache_core.policy.recipe import CachePolicy, PolicyRecipe
from hetcache_core.testing.case import BackboneCase
from hetcache_core.testing.comparing import NotApplicableError
from hetcache_core.testing.watch import WatchedEngine, watched_run

STEPS: Final = 8
"""Steps of a run where nothing else is asked for: enough for warm-up, reuse and a last step."""


@frozen(eq=False, kw_only=True)
class PolicySubject:
    """A policy and the backbone that it is tested on.

    Attributes:
        name: what failures are reported under.
        make: makes the policy, the same one each time.
        case: the backbone.
    """

    name: str
    make: Callable[[], PolicyRecipe | CachePolicy]
    case: BackboneCase

    @property
    def recipe(self) -> PolicyRecipe:
        """The recipe.

        Raises:
            NotApplicableError: the policy was composed by hand.
        """
        made = self.make()
        if isinstance(made, CachePolicy):
            raise NotApplicableError("the policy was composed by hand and has no recipe")
        return made

    @property
    def layout(self) -> str:
        """The guidance layout with the most calls that the backbone carries."""
        return self.case.layouts[-1]

    def compose(self) -> CachePolicy:
        """Compose the policy for the case's model.

        Raises:
            NotApplicableError: the backbone lacks what the policy needs.
        """
        made = self.make()
        if not isinstance(made, CachePolicy):
            made = made.composed(self.case.backbone.describe(self.case.make_pipeline(0)))
        missing = self.case.features.missing(made.needs())
        if missing:
            raise NotApplicableError(f"{self.case.name} lacks {', '.join(missing)}")
        return made

    def run(self, steps: int = STEPS, **options: Any) -> tuple[WatchedEngine, Tensor]:
        """Run the policy; options as ``watched_run`` takes them."""
        options = {"layout": self.layout, **options}
        return watched_run(self.case, self.compose(), steps=steps, **options)


@frozen(eq=False)
class PieceSubject:
    """A piece under test, of any kind that needs nothing else.

    Attributes:
        make: makes it, the same one each time; its class is such a function.
    """

    make: Callable[[], Any]
