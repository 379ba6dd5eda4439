"""The abstract pieces that a caching policy is composed of.

Configuration is frozen; what changes from step to step lives in a *decider* that the piece makes
for one run (``begin``). So one policy object can serve any number of runs and threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, final

from attrs import field, frozen

from hetcache_core.steps import (
    BlockKey,
    BranchRows,
    Decision,
    Mode,
    StepInfo,
    SubLayer,
)

if TYPE_CHECKING:
    from torch import Tensor

    from hetcache_core.backbone.adapter import RunInfo
    from hetcache_core.policy.signals import Signals
    from hetcache_core.store import Stored


class StepDecider(ABC):
    """Decides the steps of one run; made by ``StepPolicy.begin``."""

    @abstractmethod
    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        """Say what the step does. Called once a step, on the first branch that is run.

        Args:
            step: the step.
            signals: what may be looked at; each is computed on first use.
        """

    def settle(self, step: StepInfo, mode: Mode) -> None:
        """Take note of the mode that the step really took (a missing cache forces FULL)."""

    def output(self, step: StepInfo, latents: Tensor, output: Tensor) -> None:
        """Take what the model returned in a step that ran; called for the deciding branch.

        Args:
            step: the step.
            latents: what the model was called with, in the library's layout.
            output: what it returned. Looking at values waits for the device.
        """


class StepPolicy(ABC):
    """What does this step do: FULL, PARTIAL or REUSE?"""

    @property
    def sigmas_only(self) -> bool:
        """Whether decisions depend on the noise levels alone, so that a run can be played ahead."""
        return False

    @property
    def fixed(self) -> bool:
        """Whether every decision was taken before the run, so that no speed-up can be asked for."""
        return False

    @abstractmethod
    def begin(self, run: RunInfo) -> StepDecider:
        """Make the decider of one run."""


class Use(Enum):
    """What happens to a block or a sub-layer inside a step that runs."""

    RUN = "run"
    REUSE = "reuse"
    """Take what the predictor makes of the stored values."""


@frozen
class PartAction:
    """What happens to one sub-layer.

    Attributes:
        use: run it or take it from the store.
        store: keep its output (before the gate).
        rows: with REUSE, token rows (k,) that are recomputed and written over the stored ones.
    """

    use: Use = Use.RUN
    store: bool = False
    rows: Tensor | None = field(default=None, eq=False)


RUN_PART = PartAction()


@frozen(kw_only=True)
class BlockAction:
    """What happens to one block of one branch in one step.

    Attributes:
        use: REUSE adds the stored residual of the block and runs none of its parts.
        store: keep the block's residual (its control hint included).
        parts: what happens to single sub-layers; those not named run.
        observe: sub-layers whose output, before the gate, is handed to ``BlockDecider.observe``.
        observe_block: hand the block's output to ``BlockDecider.observe``.
    """

    use: Use = Use.RUN
    store: bool = False
    parts: Mapping[SubLayer, PartAction] = field(factory=dict)
    observe: frozenset[SubLayer] = frozenset()
    observe_block: bool = False


RUN_BLOCK = BlockAction()


class BlockDecider(ABC):
    """Decides the blocks of one run; made by ``BlockPolicy.begin``."""

    def prepare(self, step: StepInfo, signals: Signals) -> None:
        """Look at a step before its blocks are asked about.

        Called once a step that is computed, before the first block of its first branch. The place
        to read a number: ``signals.read`` counts it, and ``block`` must not wait for the device.
        """

    def enter_call(self, step: StepInfo, branches: tuple[BranchRows, ...]) -> None:
        """Learn which batch rows belong to which branch, before the blocks of a computed call.

        The first of ``branches`` is the one that decides; its rows need not come first.
        """

    @abstractmethod
    def block(self, step: StepInfo, branch: str, key: BlockKey, hidden: Tensor) -> BlockAction:
        """Say what a main block does. Called for every one that a computed step reaches.

        Args:
            step: the step.
            branch: the branch, or the branches of one merged call joined by "+".
            key: the block.
            hidden: (B, N, D) input of the block; looking at its values waits for the device.
        """

    def control(self, step: StepInfo, branch: str, key: BlockKey) -> BlockAction:
        """Say what a control block does; only ``parts`` and ``observe`` of the action count."""
        return RUN_BLOCK

    def observe(
        self, step: StepInfo, branch: str, key: BlockKey, part: SubLayer | None, output: Tensor
    ) -> None:
        """Take an output that an action asked for; ``part`` is None for the block's own."""


class BlockPolicy(ABC):
    """Inside a step that runs: which blocks and which sub-layers run?"""

    looks_at_hidden: ClassVar[bool] = True
    """Whether deciders look at the input of a block, which processes that share its rows then gather."""

    @property
    def needs_sub_layers(self) -> bool:
        """Whether actions ever name sub-layers; False runs on backbones that show none."""
        return True

    @abstractmethod
    def begin(self, run: RunInfo) -> BlockDecider:
        """Make the decider of one run."""


