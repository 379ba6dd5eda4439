"""How far the signal of a run moves from one step to the next, in units that a threshold can have."""

from __future__ import annotations

from typing import Final, Literal, final

import torch
from attrs import define, frozen
from torch import Tensor

from hetcache_core import Calibration, ConfigError, Signal, Signals, StepInfo, relative_l1
from hetcache_policies.fits.teacache_fits import Fit
from hetcache_policies.shared.signals import SIGNALS, name_of

__all__ = ["Drift", "DriftSettings", "RescaleName"]

RescaleName = Literal["normalized", "none", "poly"]
"""The unit of changes: average steps of the run, relative L1 as it is, or a polynomial of it."""

PREVIOUS: Final = "signal of the last step"
"""Name under which the last step's signal is kept."""

TINY: Final = 1e-12
"""Least divisor, as in ``relative_l1``."""


@final
@frozen(kw_only=True)
class DriftSettings:
    """What is looked at and in which unit its changes are given.

    Attributes:
        signal: the signal. Where it depends on the noise levels alone, all changes of a run are known at
            its first step.
        rescale: the unit. "normalized" divides by the mean change of the run's steps, so that a
            change of 1 is an average step on every model and for every number of steps.
        fit: the polynomial, with "poly".
        calibration: the file that it comes from, which the run's steps must match, or None.
    """

    signal: Signal
    rescale: RescaleName
    fit: Fit | None = None
    calibration: Calibration | None = None

    @property
    def sigmas_only(self) -> bool:
        """Whether all changes of a run are known at its first step."""
        return self.signal.sigmas_only

    def __attrs_post_init__(self) -> None:
        """Refuse units that the signal cannot be given in.

        Raises:
            ConfigError: the signal and the unit do not go together.
        """
        if self.rescale == "normalized" and not self.sigmas_only:
            raise ConfigError(
                f"changes of {name_of(self.signal)} cannot be normalized: they are not known before the run",
                setting="signal",
                given=name_of(self.signal),
                remedy="Use signal=modulation, or rescale=none with a threshold of its own.",
            )
        if (self.rescale == "poly") != (self.fit is not None):
            raise ConfigError("a polynomial belongs to rescale=poly, and to nothing else")
        if self.fit is not None and SIGNALS[self.fit.signal] != self.signal:
            raise ConfigError(
                f"the polynomial was fitted to {self.fit.signal}, not to {name_of(self.signal)}",
                setting="signal",
                given=name_of(self.signal),
                remedy=f"Use signal={self.fit.signal}.",
            )


@final
@define(eq=False)
class Drift:
    """The changes of one run's signal."""

    _settings: DriftSettings

    def change(self, step: StepInfo, signals: Signals) -> float:
        """Return the change from the last step to this one, 0 at the first.

        Ask at every step, whatever it does, so that the last step is the one before this. Waits for
        the device once a run, or once a step where the signal depends on the content.
        """
        if self._settings.sigmas_only:
            return self._look_ahead(signals)[step.index]
        fresh = self._settings.signal.value(signals, step.index)
        previous = signals.kept(PREVIOUS)
        signals.keep(PREVIOUS, fresh)
        if previous is None:
            return 0.0
        return self._rescaled(signals.read(relative_l1(fresh, previous)), step.total)

    def _look_ahead(self, signals: Signals) -> list[float]:
        """Return the changes into all steps; the one into the first is 0."""
        steps = len(signals.timesteps)
        if steps == 1:
            return [0.0]

        def changes() -> Tensor:
            signal = self._settings.signal
            at = torch.stack([signal.value(signals, i).flatten() for i in range(steps)])  # (S, k)
            old = at[:-1]
            moved = (at[1:] - old).abs().mean(1) / old.abs().mean(1).clamp_min(TINY)  # (S - 1,)
            normalized = self._settings.rescale == "normalized"
            return moved / moved.mean().clamp_min(TINY) if normalized else moved

        name = f"drift of {self._settings.signal!r}, {self._settings.rescale}"
        read = signals.read_ahead(name, changes)
        return [0.0, *(self._rescaled(change, steps) for change in read)]

    def _rescaled(self, change: float, steps: int) -> float:
        return change if self._settings.fit is None else self._settings.fit.rescale(change, steps)
