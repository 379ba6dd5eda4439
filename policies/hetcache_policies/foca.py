"""FoCa: features as the solution of an ODE, forecast by BDF2 and calibrated by Heun's rule.

Every n-th step runs; in the steps between, the feature follows its own slope by two steps of a solver for
every step (the predictor ``Foca``), which is steadier than a series where gaps are wide.

Source: FoCa (arXiv:2508.16211); no code was published by its authors. Different: it is the trunk's residual
that is followed, as in cache-dit, and the last step runs in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, final

from attrs import frozen

from hetcache_core import CachePolicy, Guards, ModelInfo, PolicyRecipe, Predictor, piece, setting
from hetcache_policies.every_nth import UniformSteps
from hetcache_policies.shared.predictors import Foca
from hetcache_policies.taylorseer import FIRST_STEPS, PRESETS

__all__ = ["FoCa"]

INTERVAL: Final = 5
"""Source: FoCa, the setting with which it is 4.2 times faster on FLUX.1."""


@final
@frozen(kw_only=True)
class FoCa(PolicyRecipe):
    """Settings of FoCa."""

    name: ClassVar[str] = "foca"
    summary: ClassVar[str] = "every n-th step runs, an ODE solver follows the features between"
    source: ClassVar[str] = "FoCa, arXiv:2508.16211"
    decides_on: ClassVar[str] = "the step's index"
    default_guards: ClassVar[Guards] = Guards(first_steps=FIRST_STEPS, last_steps=1)
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = PRESETS
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.50, "balanced": 0.36, "fast": 0.28}

    interval: int = setting(INTERVAL, ge=1, doc="every n-th step is computed; 1 computes all")
    predictor: Predictor = piece(
        "predictor", Foca(), doc="what stands in for what a reused step leaves out"
    )

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the step policy; it is the same for every model."""
        return CachePolicy(
            name=self.name, step=UniformSteps(every=self.interval), predictor=self.predictor
        )
