"""Schedules: what one run did, in a file, for others to do the same without deciding anything."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

from hetcache_core.errors import ConfigError
from hetcache_core.files import read_json, write_text
from hetcache_core.records.plan import REMEDY, Plan
from hetcache_core.records.trace import Trace
from hetcache_core.settings.fitting import structure

if TYPE_CHECKING:
    from hetcache_core.steps import ModelInfo

KIND: Final = "hetcache schedule"
SCHEDULE_VERSION: Final = 1
"""Raised whenever a reader of older files would misread a newer one."""


def _own_version() -> str:
    try:
        return version("hetcache")
    except PackageNotFoundError:
        return "0"


@frozen(kw_only=True)
class Schedule:
    """What a run did, and with which policy.

    Attributes:
        policy: name of the recorded policy; its pieces that decide nothing run again.
        settings: its settings.
        backbone: name of the backbone that was recorded.
        plan: what was done.
        made_by: version of hetcache.
    """

    policy: str
    settings: Mapping[str, Any] = field(hash=False)
    backbone: str
    plan: Plan
    made_by: str = field(factory=_own_version)

    @classmethod
    def of(cls, trace: Trace, *, where: str = "trace") -> Schedule:
        """Make the schedule of a recorded run.

        Raises:
            ConfigError: the trace does not hold what a replay needs.
        """
        if trace.plan is None:
            raise ConfigError(
                f"it has schema {trace.schema_version}, which does not say what blocks and rows did",
                where=where,
                remedy="Record the run again with this version of hetcache.",
            )
        if not trace.complete or len(trace.plan.steps) != trace.steps:
            done = len(trace.plan.steps)
            raise ConfigError(
                f"the run broke off after {done} of {trace.steps} steps",
                where=where,
                remedy="Record a whole run.",
            )
        return cls(
            policy=trace.policy,
            settings=dict(trace.settings),
            backbone=trace.backbone,
            plan=trace.plan,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; the file appears whole or not at all."""
        plain = {
            "kind": KIND,
            "version": SCHEDULE_VERSION,
            "made_by": self.made_by,
            "policy": self.policy,
            "settings": self.settings,
            "backbone": self.backbone,
            "plan": self.plan.to_dict(),
        }
        write_text(Path(path), json.dumps(plain, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: ModelInfo) -> Schedule:
        """Read a file that ``save`` has written.

        Args:
            path: the file.
            model: the model that it is to run on.

        Raises:
            ConfigError: the file cannot be read, or was recorded on another model; says what.
        """
        where = f"schedule {path}"
        remedy = "Make one with hetcache compile-schedule TRACE --output SCHEDULE"
        plain = read_json(Path(path).expanduser(), where=where, remedy=remedy)
        if not isinstance(plain, dict) or plain.get("kind") != KIND:
            raise ConfigError("it is no schedule", where=where, remedy=remedy)
        if plain.get("version") != SCHEDULE_VERSION:
            reason = (
                f"its version is {plain.get('version')!r}, this release reads {SCHEDULE_VERSION}"
            )
            raise ConfigError(reason, where=where, remedy=remedy)
        try:
            schedule: Schedule = structure(plain, cls)
            schedule.plan.check()
        except ValueError as error:
            raise ConfigError(f"it is not whole: {error}", where=where, remedy=remedy) from error
        for name in ("layers", "width", "heads", "control_layers"):
            theirs, ours = getattr(schedule.plan.model, name), getattr(model, name)
            if theirs != ours:
                reason = f"it was recorded on a model with {name} {theirs!r}, this one has {ours!r}"
                raise ConfigError(reason, where=where, remedy=REMEDY)
        return schedule
