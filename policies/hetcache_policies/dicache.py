"""DiCache: the first block tells when to reuse, and how far to go along the line of what was computed.

Every step runs the first block. The changes of its output from step to step add up until they reach a
threshold; until then the trunk is left out. The first block then also says where the residual is by now: as
far beyond the second-last computed one, on the line through the last two, as its own is.

Source: DiCache (arXiv:2508.17356), sections 3.2 and 3.3, and its reference code, which keeps a third computed
step that it never reads. Different from that code: the last step runs in full, the first branch decides for
all, and runs of reused steps are limited.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, final

import torch
from attrs import define, field, frozen
from torch import Tensor

from hetcache_core import (
    CachePolicy,
    ConfigError,
    Decision,
    Guards,
    Mode,
    ModelInfo,
    PolicyRecipe,
    Predictor,
    RunInfo,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
    piece,
    relative_l1,
    setting,
)
from hetcache_policies.shared.predictors import Linear
from hetcache_policies.shared.probe import ProbeTrail, some_tokens
from hetcache_policies.teacache import LONGEST_REUSE

__all__ = ["DiCache", "OutputSteps"]

THRESHOLD: Final = 0.08
"""Source: DiCache's code, Wan2.1."""

FIRST_STEPS: Final = 0.2
"""Source: the same."""

GAINS: Final = (1.0, 2.0)
"""Least and greatest gain: the last computed residual, and as far again beyond it. Source: the same."""

PRESETS: Final[Mapping[str, Mapping[str, object]]] = {
    "quality": {"threshold": 0.04},
    "balanced": {"threshold": THRESHOLD},
    "fast": {"threshold": 0.16},
}
"""Our design: half the published threshold, and twice."""

NEAR_ZERO: Final = 1e-12
"""Keeps a division by no change at all finite."""


@final
@frozen(kw_only=True)
class OutputSteps(StepPolicy):
    """Computes a step when the changes of the first blocks' output add up to a threshold.

    Attributes:
        blocks: how many first blocks are looked at.
        threshold: sum of relative L1 changes at which a step is computed.
    """

    blocks: int
    threshold: float

    def begin(self, run: RunInfo) -> StepDecider:
        """Start with nothing added up."""
        return _Decider(self, ProbeTrail(self.blocks, depth=2))


@final
@define(eq=False)
class _Decider(StepDecider):
    _policy: OutputSteps
    _trail: ProbeTrail
    _sum: float = field(default=0.0, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        added, previous = self._trail.look(signals), signals.kept("probe output")
        output = some_tokens(signals.probe(self._policy.blocks)).clone()  # (b, m, D)
        signals.keep("probe output", output)
        if previous is None:
            return Decision(Mode.FULL, "nothing to compare with yet")
        change, gain = signals.read_many(
            torch.stack([relative_l1(output, previous), self._gain(added, signals)])
        )
        self._sum += change
        mode, reason = self._weigh(signals.threshold_factor)
        # The gain goes with every decision: a budget may make a reused step of a full one.
        return Decision(mode, reason, self._sum, gain=gain)

    def _weigh(self, factor: float) -> tuple[Mode, str]:
        threshold = self._policy.threshold * factor
        if not self._sum < threshold:  # "not": a sum that is not a number must not reuse
            return Mode.FULL, f"probe {self._sum:.3f} >= {threshold:.3f}"
        return Mode.REUSE, f"probe {self._sum:.3f} < {threshold:.3f}"

    def _gain(self, added: Tensor, signals: Signals) -> Tensor:
        """Say where on the line the first blocks are: 0 at the older computed step, 1 at the newer."""
        low, high = GAINS
        newer, older = self._trail.computed(signals, 1), self._trail.computed(signals, 2)
        if newer is None or older is None:
            return torch.full((), low, device=added.device)  # a copy of a number would wait
        walked = (added.float() - older.float()).abs().mean()
        length = (newer.float() - older.float()).abs().mean().clamp_min(NEAR_ZERO)
        return (walked / length).clamp(low, high)

    def settle(self, step: StepInfo, mode: Mode) -> None:
        if mode is Mode.FULL:
            self._trail.settle()
            self._sum = 0.0


@final
@frozen(kw_only=True)
class DiCache(PolicyRecipe):
    """Settings of DiCache."""

    name: ClassVar[str] = "dicache"
    summary: ClassVar[str] = (
        "reuse while the first block drifts little, on the line of two computed steps"
    )
    source: ClassVar[str] = "DiCache, arXiv:2508.17356"
    decides_on: ClassVar[str] = "the first block's output"
    default_guards: ClassVar[Guards] = Guards(
        first_steps=FIRST_STEPS, last_steps=1, longest_reuse=LONGEST_REUSE
    )
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = PRESETS
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.60, "balanced": 0.50, "fast": 0.43}

    threshold: float = setting(THRESHOLD, ge=0, doc="sum of changes at which a step is computed")
    blocks: int = setting(1, ge=1, doc="blocks that every step runs first and looks at")
    predictor: Predictor = piece(
        "predictor", Linear(), doc="what stands in for what a reused step leaves out"
    )

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make step policy and predictor.

        Raises:
            ConfigError: The model has not so many blocks.
        """
        if self.blocks >= model.layers:
            raise ConfigError(
                f"blocks is {self.blocks}, but the model has only {model.layers}",
                where=f"policy {self.name}",
                setting="blocks",
                given=self.blocks,
            )
        return CachePolicy(
            name=self.name,
            step=OutputSteps(blocks=self.blocks, threshold=self.threshold),
            predictor=self.predictor,
        )
