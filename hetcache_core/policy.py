"""The abstract pieces that a caching policy is composed of.

Configuration is frozen; what changes from step to step lives in a *decider* that the piece makes
for one run (``begin``). So one policy object can serve any number of runs and threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, cast

from attrs import NOTHING, evolve, field, fields, frozen

from hetcache_core.errors import ConfigError
from hetcache_core.key_settings import KeySettings
from hetcache_core.steps import (
    WHOLE_TRUNK,
    BlockKey,
    BranchRows,
    Decision,
    Mode,
    ModelInfo,
    Span,
    StepInfo,
    SubLayer,
)

if TYPE_CHECKING:
    from attrs import AttrsInstance
    from torch import Tensor
    from typing_extensions import Self

    from hetcache_core.backbone import RunInfo
    from hetcache_core.calibration import Calibrator
    from hetcache_core.signals import Signals
    from hetcache_core.store import Stored
    from hetcache_core.tokens import ContextSelector, TokenPartitioner


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
    def schedule_only(self) -> bool:
        """Whether decisions depend on the schedule alone, so that a run can be played ahead."""
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


class Predictor(ABC):
    """What stands in for a feature that was not computed?"""

    @property
    @abstractmethod
    def history(self) -> int:
        """How many computed values ``predict`` looks at; at least 1."""

    @abstractmethod
    def predict(self, values: Sequence[Stored], *, step: int, gain: float | None) -> Tensor:
        """Return the feature's value at a step.

        Args:
            values: one to ``history`` computed values, oldest first; must not be written to.
            step: the step to predict for.
            gain: the factor of the step's ``Decision``, or None.
        """


class KVMode(str, Enum):
    """Which keys the active queries of a partial step see."""

    CACHED = "cached"
    """Those of all tokens; the inactive ones are the stored ones."""
    PRUNED = "pruned"
    """Those of the active tokens only (the HetCache paper's mode)."""


class ControlMode(str, Enum):
    """Where the control hints of a partial step come from."""

    REUSE = "reuse"
    """Hints of the last full step at the active rows."""
    RECOMPUTE = "recompute"
    """The control blocks, run on the active rows."""


@frozen(kw_only=True)
class PartialSettings:
    """How a partial step is run (``docs/policies.md``, HetCache).

    Attributes:
        kv_mode: which keys the active queries see.
        keys: how the keys of all tokens are kept, with ``KVMode.CACHED``.
        control_mode: where control hints come from.
        context_ratio: share of the context tokens that stays active.
        margin_ratio: share of the margin tokens that stays active, evenly spread.
        max_active_share: above this share of active tokens a partial step is run as a full one.
        pad_to: the number of active tokens is a multiple of this; None picks one for the grid.
        refresh_after: computed full steps after which the selection is made again.
        score_layers: main blocks whose attention is scored; negative ones count from the end.
        score_queries: at most this many generative queries are scored.
        residual_ema: weight of the old residual when active rows are written, 0 to replace it.
        seed: seed of sampled queries and of the selector.
    """

    kv_mode: KVMode = KVMode.CACHED
    keys: KeySettings = field(factory=KeySettings)
    control_mode: ControlMode = ControlMode.REUSE
    context_ratio: float = 0.0
    margin_ratio: float = 1.0
    max_active_share: float = 0.85
    pad_to: int | None = None
    refresh_after: int = 4
    score_layers: tuple[int, ...] = (-1,)
    score_queries: int = 512
    residual_ema: float = 0.0
    seed: int = 0


class ReusePoint(str, Enum):
    """What a REUSE step leaves out."""

    TRUNK = "trunk"
    """The blocks; embedding and head run with the current timestep."""
    OUTPUT = "output"
    """The whole model call; the decision can look at latents and timestep only."""


@frozen(kw_only=True)
class CachePolicy:
    """The composition: one piece for each question, None where it is not asked.

    Attributes:
        name: the name in traces and tables, pieces joined by "+".
        step: FULL, PARTIAL or REUSE; None runs every step in full.
        blocks: what happens inside computed steps.
        guidance: which branches are predicted.
        predictor: what stands in for what is not computed; None holds the last value.
        partitioner: roles of tokens; needed for PARTIAL.
        selector: which context tokens stay active; needed for PARTIAL with ``context_ratio > 0``.
        partial: how PARTIAL steps run; None where the step policy never asks for one.
        reuse_point: what a REUSE step leaves out.
        spans: the spans whose residuals computed steps keep for REUSE.
        sampler_share: share of the sampler steps asked for that is taken, in (0, 1].
        features: names of ``Features`` fields that the pieces need beyond those implied here.
        notes: sentences about how it was made that belong into every trace.
    """

    name: str
    step: StepPolicy | None = None
    blocks: BlockPolicy | None = None
    guidance: GuidancePolicy | None = None
    predictor: Predictor | None = None
    partitioner: TokenPartitioner | None = None
    selector: ContextSelector | None = None
    partial: PartialSettings | None = None
    reuse_point: ReusePoint = ReusePoint.TRUNK
    spans: tuple[Span, ...] = (WHOLE_TRUNK,)
    sampler_share: float = 1.0
    features: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        """Refuse combinations that could not run.

        Raises:
            ConfigError: pieces are missing or in each other's way.
        """
        if not 0 < self.sampler_share <= 1:
            raise ConfigError(
                f"Policy {self.name!r} takes {self.sampler_share} of the steps; give a share in (0, 1]."
            )
        if self.partial is not None and self.partitioner is None:
            raise ConfigError(f"Policy {self.name!r} has partial steps but no TokenPartitioner.")
        if self.partial is not None and self.partial.context_ratio > 0 and self.selector is None:
            raise ConfigError(
                f"Policy {self.name!r} keeps {self.partial.context_ratio:.0%} of the context but has "
                "no ContextSelector to choose it."
            )
        if self.partial is not None and self.blocks is not None:
            raise ConfigError(
                f"Policy {self.name!r} mixes partial steps with block-level reuse: blocks store all "
                "tokens, partial steps run some. Use one of the two."
            )

    def needs(self) -> frozenset[str]:
        """Names of the ``Features`` that a backbone must have to carry this policy."""
        needed = set(self.features)
        if self.partial is not None:
            needed |= {"mask", "rows"}
            if self.partial.kv_mode is KVMode.CACHED:
                needed.add("attention")
        if self.selector is not None and self.selector.needs_scores:
            needed.add("attention")
        if self.blocks is not None and self.blocks.needs_sub_layers:
            needed.add("sub_layers")
        if self.reuse_point is ReusePoint.OUTPUT or self.guidance is not None:
            needed.add("output")
        if self.sampler_share < 1:
            needed.add("sampler")
        return frozenset(needed)


_PIECES = ("step", "blocks", "guidance", "predictor", "partitioner", "selector", "partial")


def combine(first: CachePolicy, second: CachePolicy) -> CachePolicy:
    """Compose two policies that answer different questions.

    Raises:
        ConfigError: both answer the same question.
    """
    defaults = {f.name: f.default for f in fields(CachePolicy)}
    merged: dict[str, Any] = {"name": f"{first.name}+{second.name}"}
    for piece in (*_PIECES, "reuse_point", "spans", "sampler_share"):
        mine, other = getattr(first, piece), getattr(second, piece)
        both = mine != defaults[piece] and other != defaults[piece]
        if both and (piece in _PIECES or mine != other):
            raise ConfigError(
                f"Policies {first.name!r} and {second.name!r} both bring a {piece} piece "
                f"({type(mine).__name__} and {type(other).__name__}); only one can decide it. "
                "Drop one of them."
            )
        merged[piece] = mine if mine != defaults[piece] else other
    merged["features"] = first.features | second.features
    merged["notes"] = first.notes + second.notes
    return evolve(first, **merged)


class PolicyRecipe(ABC):
    """A named policy with its settings: what a plugin registers.

    Subclasses are final ``attrs.frozen(kw_only=True)`` classes whose fields are the settings that
    ``--set``, YAML files and keyword arguments may give (declare them with ``settings.setting``).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    anywhere: ClassVar[Mapping[str, object]] = {}
    """Settings with which it runs on every model, for those that try every policy on one."""
    expected_failures: ClassVar[Mapping[str, str]] = {}
    """Checks of the contract kit that it has to fail on ``TinyBackbone``, each with its reason."""
    decides_on: ClassVar[str] = ""
    """What its decisions look at, in a few words for tables."""
    preset_shares: ClassVar[Mapping[str, float]] = {}
    """Share of the FLOPs that each preset computes: a run with the preset is asked for it.

    Where the policy decides steps, its thresholds follow as they do for ``target_speedup``; elsewhere
    the settings have to reach it.
    """

    @abstractmethod
    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the policy for a model.

        Raises:
            ConfigError: these settings don't fit the model; the message says which would.
        """

    @classmethod
    def needs_settings(cls) -> tuple[str, ...]:
        """Name the settings without which it runs on no model, those in ``anywhere`` left out."""
        settings = cast("type[AttrsInstance]", cls)
        return tuple(
            f.alias or f.name
            for f in fields(settings)
            if f.default is NOTHING and (f.alias or f.name) not in cls.anywhere
        )

    def beside(self, others: Sequence[CachePolicy]) -> Self:
        """Return the recipe to use when composed with others ("adacache+teacache").

        A recipe that can answer another question when its usual one is already answered, or that
        can give up a piece, does so here.

        Args:
            others: what the other recipes compose on their own.
        """
        return self

    @classmethod
    def calibrator(cls) -> Calibrator | None:
        """Return a calibrator for this policy, or None where it needs no calibration."""
        return None

    @classmethod
    def at_speedup(cls, speedup: float) -> Mapping[str, object]:
        """Return settings that alone leave out all but ``1 / speedup`` of the FLOPs.

        For policies that no budget can steer because they decide no steps; the others return nothing,
        and their thresholds follow.

        Args:
            speedup: how many times fewer FLOPs are asked for, at least 1.
        """
        return {}

    @classmethod
    def preset(cls, preset: str, model: ModelInfo) -> Mapping[str, object]:
        """Return the settings of "quality", "balanced" or "fast" on a model.

        Raises:
            ConfigError: this policy has no such preset; the default has none at all.
        """
        raise ConfigError(f"Policy {cls.name!r} has no preset {preset!r}.")
