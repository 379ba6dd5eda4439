"""The composition of pieces that is a policy, and the recipe that a plugin registers for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import NOTHING, Factory, evolve, field, fields, frozen

from hetcache_core.errors import ConfigError, nearest_name
from hetcache_core.policy.guards import Guards, GuardSettings
from hetcache_core.policy.partial import KVMode, PartialSettings
from hetcache_core.policy.pieces import (
    BlockPolicy,
    Corrector,
    GuidancePolicy,
    Hold,
    KeepOutput,
    Predictor,
    StepPolicy,
)
from hetcache_core.steps import WHOLE_TRUNK, ModelInfo, Span

if TYPE_CHECKING:
    from typing_extensions import Self

    from hetcache_core.records.calibration import Calibrator
    from hetcache_core.tokens import ContextSelector, TokenPartitioner


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
        predictor: what stands in for what is not computed.
        corrector: what a computed step pays back for those before it that were not.
        partitioner: roles of tokens; needed for PARTIAL.
        selector: which context tokens stay active; needed for PARTIAL with ``context_ratio > 0``.
        partial: how PARTIAL steps run; None where the step policy never asks for one.
        reuse_point: what a REUSE step leaves out.
        spans: the spans whose residuals computed steps keep for REUSE.
        sampler_share: share of the sampler steps asked for that is taken, in (0, 1].
        features: names of ``Features`` fields that the pieces need beyond those implied here.
        notes: sentences about how it was made that belong into every trace.
        guards: steps that it wants computed whatever its pieces say; they give way to a target.
        asked: guards that a user has set in its settings; these hold.
    """

    name: str
    step: StepPolicy | None = None
    blocks: BlockPolicy | None = None
    guidance: GuidancePolicy | None = None
    predictor: Predictor = field(factory=Hold)
    corrector: Corrector = field(factory=KeepOutput)
    partitioner: TokenPartitioner | None = None
    selector: ContextSelector | None = None
    partial: PartialSettings | None = None
    reuse_point: ReusePoint = ReusePoint.TRUNK
    spans: tuple[Span, ...] = (WHOLE_TRUNK,)
    sampler_share: float = 1.0
    features: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    guards: Guards = field(factory=Guards)
    asked: Guards = field(factory=Guards)

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
        if self.measures and self.spans not in ((), (WHOLE_TRUNK,)):
            raise ConfigError(
                f"Policy {self.name!r} reuses parts of the trunk, and its corrector or its measured "
                "predictor compares whole ones. Use a predictor such as linear, and no corrector."
            )
        if self.partial is not None and self.blocks is not None:
            raise ConfigError(
                f"Policy {self.name!r} mixes partial steps with block-level reuse: blocks store all "
                "tokens, partial steps run some. Use one of the two."
            )

    def __repr__(self) -> str:
        """Name the pieces that it has, without their settings."""
        pieces = {name: getattr(self, name) for name in _PIECES}
        own = [f"{k}={type(v).__name__}" for k, v in pieces.items() if v is not None]
        return f"<CachePolicy {self.name}: {', '.join(own)}>"

    @property
    def measures(self) -> bool:
        """Whether its computed steps are compared with what reused ones would have answered."""
        paid = not isinstance(self.corrector, KeepOutput) or self.predictor.measured is not None
        return self.step is not None and paid

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


_PIECES = (
    "step",
    "blocks",
    "guidance",
    "predictor",
    "corrector",
    "partitioner",
    "selector",
    "partial",
)


def combine(first: CachePolicy, second: CachePolicy) -> CachePolicy:
    """Compose two policies that answer different questions.

    Raises:
        ConfigError: both answer the same question.
    """
    bare = CachePolicy(name="")
    merged: dict[str, Any] = {"name": f"{first.name}+{second.name}"}
    for piece in (*_PIECES, "reuse_point", "spans", "sampler_share"):
        mine, other = getattr(first, piece), getattr(second, piece)
        default = getattr(bare, piece)
        both = default not in (mine, other)
        if both and (piece in _PIECES or mine != other):
            raise ConfigError(
                f"Policies {first.name!r} and {second.name!r} both bring a {piece} piece "
                f"({type(mine).__name__} and {type(other).__name__}); only one can decide it. "
                "Drop one of them."
            )
        merged[piece] = mine if mine != default else other
    merged["features"] = first.features | second.features
    merged["notes"] = first.notes + second.notes
    # Whoever decides the steps knows best how its own are to be guarded.
    leading, other = (second, first) if first.step is None else (first, second)
    merged["guards"] = leading.guards.over(other.guards)
    merged["asked"] = _both_asked(first, second)
    return evolve(first, **merged)


