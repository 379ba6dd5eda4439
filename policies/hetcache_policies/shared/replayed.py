"""The pieces of ``replay``: each looks up in the plan of a recorded run what it says.

Source: our design.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, final

import torch
from attrs import define, field, frozen
from torch import Tensor

from hetcache_core import (
    BlockAction,
    BlockDecider,
    BlockKey,
    BlockPolicy,
    BranchRows,
    ConfigError,
    ContextSelector,
    Decision,
    GuidanceDecider,
    GuidancePolicy,
    Mode,
    Plan,
    Role,
    RunInfo,
    Selection,
    SelectionRequest,
    Signals,
    Stack,
    StepDecider,
    StepInfo,
    StepPolicy,
)
from hetcache_policies.shared.selectors import UniformSelector

__all__ = ["ReplayedBlocks", "ReplayedGuidance", "ReplayedRows", "ReplayedSteps"]

REASON: Final = "replayed"


@final
@frozen
class ReplayedSteps(StepPolicy):
    """Does at every step what was done at it.

    Attributes:
        plan: what was done.
    """

    plan: Plan

    @property
    def fixed(self) -> bool:
        """Nothing can be asked of it."""
        return True

    def begin(self, run: RunInfo) -> StepDecider:
        """Check that the run is of the recorded kind.

        Raises:
            ConfigError: it is not.
        """
        self.plan.check_run(run)
        return _StepDecider(self.plan)


@final
@frozen
class _StepDecider(StepDecider):
    _plan: Plan

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        planned = self._plan.steps[step.index]
        if planned.probe:  # it kept what later steps take
            signals.probe(planned.probe)
        return Decision(planned.mode, REASON, span=planned.span, gain=planned.gain)


@final
@frozen
class ReplayedBlocks(BlockPolicy):
    """Does with every block what was done with it.

    Attributes:
        plan: what was done.
        sub_layers: whether the recorded policy needs a backbone that shows sub-layers.
    """

    looks_at_hidden: ClassVar[bool] = False

    plan: Plan
    sub_layers: bool

    @property
    def needs_sub_layers(self) -> bool:
        """Whether the recorded policy does."""
        return self.sub_layers

    def begin(self, run: RunInfo) -> BlockDecider:
        """Begin before the first step."""
        return _BlockDecider(self.plan, run.device)


@final
@define(eq=False)
class _BlockDecider(BlockDecider):
    _plan: Plan
    _device: str
    _step: int = field(default=-1, init=False)
    _actions: dict[tuple[str, Stack], list[BlockAction | None]] = field(factory=dict, init=False)
    """Of the step under way, by block."""

    def enter_call(self, step: StepInfo, branches: tuple[BranchRows, ...]) -> None:
        called, known = "+".join(branch.name for branch in branches), self._plan.branches
        if called not in known:
            raise ConfigError(
                f"it was recorded with calls of {', '.join(known)}, this run calls {called}",
                where="schedule to replay",
                remedy="Run with the guidance of the recorded run, or record one like this",
            )

    def block(self, step: StepInfo, branch: str, key: BlockKey, hidden: Tensor) -> BlockAction:
        return self.control(step, branch, key)

    def control(self, step: StepInfo, branch: str, key: BlockKey) -> BlockAction:
        if step.index != self._step:
            self._step = step.index
            self._actions.clear()
        if (branch, key.stack) not in self._actions:
            known = self._plan.branches
            recorded = (
                branch if branch in known else known[0]
            )  # no call: what will be kept is asked
            self._actions[branch, key.stack] = self._plan.actions_of(
                step.index, recorded, key.stack, self._device
            )
        actions = self._actions[branch, key.stack]
        action = actions[key.index] if key.index < len(actions) else None
        return BlockAction() if action is None else action  # a guard computes what was left out


@final
@frozen
class ReplayedGuidance(GuidancePolicy):
    """Predicts the branches that were predicted, as the recorded policy does.

    Attributes:
        plan: what was done.
        recorded: makes the predictions.
    """

    plan: Plan
    recorded: GuidancePolicy

    def begin(self, run: RunInfo) -> GuidanceDecider:
        """Begin the recorded policy."""
        return _GuidanceDecider(self.plan, self.recorded.begin(run))


@final
@frozen
class _GuidanceDecider(GuidanceDecider):
    _plan: Plan
    _recorded: GuidanceDecider

    def predicts(self, step: StepInfo, branch: str, mode: Mode) -> str | None:
        return REASON if branch in self._plan.steps[step.index].predicted else None

    def predict(
        self, step: StepInfo, branch: str, outputs: Mapping[str, Tensor], signals: Signals
    ) -> Tensor:
        return self._recorded.predict(step, branch, outputs, signals)

    def observe_outputs(
        self, step: StepInfo, outputs: Mapping[str, Tensor], mode: Mode, signals: Signals
    ) -> None:
        self._recorded.observe_outputs(step, outputs, mode, signals)


@final
@frozen(eq=False, kw_only=True)
class _Numbered(Selection):
    """A selection that knows how many came before it."""

    number: int


@final
@frozen
class ReplayedRows(ContextSelector):
    """Chooses the context that was chosen, or evenly spread context where the mask is another.

    Attributes:
        plan: what was done.
    """

    plan: Plan

    def select(self, request: SelectionRequest) -> Selection:
        """Put the recorded tokens first."""
        previous, roles = request.previous, request.partition.roles
        number = previous.number + 1 if isinstance(previous, _Numbered) else 0
        rows = self.plan.selection(number, roles)
        if rows is None:
            return _Numbered(order=UniformSelector().select(request).order, number=number)
        kept = torch.zeros(request.partition.tokens, dtype=torch.bool)
        kept[rows] = True
        left_out = ~kept.to(roles.device)[request.partition.of(Role.CONTEXT)]  # (|C|,)
        return _Numbered(order=left_out.to(torch.uint8).argsort(stable=True), number=number)
