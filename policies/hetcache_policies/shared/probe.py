"""Looking at the first blocks of a step, and deciding by what they add.

Source: First Block Cache (ParaAttention, diffusers) and DBCache (cache-dit); DiCache (arXiv:2508.17356)
compares with two computed steps. Some ports compare with the last step, reused or not, and so never see a
slow drift: here it is the last computed one.
"""

from __future__ import annotations

import math
from typing import final

from attrs import define, field, frozen
from torch import Tensor

from hetcache_core import (
    Decision,
    Mode,
    RunInfo,
    Signals,
    Span,
    StepDecider,
    StepInfo,
    StepPolicy,
    relative_l1,
)
from hetcache_policies.shared.signals import SIGNAL_TOKENS

__all__ = ["ProbeSteps", "ProbeTrail", "some_tokens"]


def some_tokens(x: Tensor) -> Tensor:
    """Return evenly spread tokens of x (b, N, D), as many as are worth comparing: a view."""
    return x[:, :: -(-x.shape[1] // SIGNAL_TOKENS)]


@final
@define(eq=False)
class ProbeTrail:
    """What the first blocks add in this step, and what they added in the last computed ones.

    Whether a step is computed is certain only at its end, so the newest is kept beside the computed
    ones, and its name becomes that of a computed one if it is.
    """

    _blocks: int
    _names: list[str] = field(init=False)
    _depth: int = 1

    def __attrs_post_init__(self) -> None:
        """Name one place more than there are computed steps to remember."""
        self._names = [f"probe {i}" for i in range(self._depth + 1)]

    def look(self, signals: Signals) -> Tensor:
        """Return what the blocks add (b, m, D) and keep it."""
        probed = signals.probe(self._blocks)  # (b, N, D)
        added = some_tokens(probed) - some_tokens(signals.hidden())  # (b, m, D)
        signals.keep(self._names[0], added)
        return added

    def computed(self, signals: Signals, back: int = 1) -> Tensor | None:
        """Return what they added in the ``back``-th last computed step (b, m, D), or None."""
        return signals.kept(self._names[back])

    def settle(self) -> None:
        """Count the step whose blocks were last looked at among the computed ones."""
        self._names.insert(0, self._names.pop())


@final
@frozen(kw_only=True)
class ProbeSteps(StepPolicy):
    """Computes a step when what its first blocks add differs from the last computed step's.

    Attributes:
        span: what a reused step leaves out; the blocks before it are the probe.
        threshold: relative L1 difference at which a step is computed.
        most_reuse: most steps reused in all, as a share of the run.
        max_sum: sum of the differences, since the last computed step, at which one is computed.
    """

    span: Span
    threshold: float
    most_reuse: float = 1.0
    max_sum: float | None = None

    def begin(self, run: RunInfo) -> StepDecider:
        """Start with nothing to compare with."""
        most = max(1, math.floor(self.most_reuse * run.steps))
        return _Decider(self, ProbeTrail(self.span.front), most)


@final
@define(eq=False)
class _Decider(StepDecider):
    _policy: ProbeSteps
    _trail: ProbeTrail
    _most: int
    _sum: float = field(default=0.0, init=False)
    _in_all: int = field(default=0, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        mode, reason, change = self._weigh(signals)
        # The span goes with every decision: a budget may make a reused step of a full one.
        return Decision(mode, reason, change, span=self._policy.span)

    def _weigh(self, signals: Signals) -> tuple[Mode, str, float | None]:
        policy, factor = self._policy, signals.threshold_factor
        added, computed = self._trail.look(signals), self._trail.computed(signals)
        if computed is None:
            return Mode.FULL, "nothing to compare with yet", None
        if self._in_all >= self._most:
            return Mode.FULL, f"{self._in_all} steps reused in all", None
        change, threshold = signals.read(relative_l1(added, computed)), policy.threshold * factor
        if not change < threshold:  # "not": what is not a number must not reuse
            return Mode.FULL, f"probe {change:.3f} >= {threshold:.3f}", change
        self._sum += change
        if policy.max_sum is not None and self._sum >= policy.max_sum * factor:
            return Mode.FULL, f"probes add up to {self._sum:.3f}", change
        return Mode.REUSE, f"probe {change:.3f} < {threshold:.3f}", change

    def settle(self, step: StepInfo, mode: Mode) -> None:
        if mode is Mode.FULL:
            self._trail.settle()
            self._sum = 0.0
        else:
            self._in_all += 1