def _both_asked(first: CachePolicy, second: CachePolicy) -> Guards:
    mine, others = first.asked.named, second.asked.named
    for name in mine.keys() & others.keys():
        if mine[name] != others[name]:
            raise ConfigError(
                f"{name} is {mine[name]} for {first.name!r} and {others[name]} for {second.name!r}; a "
                "run has one",
                setting=name,
                remedy="Set it for one of them, or for the run",
            )
    return second.asked.over(first.asked)


@frozen(kw_only=True)
class PolicyRecipe(GuardSettings, ABC):
    """A named policy with its settings: what a plugin registers.

    Subclasses are final ``attrs.frozen(kw_only=True)`` classes whose fields are the settings that
    ``--set``, YAML files and keyword arguments may give (declare them with ``settings.setting``). Every
    policy has those of ``GuardSettings``, which the engine heeds and no policy needs to look at.
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
    default_guards: ClassVar[Guards] = Guards()
    """Guards that it wants where nobody sets others; they give way to a target."""
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    """Settings of each preset, where they are the same for every model."""
    preset_shares: ClassVar[Mapping[str, float]] = {}
    """Share of the FLOPs that each preset computes: a run with the preset is asked for it.

    Where the policy decides steps, its thresholds follow as they do for ``target_speedup``; elsewhere
    the settings have to reach it.
    """

    @classmethod
    def __attrs_init_subclass__(cls) -> None:
        """Keep the short repr, which attrs would replace by one with all settings."""
        cls.__repr__ = PolicyRecipe.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        """Name the settings that are not the default ones."""
        return f"{type(self).__name__}({', '.join(_given(self))})"

    @abstractmethod
    def compose(self, model: ModelInfo) -> CachePolicy:
        """Make the policy for a model.

        Raises:
            ConfigError: these settings don't fit the model; the message says which would.
        """

    def composed(self, model: ModelInfo) -> CachePolicy:
        """Compose the policy together with its guards: the defaults, and what its settings set.

        Raises:
            ConfigError: as ``compose`` says.
        """
        made = self.compose(model)
        return evolve(made, guards=made.guards.over(self.default_guards), asked=Guards.of(self))

    @classmethod
    def needs_settings(cls) -> tuple[str, ...]:
        """Name the settings without which it runs on no model, those in ``anywhere`` left out."""
        return tuple(
            f.alias or f.name
            for f in fields(cls)
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
    def presets_for(cls, model: ModelInfo) -> Mapping[str, Mapping[str, object]]:
        """Return the presets' settings on a model; override it where they depend on the model."""
        return cls.presets

    @classmethod
    def preset(cls, preset: str, model: ModelInfo) -> Mapping[str, object]:
        """Return the settings of "quality", "balanced" or "fast" on a model.

        Raises:
            ConfigError: this policy has no such preset.
        """
        known = cls.presets_for(model)
        if preset in known:
            return known[preset]
        nearest = nearest_name(preset, known)
        raise ConfigError(
            f"there is no preset {preset!r}" + (f", did you mean {nearest!r}?" if nearest else ""),
            where=f"policy {cls.name}",
            remedy=f"Known: {', '.join(known)}." if known else "It has none.",
            setting="preset",
            given=preset,
            allowed=known,
            nearest=nearest,
        )


def _given(recipe: PolicyRecipe) -> Iterator[str]:
    for each in fields(type(recipe)):
        value, default = getattr(recipe, each.name), each.default
        if isinstance(default, Factory):  # type: ignore[arg-type]
            default = default.factory(recipe) if default.takes_self else default.factory()
        if value != default:
            yield f"{each.alias or each.name}={value!r}"
