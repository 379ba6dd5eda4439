"""Calibration: what a policy needs to know of a model, measured on reference runs and kept in a file."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict, field, frozen

from hetcache_core.errors import ConfigError
from hetcache_core.files import read_json, write_text
from hetcache_core.records.plan import SIGMA_TOLERANCE
from hetcache_core.settings.fitting import UnfitError, structure
from hetcache_core.steps import ModelInfo

if TYPE_CHECKING:
    from hetcache_core.backbone.adapter import RunInfo
    from hetcache_core.policy.recipe import CachePolicy

CALIBRATION_VERSION: Final = 1
"""Raised whenever a reader of older files would misread a newer one."""


class Calibrator(ABC):
    """Watches reference runs and sums up what a policy needs to know of the model."""

    @abstractmethod
    def watch(self) -> CachePolicy:
        """Return a policy that runs every step in full and looks on, run after run."""

    def trials(self) -> Mapping[float, CachePolicy]:
        """Return policies that each clip is run with after its reference; by default none."""
        return {}

    def tried(self, trial: float, quality: float) -> None:
        """Take what a trial came to.

        Args:
            trial: which one.
            quality: PSNR inside the mask to the reference of the same clip, in dB.
        """

    @abstractmethod
    def result(self) -> Mapping[str, Any]:
        """Sum up the watched runs as JSON values.

        Raises:
            ConfigError: the runs do not suffice; says what is missing.
        """


def _own_version() -> str:
    try:
        return version("hetcache")
    except PackageNotFoundError:
        return "0"


@frozen(kw_only=True)
class Calibration:
    """What was measured, and on what.

    Attributes:
        policy: name of the policy that it is for.
        model: the model that it was measured on.
        sigmas: noise levels of the runs; their number is the number of steps.
        clips: how many runs it sums up.
        data: the policy's own values.
        made_by: version of hetcache.
    """

    policy: str
    model: ModelInfo
    sigmas: tuple[float, ...]
    clips: int
    data: Mapping[str, Any] = field(hash=False)
    made_by: str = field(factory=_own_version)

    @property
    def steps(self) -> int:
        """Steps of the runs."""
        return len(self.sigmas)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; the file appears whole or not at all."""
        plain = {"version": CALIBRATION_VERSION, **asdict(self)}
        write_text(Path(path), json.dumps(plain, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, policy: str, model: ModelInfo) -> Calibration:
        """Read a file that was made for a policy and a model.

        Args:
            path: the file.
            policy: the policy that wants it.
            model: the model that it must have been measured on.

        Raises:
            ConfigError: the file cannot be read, or was made for something else; says what.
        """
        where = f"calibration file {path}"
        remedy = f"Make one with hetcache calibrate --backbone {model.backbone} --policy {policy}"
        plain = read_json(Path(path).expanduser(), where=where, remedy=remedy)
        found = plain.get("version") if isinstance(plain, dict) else None
        if not isinstance(plain, dict) or found != CALIBRATION_VERSION:
            reason = f"its version is {found!r}, this release reads {CALIBRATION_VERSION}"
            raise ConfigError(reason, where=where, remedy=remedy)
        try:
            calibration: Calibration = structure(plain, cls)
        except UnfitError as error:
            raise ConfigError(f"it is not whole: {error}", where=where, remedy=remedy) from error
        if calibration.policy != policy:
            reason = f"it was made for policy {calibration.policy}, not for {policy}"
            raise ConfigError(reason, where=where, remedy=remedy)
        for name in ("backbone", "variant", "layers", "width", "heads", "control_layers"):
            theirs, ours = getattr(calibration.model, name), getattr(model, name)
            if theirs != ours:
                reason = f"it was made for a model with {name} {theirs!r}, this one has {ours!r}"
                raise ConfigError(reason, where=where, remedy=remedy)
        return calibration

    def check_run(self, run: RunInfo) -> None:
        """Refuse a run whose steps are not those of the measurement.

        Raises:
            ConfigError: another number of steps, or other noise levels.
        """
        where = f"calibration for {self.policy}"
        remedy = f"Calibrate again with the settings of this run, or run with {self.steps} steps"
        if run.steps != self.steps:
            reason = f"it was measured with {self.steps} steps, this run has {run.steps}"
            raise ConfigError(reason, where=where, remedy=remedy)
        gaps = (abs(a - b) for a, b in zip(self.sigmas, run.sigmas, strict=True))
        if max(gaps) > SIGMA_TOLERANCE:
            reason = "it was measured with other noise levels (another shift) than this run has"
            raise ConfigError(reason, where=where, remedy=remedy)
