"""Reuse a step while the latents have changed little since the last computed one."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from hetcache_core import (
    CachePolicy,
    Decision,
    Mode,
    ModelInfo,
    PolicyRecipe,
    RunInfo,
    Signals,
    StepDecider,
    StepInfo,
    StepPolicy,
    relative_l1,
    setting,
)


@frozen
class LatentSteps(StepPolicy, StepDecider):
    """Keeps what it compares with in the run's own cache, so it is its own decider."""

    threshold: float

    def begin(self, run: RunInfo) -> StepDecider:
        """Called once a run."""
        return self

    def decide(self, step: StepInfo, signals: Signals) -> Decision:
        """Called once a step, before anything of it has run."""
        latent, computed = signals.latent(), signals.kept("latent")
        change, limit = None, self.threshold * signals.threshold_factor
        if computed is not None:
            change = signals.read(relative_l1(latent, computed))
            if change < limit and not step.is_last:
                return Decision(Mode.REUSE, f"change under {limit:.3f}", change)
        signals.keep("latent", latent.clone())
        return Decision(Mode.FULL, f"first, last, or change over {limit:.3f}", change)


@frozen(kw_only=True)
class LatentChange(PolicyRecipe):
    """The settings, as `--set`, YAML files and keyword arguments give them."""

    name: ClassVar[str] = "latent-change"
    summary: ClassVar[str] = "reuse steps while the latents have changed little"
    source: ClassVar[str] = "the template of hetcache; put your paper here"

    threshold: float = setting(0.05, ge=0, doc="relative L1 change of the latents")

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Called once a session, with what is known of the model."""
        return CachePolicy(name=self.name, step=LatentSteps(self.threshold))
