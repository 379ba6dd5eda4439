"""AdaCache: how fast attention changes at a computed step says how long its result is kept.

Source: AdaCache (ICCV 2025, arXiv:2411.02397) and its reference code. Different from that code: steps
reuse the residual of the whole trunk, which is the sum of what the reference keeps block by block, and
code books are brought to the run's number of steps. With ``level=block`` every block has a rate of its
own inside the steps that another policy computes; the paper tried rates by layer on whole runs and
found them less stable than one for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Final, Literal, final

from attrs import define, evolve, field, frozen
from torch import Tensor

from hetcache_core import (
    BlockAction,
    BlockDecider,
    BlockKey,
    BlockPolicy,
    BranchRows,
    CachePolicy,
    ConfigError,
    Decision,
    Guards,
    Hold,
    Mode,
    ModelInfo,
    PolicyRecipe,
    Predictor,
    RunInfo,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
    SubLayer,
    Use,
    piece,
    setting,
)
from hetcache_policies.fits.adacache_codebooks import BOOKS, CodeBook
from hetcache_policies.shared.adacache_meter import Meter, RateRule

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AdaCache", "RatedBlocks", "RatedSteps"]

LAST_STEPS: Final = 2
"""Last steps that are always computed. Source: the reference code forces steps 1, S - 1 and S."""


@final
@frozen(kw_only=True)
class RatedSteps(StepPolicy, BlockPolicy):
    """Computes a step when the rate set by the last computed one has passed.

    As a block policy it lets every block run, and looks at some of them.

    Attributes:
        rule: how changes become rates.
        probes: main blocks that are looked at.
    """

    rule: RateRule
    probes: frozenset[int]

    def begin(self, run: RunInfo) -> _StepDecider:
        """Start with no step computed."""
        return _StepDecider(self, Meter(self.rule, run.grid))


@final
@define(eq=False)
class _StepDecider(StepDecider, BlockDecider):
    _policy: RatedSteps
    _meter: Meter
    _computed: int | None = field(default=None, init=False)
    _rate: int = field(default=1, init=False)
    _change: float | None = field(default=None, init=False)

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        changes = self._meter.changes(signals.read_many)
        if changes:
            self._change = sum(changes.values()) / len(changes)
            self._rate = self._policy.rule.rate(self._change / signals.threshold_factor, step.total)
        if self._change is None or self._computed is None:
            return Decision(Mode.FULL, "no change measured yet")
        passed = step.index - self._computed
        reason = f"{passed} of {self._rate} steps, at change {self._change:.3f}"
        mode = Mode.FULL if passed >= self._rate else Mode.REUSE
        return Decision(mode, reason, self._change)

    def settle(self, step: StepInfo, mode: Mode) -> None:
        if mode is Mode.FULL:
            self._computed = step.index

    def enter_call(self, step: StepInfo, branches: tuple[BranchRows, ...]) -> None:
        self._meter.enter(branches)

    def block(self, step: StepInfo, branch: str, key: BlockKey, hidden: Tensor) -> BlockAction:
        if key.index not in self._policy.probes or not self._meter.watches:
            return BlockAction()
        return BlockAction(observe=frozenset({self._policy.rule.part}))

    def observe(
        self, step: StepInfo, branch: str, key: BlockKey, part: SubLayer | None, output: Tensor
    ) -> None:
        self._meter.take(step, key.index, output)


@final
@frozen(kw_only=True)
class RatedBlocks(BlockPolicy):
    """Runs a block when the rate set by its own last run has passed.

    Attributes:
        rule: how changes become rates.
    """

    looks_at_hidden: ClassVar[bool] = False

    rule: RateRule

    def begin(self, run: RunInfo) -> BlockDecider:
        """Start with no block computed."""
        return _BlockDecider(self.rule, Meter(self.rule, run.grid))


@final
@define(eq=False)
class _BlockDecider(BlockDecider):
    _rule: RateRule
    _meter: Meter
    _rates: dict[int, int] = field(factory=dict, init=False)
    _stored: dict[tuple[str, int], int] = field(factory=dict, init=False)
    _step: int = field(default=-1, init=False)
    _reused: frozenset[int] = field(factory=frozenset, init=False)

    def enter_call(self, step: StepInfo, branches: tuple[BranchRows, ...]) -> None:
        self._meter.enter(branches)

    def prepare(self, step: StepInfo, signals: Signals) -> None:
        """Choose the blocks that this step reuses: the only place that waits for the device."""
        self._step = step.index
        for block, change in self._meter.changes(signals.read_many).items():
            self._rates[block] = self._rule.rate(change / signals.threshold_factor, step.total)
        self._reused = frozenset(
            block
            for block, (_, at) in self._meter.kept.items()
            if not step.computed and step.index < at + self._rates.get(block, 1)
        )

    def block(self, step: StepInfo, branch: str, key: BlockKey, hidden: Tensor) -> BlockAction:
        block, kept = key.index, self._meter.kept.get(key.index)
        # A branch that was left out when the block last ran has a residual of another step.
        alike = kept is not None and self._stored.get((branch, block)) == kept[1]
        # The probe of another step policy asks before anything was planned.
        if step.index == self._step and block in self._reused and alike:
            return BlockAction(use=Use.REUSE, store=True)
        self._stored[branch, block] = step.index
        watched = frozenset({self._rule.part}) if self._meter.watches else frozenset()
        return BlockAction(store=not step.is_last, observe=watched)

    def observe(
        self, step: StepInfo, branch: str, key: BlockKey, part: SubLayer | None, output: Tensor
    ) -> None:
        self._meter.take(step, key.index, output)


@final
@frozen(kw_only=True)
class AdaCache(PolicyRecipe):
    """Settings of AdaCache."""

    name: ClassVar[str] = "adacache"
    summary: ClassVar[str] = (
        "reuse steps for as long as the change of attention at the last one allows"
    )
    source: ClassVar[str] = "AdaCache, ICCV 2025, arXiv:2411.02397"
    decides_on: ClassVar[str] = "the change of attention at the last computed step"
    default_guards: ClassVar[Guards] = Guards(first_steps=1, last_steps=LAST_STEPS)
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "quality": {"codebook": "slow"},
        "balanced": {"codebook": "medium"},
        "fast": {"codebook": "fast"},
    }
    preset_shares: ClassVar[Mapping[str, float]] = {"quality": 0.50, "balanced": 0.36, "fast": 0.28}

    level: Literal["auto", "step", "block"] = setting(
        "auto",
        doc="what is reused: whole steps, or single blocks inside computed steps; auto takes blocks "
        "where another policy decides the steps",
    )
    codebook: str = setting(
        "fast", choices=tuple(BOOKS), doc="published rates, brought to the run's number of steps"
    )
    thresholds: tuple[float, ...] = setting(
        (), gt=0, doc="code book of your own: changes per step of the run, ascending; with rates"
    )
    rates: tuple[int, ...] = setting(
        (), ge=1, doc="steps from a computed one to the next for changes below each threshold"
    )
    probe: SubLayer = setting(SubLayer.SELF_ATTENTION, doc="sub-layer whose output is compared")
    probe_blocks: tuple[int, ...] = setting(
        (), ge=0, doc="blocks that are looked at with level=step; empty takes the middle one"
    )
    motion: bool = setting(False, doc="compute more where frames differ (motion regularisation)")
    predictor: Predictor = piece(
        "predictor", Hold(), doc="what stands in for what a reused step leaves out"
    )

    def __attrs_post_init__(self) -> None:
        """Refuse half a code book, and one whose thresholds do not rise (``ConfigError``)."""
        if len(self.thresholds) != len(self.rates):
            raise ConfigError(
                f"thresholds and rates go together, got {len(self.thresholds)} and {len(self.rates)}",
                setting="rates",
                given=self.rates,
            )
        if list(self.thresholds) != sorted(set(self.thresholds)):
            raise ConfigError(
                f"thresholds must rise, got {list(self.thresholds)}",
                setting="thresholds",
                given=self.thresholds,
            )

    def beside(self, others: Sequence[CachePolicy]) -> Self:
        """Leave the steps to another policy that decides them, and decide the blocks of its steps."""
        taken = any(other.step is not None for other in others)
        return evolve(self, level="block") if taken and self.level == "auto" else self

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the pieces for the level that is reused.

        Raises:
            ConfigError: A block to look at is none of the model's.
        """
        strangers = [block for block in self.probe_blocks if block >= model.layers]
        if strangers:
            raise ConfigError(
                f"the model has no block {strangers[0]}",
                setting="probe_blocks",
                given=self.probe_blocks,
                remedy=f"It has blocks 0 to {model.layers - 1}.",
            )
        own = CodeBook(thresholds=self.thresholds, rates=self.rates, steps=None)
        book = own if self.thresholds else self.codebook
        rule = RateRule(book=book, part=self.probe, motion=self.motion)
        if self.level == "block":
            return CachePolicy(
                name=self.name, blocks=RatedBlocks(rule=rule), predictor=self.predictor
            )
        # The middle one: block 13 of 28 in the reference code.
        probes = self.probe_blocks or ((model.layers - 1) // 2,)
        steps = RatedSteps(rule=rule, probes=frozenset(probes))
        return CachePolicy(name=self.name, step=steps, blocks=steps, predictor=self.predictor)
