"""Reuse a step while the latents have changed little since the last computed one."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from hetcache_core import (
    CachePolicy,
    Decision,
    Guards,
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
        latent, last = signals.latent(), signals.kept("latent")
        change, limit = None, self.threshold * signals.threshold_factor
        if last is not None and (change := signals.read(relative_l1(latent, last))) < limit:
            return Decision(Mode.REUSE, f"change under {limit:.3f}", change)
        signals.keep("latent", latent.clone())
        return Decision(Mode.FULL, f"first, or change over {limit:.3f}", change)


@frozen(kw_only=True)
class LatentChange(PolicyRecipe):
    """The settings, as `--set`, YAML files and keyword arguments give them."""

    name: ClassVar[str] = "latent-change"
    summary: ClassVar[str] = "reuse steps while the latents have changed little"
    source: ClassVar[str] = "the template of hetcache; put your paper here"

    threshold: float = setting(0.05, ge=0, doc="relative L1 change of the latents")

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Called once a session, with what is known of the model."""
        step, guards = LatentSteps(self.threshold), Guards(last_steps=1)
        return CachePolicy(name=self.name, step=step, guards=guards)