class GuidanceDecider(ABC):
    """Decides which guidance branches of one run are predicted instead of run."""

    @abstractmethod
    def predicts(self, step: StepInfo, branch: str, mode: Mode) -> str | None:
        """Return the reason for which the branch's output is predicted, or None to run it.

        Args:
            step: the step.
            branch: the branch; at least one other has been run in this step.
            mode: what the deciding call of the step did.
        """

    @abstractmethod
    def predict(
        self, step: StepInfo, branch: str, outputs: Mapping[str, Tensor], signals: Signals
    ) -> Tensor:
        """Make the branch's output from those of the branches already run in this step.

        Args:
            step: the step.
            branch: the branch.
            outputs: model outputs by branch, in the library's layout.
            signals: gives back what ``observe_outputs`` kept.
        """

    @abstractmethod
    def observe_outputs(
        self, step: StepInfo, outputs: Mapping[str, Tensor], mode: Mode, signals: Signals
    ) -> None:
        """Take the outputs of a step in which every branch was run.

        Args:
            step: the step.
            outputs: model outputs by branch, in the library's layout.
            mode: what the deciding call of the step did.
            signals: keeps what a later prediction needs, within the byte budget.
        """


class GuidancePolicy(ABC):
    """Which guidance branches run, and what stands in for the output of the others?"""

    @abstractmethod
    def begin(self, run: RunInfo) -> GuidanceDecider:
        """Make the decider of one run."""


@frozen(kw_only=True)
class Measured:
    """A predictor's gain, where the run finds it out.

    After every gap the engine compares what the model answers with what the gains 0 and 1 would have
    made it answer, after guidance, and takes the gain between them that is nearest to it.

    Attributes:
        first: the gain before anything was measured.
        low: the least that it may be.
        high: the most.
    """

    first: float = 0.5
    low: float = 0.0
    high: float = 1.0


class Predictor(ABC):
    """What stands in for a feature that was not computed?"""

    name: ClassVar[str]
    summary: ClassVar[str]

    @property
    @abstractmethod
    def history(self) -> int:
        """How many computed values ``predict`` looks at; at least 1."""

    @property
    def measured(self) -> Measured | None:
        """Says that the run measures its gain where no decision gives one; by default it does not."""
        return None

    @abstractmethod
    def predict(
        self, values: Sequence[Stored], *, step: int, gain: float | Tensor | None
    ) -> Tensor:
        """Return the feature's value at a step.

        Args:
            values: one to ``history`` computed values, oldest first; must not be written to.
            step: the step to predict for.
            gain: the factor of the step's ``Decision``, the one that was measured (an fp32 scalar), or
                None.
        """


@final
@frozen
class Hold(Predictor):
    """The last computed value stands in."""

    name: ClassVar[str] = "hold"
    summary: ClassVar[str] = "the last computed value"

    @property
    def history(self) -> int:
        """One value."""
        return 1

    def predict(
        self, values: Sequence[Stored], *, step: int, gain: float | Tensor | None
    ) -> Tensor:
        """Return the newest value; step and gain do not matter."""
        return values[-1].value


@frozen(kw_only=True)
class Gap:
    """A computed step, and the steps before it that were not computed.

    Attributes:
        step: index of the computed step.
        last: index of the last one before it.
        sigmas: noise levels of all steps, and the one that the last step leads to.
    """

    step: int
    last: int
    sigmas: tuple[float, ...]

    @property
    def drift(self) -> float:
        """How far the latents are off by the end of the gap, for an error of 1 found there.

        The error of the model's output is taken to grow in proportion to the noise removed since
        ``last``: ``sum_k (sigma_k+1 - sigma_k) (sigma_k - sigma_last) / (sigma_step - sigma_last)``.
        """
        begun, way = self.sigmas[self.last], self.sigmas[self.step] - self.sigmas[self.last]
        if way == 0:
            return 0.0
        between = range(self.last + 1, self.step)
        moved = ((self.sigmas[k + 1] - self.sigmas[k]) * (self.sigmas[k] - begun) for k in between)
        return sum(moved) / way


class Corrector(ABC):
    """What does a computed step pay back for the steps before it that were not computed?

    Subclasses are final ``attrs.frozen`` classes whose fields are the settings of the corrector.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @property
    @abstractmethod
    def samplers(self) -> frozenset[str]:
        """Values of ``RunInfo.sampler`` for whose steps it is exact; others pay nothing back."""

    @abstractmethod
    def correct(self, output: Tensor, expected: Tensor, gap: Gap) -> Tensor:
        """Change what the model answered in a computed step that follows on reused ones.

        It is called for every branch by itself and has to be linear in both outputs together, so that
        the guided output is corrected likewise. Where they are equal, or the gap is empty, nothing may
        change.

        Args:
            output: what the model answered, in the library's layout; must not be written to.
            expected: what a reused step would have made it answer.
            gap: the steps in question.
        """


@final
@frozen
class KeepOutput(Corrector):
    """Nothing is paid back."""

    name: ClassVar[str] = "none"
    summary: ClassVar[str] = "nothing: outputs stay as the model made them"

    @property
    def samplers(self) -> frozenset[str]:
        """None: it is never asked."""
        return frozenset()

    def correct(self, output: Tensor, expected: Tensor, gap: Gap) -> Tensor:
        """Return the output."""
        return output
