"""Replay: do what a recorded run did, and decide nothing.

A schedule (``hetcache compile-schedule``) says of every step what it did, of every block and sub-layer
whether it ran, and which token rows were taken. The recorded policy is composed once more for what is not
decided: its predictor, its roles of tokens, its settings of partial steps. What decides is replaced by
pieces that look it up, so no signal is computed. The same run comes out bit by bit.

On a clip with another mask the steps are the recorded ones and so are the blocks; rows of partial steps are
those of this clip's own mask, with the context evenly spread, since recorded rows belong to another mask.

Source: our design. Static schedules from runs that were made before are SmoothCache's (arXiv:2411.10510).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import ClassVar, final

from attrs import evolve, frozen

from hetcache_core import (
    CachePolicy,
    ConfigError,
    ModelInfo,
    PartialSettings,
    Plan,
    PluginWarning,
    PolicyRecipe,
    Schedule,
    discover,
    resolve_policy,
    setting,
)
from hetcache_policies.shared.replayed import (
    ReplayedBlocks,
    ReplayedGuidance,
    ReplayedRows,
    ReplayedSteps,
)

__all__ = ["Replay"]


@final
@frozen(kw_only=True)
class Replay(PolicyRecipe):
    """Settings of the replay."""

    name: ClassVar[str] = "replay"
    summary: ClassVar[str] = "do what a recorded run did, and decide nothing"
    source: ClassVar[str] = "hetcache; the schedule is hetcache compile-schedule's"

    schedule: str = setting(doc="file of hetcache compile-schedule")

    def __attrs_post_init__(self) -> None:
        """Refuse a file that is not there, before anybody loads a model for it.

        Raises:
            ConfigError: It is not.
        """
        if not Path(self.schedule).expanduser().is_file():
            raise ConfigError(
                f"there is no schedule {self.schedule}",
                where=f"policy {self.name}",
                setting="schedule",
                given=self.schedule,
                remedy="Make one with hetcache compile-schedule TRACE --output SCHEDULE",
            )

    def compose(self, model: ModelInfo) -> CachePolicy:
        """Put the recorded decisions into the places of what decided them.

        Raises:
            ConfigError: The file is no schedule for this model, or its policy is not installed.
        """
        schedule = Schedule.load(self.schedule, model=model)
        plan, recorded = schedule.plan, _recorded(schedule, self.schedule, model)
        blocks, guidance = recorded.blocks, recorded.guidance
        note = f"Replays {len(plan.steps)} steps of {schedule.policy}, recorded on {schedule.backbone}."
        return CachePolicy(
            name=self.name,
            step=ReplayedSteps(plan),
            blocks=ReplayedBlocks(plan, blocks.needs_sub_layers)
            if blocks is not None and plan.actions
            else None,
            guidance=None if guidance is None else ReplayedGuidance(plan, guidance),
            predictor=recorded.predictor,
            corrector=recorded.corrector,
            partitioner=recorded.partitioner,
            selector=None if recorded.selector is None else ReplayedRows(plan),
            partial=_partial(plan, recorded),
            reuse_point=recorded.reuse_point,
            # Without steps to decide, nothing of the trunk is kept for them.
            spans=() if recorded.step is None else recorded.spans,
            sampler_share=recorded.sampler_share,
            features=recorded.features,
            notes=(note,),
        )


def _partial(plan: Plan, recorded: CachePolicy) -> PartialSettings | None:
    """Return how partial steps were run: a byte limit may have changed what the policy asks for."""
    if recorded.partial is None or plan.kv_mode is None or plan.control_mode is None:
        return recorded.partial
    return evolve(
        recorded.partial,
        kv_mode=plan.kv_mode,
        control_mode=plan.control_mode,
        keys=evolve(recorded.partial.keys, dtype=plan.kv_dtype),
    )


def _recorded(schedule: Schedule, path: str, model: ModelInfo) -> CachePolicy:
    """Compose the recorded policy.

    Raises:
        ConfigError: It is not installed, or its settings are no longer taken.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # whoever found this policy has said so
        registry = discover()
    try:
        return resolve_policy(schedule.policy, schedule.settings, None, model, registry)[0]
    except ConfigError as error:
        raise ConfigError(
            f"its policy {schedule.policy} cannot be composed: {error}",
            where=f"schedule {path}",
            remedy="Install what provides the policy, or record a run again",
        ) from error
